"""What the device and the host do in one call, as a picture: rows for kernels, copies and the host's threads.

The device's part is what PyTorch's profiler saw. The host's part are the functions of `HOST`, timed by a wrapper around
each in whatever thread calls it, since the profiler sees one thread alone; a marker that both clocks see brings them
together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from flashelmo.benchmarks.gpu import accuracy
from flashelmo.benchmarks.gpu.stages import Busy, covered, stage_of
from flashelmo.engine import pipeline
from flashelmo.engine.cuda import executor, model

SECTION = "timeline"
MARKER = "both clocks"
# Whose attribute, its name, and what it does; of what gives an iterator, each item is timed.
HOST: tuple[tuple[Any, str, str], ...] = (
    (accuracy, "read_windows", "read text"),
    (pipeline.Planner, "plan", "schedule"),
    (model.WordVectors, "lookup", "look words up"),
    (executor.Executor, "queue", "queue a window"),
    (executor, "compute", "launches"),
)
COLOURS = ("#2f6f9f", "#c06c2f", "#4f9f5f", "#9f4f8f", "#b8a52f", "#5f5fbf", "#bf5f5f", "#6f8f8f", "#8f6f4f", "#777777")
WIDTH, LEFT, HEIGHT, GAP, LETTERS = 1400, 170, 20, 6, 12  # pixels
NARROW = 0.7  # pixels: nearer neighbours of one colour become one bar


class Span(NamedTuple):
    """Something that took from `start` to `end`, in microseconds, in a row of the picture."""

    row: str
    name: str
    start: float
    end: float


class Trace(NamedTuple):
    """One call."""

    title: str
    spans: list[Span]
    busy: float  # microseconds in which the device had something to do
    taken: float  # microseconds of the call


def trace(title: str, run: Callable[[], object], device: str) -> Trace:
    """A call of `run`, which has been called before; without a card, what the host did."""
    host: list[Span] = []
    has_card = device.startswith("cuda")
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * has_card
    with _timed_functions(host), torch.profiler.profile(activities=activities) as profiler:
        with torch.profiler.record_function(MARKER):
            begin = _now()
        run()
        if has_card:
            torch.cuda.synchronize(device)
        end = _now()
    seen = list(profiler.events() or ())
    on_card = [each for each in seen if getattr(each.device_type, "name", "") == "CUDA" and each.name != MARKER]
    marker = next(each.time_range.start for each in seen if each.name == MARKER)
    busy = [Busy(each.name, each.time_range.start - marker, each.time_range.end - marker) for each in on_card]
    spans = [Span(_row(stage_of(name)), stage_of(name), start, stop) for name, start, stop in busy]
    spans += [span._replace(start=span.start - begin, end=span.end - begin) for span in host]
    return Trace(title, spans, covered(busy), end - begin)


def _row(stage: str) -> str:
    return stage if stage.startswith("copies") else "kernels"


def _now() -> float:
    return 1e-3 * time.perf_counter_ns()


@contextmanager
def _timed_functions(spans: list[Span]) -> Iterator[None]:
    """While this lasts, calls of the functions of `HOST` become spans."""

    def wrapped(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            begin = _now()
            try:
                found = function(*given, **options)
            finally:
                spans.append(Span(f"host: {threading.current_thread().name}", name, begin, _now()))
            return _each(found) if isinstance(found, Iterator) else found

        def _each(found: Iterator[Any]) -> Iterator[Any]:
            while True:
                begin = _now()
                try:
                    item = next(found)
                except StopIteration:
                    return
                finally:
                    spans.append(Span(f"host: {threading.current_thread().name}", name, begin, _now()))
                yield item

        return call

    with ExitStack() as stack:
        for place, attribute, name in HOST:
            stack.enter_context(mock.patch.object(place, attribute, wrapped(getattr(place, attribute), name)))
        yield


def draw(traces: Sequence[Trace], path: Path) -> None:
    """A panel for each call, one under the other, as SVG."""
    names = list(dict.fromkeys(span.name for each in traces for span in each.spans))
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}
    parts, y = list(_legend(colours)), 2 * HEIGHT
    for each in traces:
        said = f"{each.title}: {each.taken / 1e3:.2f} ms, device busy {100 * each.busy / max(each.taken, 1e-9):.0f}%"
        parts.append(_text(4, y + HEIGHT - GAP, said, bold=True))
        y += HEIGHT
        scale = (WIDTH - LEFT) / max([each.taken, *(span.end for span in each.spans)])
        for row in sorted({span.row for span in each.spans}, key=lambda row: (row.startswith("host"), row)):
            parts.append(_text(4, y + HEIGHT - GAP, row[:26]))
            spans = [span for span in each.spans if span.row == row]
            for name, start, end in _bars(spans, scale):
                width = max(end - start, 0.3)
                place = f'x="{LEFT + start:.2f}" y="{y}" width="{width:.2f}" height="{HEIGHT - GAP}"'
                parts.append(f'<rect {place} fill="{colours[name]}"/>')
            y += HEIGHT
        y += HEIGHT
    size = f'width="{WIDTH}" height="{y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {WIDTH} {y}">'
    svg = "\n".join([head, f'<rect {size} fill="white"/>', *parts, "</svg>", ""])
    path.write_text(svg, encoding="utf-8")


def _bars(spans: Iterable[Span], scale: float) -> Iterator[tuple[str, float, float]]:
    """Name, begin and end in pixels; outer spans first, neighbours of one name as one where no gap could be seen."""
    by_name = groupby(sorted(spans, key=lambda span: span.name), key=lambda span: span.name)
    merged: list[tuple[str, float, float]] = []
    for name, members in by_name:
        start = end = None
        for span in sorted(members, key=lambda span: span.start):
            if start is not None and end is not None and scale * span.start - end < NARROW:
                end = max(end, scale * span.end)
                continue
            if start is not None and end is not None:
                merged.append((name, start, end))
            start, end = scale * span.start, scale * span.end
        if start is not None and end is not None:
            merged.append((name, start, end))
    yield from sorted(merged, key=lambda bar: bar[1] - bar[2])


def _legend(colours: dict[str, str]) -> Iterator[str]:
    x = 4
    for name, colour in colours.items():
        yield f'<rect x="{x}" y="{GAP}" width="{LETTERS}" height="{LETTERS}" fill="{colour}"/>'
        yield _text(x + LETTERS + 4, GAP + LETTERS - 2, name)
        x += LETTERS + 16 + 7 * len(name)


def _text(x: float, y: float, text: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-family="sans-serif" font-size="{LETTERS}"{weight}>{escape(text)}</text>'
