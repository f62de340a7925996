"""All that a card must show, in minutes: `python -m benchmarks gpu --check --out DIR`.

The most valuable first, in parts (`--only`), each with a limit (`--seconds`):

    correctness   every kernel and variant against its reference, and the whole engine, with the bound beside the error
    steps         a step of both directions in each variant that serves so many rows, beside cuBLAS's bare products
    sentence      one sentence, its words known and new
    batches       equal and ragged batches
    bulk          bulk text: layers left on the card, windows ready, from text to means on the host
    timeline      a picture of what the device and the host do

Processes compile the kernels first (ahead.py). Then one process has the card; should it hang, or a kernel end its CUDA
context, then the job is a line, and another process goes on with the next one. All rows are in DIR/check.json as soon
as they are measured, those that this card's committed results have too with the ratio to them.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console

from flashelmo.benchmarks.gpu import ahead, engine
from flashelmo.benchmarks.gpu.check_tables import COMMITTED, committed, summary
from flashelmo.benchmarks.gpu.engine import Engine, Tools
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
GRACE = 10.0  # seconds that a part may be late before its process is killed
HANG_SECONDS = 60.0  # without a row, after which a process is taken for hung
LEAST_SECONDS = 1.0  # that a part is begun with
BEGUN = "begun.jsonl"
FILE = "check.json"


Started: TypeAlias = Callable[[Settings], tuple[Run, Device, Card]]


class Parts:
    """What a process with a card does: one part after the other.

    Args:
        settings: `out` is the results' file.
        folder: takes texts.
        started: gives a run, the device and its card.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        started: Started | None = None,
        tools: Tools | None = None,
        **sizes: Any,
    ) -> None:
        started = started or _started
        self.run, device, card = started(settings)
        self._settings, tools = self.run.settings, tools or Tools()
        self.engine = Engine(self._settings, device, card, self.run, tools)
        self.engine.folder = folder
        kernel_settings = replace(self._settings, precisions=KERNEL_PRECISIONS, models=self._settings.models[:1])
        config = self.engine.subject(self._settings.models[0]).model.config
        self._kernels = Kernels(kernel_settings, config, device, card, tools.timer, **sizes)
        self._begun = set(begun(folder))
        for row in self.run.results.section("error", self._kernels.model):  # by a process before this one
            name, _, precision = row.name.rpartition(" ")
            self._kernels.passed[name, precision] = self._kernels.passed.get((name, precision), True) and not row.note
        self._committed = committed(self.run.results.machine["gpu"]["name"])

    def measure(self, part: str, seconds: float) -> bool:
        """Do a part in so many seconds, but for the jobs that a process before this one began; whether the device is
        lost.
        """
        self.run.deadline = self.engine.checking = Deadline(seconds)
        self.run.say(f"-- {part}")
        for job in self.jobs(part):
            if job[:3] not in self._begun:
                self._begin(job)
                self.run.do([self._beside_committed(job)])
            if self.engine.device.is_lost():
                return True
        return False

    def _begin(self, job: Job) -> None:
        """Write down that a job has begun, for the process after this one, and that this one is alive."""
        with (self.engine.folder / BEGUN).open("a", encoding="utf-8") as file:
            file.write(json.dumps(job[:3]) + "\n")
        self.run.keep([])

    def jobs(self, part: str) -> Iterator[Job]:
        """Of a part; what is timed is checked, here or in the part of correctness."""
        made, kernels, run, settings = self.engine, self._kernels, self.run, self._settings
        name, first = settings.models[0], made.first
        if part == "correctness":
            for name in KERNEL_PRECISIONS[:1]:
                yield from kernels.check_jobs(run, [name])
            yield from made.check_jobs(True)
            for name in KERNEL_PRECISIONS[1:]:
                yield from kernels.check_jobs(run, [name])
            yield kernels.odd_check_job(run)
            return
        if part == "steps":
            if not kernels.passed:
                yield from kernels.check_jobs(run, KERNEL_PRECISIONS[:1], steps_alone=True)
            yield from map(kernels.served_steps, settings.rows or ROWS)
            return
        rows = [row for row in run.results.section("error", name) if row.name == f"batch {first}"]
        if not any(row.failed or row.median is not None for row in rows):
            little = replace(settings, precisions=(first,), thorough=())
            yield Job("error", name, "", partial(made.checks, name, little))
        elif any(row.failed for row in rows):  # perhaps in a process before this one
            made.subject(name).failed.add(first)
        if part == "sentence":
            yield made.job(name, made.batch(1, "single"))
        elif part == "batches":
            for workload in (*map(made.batch, settings.batches), *map(made.ragged, settings.batches)):
                yield made.job(name, workload)
        elif part == "bulk":
            yield made.job(name, made.long(name))
        else:
            yield made.timeline_job(name)

    def _beside_committed(self, job: Job) -> Job:
        def rows() -> Iterator[list[Row]]:
            for found in job.rows():
                yield [self._compared(row) for row in found]

        return job._replace(rows=rows)

    def _compared(self, row: Row) -> Row:
        """With how many times as fast it is as what was committed."""
        before = self._committed.get((row.section, row.detail, row.name))
        if not (row.median and before and before.median):
            return row
        ratio = row.median / before.median if row.unit.endswith("/s") else before.median / row.median
        return replace(row, ratios=row.ratios | {COMMITTED: float(f"{ratio:.4g}")})


def _started(settings: Settings, console: Console | None = None) -> tuple[Run, Device, Card]:
    """A run on the card that goes on with the rows of the file."""
    before = _read(settings.out)
    run, device, card = begin(settings, console or Console(width=160), "check", engine.suited)
    run.results.rows.extend(before.rows if before else ())
    return run, device, card


def _read(path: Path | None) -> Results | None:
    """Results so far."""
    with suppress(FlashElmoError):
        return Results.read(path) if path else None
    return None


def record(settings: Settings, part: str, k: int | None = None) -> ahead.Recorded:
    """The launches of a part, or of one of its pieces, on the card, in a process of its own."""
    less = replace(settings, out=None, rounds=1, sample_seconds=0.0, bulk_tokens=1 << 18)
    started, tools = partial(_started, console=Console(file=io.StringIO())), Tools(timer=ahead.run_once)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder, ahead.recording() as launches:
        for number, job in enumerate(Parts(less, Path(folder), started, tools).jobs(part)):
            try:
                for _ in job.rows() if k in (None, number % PIECES) else ():
                    pass
            except Exception as error:
                wrong.append(f"{part}, {job.section} {job.detail}: {one_line(error)}")
    major, minor = torch.cuda.get_device_capability()
    return ahead.Recorded(10 * major + minor, list(launches), wrong)


# ---------------------------------------------------------------------------------------------------------- supervision


def supervise(
    parts: Iterable[str],
    settings: Settings,
    folder: Path,
    deadline: Deadline,
    make: Callable[[], Worker | Here],
    first: Worker | Here | None = None,
) -> Iterator[Row]:
    """Every part in its time, by a process that is replaced where it hung, ended, or lost the device.

    The process after it goes on with the job after the one that went wrong.

    Args:
        folder: where processes write down what they begin.
        make: starts a process; `first` has started.

    Yields:
        A row for each job that was not done.
    """
    worker = first
    for part in parts:
        of_part = Deadline(min(settings.part_seconds * (LONGER if part == "correctness" else 1), deadline.left))
        if of_part.left < LEAST_SECONDS:
            yield Row(part, name="all", note=deadline.over)
            continue
        n_begun, lost = -1, True
        while lost and of_part.left > LEAST_SECONDS and len(begun(folder)) > n_begun:
            n_begun = len(begun(folder))
            try:
                worker = worker or make()
                lost = worker.call("measure", part, of_part.left, give_up=_Patience(of_part, settings.out))
            except (FlashElmoError, WorkerError) as error:
                job = begun(folder)[-1] if len(begun(folder)) > n_begun else (part, "", "all")
                yield Row(job[0], job[1], job[2] or "all", note=f"{FAILED}: {error}")
                lost = True
            if lost and isinstance(worker, Worker):
                worker.close()
            worker = None if lost else worker
    if isinstance(worker, Worker):
        worker.close()


class _Patience:
    """Why a process is not waited for any longer: its part is over, or it has written nothing for a while."""

    def __init__(self, deadline: Deadline, path: Path | None) -> None:
        self._deadline, self._path, self._begin = deadline, path, time.time()

    def __call__(self) -> str:
        if self._deadline.left < -GRACE:
            return f"no end within {self._deadline.taken - GRACE:.0f} seconds"
        written = self._path.stat().st_mtime if self._path and self._path.exists() else 0.0
        silence = time.time() - max(written, self._begin)
        return f"no sign of life in {silence:.0f} seconds" if silence > HANG_SECONDS else ""


def begun(folder: Path) -> list[tuple[str, str, str]]:
    """Section, model and detail of the jobs that were begun, in order."""
    path = folder / BEGUN
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(section, model, detail) for section, model, detail in map(json.loads, lines)]


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
    (out / FILE).unlink(missing_ok=True)
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # as who compiles ahead has it: it is part of the cache's key
    recorded = [part for part in parts if part not in ("correctness", "timeline")] or ["bulk"]
    pieces: list[tuple[Settings, str, int | None]] = [(settings, part, None) for part in recorded]
    pieces += [(settings, "correctness", k) for k in range(PIECES if "correctness" in parts else 0)]
    compiling = ahead.Ahead((os.cpu_count() or 1) - ahead.SPARE_CORES, record, pieces)
    undone = []
    with tempfile.TemporaryDirectory(prefix="flashelmo-", ignore_cleanup_errors=True) as folder:
        make = partial(Worker, Parts, settings, Path(folder))
        first = None
        with suppress(FlashElmoError, WorkerError):  # the first part will say so
            first = make()
        for line in compiling.finish(min(COMPILE_SECONDS, deadline.left / 2)):
            say(line)
        say(f"{compiling.n_launches} launches compiled ahead, {deadline.taken:.0f} s")
        for row in supervise(parts, settings, Path(folder), deadline, make, first):
            say(f"{row.section}, {row.label}: {row.note}")
            keep(out / FILE, row)
            undone.append(row)
    return conclude(out / FILE, undone, say)


def keep(path: Path, row: Row) -> None:
    """Add a row to the results, for the process that goes on with them."""
    if results := _read(path):
        results.rows.append(row)
        results.write(path)


def conclude(path: Path, undone: Sequence[Row], say: Callable[[str], object]) -> int:
    """Say what was found; the exit status."""
    results = _read(path)
    if results is None:
        return 1
    results.rows.extend(row for row in undone if row not in results.rows)  # a process that went on knew nothing of them
    results.write(path)
    say(summary(results, committed(results.machine["gpu"]["name"])))
    return 1 if any(row.failed for row in results.rows) else 0
