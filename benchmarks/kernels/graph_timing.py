"""Work on a GPU as contestants: captured in CUDA graphs and replayed; and its limits, measured the same way.

A task's inputs and weights stay in place from call to call, and the L2 cache keeps what it can of them: an LSTM reads
the same weights in every step, and highways and products the same ones for every batch of words, so that a warm cache
is how they run in use. Inputs are random numbers: on zeros a matrix product is faster than on real data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from flashelmo.benchmarks.contestant import Contestant, Entry, Way, compete, line_up
from flashelmo.benchmarks.kernels.card import CARD, LIMITS, SCALES, Card, Cost, Device
from flashelmo.benchmarks.kernels.problems import dtype_of, library_product
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings

RUNS = 50  # captured in one graph, so that launching it costs little in comparison
WARM_UPS = 3


class TimedTask(NamedTuple):
    """Something to time.

    Attributes:
        name: who it is; if it has a cost, the last word is the precision.
        run: queues the work on the current stream and returns; its first call compiles everything.
        calls: how often the work is done in one run, as times are per call; or its amount in a speed's unit.
        cost: of one call, for the ceiling; None for a peer.
        peer: name of the task in the same group that does the same by other means.
    """

    name: str
    run: Callable[[], object]
    calls: float = 1
    cost: Cost | None = None
    peer: str = ""


def time_tasks(
    row: Row, tasks: Sequence[TimedTask], settings: Settings, device: Device, card: Card, runs: int = RUNS
) -> list[Row]:
    """Return a row for each task, timed in turns, with its ceiling and its speed relative to its peer.

    Args:
        runs: captured in one graph on a card.
    """
    runs = runs if device.is_cuda else 1
    entries = []
    for task in tasks:
        precision = task.name.split()[-1]
        who = Contestant(task.name, precision, graph_way, (task.run, runs, device), is_rival=task.cost is None)
        entry = Entry(who, replace(row, name=task.name), [None], runs * task.calls, group=task.peer or task.name)
        if task.cost is not None:
            entry = entry._replace(limits=partial(_ceiling, task.cost, card, precision))
        entries.append(entry)
    workers, absent = line_up([each.who for each in entries], [], None)
    rows = compete(entries, workers, settings, at_least=settings.sample_seconds, pause=0.0)
    return [*rows, *(replace(row, name=name, note=note) for name, note in absent.items())]


def _ceiling(cost: Cost, card: Card, precision: str) -> tuple[float, None]:
    return cost.microseconds(card, precision), None


def graph_way(run: Callable[[], object], runs: int, device: Device) -> Way:
    """Return this many runs as one piece of work."""
    for _ in range(WARM_UPS if device.is_cuda else 0):
        run()
    device.synchronize()
    replay = captured(run, runs) if device.is_cuda else run
    return Way(lambda batch: [], lambda work: replay(), wait=device.synchronize)


def captured(run: Callable[[], object], runs: int) -> Callable[[], object]:
    """Return a replay of what these runs queue; `torch.cuda.graph` would collect garbage each time, which is slower."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            for _ in range(runs):
                run()
        except BaseException:
            with suppress(Exception):  # ending a failed capture fails too, with a worse message
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    graph.replay()
    torch.cuda.synchronize()
    replay: Callable[[], object] = graph.replay
    return replay


def measure_ceilings(settings: Settings, device: Device) -> list[Row]:
    """Return a row for each limit, in TFLOP/s or GB/s: square products, a copy far larger than any cache, and one that
    fits in the L2 cache.
    """
    n, rows = settings.peak_size, list[Row]()
    sizes = {"copy": settings.copy_bytes, "copy in L2": settings.l2_copy_bytes}
    for name in LIMITS:
        if name in sizes:
            source = torch.randint(256, (sizes[name],), dtype=torch.uint8, device=device.torch)
            run: Callable[[], object] = partial(torch.empty_like(source).copy_, source)
            unit, detail, work = "GB/s", f"{sizes[name] >> 20} MiB", 2.0 * sizes[name]
        else:
            precision = name.split()[-1]
            a, b = (torch.randn(n, n, device=device.torch).to(dtype_of(precision)) for _ in range(2))
            run, unit, detail, work = library_product(a, b, precision), "TFLOP/s", f"{n} x {n} x {n}", 2.0 * n**3
        row, task = Row("ceiling", CARD, unit=unit, detail=detail), TimedTask(name, run, work / SCALES[unit])
        rows += time_tasks(row, [task], settings, device, Card(), runs=1)
    return rows
