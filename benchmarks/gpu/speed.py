"""Tokens a second of the engine on the card and of its rivals, in turns, with the card's ceiling beside.

Vectors, all layers of all tokens, stay on the device, but for "text to means", which begins at a text file and ends
with the mean of each sentence on the host. Where words are not known, their vectors are computed in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from flashelmo.benchmarks.gpu.accuracy import Truth, compare, file_means
from flashelmo.benchmarks.gpu.rivals import Compiled, Eager, Onnx, Stacks
from flashelmo.benchmarks.gpu.rows import UNIT, speeds, with_samples
from flashelmo.benchmarks.gpu.settings import EngineSettings
from flashelmo.benchmarks.gpu.subject import Embedder, Subject, leave_on_device
from flashelmo.benchmarks.gpu.workloads import Ceilings, Workload, ceilings
from flashelmo.benchmarks.kernels.model import Card
from flashelmo.benchmarks.kernels.timing import Task, Timer, Timing, one_line
from flashelmo.benchmarks.results import FAILED, Row, median_ratio
from flashelmo.benchmarks.text import Sentences, write_sentences
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.windows import read_windows

NOT_TIMED = "not timed, as its vectors were not checked or are wrong"
OURS, KNOWN = "flashelmo", "words known"
TEXT_TO_MEANS, WINDOWS = "text to means", "windows ready"
EAGER, COMPILED, CUDNN, ONNX = "PyTorch eager", "torch.compile", "cuDNN LSTM", "ONNX Runtime"
RIVAL_BOUND = 0.1  # relative error: with cells in bf16 rounding adds up over the steps; wrong work is off by more
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Run = Callable[[Sentences], object]


@dataclass(frozen=True)
class Contestant:
    """Somebody who embeds a workload.

    Attributes:
        name: who, with the kind of arithmetic, as "flashelmo bf16".
        build: makes what is called with the workload's sentences; where it raises, the contestant is absent and the
            others go on.
        kind: of arithmetic, for the ceiling; None for a rival, whose ceiling is not told.
        words_known: whether words cost nothing.
    """

    name: str
    build: Callable[[], Run]
    kind: str | None = None
    words_known: bool = False

    @property
    def is_rival(self) -> bool:
        """Whether ours are compared with it."""
        return self.kind is None


class Speed:
    """Measures one model.

    Args:
        truth: what rivals are checked against.
        card: whose ceilings stand beside the figures.
        folder: takes texts.
    """

    def __init__(
        self, subject: Subject, truth: Truth, settings: EngineSettings, timer: Timer, card: Card, folder: Path
    ) -> None:
        self.subject, self.truth, self.settings = subject, truth, settings
        self._timer, self._card, self._folder = timer, card, folder
        self._references: dict[str, Eager] = {}

    def batch(self, workload: Workload, precisions: Sequence[str], *, cudnn: bool) -> list[Row]:
        """A batch, or a sentence, by the precisions, the first one also with all words known, and by the rivals.

        Args:
            cudnn: the sentences are of one length, so that its LSTM can take part.
        """
        contestants = [self.ours(precision) for precision in precisions]
        contestants.insert(1, self.ours(precisions[0], known=True))
        contestants += [self.eager(kind, len(workload.sentences)) for kind in self._rival_kinds("fp32", "bf16")]
        if cudnn:
            contestants += self._stacks(workload)
        return self.measure(workload, contestants)

    def bulk(self, workload: Workload, precisions: Sequence[str]) -> list[Row]:
        """Text from token lists by the precisions, from windows, and from a file to means on the host, by the first."""
        first = precisions[0]
        contestants = [*map(self.ours, precisions), self.windows(first, workload), self.text_to_means(first, workload)]
        return self.measure(workload, contestants)

    def short_bulk(self, workload: Workload, precisions: Sequence[str]) -> list[Row]:
        """Text by the slower precisions and by the reference in batches."""
        contestants = [*map(self.ours, precisions), self.eager("fp32", self.settings.eager_batch)]
        return self.measure(workload, contestants)

    def compiled(self, workload: Workload, precision: str) -> list[Row]:
        """A batch by ours and by the reference under torch.compile."""

        def build() -> Run:
            seconds = self.settings.compile_seconds
            made = Compiled(self.subject.model, self.subject.place.torch, workload.sentences, seconds)
            return partial(made, batch_size=len(workload.sentences))

        return self.measure(workload, [self.ours(precision), Contestant(f"{COMPILED} fp32", build)])

    def onnx(self, workload: Workload, precision: str, path: Path) -> list[Row]:
        """A batch by ours and by an exported model."""
        return self.measure(workload, [self.ours(precision), Contestant(ONNX, partial(Onnx, path))])

    # ------------------------------------------------------------------------------------------------ who takes part

    def ours(self, precision: str, known: bool = False) -> Contestant:
        """The engine from token lists."""
        name = f"{OURS} {precision}" + (f", {KNOWN}" if known else "")
        return Contestant(
            name, lambda: partial(leave_on_device, self._embedder(precision, known)), precision, words_known=known
        )

    def windows(self, precision: str, workload: Workload) -> Contestant:
        """The engine from windows that are there, as a reader of text makes them."""

        def build() -> Run:
            embedder = self._embedder(precision)
            max_sentences, max_tokens = embedder.window_limits
            path = write_sentences(self._folder / "windows.txt", workload.sentences)
            ready = list(read_windows(path, max_sentences=max_sentences, max_tokens=max_tokens))

            def run(sentences: Sentences) -> None:
                for _, vectors in embedder.embed_windows(ready, convert_to_numpy=False):
                    for _ in vectors:
                        pass

            return run

        return Contestant(f"{OURS} {precision}, {WINDOWS}", build, precision)

    def text_to_means(self, precision: str, workload: Workload) -> Contestant:
        """The engine from a text file to the mean of each sentence's average of layers on the host."""

        def build() -> Run:
            embedder = self._embedder(precision)
            path = write_sentences(self._folder / "text.txt", workload.sentences)
            return lambda sentences: [None for _ in file_means(embedder, path)]

        return Contestant(f"{OURS} {precision}, {TEXT_TO_MEANS}", build, precision)

    def eager(self, kind: str, batch_size: int) -> Contestant:
        """The reference in batches."""
        return Contestant(f"{EAGER} {kind}", lambda: partial(self._reference(kind), batch_size=batch_size))

    def _reference(self, kind: str) -> Eager:
        """Made once, and checked."""
        if kind not in self._references:
            made = Eager(self.subject.model, self.subject.place.torch, DTYPES[kind])
            few = [k for k, sentence in enumerate(self.truth.sentences) if sentence][:8]
            found = made.vectors([self.truth.sentences[k] for k in few])
            worst = max(error.relative for error in compare(found, [self.truth.vectors[k] for k in few], "bf16"))
            if not worst <= RIVAL_BOUND:
                raise FlashElmoError(f"expected vectors within {RIVAL_BOUND} of the reference's, found {worst:.2g}")
            self._references[kind] = made
        return self._references[kind]

    def _stacks(self, workload: Workload) -> list[Contestant]:
        rows, steps = len(workload.sentences), len(workload.sentences[0])
        place = self.subject.place

        def stacks(kind: str, streams: int) -> Contestant:
            name = f"{CUDNN} {kind}" + (", two streams" if streams == 2 else "")
            config = self.subject.model.config
            return Contestant(name, lambda: Stacks(config, rows, steps, place.torch, DTYPES[kind], streams))

        counts = (1, 2) if place.is_cuda else (1,)
        return [stacks(kind, streams) for kind in self._rival_kinds("bf16", "fp16") for streams in counts]

    def _rival_kinds(self, *kinds: str) -> list[str]:
        """On the CPU, float32 alone."""
        return list(kinds) if self.subject.place.is_cuda else ["fp32"]

    def _embedder(self, precision: str, known: bool = False) -> Embedder:
        if precision in self.subject.failed:
            raise FlashElmoError(NOT_TIMED)
        return self.subject.timed(precision, known)

    # ------------------------------------------------------------------------------------------------ turns and rows

    def measure(self, workload: Workload, contestants: Sequence[Contestant]) -> list[Row]:
        """A row for each contestant, absent ones with the reason; ours with their ratios to the rivals."""
        tasks: dict[str, Task] = {}
        timings: dict[str, Timing] = {}
        for each in contestants:
            try:
                tasks[each.name] = Task(each.name, self._task(each.build(), workload))
            except Exception as error:  # out of memory, not supported, too slow to compile: the others go on
                said = str(error) if isinstance(error, FlashElmoError) else one_line(error)
                timings[each.name] = Timing([], said)
        timings |= dict(zip(tasks, self._timer.time(list(tasks.values())), strict=True))
        rivals = {each.name: timings[each.name].samples for each in contestants if each.is_rival}
        return [self._row(workload, each, timings[each.name], rivals) for each in contestants]

    def _task(self, run: Run, workload: Workload) -> Callable[[], object]:
        if not workload.waits:
            return partial(run, workload.sentences)

        def wait() -> None:
            run(workload.sentences)
            self.subject.place.synchronize()

        return wait

    def _row(self, workload: Workload, each: Contestant, timing: Timing, rivals: dict[str, list[float]]) -> Row:
        row = Row(workload.section, self.subject.name, each.name, UNIT, workload.detail, note=timing.note)
        if not timing.samples:
            failed = not each.is_rival and timing.note != NOT_TIMED
            return replace(row, note=f"{FAILED}: {timing.note}") if failed else row
        row = with_samples(row, speeds(workload.tokens, timing.samples))
        if each.kind is None:
            return row
        limits = self.ceilings(workload, each.kind, each.words_known)
        ratios = {name: median_ratio(timing.samples, them, "µs") for name, them in rivals.items() if them}
        return replace(row, ceiling=_rounded(limits.lstm), ceiling_both=_rounded(limits.both), ratios=ratios)

    def ceilings(self, workload: Workload, kind: str, words_known: bool) -> Ceilings:
        """What the card allows."""
        return ceilings(self.subject.model.config, workload, self._card, kind, words_known)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
