"""What the device and the host do in one call, as PyTorch's profiler saw it.

The whole is written as trace events, for https://ui.perfetto.dev. Kernels that run side by side count each by itself,
so that shares can add up to more than a whole.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from flashelmo.benchmarks.results import Row

MOST = 12  # kernels that have a row, and letters of their names
LETTERS = 60


def trace(row: Row, run: Callable[[], object], device: str, path: Path) -> list[Row]:
    """A row for the share of each kernel in the time of a call of `run`, which is no first one; the longest first.

    Args:
        path: the trace is written to it.
    """
    on_card = device.startswith("cuda")
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_card]) as profiler:
        begin = time.perf_counter()
        run()
        if on_card:
            torch.cuda.synchronize(device)
        microseconds = 1e6 * (time.perf_counter() - begin)
    profiler.export_chrome_trace(str(path))
    kernels: Counter[str] = Counter()
    for each in profiler.events() or ():
        if getattr(each.device_type, "name", "") == "CUDA":
            kernels[each.name] += each.time_range.end - each.time_range.start
    if not kernels:
        return [replace(row, note="the profiler saw no kernel: there is no card, or this user may not profile")]
    shares = {"device busy": kernels.total(), **{name[:LETTERS]: took for name, took in kernels.most_common(MOST)}}
    return [replace(row, detail=name).with_samples([100 * took / microseconds]) for name, took in shares.items()]
