"""Models of NVIDIA Triton Inference Server's Python backend: each file is copied into a repository as `model.py`."""
