"""What the device and the host do in one call: the share of each stage, and all of it in the format of trace viewers.

The device's part is what PyTorch's profiler saw. The host's part are the functions of `HOST`, timed by a wrapper around
each in whatever thread calls it, since the profiler sees one thread alone; a marker that both clocks see brings them
together. Kernels that run side by side count each by itself, so that shares can add up to more than a whole.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from flashelmo.benchmarks.gpu import accuracy
from flashelmo.benchmarks.results import Row
from flashelmo.engine import pipeline
from flashelmo.engine.cuda import executor, model

MARKER = "both clocks"
DEVICE = "device"
# Whose attribute, its name, and what it does; of what gives an iterator, each item is timed.
HOST: tuple[tuple[Any, str, str], ...] = (
    (accuracy, "read_windows", "read text"),
    (pipeline.Planner, "plan", "schedule"),
    (model.WordVectors, "lookup", "look words up"),
    (executor.Executor, "queue", "queue a window"),
    (executor, "compute", "launches"),
)
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
    "carry_kernel": "LSTM states",
    "int8_rows_kernel": "LSTM states",
    "linear": "linear",
    "tokens_kernel": "tokens",
    "gather_words_kernel": "words",
    "sentences_kernel": "tokens",
    "maxima_kernel": "tokens",
}
OTHER, IDLE = "other", "idle"
MOST_OTHERS = 3  # that are named


class Span(NamedTuple):
    """A kernel or copy on the device, or a call in a thread of the host, from `start` to `end` in microseconds."""

    row: str
    name: str
    start: float
    end: float


class Trace(NamedTuple):
    """One call, which took so many microseconds."""

    title: str
    spans: list[Span]
    taken: float

    @property
    def on_device(self) -> list[Span]:
        """Kernels and copies."""
        return [span for span in self.spans if span.row == DEVICE]


def stage_of(name: str) -> str:
    """What a kernel does."""
    return next((stage for part, stage in STAGES.items() if part in name.lower()), OTHER)


def covered(spans: Iterable[Span]) -> float:
    """Microseconds in which at least one of them runs."""
    total, until = 0.0, float("-inf")
    for _, _, start, end in sorted(spans, key=lambda span: span.start):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def shares(spans: Sequence[Span], key: Callable[[str], str] = stage_of) -> dict[str, float]:
    """Percentage of the time by stage, the largest first, and the time in which nothing ran at the end."""
    if not spans:
        return {}
    whole = max(span.end for span in spans) - min(span.start for span in spans)
    sums: dict[str, float] = {}
    for _, name, start, end in spans:
        sums[key(name)] = sums.get(key(name), 0.0) + end - start
    ordered = sorted(sums.items(), key=lambda item: -item[1])
    return {stage: 100 * took / whole for stage, took in (*ordered, (IDLE, whole - covered(spans)))}


def stage_rows(model: str, trace: Trace) -> list[Row]:
    """A row for each stage's share, and one for the share of the call in which the device had something to do."""
    row = Row("stages", model, trace.title, "% of the time")
    if not trace.on_device:
        return [replace(row, note="the profiler saw no kernel: there is no card, or this user may not profile")]
    unknown = shares([span for span in trace.on_device if stage_of(span.name) == OTHER], str)
    names = [name[:60] for name in unknown if name != IDLE][:MOST_OTHERS]
    row = replace(row, note=f"other: {', '.join(names)}" if names else "")
    found = shares(trace.on_device) | {"device busy": 100 * covered(trace.on_device) / trace.taken}
    return [replace(row, detail=stage).with_samples([share]) for stage, share in found.items()]


def trace(title: str, run: Callable[[], object], device: str) -> Trace:
    """A call of `run`, which has been called before; without a card, what the host did."""
    host: list[Span] = []
    has_card = device.startswith("cuda")
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * has_card
    with timed_functions(host), torch.profiler.profile(activities=activities) as profiler:
        with torch.profiler.record_function(MARKER):
            begin = _now()
        run()
        if has_card:
            torch.cuda.synchronize(device)
        end = _now()
    seen = list(profiler.events() or ())
    on_card = [each for each in seen if getattr(each.device_type, "name", "") == "CUDA" and each.name != MARKER]
    marker = next(each.time_range.start for each in seen if each.name == MARKER)
    spans = [Span(DEVICE, each.name, each.time_range.start - marker, each.time_range.end - marker) for each in on_card]
    spans += [span._replace(start=span.start - begin, end=span.end - begin) for span in host]
    return Trace(title, spans, end - begin)


def _now() -> float:
    return 1e-3 * time.perf_counter_ns()


@contextmanager
def timed_functions(spans: list[Span]) -> Iterator[None]:
    """While this lasts, calls of the functions of `HOST` become spans."""

    def timed(function: Callable[..., Any], name: str, *given: Any, **options: Any) -> Any:
        begin = _now()
        try:
            return function(*given, **options)
        finally:
            spans.append(Span(threading.current_thread().name, name, begin, _now()))

    def items(found: Iterator[Any], name: str) -> Iterator[Any]:
        end = object()
        while (item := timed(next, name, found, end)) is not end:
            yield item

    def wrapped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            found = timed(function, name, *given, **options)
            return items(found, name) if isinstance(found, Iterator) else found

        return call

    with ExitStack() as stack:
        for place, attribute, name in HOST:
            stack.enter_context(mock.patch.object(place, attribute, wrapped(getattr(place, attribute), name)))
        yield


def write(traces: Sequence[Trace], path: Path) -> None:
    """Write calls as trace events, a process each and a row for each thread, as https://ui.perfetto.dev opens them."""
    events = [
        {"ph": "X", "pid": each.title, "tid": row, "name": name, "cat": stage_of(name), "ts": start, "dur": end - start}
        for each in traces
        for row, name, start, end in each.spans
    ]
    path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
