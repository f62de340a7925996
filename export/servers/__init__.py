"""A model repository for NVIDIA Triton Inference Server, which serves the exported files and the engine."""
