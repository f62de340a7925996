"""The CUDA runtime's switches, each on and off in turns: only a card can tell which is better.

The switches are the fields of `CudaSettings` that are true or false; beside its opposite, each has all others at their
default, or off where the run was told so. A switch that changes vectors beyond rounding is not timed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

from flashelmo.benchmarks.gpu.accuracy import Truth, compare
from flashelmo.benchmarks.gpu.rows import UNIT, speeds, with_samples
from flashelmo.benchmarks.gpu.subject import Subject, leave_on_device
from flashelmo.benchmarks.gpu.workloads import Workload
from flashelmo.benchmarks.kernels.timing import Task, Timer, Timing, one_line
from flashelmo.benchmarks.results import Row, median_ratio
from flashelmo.engine.errors import FlashElmoError

SECTION = "switch"


def default_settings() -> Any:
    """The runtime's settings as they are if nobody says otherwise."""
    from flashelmo.engine.settings import CudaSettings

    return CudaSettings()


def switches(settings: Any) -> list[str]:
    """Names of the fields that are true or false."""
    return [field.name for field in fields(settings) if isinstance(getattr(settings, field.name), bool)]


def turned_off(settings: Any, names: Sequence[str]) -> Any:
    """The settings with these switches off.

    Raises:
        FlashElmoError: there is no such switch.
    """
    known = switches(settings)
    for name in names:
        if name not in known:
            raise FlashElmoError(f"switch: expected one of {', '.join(known)}, found {name!r}")
    return replace(settings, **dict.fromkeys(names, False)) if names else settings


def measure_switch(
    name: str,
    settings: Any,
    subject: Subject,
    truth: Truth,
    workloads: Sequence[Workload],
    precision: str,
    timer: Timer,
) -> Iterator[list[Row]]:
    """One switch, on and off, with all words known: for each workload the two rows, the first with the ratio."""
    embedders: dict[bool, Any] = {}
    absent: dict[bool, str] = {}
    for state in (True, False):
        try:
            embedders[state] = subject.embedder(precision, cuda=replace(settings, **{name: state}))
            _check(embedders[state], truth, precision)
        except Exception as error:  # a card without it, or one that it breaks on
            absent[state] = str(error) if isinstance(error, FlashElmoError) else one_line(error)
    for workload in workloads:
        tasks = {
            state: Task(_label(name, state), partial(_run, subject, embedders[state], workload))
            for state in embedders
            if state not in absent
        }
        timings = {state: Timing([], said) for state, said in absent.items()}
        timings |= dict(zip(tasks, timer.time(list(tasks.values())), strict=True))
        yield _rows(name, subject.name, workload, timings)


def _rows(name: str, model: str, workload: Workload, timings: dict[bool, Timing]) -> list[Row]:
    rows = []
    for state in (True, False):
        timing = timings[state]
        detail = workload.detail if workload.section != "bulk" else f"bulk, {workload.detail}"
        row = Row(SECTION, model, _label(name, state), UNIT, detail, note=timing.note)
        row = with_samples(row, speeds(workload.tokens, timing.samples))
        other = timings[not state].samples
        if state and timing.samples and other:
            row = replace(row, ratios={_label(name, False): median_ratio(timing.samples, other, "µs")})
        rows.append(row)
    return rows


def _label(name: str, state: bool) -> str:
    return f"{name} {'on' if state else 'off'}"


def _run(subject: Subject, embedder: Any, workload: Workload) -> None:
    leave_on_device(embedder, workload.sentences)
    if workload.waits:
        subject.place.synchronize()


def _check(embedder: Any, truth: Truth, precision: str) -> None:
    """Three times, so that what is captured with the second is replayed."""
    for _ in range(3):
        found = list(embedder.embed(truth.sentences))
    for error in compare(found, truth.vectors, precision):
        if error.relative_bound is not None and not error.relative <= error.relative_bound:
            raise FlashElmoError(
                f"not timed: {error.detail}: relative error {error.relative:.2g}, "
                f"expected at most {error.relative_bound:g}"
            )
