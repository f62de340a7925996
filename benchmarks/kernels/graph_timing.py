"""Times work on a GPU: captured in CUDA graphs, replayed in turn, measured by events on the device; and so its limits.

A task's inputs and weights stay where they are from call to call, and the L2 cache keeps what it can of them: an LSTM
reads the same weights in every step, and highways and products the same ones for every batch of words, so that a warm
cache is how they run in use. Inputs are random numbers: on zeros a matrix product runs faster than on any real data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeAlias

import torch

from flashelmo.benchmarks.kernels.card import CARD, Card, Device
from flashelmo.benchmarks.kernels.model import Cost
from flashelmo.benchmarks.kernels.problems import dtype_of, library_product
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.timing import Timing, take_turns
from flashelmo.benchmarks.worker import one_line

REPLAY_MICROSECONDS = 1500.0  # of one replay: long beside the clock's grain of about a microsecond
MAX_RUNS = 500  # captured in one graph
WARM_UPS = 3


class Task(NamedTuple):
    """Something to time.

    Attributes:
        name: who it is.
        run: queues the work on the current stream and returns; whatever it compiles, it has compiled in its first call.
        calls: how often the work is done in one run; times are those of a call.
        cost: of one call, for the model; None for a peer, as are its checks.
        checks: names of the checks that must have passed.
        peer: name of the task in the same group that does the same by other means.
    """

    name: str
    run: Callable[[], object]
    calls: int = 1
    cost: Cost | None = None
    checks: tuple[str, ...] = ()
    peer: str = ""

    @property
    def precision(self) -> str:
        """That it computes in: a name's last word."""
        return self.name.split()[-1]


# Times tasks in turns: rounds and tasks to the tasks' timings in order, in microseconds a call.
Timer: TypeAlias = Callable[[int, Sequence[Task]], list[Timing]]


class _Prepared(NamedTuple):
    replay: Callable[[], object]
    calls: int
    note: str

    def microseconds(self) -> float:
        """Of a call, between two events on the current stream."""
        return _microseconds(self.replay) / self.calls


def time_graphs(rounds: int, tasks: Sequence[Task]) -> list[Timing]:
    """The tasks' timings on the current CUDA device, in order; one that raises has none, and the others go on."""
    prepared: dict[int, _Prepared] = {}
    failed: dict[int, Timing] = {}
    for k, task in enumerate(tasks):
        try:
            prepared[k] = _prepare(task)
        except Exception as error:  # a card too small, a compiler that gives up: one task's failure is its own
            failed[k] = Timing([], one_line(error))
    taken = take_turns(rounds, {k: each.microseconds for k, each in prepared.items()}, pause=0.0)
    timed = {k: timing if timing.note else Timing(timing.samples, prepared[k].note) for k, timing in taken.items()}
    return [(timed | failed)[k] for k in range(len(tasks))]


def _prepare(task: Task) -> _Prepared:
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
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1e3 * float(start.elapsed_time(end))


# ------------------------------------------------------------------------------------------------------------ ceilings

Work = tuple[str, str, str, float, Callable[[], Callable[[], object]]]  # what it limits, name, detail, work, its maker


def measure_ceilings(
    settings: Settings, device: Device, card: Card, precisions: Sequence[str], timer: Timer
) -> Iterator[tuple[Row, Card]]:
    """A row for each limit, in TFLOP/s or GB/s, and the card with the limits so far.

    Args:
        precisions: whose products are measured; fp16, whose peak is bf16's, and int8 change nothing of the card.
    """
    for limit, name, detail, work, make in _works(settings, device.torch, precisions):
        (timing,) = timer(settings.rounds, [Task(name, make())])
        scale, unit = (1e12, "TFLOP/s") if name.startswith("torch") else (1e9, "GB/s")
        row = Row("ceiling", CARD, name, unit, detail, note=timing.note)
        row = row.with_samples([work / (1e-6 * us) / scale for us in timing.samples])
        card = card.with_limit(limit, row.median and scale * row.median) if limit else card
        yield row, card


def _works(settings: Settings, device: str, precisions: Sequence[str]) -> Iterator[Work]:
    """Square products of each precision, a copy far larger than any cache, and one that the L2 cache holds."""
    n = settings.peak_size
    limits = {"bf16": "half", "fp32": "fp32", "tf32": "tf32"}
    for precision in precisions:
        make = partial(_square_product, n, precision, device)
        yield limits.get(precision, ""), f"torch.mm {precision}", f"{n} x {n} x {n}", 2.0 * n**3, make
    for limit, name, size in (("memory", "copy", settings.copy_bytes), ("l2", "copy in L2", settings.l2_copy_bytes)):
        yield limit, name, f"{size >> 20} MiB", 2.0 * size, partial(_copy, size, device)


def _square_product(n: int, precision: str, device: str) -> Callable[[], object]:
    a, b = (torch.randn(n, n, device=device).to(dtype_of(precision)) for _ in range(2))
    return library_product(a, b, precision)


def _copy(size: int, device: str) -> Callable[[], object]:
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    return partial(torch.empty_like(source).copy_, source)
