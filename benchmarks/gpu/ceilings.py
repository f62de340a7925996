"""A card's own limits, measured: matrix peaks, and the bandwidth of its memory and of its L2 cache."""

from __future__ import annotations

from collections.abc import Iterator

from flashelmo.benchmarks.gpu.rows import CARD, with_samples
from flashelmo.benchmarks.gpu.settings import EngineSettings
from flashelmo.benchmarks.kernels import model as kernel_model
from flashelmo.benchmarks.kernels.contestants import ceiling_groups
from flashelmo.benchmarks.kernels.model import Card
from flashelmo.benchmarks.kernels.timing import Timer
from flashelmo.benchmarks.results import Row

KINDS = ("bf16", "fp32", "tf32")  # fp16 is as fast as bf16


def measure_ceilings(settings: EngineSettings, device: str, timer: Timer) -> Iterator[tuple[Row, str, float | None]]:
    """A row for each limit, with what it limits ("bf16", "bytes", "L2 bytes") and its figure in units a second."""
    copies = settings.copy_bytes, settings.l2_copy_bytes
    for group in ceiling_groups(device, settings.peak_size, copies, KINDS):
        (each,) = group.contestants
        (timing,) = timer.time([each.task])
        unit, work = "TFLOP/s", 2e-12 * settings.peak_size**3
        if each.kind in ("bytes", "L2 bytes"):
            unit, work = "GB/s", 2e-9 * (copies[0] if each.kind == "bytes" else copies[1])
        row = Row("ceiling", CARD, each.task.name, unit, group.detail, note=timing.note)
        row = with_samples(row, [1e6 * work / us for us in timing.samples])
        yield row, each.kind, row.median


def with_ceiling(card: Card, kind: str, figure: float | None) -> Card:
    """The card with a limit that was measured, in TFLOP/s or GB/s; None leaves it as it is.

    The L2 cache's is a copy's: products, which only read, may get more, but not less.
    """
    if figure is None:
        return card
    if kind == "bytes":
        return kernel_model.measured(card, memory=1e9 * figure)
    if kind == "L2 bytes":
        return kernel_model.measured(card, l2=max(card.l2, 1e9 * figure))
    return kernel_model.measured(card, **{"half" if kind == "bf16" else kind: 1e12 * figure})
