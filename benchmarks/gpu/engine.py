"""The engine on this machine's card, end to end: correct first, then how fast: `python -m benchmarks gpu --out DIR`.

The vectors of every precision are compared with the reference's on the CPU and with published ones, in every way to
embed. Then sentences, batches and bulk text are embedded in turns with PyTorch's eager reference, torch.compile and
cuDNN's LSTM, the card's time is shared out among the stages, and each of the CUDA runtime's switches is timed against
its opposite. Beside each figure stands what the card's limits, measured in the same run, allow. (ONNX Runtime's CUDA
provider is a suite of its own: `onnx --only cuda`.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from flashelmo.benchmarks.accuracy import error_rows
from flashelmo.benchmarks.contestant import load
from flashelmo.benchmarks.gpu import profile
from flashelmo.benchmarks.gpu.accuracy import Subject, Truth, Way, file_means, leave_on_device, ways
from flashelmo.benchmarks.gpu.limits import suited_tokens
from flashelmo.benchmarks.gpu.speed import SWITCH, WARM_UPS, Speed
from flashelmo.benchmarks.kernels.card import CARD, Card, Device
from flashelmo.benchmarks.kernels.graph_timing import Timer, measure_ceilings, time_graphs
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.run import Job, Run
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import Workload, bulk, equal_batch, load_sentences, ragged_batch, write_sentences
from flashelmo.benchmarks.worker import one_line
from flashelmo.engine.cuda.requirements import check_precision, default_precision
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import PRECISIONS
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
        self.run, self._tools = run, tools
        self.folder = Path(tempfile.gettempdir())
        needed = [max(settings.batches) * settings.tokens, 3 * settings.short_sentences, 4 * settings.short_bulk_tokens]
        n_tokens = max(*needed, settings.bulk_tokens or 1)
        self._text, self.source = load_sentences(n_tokens, settings.text, settings.seed, again=True)
        self.subject, self._truth = cache(self._made_subject), cache(self._made_truth)
        self._speed = cache(self._made_speed)

    def jobs(self) -> Iterator[Job]:
        """In order, the slowest rivals last."""
        settings, sections = self.settings, self.settings.sections
        speeds = settings.models if "speed" in sections else ()
        left = (1 - CHECKING) * (settings.limit_seconds or 0)  # for the others
        yield from (job._replace(seconds=left) for job in self.check_jobs("correctness" in sections))
        if speeds:
            yield Job("ceiling", CARD, "", self._ceilings)
        for name in speeds:
            yield from self._speed_jobs(name)
        for name in settings.models:
            right = self.first not in self.subject(name).failed
            if ("stages" in sections or settings.trace) and right:
                yield self.timeline_job(name)
            for switch in SWITCHES if "switches" in sections and right else ():
                yield Job(SWITCH, name, switch, partial(self._switch, partial(self._speed, name), switch))
            if name in speeds:  # last, as compiling may take long
                yield self.job(name, self.batch(settings.batches[0], "compiled"), seconds=settings.compile_seconds)

    # ----------------------------------------------------------------------------------------------------- correctness

    def check_jobs(self, whole: bool, settings: Settings | None = None) -> Iterator[Job]:
        """Each precision and way of every model, batches alone if the checks are not asked for.

        Precisions whose batch was not reached, or that anything was wrong with, are not timed.
        """
        settings = settings or self.settings
        settings = settings if whole else replace(settings, thorough=())
        for name in settings.models:
            self.subject(name).failed |= set(settings.precisions)
            for precision, way, compare in ways(settings):
                yield Job("error", name, f"{way} {precision}", partial(self._checks, name, precision, way, compare))

    def _checks(self, name: str, precision: str, way: str, compare: Way) -> Iterator[list[Row]]:
        subject, row = self.subject(name), Row("error", name, f"{way} {precision}", "relative error")
        try:
            rows = error_rows(row, compare(subject, self._truth(name), precision), PRECISIONS[precision].bounds["cuda"])
        except Exception as error:
            rows = [replace(row, note=f"{FAILED}: {one_line(error)}")]
        if any(row.failed for row in rows):
            subject.failed.add(precision)
        elif way == "batch" and any(row.median is not None for row in rows):
            subject.failed.discard(precision)
        subject.let_go("stateful", "keep_sentence_boundaries", "window_tokens")
        yield rows

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

    def _switch(self, speed: Callable[[], Speed], switch: str) -> Iterator[list[Row]]:
        sizes = [n for n in SWITCHED_BATCHES if n <= max(self.settings.batches)]
        workloads = [self.batch(1, "single"), *map(self.batch, sizes)]
        return speed().switch(switch, [*workloads, bulk(self._text, self.settings.short_bulk_tokens)], self.first)

    def _traced(self, title: str, run: Callable[[], object]) -> profile.Trace:
        for _ in range(WARM_UPS + 1):
            run()
        self.device.synchronize()
        return profile.trace(f"{self.first}, {title}", run, self.device.torch)

    def timeline_job(self, name: str) -> Job:
        """What device and host do for a sentence, bulk text, and from a text file to means on the host."""
        return Job("stages", name, "", partial(self._timeline, name))

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
            traces.append(self._traced(title, run))
            yield profile.stage_rows(name, traces[-1])
            profile.write(traces, self._out / f"timeline-{name}.json")

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
    return replace(settings, sentences=4, short_sentences=0) if settings.few else settings
