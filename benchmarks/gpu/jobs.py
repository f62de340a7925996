"""What a run of the engine on a GPU measures: correctness, speed, stages, switches, and the slowest rivals last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flashelmo.benchmarks.gpu.accuracy import Check, Truth, checks
from flashelmo.benchmarks.gpu.ceilings import measure_ceilings, with_ceiling
from flashelmo.benchmarks.gpu.golden import golden_checks
from flashelmo.benchmarks.gpu.rows import CARD, UNIT
from flashelmo.benchmarks.gpu.sanitizer import sanitize
from flashelmo.benchmarks.gpu.settings import EngineSettings
from flashelmo.benchmarks.gpu.speed import Speed
from flashelmo.benchmarks.gpu.stages import measure_stages
from flashelmo.benchmarks.gpu.subject import Place, Subject, leave_on_device
from flashelmo.benchmarks.gpu.switches import measure_switch, switches
from flashelmo.benchmarks.gpu.workloads import Workload, bulk, equal_batch, load_text, ragged_batch, suited_tokens
from flashelmo.benchmarks.kernels.model import Card
from flashelmo.benchmarks.kernels.timing import Deadline, Timer, one_line
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.engine.model.weights import ElmoModel

CHECKING = 0.5  # share of the time that the checks may take
SLOW = ("fp32", "tf32")  # precisions that bulk text is shorter for
SWITCHED_BATCHES = (8, 32, 128)


@dataclass(frozen=True)
class Tools:
    """What a run works with; tests have others.

    Attributes:
        make: takes what `ElmoEmbedder` takes.
        load: a random model of a preset and a seed.
        calls, kernels: time whole calls, and single kernels.
        cuda: the CUDA runtime's settings, those switches off that are to be off.
    """

    make: Callable[..., Any]
    load: Callable[[str, int], ElmoModel]
    calls: Timer
    kernels: Timer
    cuda: Any


class Job(NamedTuple):
    """Something to measure, where there is still so much time.

    Attributes:
        rows: computes them, in pieces that are kept as they come.
    """

    section: str
    model: str
    detail: str
    rows: Callable[[], Iterable[Sequence[Row]]]
    seconds: float = 0.0


class Jobs:
    """All jobs of a run, and what they share.

    Args:
        card: the model's, its ceilings the table's until they are measured.
        out: folder of the results.
        deadline: of the whole run.
    """

    def __init__(
        self, settings: EngineSettings, place: Place, tools: Tools, card: Card, out: Path, deadline: Deadline
    ) -> None:
        self.settings, self.place, self.card = settings, place, card
        self._tools, self._out, self._deadline = tools, out, deadline
        self._checking = Deadline(CHECKING * settings.limit_seconds)
        self._text, self.source = load_text(self._tokens_needed(), settings.text, settings.seed)
        self._subjects: dict[str, Subject] = {}
        self._truths: dict[str, Truth] = {}
        self._speeds: dict[str, Speed] = {}

    def all(self, folder: Path) -> Iterator[Job]:
        """In order; `folder` takes texts."""
        settings, models = self.settings, self.settings.models
        yield from self._check_jobs()
        if "speed" in settings.sections:
            yield Job("ceiling", CARD, "", self._ceilings)
            for name in models:
                yield from self._speed_jobs(name, folder)
        for name in models:
            if "stages" in settings.sections:
                yield from self._stage_jobs(name)
            if "switches" in settings.sections:
                yield from self._switch_jobs(name)
            if "speed" in settings.sections:
                yield from self._compiled_jobs(name, folder)
        if "speed" in settings.sections:
            yield from self._onnx_jobs(models[0], folder)
        if settings.sanitize and "correctness" in settings.sections:  # takes minutes: best with nothing but the checks
            yield Job("sanitizer", CARD, "", lambda: ([row] for row in sanitize(self._out, self._deadline)))

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
        subject, settings = self._subject(name), self.settings
        if not whole:
            settings = replace(settings, thorough=())
        right: set[str] = set()
        subject.failed = set(settings.precisions)
        for check in checks(subject, self._truth(name), settings):
            rows = self._check(check)
            failed = any(row.note.startswith(FAILED) for row in rows)
            if check.name == "batch" and not failed and any(row.median is not None for row in rows):
                right.add(check.precision)
            elif failed:
                right.discard(check.precision)
            subject.failed = set(settings.precisions) - right
            yield rows
            if failed and not self.place.is_alive():
                return
        subject.let_go("stateful", "keep_sentence_boundaries", "window_tokens")

    def _golden(self, folder: Path) -> Iterator[list[Row]]:
        if not folder.is_dir():
            yield [Row("error", "golden", "published", "max abs error", note="no golden data here")]
            return
        for check in golden_checks(folder, self.place, self._tools.make, self._tools.cuda):
            yield self._check(check)

    def _check(self, check: Check) -> list[Row]:
        """Its rows; what does not run has failed, and the others go on."""
        row = Row("error", check.model, f"{check.name} {check.precision}", "relative error")
        if self._checking.left <= 0:
            return [replace(row, note=self._checking.over)]
        try:
            return check.rows()
        except Exception as error:
            return [replace(row, note=f"{FAILED}: {one_line(error)}")]

    # ----------------------------------------------------------------------------------------------------------- speed

    def _ceilings(self) -> Iterator[list[Row]]:
        for row, kind, figure in measure_ceilings(self.settings, self.place.torch, self._tools.kernels):
            self.card = with_ceiling(self.card, kind, figure)
            yield [row]

    def _speed_jobs(self, name: str, folder: Path) -> Iterator[Job]:
        settings, text = self.settings, self._text
        first = settings.precisions[0]

        def job(workload: Workload, rows: Callable[[Speed], Sequence[Row]]) -> Job:
            return Job(workload.section, name, workload.detail, lambda: [rows(self._speed(name, folder))])

        def batch(workload: Workload, precisions: Sequence[str], cudnn: bool) -> Job:
            return job(workload, lambda speed: speed.batch(workload, precisions, cudnn=cudnn))

        tokens = suited_tokens(self._subject(name).model.config, self.card, settings.bulk_tokens, first)
        long, short = bulk(text, tokens), bulk(text, min(tokens, settings.short_bulk_tokens))
        fast = [precision for precision in settings.precisions if precision == first or precision not in SLOW]
        yield job(long, lambda speed: speed.bulk(long, fast))
        yield batch(equal_batch(text, 1, settings.tokens, "single"), settings.precisions, True)
        for n in settings.batches:
            precisions = settings.precisions if n in settings.other_batches else [first]
            yield batch(equal_batch(text, n, settings.tokens), precisions, True)
        for n in settings.batches:
            yield batch(ragged_batch(text, n), [first], False)
        slow = [precision for precision in settings.precisions if precision not in fast]
        yield job(short, lambda speed: speed.short_bulk(short, [first, *slow]))

    def _compiled_jobs(self, name: str, folder: Path) -> Iterator[Job]:
        """Late, as compiling may take long."""
        settings = self.settings
        batch = equal_batch(self._text, settings.batches[0], settings.tokens, "compiled")
        yield Job(
            "compiled",
            name,
            batch.detail,
            lambda: [self._speed(name, folder).compiled(batch, settings.precisions[0])],
            settings.compile_seconds,
        )

    def _onnx_jobs(self, name: str, folder: Path) -> Iterator[Job]:
        """Last, as a library of other makers may take the process with it."""
        settings, path = self.settings, self.settings.onnx
        if path is None:
            note = "no exported model was given (--onnx)"
            yield Job("onnx", name, "", lambda: [[Row("onnx", name, "ONNX Runtime", UNIT, note=note)]])
            return
        for n in settings.batches:
            batch = equal_batch(self._text, n, settings.tokens, "onnx")
            rows = partial(self._onnx, name, folder, batch, path)
            yield Job("onnx", name, batch.detail, rows)

    def _onnx(self, name: str, folder: Path, batch: Workload, path: Path) -> list[list[Row]]:
        return [self._speed(name, folder).onnx(batch, self.settings.precisions[0], path)]

    # --------------------------------------------------------------------------------------------- stages and switches

    def _switch_jobs(self, name: str) -> Iterator[Job]:
        """Each switch, where the precision that they are judged by is right."""
        settings, subject, first = self.settings, self._subject(name), self.settings.precisions[0]
        if first in subject.failed:
            return
        workloads = [equal_batch(self._text, 1, settings.tokens, "single")]
        sizes = [n for n in SWITCHED_BATCHES if n <= max(settings.batches)]
        workloads += [equal_batch(self._text, n, settings.tokens) for n in sizes]
        workloads.append(bulk(self._text, settings.short_bulk_tokens))
        for switch in switches(self._tools.cuda):
            given = subject, self._truth(name), workloads, first, self._tools.calls
            yield Job("switch", name, switch, partial(measure_switch, switch, self._tools.cuda, *given))

    def _stage_jobs(self, name: str) -> Iterator[Job]:
        settings, first = self.settings, self.settings.precisions[0]
        if first in self._subject(name).failed:
            return
        batch = equal_batch(self._text, settings.batches[0], settings.tokens)
        for workload in (bulk(self._text, 4 * settings.short_bulk_tokens), batch):
            yield Job("stages", name, workload.detail, partial(self._stages, name, workload))

    def _stages(self, name: str, workload: Workload) -> list[list[Row]]:
        first = self.settings.precisions[0]
        run = partial(leave_on_device, self._subject(name).timed(first), workload.sentences)
        for _ in range(3):  # compiled, captured, replayed
            run()
        return [measure_stages(name, f"{first}, {workload.section} of {workload.detail}", run, self.place.torch)]

    # ------------------------------------------------------------------------------------------------- what jobs share

    def _subject(self, name: str) -> Subject:
        if name not in self._subjects:
            model = self._tools.load(name, self.settings.seed)
            self._subjects[name] = Subject(name, model, self.place, self._tools.make, self._tools.cuda)
        return self._subjects[name]

    def _truth(self, name: str) -> Truth:
        if name not in self._truths:
            self._truths[name] = Truth(self._subject(name), self._text, self.settings)
        return self._truths[name]

    def _speed(self, name: str, folder: Path) -> Speed:
        if name not in self._speeds:
            given = self._subject(name), self._truth(name), self.settings, self._tools.calls
            self._speeds[name] = Speed(*given, self.card, folder)
        return self._speeds[name]

    def _tokens_needed(self) -> int:
        settings = self.settings
        equal = max(settings.batches) * settings.tokens
        return max(settings.bulk_tokens, 4 * settings.short_bulk_tokens, equal, 3 * settings.short_sentences)
