"""Small windows as captured CUDA graphs: a bucket's launches are recorded once and replayed for each of its windows.

A step of few rows takes microseconds, and its two launches from Python take far longer. A graph's launches are
recorded, so that replaying all steps costs the host one call. Kernels read from the schedule which nodes there are, so
one graph serves every window that its bucket holds.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from flashelmo.engine.cuda.transfer import CAPTURE_LOCK, Staging, streams_of
from flashelmo.engine.errors import first_line
from flashelmo.engine.system.captures import abandon
from flashelmo.kernels.pytorch import is_out_of_memory

MAX_RESULT_BYTES = 1 << 30  # of all graphs' results; all other memory the graphs share

logger = logging.getLogger("flashelmo")


@dataclass(frozen=True)
class Captured:
    """One bucket's graph.

    Attributes:
        replay: runs it and gives its result, which the next replay overwrites.
        packed_schedule: its input, which is overwritten before a replay.
        n_bytes: size of its result.
    """

    replay: Callable[[], Tensor]
    packed_schedule: Tensor
    n_bytes: int = 0

    @cached_property
    def staging(self) -> Staging:
        """What brings its input to the device."""
        return Staging(self.packed_schedule)


class GraphCache:
    """Graphs by bucket. A bucket is captured when it comes a second time: its first window compiles the kernels.

    Args:
        device: a CUDA device, or the CPU for Triton's interpreter.
        max_graphs: graphs that are kept; the least recently replayed gives way.
    """

    def __init__(self, device: torch.device, max_graphs: int) -> None:
        self._device = device
        self._max_graphs = max_graphs
        self._graphs: OrderedDict[Hashable, Captured] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._pool: Any = None  # graphs run one after the other, so that all share their memory
        self.works = True

    def get(self, key: Hashable, size: int, run: Callable[[Tensor], Tensor]) -> Captured | None:
        """The graph of a bucket; None where it is not captured (yet), or where memory is lacking for that.

        Args:
            key: the bucket, and whatever else the launches depend on.
            size: of the bucket's packed schedule.
            run: queues the bucket's work on a packed schedule that it is given, and returns the result.
        """
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if not self.works:
            return None
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > 16 * self._max_graphs:
                self._seen.popitem(last=False)
            return None
        try:
            captured = self._capture(size, run)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                self.works = False  # the same launches work without a graph
                logger.warning("CUDA graphs are not used: %s", first_line(error))
                return None
        else:
            self._graphs[key] = captured
            while len(self._graphs) > 1 and self._are_too_many():
                self._wait()
                self._graphs.popitem(last=False)
            return captured
        self.clear()  # only here, as the error held tensors; a capture cannot use memory that is kept for launches
        release_memory(self._device)
        return None

    def clear(self) -> None:
        """Free all graphs and their memory."""
        self._wait()
        self._graphs.clear()
        self._pool = None

    def _are_too_many(self) -> bool:
        n_bytes = sum(graph.n_bytes for graph in self._graphs.values())
        return len(self._graphs) > self._max_graphs or n_bytes > MAX_RESULT_BYTES

    def _wait(self) -> None:
        """Wait until no graph runs any more, so that it can be freed."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _capture(self, size: int, run: Callable[[Tensor], Tensor]) -> Captured:
        """Capture what a run queues; `torch.cuda.graph` would collect garbage and empty caches first."""
        packed_schedule = torch.zeros(size, dtype=torch.int32, device=self._device)
        if self._device.type == "cpu":  # Triton's interpreter has no graphs: the run itself stands for one
            return Captured(_rerun(partial(run, packed_schedule)), packed_schedule)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self._wait()
        # Not in the current stream, to which other threads may queue work meanwhile.
        with CAPTURE_LOCK, torch.cuda.stream(streams_of(self._device).capture):
            try:
                out = _record(graph, self._pool, partial(run, packed_schedule))
            except BaseException:
                pool, self._pool = self._pool, None
                abandon(graph, pool)
                raise

        def replay() -> Tensor:
            graph.replay()
            return out

        return Captured(replay, packed_schedule, out.nbytes)


def release_memory(device: torch.device) -> None:
    """Give what PyTorch keeps of a device's memory for later use back to the driver."""
    if device.type == "cuda":
        with CAPTURE_LOCK:
            torch.cuda.empty_cache()


def _record(graph: torch.cuda.CUDAGraph, pool: Any, run: Callable[[], Tensor]) -> Tensor:
    """Capture what a run queues on the current stream; return its result."""
    # "relaxed": stricter modes reject harmless calls, such as loading a kernel or freeing a tensor.
    try:
        graph.capture_begin(pool=pool, capture_error_mode="relaxed")
        out = run()
    except BaseException:
        with suppress(Exception):  # the end of a failed capture fails too, and says less
            graph.capture_end()
        raise
    graph.capture_end()
    return out


def _rerun(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A replay without a graph, which writes one tensor again and again as a graph does."""
    held: list[Tensor] = []

    def replay() -> Tensor:
        out = run()
        if not held:
            held.append(out)
        return held[0].copy_(out)

    return replay
