"""A model repository for NVIDIA Triton Inference Server, in which the exported files and the engine are served."""
