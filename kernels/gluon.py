"""Names of Gluon that changed between versions: kernels use those of Triton 3.9 and run on 3.6 to 3.9."""

from __future__ import annotations

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # for all threads of a program
async_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
