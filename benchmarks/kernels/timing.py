"""Times work on a GPU: captured in CUDA graphs, replayed in turn, measured by events on the device.

What is compared takes turns: every round replays each task once, so that clocks and heat meet all alike. A task's
inputs and weights stay where they are from call to call, and the L2 cache keeps what it can of them: an LSTM reads the
same weights in every step, and highways and products the same ones for every batch of words, so that a warm cache is
how they run in use. Inputs are random numbers: on zeros a matrix product runs faster than on any real data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import torch

REPLAY_MICROSECONDS = 1500.0  # of one replay: long beside the clock's grain of about a microsecond
MAX_RUNS = 500  # captured in one graph
WARM_UPS = 3


class Task(NamedTuple):
    """Something to time.

    Attributes:
        name: who it is.
        run: queues the work on the current stream and returns; whatever it compiles, it has compiled in its first call.
        calls: how often the work is done in one run; times are those of a call.
    """

    name: str
    run: Callable[[], object]
    calls: int = 1


class Timing(NamedTuple):
    """Microseconds a call in each round, and anything to say: where the task failed there are no samples."""

    samples: list[float]
    note: str = ""


class Timer(Protocol):
    """Times tasks; what is timed by it takes turns."""

    def time(self, tasks: Sequence[Task]) -> list[Timing]:
        """The tasks' timings, in order."""


class Deadline:
    """So many seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    @property
    def over(self) -> str:
        """What to say of what is left out."""
        return f"skipped, as the {self.seconds:.0f} seconds were over"


class _Prepared(NamedTuple):
    replay: Callable[[], object]
    calls: int
    note: str


class GraphTimer:
    """Times tasks on the current CUDA device.

    Args:
        rounds: samples of each task.
    """

    def __init__(self, rounds: int = 9) -> None:
        self._rounds = rounds

    def time(self, tasks: Sequence[Task]) -> list[Timing]:
        """The tasks' timings, in order; a task that raises has none, and the others go on."""
        prepared: list[_Prepared | str] = []
        for task in tasks:
            try:
                prepared.append(self._prepare(task))
            except Exception as error:  # a card too small, a compiler that gives up: one task's failure is its own
                prepared.append(one_line(error))
        samples: list[list[float]] = [[] for _ in tasks]
        for _ in range(self._rounds):
            for k, ready in enumerate(prepared):
                if isinstance(ready, str):
                    continue
                try:
                    samples[k].append(_microseconds(ready.replay) / ready.calls)
                except Exception as error:  # what ran on the device failed
                    prepared[k] = one_line(error)
        return [
            Timing([], ready) if isinstance(ready, str) else Timing(taken, ready.note)
            for ready, taken in zip(prepared, samples, strict=True)
        ]

    def _prepare(self, task: Task) -> _Prepared:
        for _ in range(WARM_UPS):
            task.run()
        torch.cuda.synchronize()
        prepared = _capture(task, 1)
        for _ in range(2):  # the second guess knows what launching a graph of many runs costs
            took = _microseconds(prepared.replay)
            runs = int(min(MAX_RUNS, REPLAY_MICROSECONDS * prepared.calls / task.calls // max(took, 1.0)))
            if runs > 2 * prepared.calls // task.calls:
                prepared = _capture(task, runs)
        return prepared


def _capture(task: Task, runs: int) -> _Prepared:
    """So many runs in one graph, or in a loop where no graph can hold them; replayed once."""

    def loop() -> None:
        for _ in range(runs):
            task.run()

    note = ""
    replay: Callable[[], object] = loop
    try:
        replay = _graph(loop).replay
    except Exception as error:
        torch.cuda.synchronize()
        note = f"timed in a loop, launches included, as no graph could be captured: {one_line(error)}"
    replay()
    torch.cuda.synchronize()
    return _Prepared(replay, runs * task.calls, note)


def _graph(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """What a run queues, as a graph; `torch.cuda.graph` would collect garbage each time, which takes longer."""
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            run()
        except BaseException:
            with suppress(Exception):  # the end of a failed capture fails too, and says less
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


def _microseconds(run: Callable[[], object]) -> float:
    """Of one run, between two events on the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1e3 * float(start.elapsed_time(end))


def one_line(error: BaseException) -> str:
    """What went wrong, in one line of at most 200 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0].strip()}"[:200]
