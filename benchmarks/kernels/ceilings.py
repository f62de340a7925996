"""A card's own limits, measured: matrix peaks, and the bandwidth of its memory and of its L2 cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from flashelmo.benchmarks.kernels.card import CARD, Card, Device
from flashelmo.benchmarks.kernels.graph_timing import Task, Timer
from flashelmo.benchmarks.kernels.problems import dtype_of, library_product
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings

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
