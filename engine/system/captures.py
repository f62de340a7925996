"""Streams that CUDA graphs may be captured on, and what PyTorch leaves behind of a capture that failed."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# PyTorch has 32 streams of each priority and gives them out in turn: a program that asks for more gets some again. It
# asks for those of priority 0, or -1, which is higher.
PRIORITY = -2

_abandoned: list[Any] = []  # kept alive: PyTorch's allocators still query them


def own_stream(device: torch.device | None = None) -> torch.cuda.Stream:
    """Return a stream of a device, by default the current one, that hardly any other part of a program is given too.

    On one that is captured, others' work would become part of the graph, and not be done.
    """
    import torch

    return torch.cuda.Stream(device, priority=PRIORITY)


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
    with suppress(Exception), torch.cuda.stream(own_stream()):
        another = torch.cuda.CUDAGraph()
        another.capture_begin(capture_error_mode="relaxed")
        try:
            torch.cuda._sleep(1)  # of an empty graph there would be a warning
        finally:
            another.capture_end()
