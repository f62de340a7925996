"""The engine on this machine's card, end to end: correct first, then how fast: `python -m benchmarks gpu --out DIR`.

The vectors of every precision are compared with the reference's on the CPU and with published ones, in every way to
embed. Then sentences, batches and bulk text are embedded in turns with PyTorch's eager reference, torch.compile,
cuDNN's LSTM and ONNX Runtime, the card's time is shared out among the stages, and each of the CUDA runtime's switches
is timed against its opposite. Beside each figure stands what the card's limits, measured in the same run, allow.
Results go to DIR/gpu-CARD.json, tables and plots beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from flashelmo.benchmarks.gpu import tables
from flashelmo.benchmarks.gpu.accuracy import GOLDEN, PUBLISHED, Piece, Truth, error_rows, published, ways
from flashelmo.benchmarks.gpu.sanitizer import sanitize
from flashelmo.benchmarks.gpu.speed import ONNX, SWITCH, UNIT, Speed
from flashelmo.benchmarks.gpu.stages import measure_stages
from flashelmo.benchmarks.gpu.subject import Subject, leave_on_device
from flashelmo.benchmarks.gpu.workloads import Workload, bulk, equal_batch, load_text, ragged_batch, suited_tokens
from flashelmo.benchmarks.kernels.card import CARD, RUN_OPTIONS, Card, Device, begin
from flashelmo.benchmarks.kernels.graph_timing import Timer, measure_ceilings, time_graphs
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.run import Job, Run, Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import load
from flashelmo.benchmarks.timing import Deadline
from flashelmo.benchmarks.worker import one_line
from flashelmo.engine.cuda.requirements import check_precision, default_precision
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import precisions_on
from flashelmo.engine.settings import CudaSettings

SWITCHES = tuple(field.name for field in fields(CudaSettings) if isinstance(field.default, bool))
CHECKING = 0.5  # share of the time that the checks may take
SLOW = ("fp32", "tf32")  # precisions that bulk text is shorter for
SWITCHED_BATCHES = (8, 32, 128)


@dataclass(frozen=True)
class Tools:
    """What a run works with, and tests have others: `ElmoEmbedder`, what loads a model of a name and a seed, and what
    times single kernels.
    """

    make: Callable[..., Any] = ElmoEmbedder
    load: Callable[[str, int], ElmoModel] = load
    timer: Timer = time_graphs


class Engine:
    """The engine on a device: all jobs of a run, and what they share.

    Args:
        card: the device's, its ceilings the table's until they are measured.
    """

    def __init__(self, settings: Settings, device: Device, card: Card, run: Run, tools: Tools) -> None:
        self.settings, self.device, self.card, self.first = settings, device, card, settings.precisions[0]
        self.cuda = replace(CudaSettings(), **dict.fromkeys(settings.off, False))
        self._run, self._tools, limit = run, tools, settings.limit_seconds
        self._checking = Deadline(None if limit is None else CHECKING * limit)
        needed = [max(settings.batches) * settings.tokens, 3 * settings.short_sentences, 4 * settings.short_bulk_tokens]
        self._text, self.source = load_text(max(*needed, settings.bulk_tokens or 1), settings.text, settings.seed)
        self._subject, self._truth = cache(self._made_subject), cache(self._made_truth)

    def jobs(self, folder: Path) -> Iterator[Job]:
        """In order, the slowest rivals last; `folder` takes texts."""
        settings, sections = self.settings, self.settings.sections
        made = cache(partial(self._speed, folder))
        speeds = {name: partial(made, name) for name in settings.models if "speed" in sections}
        yield from self._check_jobs()
        if speeds:
            yield Job("ceiling", CARD, "", self._ceilings)
        for name, speed in speeds.items():
            yield from self._speed_jobs(name, speed)
        for name in settings.models:
            right = self.first not in self._subject(name).failed
            if "stages" in sections and right:
                for workload in (bulk(self._text, 4 * settings.short_bulk_tokens), self._batch(settings.batches[0])):
                    yield Job("stages", name, workload.detail, partial(self._stages, name, workload))
            for switch in SWITCHES if "switches" in sections and right else ():
                yield Job(SWITCH, name, switch, partial(self._switch, partial(made, name), switch))
            if name in speeds:  # late, as compiling may take long
                batch = self._batch(settings.batches[0], "compiled")
                yield _job(name, speeds[name], batch, [self.first], seconds=settings.compile_seconds)
        if speeds:  # last, as a library of other makers may take the process with it
            yield from self._onnx_jobs(settings.models[0], speeds[settings.models[0]])
        if settings.sanitize and "correctness" in sections:  # takes minutes: best with nothing but the checks
            out = self._run.path.parent if self._run.path else folder
            yield Job("sanitizer", CARD, "", lambda: ([row] for row in sanitize(out, self._run.deadline)))

    # ----------------------------------------------------------------------------------------------------- correctness

    def _check_jobs(self) -> Iterator[Job]:
        """The first model, published vectors, the other models; batches alone if the checks are not asked for."""
        golden, whole = self.settings.golden, "correctness" in self.settings.sections
        for k, name in enumerate(self.settings.models):
            yield Job("error", name, "", partial(self._checks, name, whole))
            if k == 0 and whole and golden is not None:
                yield Job("error", "golden", "", partial(self._golden, golden))

    def _checks(self, name: str, whole: bool) -> Iterator[list[Row]]:
        """Precisions whose batch was not reached, or that anything was wrong with, are not timed."""
        subject, settings, right = self._subject(name), self.settings, set[str]()
        subject.failed = set(settings.precisions)
        for precision, way, compare in ways(settings if whole else replace(settings, thorough=())):
            rows = self._check(name, way, precision, partial(compare, subject, self._truth(name), precision))
            failed = any(row.failed for row in rows)
            if way == "batch" and not failed and any(row.median is not None for row in rows):
                right.add(precision)
            elif failed:
                right.discard(precision)
            subject.failed = set(settings.precisions) - right
            yield rows
            if failed and self.device.is_lost():
                return
        subject.let_go("stateful", "keep_sentence_boundaries", "window_tokens")

    def _golden(self, folder: Path) -> Iterator[list[Row]]:
        def make(path: Path) -> Subject:
            return Subject(path.name, load_model(path), self.device, self._tools.make, self.cuda)

        if not folder.is_dir():
            yield [Row("error", "golden", "published", "max abs error", note="no golden data here")]
            return
        for model, name, pieces in published(make, folder):
            yield self._check(model, name, PUBLISHED, pieces)

    def _check(self, model: str, name: str, precision: str, pieces: Callable[[], Iterable[Piece]]) -> list[Row]:
        """Rows of the errors; what does not run has failed, and the others go on."""
        row = Row("error", model, f"{name} {precision}", "relative error")
        if self._checking.left <= 0:
            return [replace(row, note=self._checking.over)]
        try:
            return error_rows(row, precision, pieces())
        except Exception as error:
            return [replace(row, note=f"{FAILED}: {one_line(error)}")]

    # ----------------------------------------------------------------------------------------------------------- speed

    def _ceilings(self) -> Iterator[list[Row]]:
        precisions = ("bf16", "fp32", "tf32")  # fp16 is as fast as bf16
        for row, card in measure_ceilings(self.settings, self.device, self.card, precisions, self._tools.timer):
            self.card = card
            yield [row]

    def _batch(self, n: int, section: str = "batch") -> Workload:
        return equal_batch(self._text, n, self.settings.tokens, section)

    def _speed_jobs(self, name: str, speed: Callable[[], Speed]) -> Iterator[Job]:
        settings, text, first = self.settings, self._text, self.first
        tokens = suited_tokens(self._subject(name).model.config, self.card, settings.bulk_tokens or 1, first)
        long, short = bulk(text, tokens), bulk(text, min(tokens, settings.short_bulk_tokens))
        fast = [each for each in settings.precisions if each == first or each not in SLOW]
        slow = [each for each in settings.precisions if each not in fast]
        plans = [(long, fast), (self._batch(1, "single"), settings.precisions)]
        plans += [
            (self._batch(n), settings.precisions if n in settings.other_batches else [first]) for n in settings.batches
        ]
        plans += [(ragged_batch(text, n), [first]) for n in settings.batches]
        for workload, precisions in plans:
            yield _job(name, speed, workload, precisions)
        yield _job(name, speed, short, [first, *slow], slow=True)

    def _onnx_jobs(self, name: str, speed: Callable[[], Speed]) -> Iterator[Job]:
        if self.settings.onnx is None:
            note = "no exported model was given (--onnx)"
            yield Job("onnx", name, "", lambda: [[Row("onnx", name, ONNX, UNIT, note=note)]])
            return
        for n in self.settings.batches:
            yield _job(name, speed, self._batch(n, "onnx"), [self.first])

    def _switch(self, speed: Callable[[], Speed], switch: str) -> Iterator[list[Row]]:
        sizes = [n for n in SWITCHED_BATCHES if n <= max(self.settings.batches)]
        workloads = [self._batch(1, "single"), *map(self._batch, sizes)]
        return speed().switch(switch, [*workloads, bulk(self._text, self.settings.short_bulk_tokens)], self.first)

    def _stages(self, name: str, workload: Workload) -> list[list[Row]]:
        run = partial(leave_on_device, self._subject(name).timed(self.first), workload.sentences)
        for _ in range(3):  # compiled, captured, replayed
            run()
        label = f"{self.first}, {workload.section} of {workload.detail}"
        return [measure_stages(name, label, run, self.device.torch)]

    # ------------------------------------------------------------------------------------------------- what jobs share

    def _made_subject(self, name: str) -> Subject:
        model = self._tools.load(name, self.settings.seed)
        return Subject(name, model, self.device, self._tools.make, self.cuda)

    def _made_truth(self, name: str) -> Truth:
        return Truth(self._subject(name), self._text, self.settings)

    def _speed(self, folder: Path, name: str) -> Speed:
        return Speed(self._subject(name), self._truth(name), self.settings, self.card, folder)


def _job(
    name: str,
    speed: Callable[[], Speed],
    workload: Workload,
    precisions: Sequence[str],
    slow: bool = False,
    seconds: float = 0,
) -> Job:
    return Job(workload.section, name, workload.detail, lambda: [speed().rows(workload, precisions, slow)], seconds)


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
    return replace(settings, sentences=4, short_sentences=0, golden=None) if settings.few else settings


def measure(run: Run, engine: Engine) -> int:
    """Measure, and say what was found; the exit status."""
    run.say(f"text: {engine.source}")
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        run.do(engine.jobs(Path(folder)))
    if "speed" in engine.settings.sections:
        run.keep(tables.targets(run.results, engine.settings.models[0], engine.first))
    written = tables.tables(run.results)
    run.say(written)
    if run.path is not None:
        run.path.with_suffix(".md").write_text(written + "\n", encoding="utf-8")
        try:
            for path in tables.draw(run.results, run.path.with_suffix("")):
                run.say(f"drawn: {path}")
        except Exception as error:  # plots are the least of a run
            run.say(f"not drawn: {one_line(error)}")
    return run.finish()


def command(settings: Settings, console: Console) -> int:
    """Measure on the current CUDA device; the exit status is 1 if vectors are wrong, a job failed or it was lost."""
    run, device, card = begin(settings, console, "gpu", suited)
    return measure(run, Engine(run.settings, device, card, run, Tools()))


SUITE = Suite(
    "The engine on this machine's card, end to end: correct first, then how fast beside its rivals.",
    Settings(
        sections=("correctness", "speed", "stages", "switches"),
        precisions=("bf16", *(each for each in precisions_on("cuda") if each != "bf16")),
        sentences=24,
        batches=(32, 128, 512),
        bulk_tokens=1 << 21,
        sample_seconds=0.05,
        limit_seconds=480.0,
        golden=GOLDEN,
    ),
    ("sections", "precisions", "text", "golden", "onnx", "off", "few", "sanitize", *RUN_OPTIONS),
    command,
    known={"off": SWITCHES},
)
