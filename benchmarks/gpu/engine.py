"""The jobs of a run of the engine on a card: its correctness, its speed, and where the time goes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from flashelmo.benchmarks.gpu import timeline
from flashelmo.benchmarks.gpu.accuracy import PUBLISHED, Piece, Truth, error_rows, file_means, published, ways
from flashelmo.benchmarks.gpu.sanitizer import sanitize
from flashelmo.benchmarks.gpu.speed import ONNX, SWITCH, UNIT, WARM_UPS, Speed
from flashelmo.benchmarks.gpu.stages import measure_stages
from flashelmo.benchmarks.gpu.subject import Subject, leave_on_device
from flashelmo.benchmarks.gpu.workloads import Workload, bulk, equal_batch, load_text, ragged_batch, suited_tokens
from flashelmo.benchmarks.kernels.card import CARD, Card, Device
from flashelmo.benchmarks.kernels.graph_timing import Timer, measure_ceilings, time_graphs
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.run import Job, Run
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import load
from flashelmo.benchmarks.text import write_sentences
from flashelmo.benchmarks.timing import Deadline
from flashelmo.benchmarks.worker import one_line
from flashelmo.engine.cuda.requirements import check_precision, default_precision
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.settings import CudaSettings

SECTIONS = ("correctness", "speed", "stages", "switches")
PARTS = ("steps", "sentence", "batches", "bulk", "timeline")  # of a check, beside the correctness
SWITCHES = tuple(field.name for field in fields(CudaSettings) if isinstance(field.default, bool))
CHECKING = 0.5  # share of the time that the checks may take
SLOW = ("fp32", "tf32")  # precisions that bulk text is shorter for
SWITCHED_BATCHES = (8, 32, 128, 512)


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
        self.run, self._tools, limit = run, tools, settings.limit_seconds
        self.checking = Deadline(None if limit is None else CHECKING * limit)
        self.folder = Path(tempfile.gettempdir())
        needed = [max(settings.batches) * settings.tokens, 3 * settings.short_sentences, 4 * settings.short_bulk_tokens]
        self._text, self.source = load_text(max(*needed, settings.bulk_tokens or 1), settings.text, settings.seed)
        self.subject, self._truth = cache(self._made_subject), cache(self._made_truth)
        self._speed = cache(self._made_speed)

    def jobs(self) -> Iterator[Job]:
        """In order, the slowest rivals last."""
        settings, sections = self.settings, self.settings.sections
        speeds = settings.models if "speed" in sections else ()
        yield from self.check_jobs("correctness" in sections)
        if speeds:
            yield Job("ceiling", CARD, "", self._ceilings)
        for name in speeds:
            yield from self._speed_jobs(name)
        for name in settings.models:
            right = self.first not in self.subject(name).failed
            if "stages" in sections and right:
                for workload in (bulk(self._text, 4 * settings.short_bulk_tokens), self.batch(settings.batches[0])):
                    yield Job("stages", name, workload.detail, partial(self._stages, name, workload))
            if settings.trace and right:
                yield self.timeline_job(name)
            for switch in SWITCHES if "switches" in sections and right else ():
                yield Job(SWITCH, name, switch, partial(self._switch, partial(self._speed, name), switch))
            if name in speeds:  # late, as compiling may take long
                yield self.job(name, self.batch(settings.batches[0], "compiled"), seconds=settings.compile_seconds)
        if speeds:  # last, as a library of other makers may take the process with it
            yield from self._onnx_jobs(settings.models[0])
        if settings.sanitize and "correctness" in sections:  # takes minutes: best with nothing but the checks
            yield Job("sanitizer", CARD, "", lambda: ([row] for row in sanitize(self._out, self.run.deadline)))

    # ----------------------------------------------------------------------------------------------------- correctness

    def check_jobs(self, whole: bool) -> Iterator[Job]:
        """The first model, published vectors, the other models; batches alone if the checks are not asked for."""
        golden = self.settings.golden
        settings = self.settings if whole else replace(self.settings, thorough=())
        for k, name in enumerate(self.settings.models):
            yield Job("error", name, "", partial(self.checks, name, settings))
            if k == 0 and whole and golden is not None:
                yield Job("error", "golden", "", partial(self._golden, golden))

    def checks(self, name: str, settings: Settings) -> Iterator[list[Row]]:
        """Precisions whose batch was not reached, or that anything was wrong with, are not timed."""
        subject, right = self.subject(name), set[str]()
        subject.failed = set(self.settings.precisions)
        for precision, way, compare in ways(settings):
            rows = self._check(name, way, precision, partial(compare, subject, self._truth(name), precision))
            failed = any(row.failed for row in rows)
            if way == "batch" and not failed and any(row.median is not None for row in rows):
                right.add(precision)
            elif failed:
                right.discard(precision)
            subject.failed = set(self.settings.precisions) - right
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
        if self.checking.left <= 0:
            return [replace(row, note=self.checking.over)]
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

    def batch(self, n: int, section: str = "batch") -> Workload:
        """So many sentences of equal length."""
        return equal_batch(self._text, n, self.settings.tokens, section)

    def ragged(self, n: int) -> Workload:
        """So many sentences of the text."""
        return ragged_batch(self._text, n)

    def long(self, name: str) -> Workload:
        """Bulk text that a model is timed on."""
        config = self.subject(name).model.config
        return bulk(self._text, suited_tokens(config, self.card, self.settings.bulk_tokens or 1, self.first))

    def _speed_jobs(self, name: str) -> Iterator[Job]:
        settings, first, long = self.settings, self.first, self.long(name)
        short = bulk(self._text, min(long.tokens, settings.short_bulk_tokens))
        fast = [each for each in settings.precisions if each == first or each not in SLOW]
        slow = [each for each in settings.precisions if each not in fast]
        plans = [(long, fast), (self.batch(1, "single"), settings.precisions)]
        plans += [
            (self.batch(n), settings.precisions if n in settings.other_batches else [first]) for n in settings.batches
        ]
        plans += [(self.ragged(n), [first]) for n in settings.batches]
        for workload, precisions in plans:
            yield self.job(name, workload, precisions)
        yield self.job(name, short, [first, *slow], slow=True)

    def job(
        self, name: str, workload: Workload, precisions: Sequence[str] = (), *, slow: bool = False, seconds: float = 0
    ) -> Job:
        """Times a workload in some precisions, or in the first."""

        def rows() -> list[list[Row]]:
            return [self._speed(name).rows(workload, precisions or [self.first], slow)]

        return Job(workload.section, name, workload.detail, rows, seconds)

    def _onnx_jobs(self, name: str) -> Iterator[Job]:
        if self.settings.onnx is None:
            note = "no exported model was given (--onnx)"
            yield Job("onnx", name, "", lambda: [[Row("onnx", name, ONNX, UNIT, note=note)]])
            return
        for n in self.settings.batches:
            yield self.job(name, self.batch(n, "onnx"))

    def _switch(self, speed: Callable[[], Speed], switch: str) -> Iterator[list[Row]]:
        sizes = [n for n in SWITCHED_BATCHES if n <= max(self.settings.batches)]
        workloads = [self.batch(1, "single"), *map(self.batch, sizes)]
        return speed().switch(switch, [*workloads, bulk(self._text, self.settings.short_bulk_tokens)], self.first)

    def _stages(self, name: str, workload: Workload) -> list[list[Row]]:
        run = partial(leave_on_device, self.subject(name).timed(self.first), workload.sentences)
        for _ in range(WARM_UPS):
            run()
        label = f"{self.first}, {workload.section} of {workload.detail}"
        return [measure_stages(name, label, run, self.device.torch)]

    def timeline_job(self, name: str) -> Job:
        """Draws what device and host do for a sentence, bulk text, and from a text file to means on the host."""
        return Job(timeline.SECTION, name, "", partial(self._timeline, name))

    def _timeline(self, name: str) -> Iterator[list[Row]]:
        embedder, text = self.subject(name).timed(self.first, known=True), self.long(name).sentences
        text = bulk(text, min(self.long(name).tokens, 8 * self.settings.short_bulk_tokens)).sentences
        path, traces = write_sentences(self.folder / "traced.txt", text), []
        calls: list[tuple[str, Callable[[], object]]] = [
            (self.batch(1).detail, partial(leave_on_device, embedder, self.batch(1).sentences)),
            ("bulk, left on the device", partial(leave_on_device, embedder, text)),
            ("text to means", lambda: list(file_means(embedder, path))),
        ]
        for title, run in calls:
            for _ in range(WARM_UPS):
                run()
            self.device.synchronize()
            traces.append(timeline.trace(f"{name}, {self.first}, {title}", run, self.device.torch))
            row = Row(timeline.SECTION, name, f"{self.first}, {title}", "% of the time", "device busy")
            yield [row.with_samples([100 * traces[-1].busy / traces[-1].taken])]
        timeline.draw(traces, self._out / f"timeline-{name}.svg")

    @property
    def _out(self) -> Path:
        """The folder of the results."""
        return self.run.path.parent if self.run.path else self.folder

    # ------------------------------------------------------------------------------------------------- what jobs share

    def _made_subject(self, name: str) -> Subject:
        model = self._tools.load(name, self.settings.seed)
        return Subject(name, model, self.device, self._tools.make, self.cuda)

    def _made_truth(self, name: str) -> Truth:
        return Truth(self.subject(name), self._text, self.settings)

    def _made_speed(self, name: str) -> Speed:
        return Speed(self.subject(name), self._truth(name), self.settings, self.card, self.folder)


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
