"""All that a card must show, in minutes: `python -m benchmarks gpu --check --out DIR`.

The most valuable first, in parts (`--only`), each with a limit (`--seconds`):

    correctness   every kernel and variant against its reference, and the whole engine, with the bound beside the error
    steps         a step of both directions in each variant that serves so many rows, beside cuBLAS's bare products
    sentence      one sentence, its words known and new
    batches       equal and ragged batches
    bulk          bulk text: layers left on the card, windows ready, from text to means on the host
    timeline      what the device and the host do in a call

Processes compile the kernels first (ahead.py). Then one process has the card, and does a job at a time; should it hang,
or a kernel end its CUDA context, then the job is a line, and another process goes on with the next one. All rows are in
DIR/check.json as soon as they are measured, those that this card's committed results have too with the ratio to them.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console

from flashelmo.benchmarks.gpu import ahead, engine
from flashelmo.benchmarks.gpu.engine import Engine, Tools
from flashelmo.benchmarks.gpu.tables import beside, committed, summary
from flashelmo.benchmarks.kernels.card import Card, Device, begin
from flashelmo.benchmarks.kernels.suite import Kernels
from flashelmo.benchmarks.results import FAILED, Results, Row
from flashelmo.benchmarks.run import Job, Run
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.timing import Deadline
from flashelmo.benchmarks.worker import Here, Worker, WorkerError, one_line
from flashelmo.engine.errors import FlashElmoError

PARTS = ("correctness", *engine.PARTS)
ROWS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
KERNEL_PRECISIONS = ("bf16", "fp16", "fp32", "tf32")
LIMIT_SECONDS = 350.0
COMPILE_SECONDS = 110.0
LONGER = 1.6  # times as long as the others the correctness may take
PIECES = 6  # that the correctness is recorded in, each by a process
HANG_SECONDS = 75.0  # of one job, after which its process is taken for hung
FILE = "check.json"

Started: TypeAlias = Callable[[Settings], tuple[Run, Device, Card]]
Name: TypeAlias = tuple[str, str, str]  # section, model and detail of a job


def _started(settings: Settings) -> tuple[Run, Device, Card]:
    """A run on the card that writes nothing."""
    return begin(replace(settings, out=None), Console(file=io.StringIO()), "check", engine.suited)


class Parts:
    """What a process with a card does: one job after the other.

    Args:
        folder: takes texts and traces.
        before: rows that a process before this one measured.
        started: gives a run, the device and its card.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        before: Sequence[Row] = (),
        started: Started | None = None,
        tools: Tools | None = None,
        **sizes: Any,
    ) -> None:
        self.run, device, card = (started or _started)(settings)
        self._settings, tools = self.run.settings, tools or Tools()
        self.engine = Engine(self._settings, device, card, self.run, tools)
        self.engine.folder = folder
        kernel_settings = replace(self._settings, precisions=KERNEL_PRECISIONS, models=self._settings.models[:1])
        config = self.engine.subject(self._settings.models[0]).model.config
        self.kernels = Kernels(kernel_settings, config, device, card, tools.timer, **sizes)
        self.run.results.rows.extend(before)
        for row in self.run.results.section("error"):
            self.kernels.know(row)
        self._jobs = cache(lambda part: {job[:3]: job for job in self.jobs(part)})

    def results(self) -> Results:
        """What is measured on, without rows."""
        return replace(self.run.results, rows=[])

    def names(self, part: str) -> list[Name]:
        """The jobs of a part."""
        return list(self._jobs(part))

    def do(self, part: str, name: Name, seconds: float) -> tuple[list[Row], bool]:
        """A job's rows, and whether the device is lost; none of a job that is not needed after another process."""
        n_before = len(self.run.results.rows)
        self.run.deadline = Deadline(seconds)
        self.run.do([self._jobs(part)[name]] if name in self._jobs(part) else [])
        return self.run.results.rows[n_before:], self.engine.device.is_lost()

    def jobs(self, part: str) -> Iterator[Job]:
        """Of a part; what is timed is checked, here or in the part of correctness."""
        made, kernels, run, settings = self.engine, self.kernels, self.run, self._settings
        name, first = settings.models[0], made.first
        if part == "correctness":
            yield from kernels.check_jobs(KERNEL_PRECISIONS[:1])
            yield from made.check_jobs(True)
            yield from kernels.check_jobs(KERNEL_PRECISIONS[1:])
            yield from kernels.odd_check_jobs()
            return
        if part == "steps":
            if not kernels.passed:
                yield from kernels.check_jobs(KERNEL_PRECISIONS[:1], steps_alone=True)
            yield from map(kernels.served_steps, settings.rows or ROWS)
            return
        rows = [row for row in run.results.section("error", name) if row.name == f"batch {first}"]
        if not any(row.failed or row.median is not None for row in rows):
            yield from made.check_jobs(False, replace(settings, precisions=(first,), models=(name,)))
        elif any(row.failed for row in rows):  # perhaps in a process before this one
            made.subject(name).failed.add(first)
        if part == "timeline":
            yield made.timeline_job(name)
            return
        workloads = {
            "sentence": lambda: [made.batch(1, "single")],
            "batches": lambda: [*map(made.batch, settings.batches), *map(made.ragged, settings.batches)],
            "bulk": lambda: [made.long(name)],
        }
        yield from (made.job(name, workload) for workload in workloads[part]())


def record(settings: Settings, part: str, k: int | None = None) -> ahead.Recorded:
    """The launches of a part, or of one of its pieces, on the card, in a process of its own."""
    less = replace(settings, rounds=1, sample_seconds=0.0, bulk_tokens=1 << 18)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder, ahead.recording() as launches:
        for number, job in enumerate(Parts(less, Path(folder), tools=Tools(timer=ahead.run_once)).jobs(part)):
            try:
                for _ in job.rows() if k in (None, number % PIECES) else ():
                    pass
            except Exception as error:
                wrong.append(f"{part}, {job.section} {job.detail}: {one_line(error)}")
    major, minor = torch.cuda.get_device_capability()
    return ahead.Recorded(10 * major + minor, list(launches), wrong)


def supervise(
    parts: Iterable[str],
    settings: Settings,
    deadline: Deadline,
    make: Callable[[Sequence[Row]], Worker | Here],
    worker: Worker | Here | None = None,
) -> Iterator[list[Row]]:
    """The rows of every job of every part, each part in its time, by a process that is replaced where it hung, ended,
    or lost the device.

    Args:
        make: starts a process, told what was measured before; `worker` has started.
    """
    rows: list[Row] = []

    def ask(*given: Any) -> Any:
        nonlocal worker
        patience = Deadline(HANG_SECONDS)
        late = f"no end within {HANG_SECONDS:.0f} seconds"
        try:
            worker = worker or make(rows)
            return worker.call(*given, give_up=lambda: late if patience.left < 0 else "")
        except (FlashElmoError, WorkerError):
            end()
            raise

    def end() -> None:
        nonlocal worker
        if worker is not None:
            worker.close()
        worker = None

    for part in parts:
        of_part = Deadline(
            min(settings.part_seconds * (LONGER if part == "correctness" else 1), max(0.0, deadline.left))
        )
        waiting: list[Name] = [(part, "", "all")]
        try:
            waiting = ask("names", part) if of_part.left > 0 else waiting
        except (FlashElmoError, WorkerError) as error:
            yield [Row(part, name="all", note=f"{FAILED}: {error}")]
            continue
        for name in waiting:
            row, lost = Row(name[0], name[1], name[2] or "all"), False
            try:
                found = [replace(row, note=of_part.over)]
                if of_part.left > 0:
                    found, lost = ask("do", part, name, of_part.left)
            except (FlashElmoError, WorkerError) as error:
                found = [replace(row, note=f"{FAILED}: {error}")]
            rows += found
            yield found
            if lost:
                end()
    end()


def chosen(settings: Settings) -> list[str]:
    """The parts that are asked for, in order; all where none is.

    Raises:
        FlashElmoError: something else is.
    """
    asked = settings.sections if settings.sections != engine.SECTIONS else PARTS
    if wrong := [name for name in asked if name not in PARTS]:
        raise FlashElmoError(f"--only: expected some of {', '.join(PARTS)} with --check, found {wrong[0]!r}")
    return [part for part in PARTS if part in asked]


def command(settings: Settings, console: Console) -> int:
    """Compile, check, and say what was found; the exit status is 1 if anything is wrong or failed.

    Raises:
        FlashElmoError: there is no card.
    """
    parts, out = chosen(settings), settings.out or Path(tempfile.mkdtemp(prefix="flashelmo-check-"))
    if not torch.cuda.is_available():
        raise FlashElmoError("no CUDA device: this benchmark needs one")
    limit = min(settings.limit_seconds or LIMIT_SECONDS, LIMIT_SECONDS)
    settings, deadline = replace(settings, out=out / FILE, limit_seconds=limit), Deadline(limit)
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # as who compiles ahead has it: it is part of the cache's key
    recorded = [part for part in parts if part not in ("correctness", "timeline")] or ["bulk"]
    pieces: list[tuple[Settings, str, int | None]] = [(settings, part, None) for part in recorded]
    pieces += [(settings, "correctness", k) for k in range(PIECES if "correctness" in parts else 0)]
    compiling = ahead.Ahead((os.cpu_count() or 1) - ahead.SPARE_CORES, record, pieces)
    out.mkdir(parents=True, exist_ok=True)
    make = partial(Worker, Parts, settings, out)
    try:
        worker = make()
        run = Run(settings, console, worker.call("results"), FILE)
    except (FlashElmoError, WorkerError) as error:
        list(compiling.finish(0.0))  # which ends its processes
        raise FlashElmoError(f"no process could begin on the card: {error}") from None
    run.deadline = deadline
    before = committed(run.results.machine["gpu"]["name"])
    for line in compiling.finish(min(COMPILE_SECONDS, run.deadline.left / 2)):
        run.say(line)
    run.say(f"{compiling.n_launches} launches compiled ahead, {run.deadline.taken:.0f} s")
    for rows in supervise(parts, settings, run.deadline, make, worker):
        run.keep(beside(rows, before))
    run.say(summary(run.results, before))
    return 1 if any(row.failed for row in run.results.rows) else 0
