"""What PyTorch leaves behind of a CUDA graph whose capture failed."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

_abandoned: list[Any] = []  # kept alive: PyTorch's allocators still query them


def abandon(graph: Any, pool: Any) -> None:
    """End a capture that failed, on its device.

    Otherwise the allocators stay in capture mode and reuse no memory, and, up to PyTorch 2.11 at least, so does the
    default generator: dropout, anywhere in the program, then raises. A capture that succeeds resets it.

    Args:
        graph: that was to be captured.
        pool: its memory, from `torch.cuda.graph_pool_handle`, which nothing else uses from now on.
    """
    import torch

    graph.reset()
    with suppress(Exception):  # where the capture has ended already
        device = torch.cuda.current_device()
        torch._C._cuda_endAllocateToPool(device, pool)
        _abandoned.append(graph)
        torch._C._cuda_releasePool(device, pool)
    with suppress(Exception), torch.cuda.stream(torch.cuda.Stream()):
        another = torch.cuda.CUDAGraph()
        another.capture_begin(capture_error_mode="relaxed")
        try:
            torch.cuda._sleep(1)  # of an empty graph there would be a warning
        finally:
            another.capture_end()
