"""Where the card's time goes: kernel times by PyTorch's profiler, summed by what they do.

"idle" is the share of the time between the first kernel's begin and the last one's end in which nothing ran; kernels
that run side by side count each by itself, so that shares can add up to more than a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.worker import one_line

SECTION = "stages"
# Part of a kernel's name, in small letters -> what it does; the first that fits counts.
STAGES = {
    "memcpy htod": "copies to the card",
    "memcpy dtoh": "copies to the host",
    "memcpy": "copies on the card",
    "memset": "copies on the card",
    "char_cnn": "characters",
    "highway": "highway",
    "gates": "LSTM gates",
    "projection": "LSTM projection",
    "roots_kernel": "LSTM states",
    "int8_rows_kernel": "LSTM states",
    "linear": "linear",
    "tokens_kernel": "tokens",
    "gather_words_kernel": "words",
    "sentences_kernel": "tokens",
}
OTHER, IDLE = "other", "idle"


class Busy(NamedTuple):
    """A kernel or a copy on the device: microseconds on the profiler's clock."""

    name: str
    start: float
    end: float


def stage_of(name: str) -> str:
    """What a kernel does."""
    return next((stage for part, stage in STAGES.items() if part in name.lower()), OTHER)


def _sums(events: Iterable[Busy], key: Callable[[str], str]) -> dict[str, float]:
    """Microseconds by what `key` makes of the names, the largest first."""
    sums: dict[str, float] = {}
    for name, start, end in events:
        sums[key(name)] = sums.get(key(name), 0.0) + end - start
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def shares(events: Sequence[Busy]) -> dict[str, float]:
    """Percentage of the time by stage, largest first, and the idle time's at the end."""
    if not events:
        return {}
    span = max(event.end for event in events) - min(event.start for event in events)
    return {
        stage: 100 * took / span for stage, took in (_sums(events, stage_of) | {IDLE: span - covered(events)}).items()
    }


def covered(events: Iterable[Busy]) -> float:
    """Microseconds in which at least one of them runs."""
    total, until = 0.0, float("-inf")
    for _, start, end in sorted(events, key=lambda event: event.start):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def others(events: Iterable[Busy], most: int = 3) -> str:
    """The kernels that take most of the time of no known stage."""
    names = list(_sums([event for event in events if stage_of(event.name) == OTHER], str))[:most]
    return f"other: {', '.join(name[:60] for name in names)}" if names else ""


def profile(run: Callable[[], object], device: str) -> list[Busy]:
    """What runs on the card while `run`, which has been called before, is called; RuntimeError if nothing was seen."""
    torch.cuda.synchronize(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize(device)
    on_card = [each for each in profiler.events() or () if getattr(each.device_type, "name", "") == "CUDA"]
    if not on_card:
        raise RuntimeError("the profiler saw no kernel: this user may not be permitted to profile")
    return [Busy(event.name, event.time_range.start, event.time_range.end) for event in on_card]


def measure_stages(model: str, name: str, run: Callable[[], object], device: str) -> list[Row]:
    """A row for each stage, or one that says why there are none."""
    row = Row(SECTION, model, name, "% of the time")
    try:
        events = profile(run, device)
    except Exception as error:  # a profiler that is not permitted or does not know the card
        return [replace(row, note=one_line(error))]
    row = replace(row, note=others(events))
    return [replace(row, detail=stage).with_samples([share]) for stage, share in shares(events).items()]
