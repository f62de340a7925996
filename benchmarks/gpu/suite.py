"""The engine on this machine's card, end to end: correct first, then how fast: `python -m benchmarks gpu --out DIR`.

A run is one list of jobs, the most valuable first, in sections (`--only`). `--check` takes those that a card must show,
in minutes: the first precision, no rivals, so long for each section (`--seconds`).

    correctness   every precision and way to embed against the reference; with --check every kernel and variant too
    steps         a step of both directions in each variant that serves so many rows, beside cuBLAS's bare products
    sentence      one sentence, its words known and new, beside PyTorch's eager reference and cuDNN's LSTM
    batches       equal and ragged batches, beside the same
    bulk          bulk text: layers left on the card, and from text to means on the host
    timeline      what the device and the host do in a call

Beside each figure stands what the card's limits, measured in the same run, allow. Kernels are compiled first,
and then a process at a time has the card (processes.py). (ONNX Runtime's CUDA provider: `onnx --only cuda`.)
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import fields, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flashelmo.benchmarks.contestant import load
from flashelmo.benchmarks.gpu import accuracy
from flashelmo.benchmarks.gpu.accuracy import CardSubject, Truth, file_means, leave_on_device
from flashelmo.benchmarks.gpu.processes import PROCESSES, Ahead, Name, compiling, supervise
from flashelmo.benchmarks.gpu.speed import WARM_UPS, Speed, trace
from flashelmo.benchmarks.kernels.card import CARD, RUN_OPTIONS, Card, Device, begin, suited_tokens
from flashelmo.benchmarks.kernels.graph_timing import measure_ceilings
from flashelmo.benchmarks.kernels.kernels import Kernels, use_tile
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.run import Job, Run, Suite, rows_of, slug
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import card_tables, committed, with_committed
from flashelmo.benchmarks.text import Workload, bulk, equal_batch, load_sentences, ragged_batch, write_sentences
from flashelmo.benchmarks.worker import Deadline, Worker, WorkerError, one_line
from flashelmo.engine.cuda.requirements import check_precision, default_precision
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import precisions_on
from flashelmo.engine.settings import CudaSettings

TIMED = ("sentence", "batches", "bulk", "timeline")
SECTIONS = ("correctness", "steps", *TIMED)
WHOLE, CHECK = tuple(name for name in SECTIONS if name != "steps"), SECTIONS
SWITCHES = tuple(field.name for field in fields(CudaSettings) if isinstance(field.default, bool))
SLOW = ("fp32", "tf32")  # precisions that bulk text is shorter for
ROWS = (1, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
SPARE_CORES = 2  # for who waits, and for the process that has the card
# Of a check and of a whole run: seconds of all, of a section, and of a job, after which its process is taken for hung.
LIMITS = {True: (350.0, 75.0, 75.0), False: (480.0, 480.0, 300.0)}
COMPILE_SECONDS = 110.0
COMMITTED_FOLDER = Path(__file__).resolve().parents[1] / "results" / "gpu"


class Engine:
    """What the process with the card does: one job after the other.

    Args:
        folder: takes texts and traces.
        before: rows that a process before this one measured.
    """

    def __init__(self, settings: Settings, folder: Path, before: Sequence[Row] = ()) -> None:
        settings, self.device, self._results = begin(settings)
        self.settings = settings = suited(settings, self.device)
        self.folder, self.first, self.rows = folder, settings.precisions[0], list(before)
        use_tile(settings.tile)
        default = CudaSettings()
        self.cuda = replace(default, **{name: not getattr(default, name) for name in settings.switches})
        needed = [max(settings.batches) * settings.tokens, 3 * settings.short_sentences, 4 * settings.short_bulk_tokens]
        n_tokens = max(*needed, settings.bulk_tokens or 1)
        self._text, self.source = load_sentences(n_tokens, settings.text, settings.seed, again=True)
        self.subject = cache(
            lambda name: CardSubject(name, load(name, settings.seed), self.device, ElmoEmbedder, self.cuda)
        )
        self._truth = cache(lambda name: Truth(self.subject(name), self._text, settings))
        self._speed = cache(
            lambda name: Speed(self.subject(name), self._truth(name), settings, self.card, folder, self.rows)
        )
        self._jobs = cache(lambda section: {job[:3]: job for job in self.jobs(section)})

    def results(self) -> Results:
        """What is measured on, without rows."""
        return self._results

    def names(self, section: str) -> list[Name]:
        """The jobs of a section."""
        return list(self._jobs(section))

    def do(self, section: str, name: Name) -> tuple[list[Row], bool]:
        """A job's rows, and whether the device is lost; none of a job that is not needed after another process."""
        before, jobs = len(self.rows), self._jobs(section)
        for rows in rows_of(jobs[name]) if name in jobs else ():
            self.rows += rows  # what is measured decides what follows
        return self.rows[before:], self.device.is_lost()

    @cached_property
    def _kernels(self) -> Kernels:
        config = self.subject(self.settings.models[0]).model.config
        return Kernels(self.settings, config, self.device, lambda: self.card)

    @property
    def card(self) -> Card:
        """With the limits that have been measured."""
        return Card.of(self._results, self.rows)

    def jobs(self, section: str) -> Iterator[Job]:
        """Of a section; what is timed is checked, here or in the correctness."""
        settings, checking = self.settings, self.settings.check
        if section == "kernels":
            yield from self._kernels.jobs()
            return
        if section == "correctness":
            for name in settings.models:
                yield from self._check_jobs(name, settings.precisions, accuracy.WAYS)
            yield from self._kernels.check_jobs() if checking else ()
            return
        if section == "steps":
            for n in settings.rows or ROWS:
                yield self._kernels.steps(n, ["bf16"])
            return
        if not any(row.section == "ceiling" for row in self.rows):
            yield Job("ceiling", CARD, "", partial(measure_ceilings, self.settings, self.device))
        for name in settings.models[: 1 if checking else None]:
            yield from self._check_jobs(name, [self.first] if checking else settings.precisions, accuracy.ALWAYS)
            yield from self._timed_jobs(section, name)

    def _check_jobs(self, name: str, precisions: Sequence[str], ways: Sequence[str] | dict[str, Any]) -> Iterator[Job]:
        """The ways that have no row yet; some of them in the thorough precisions alone."""
        known = {row.name for row in self.rows if row.section == "error" and row.model == name}
        for precision in precisions:
            for way in (each for each in ways if each in accuracy.ALWAYS or precision in self.settings.thorough):
                if f"{way} {precision}" not in known:
                    yield Job("error", name, f"{way} {precision}", partial(self._check, name, way, precision))

    def _check(self, name: str, way: str, precision: str) -> list[Row]:
        return accuracy.check_way(self.subject(name), self._truth(name), way, precision)

    # ----------------------------------------------------------------------------------------------------------- speed

    def _timed_jobs(self, section: str, name: str) -> Iterator[Job]:
        settings, first = self.settings, self.first
        some = [first] if settings.check else list(settings.precisions)
        if section == "sentence":
            yield self._job(name, self._batch(1, "single"), some)
        elif section == "batches":
            for n in settings.batches:
                yield self._job(name, self._batch(n), some if n in settings.other_batches else [first])
            for n in settings.batches:
                yield self._job(name, ragged_batch(self._text, n), [first])
        elif section == "bulk":
            fast = [each for each in some if each == first or each not in SLOW]
            yield self._job(name, self._long(name), fast)
            if not settings.check:
                short = bulk(self._text, min(self._long(name).tokens, settings.short_bulk_tokens))
                yield self._job(name, short, [first, *(each for each in some if each not in fast)], slow=True)
        elif section == "timeline":
            yield Job("stages", name, "", partial(self._timeline, name))

    def _job(self, name: str, workload: Workload, precisions: Sequence[str], slow: bool = False) -> Job:
        def rows() -> list[Row]:  # the ceilings are measured by then
            return self._speed(name).rows(workload, precisions, slow)

        return Job(workload.section, name, workload.detail, rows)

    def _batch(self, n: int, section: str = "batch") -> Workload:
        """So many sentences of equal length."""
        return equal_batch(self._text, n, self.settings.tokens, section)

    def _long(self, name: str) -> Workload:
        """Bulk text that a model is timed on."""
        config = self.subject(name).model.config
        return bulk(self._text, suited_tokens(config, self.card, self.settings.bulk_tokens or 1, self.first))

    def _timeline(self, name: str) -> Iterator[list[Row]]:
        """For a sentence, bulk text, and from a text file to means on the host."""
        embedder, sentence = self.subject(name).timed(self.first, known=True), self._batch(1)
        text = bulk(self._text, min(self._long(name).tokens, 8 * self.settings.short_bulk_tokens)).sentences
        path = write_sentences(self.folder / "traced.txt", text)
        calls: dict[str, Callable[[], object]] = {
            sentence.detail: partial(leave_on_device, embedder, sentence.sentences),
            "bulk": partial(leave_on_device, embedder, text),
            "text to means": lambda: list(file_means(embedder, path)),
        }
        for title, run in calls.items():
            for _ in range(WARM_UPS + 1):
                run()
            self.device.synchronize()
            row = Row("stages", name, f"{self.first}, {title}", "% of the time")
            yield trace(row, run, self.device.torch, self.folder / f"timeline-{name}-{slug(title)}.json")


def suited(settings: Settings, device: Device) -> Settings:
    """With the precisions that the card has, its fastest one first: older cards have neither bf16 nor TF32.

    Raises:
        FlashElmoError: it has none of them.
    """
    place, has = torch.device(device.torch), []
    for precision in sorted(settings.precisions, key=lambda precision: precision != default_precision(place)):
        try:
            check_precision(place, precision)
            has.append(precision)
        except FlashElmoError as error:
            print(f"left out: {error}")
    if not has:
        raise FlashElmoError(f"precisions: expected one that the card has, found {', '.join(settings.precisions)}")
    settings = replace(settings, precisions=tuple(has), thorough=(has[0], "fp32"))
    return replace(settings, sentences=4, short_sentences=0) if settings.few else settings


def compile_share(k: int, n: int, settings: Settings, sections: Sequence[str], claims: Path) -> list[str]:
    """Compile the launches of every n-th job from the k-th on; what went wrong."""
    less, wrong = replace(settings, rounds=1, sample_seconds=0.0, bulk_tokens=1 << 18), []
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder, compiling(claims), redirect_stdout(None):
        engine = Engine(less, Path(folder))
        jobs = [job for section in sections for job in engine.jobs(section) if job.section != "ceiling"]
        for job in jobs[k::n]:
            try:
                for _ in job.rows():
                    pass
            except Exception as error:
                wrong.append(f"{job.section} {job.detail}: {one_line(error)}")
    return wrong


def command(settings: Settings, console: Console) -> int:
    """Compile, measure, and say what was found; the exit status is 1 if anything is wrong or failed.

    Raises:
        FlashElmoError: there is no card.
    """
    seconds, of_section, of_job = LIMITS[settings.check]
    limit = seconds if settings.limit_seconds is None else settings.limit_seconds
    settings = replace(settings, limit_seconds=limit, part_seconds=settings.part_seconds or of_section)
    asked = settings.sections or (CHECK if settings.check else WHOLE)
    sections = [each for each in ("kernels", *SECTIONS) if each in asked or (each == "timeline" and settings.trace)]
    deadline = Deadline(limit)
    if not torch.cuda.is_available():
        raise FlashElmoError("no CUDA device: this benchmark needs one")
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"  # of all processes: they take time, and are part of what is compiled
    out = settings.out or Path(tempfile.mkdtemp(prefix="flashelmo-gpu-"))
    folder = out.parent if out.suffix == ".json" else out
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as claims:
        n = max(1, min(PROCESSES, (os.cpu_count() or 1) - SPARE_CORES))
        ahead = Ahead(compile_share, n, settings, sections, Path(claims))
        make = partial(Worker, Engine, settings, folder)
        try:
            worker = make()
            results: Results = worker.call("results")
            kind = "check" if settings.check else "gpu-kernels" if settings.sections == ("kernels",) else "gpu"
            name = f"{kind}-{slug(results.machine['gpu']['name'])}.json"
            run = Run(replace(settings, out=out), console, results, name)
        except (FlashElmoError, WorkerError) as error:
            list(ahead.finish(0.0))  # which ends its processes
            raise FlashElmoError(f"no process could begin on the card: {error}") from None
        for line in ahead.finish(min(COMPILE_SECONDS, deadline.left / 2)):
            run.say(line)
        run.say(f"{len(list(Path(claims).iterdir()))} launches compiled ahead, {deadline.taken:.0f} s")
    before = committed(results.machine["gpu"]["name"], COMMITTED_FOLDER)
    for rows in supervise(sections, settings, deadline, make, worker, of_job):
        run.keep(with_committed(rows, before))
    written = card_tables(run.results)
    run.say(written)
    assert run.path is not None  # as there is a folder
    run.path.with_suffix(".md").write_text(written + "\n", encoding="utf-8")
    return run.finish()


SUITE = Suite(
    "The engine on this machine's card, end to end: correct first, then how fast beside its rivals.",
    Settings(
        precisions=("bf16", *(each for each in precisions_on("cuda") if each != "bf16")),
        sentences=24,
        batches=(32, 128, 512),
        bulk_tokens=1 << 21,
        sample_seconds=0.05,
    ),
    ("sections", "precisions", "text", "switches", "few", "check", "part_seconds", "rows", "trace", *RUN_OPTIONS),
    command,
    known={"switches": SWITCHES, "sections": SECTIONS},
)
