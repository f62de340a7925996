"""Tokens a second of the engine on the card and of its rivals, in turns, with the card's ceiling beside.

Vectors, all layers of all tokens, stay on the device, but for "text to means", which begins at a text file and ends
with the mean of each sentence on the host. Where words are not known, their vectors are computed in every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from flashelmo.benchmarks.contestant import Contestant, Entry, Way, absentees, compete, line_up
from flashelmo.benchmarks.gpu import rivals
from flashelmo.benchmarks.gpu.accuracy import WAYS, Subject, Truth, file_means, leave_on_device
from flashelmo.benchmarks.gpu.rivals import Eager
from flashelmo.benchmarks.kernels.card import Card, ceilings
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import Sentences, Workload, write_sentences
from flashelmo.engine.errors import FlashElmoError

UNIT = "tokens/s"
NOT_TIMED = "not timed, as its vectors were not checked or are wrong"
OURS, KNOWN = "flashelmo", "words known"
TEXT_TO_MEANS = "text to means"
EAGER, CUDNN = "PyTorch eager", "cuDNN LSTM"
WARM_UPS = 3  # before one more: the first compiles, the second may capture a graph, the third replays it


class Speed:
    """Measures one model.

    Args:
        truth: what rivals are checked against.
        card: whose ceilings stand beside the figures.
        folder: takes texts.
        checked: rows of the run, whose checks decide what is timed.
    """

    def __init__(
        self, subject: Subject, truth: Truth, settings: Settings, card: Card, folder: Path, checked: Sequence[Row]
    ) -> None:
        self.subject, self.truth, self.settings = subject, truth, settings
        self._card, self._folder, self._checked = card, folder, checked
        self._reference = cache(self._made_reference)

    def is_right(self, precision: str) -> bool:
        """Whether a precision's batch was compared with the reference, and no way to embed was wrong."""
        names = {f"{way} {precision}" for way in WAYS}
        found = [row for row in self._checked if row.section == "error" and row.model == self.subject.name]
        found = [row for row in found if row.name in names]
        return any(row.name == f"batch {precision}" for row in found) and not any(row.failed for row in found)

    def rows(self, workload: Workload, precisions: Sequence[str], slow: bool = False) -> list[Row]:
        """The precisions and who else takes part in a section: the first one with all words known, and from a file to
        means on the host; the reference, cuDNN's LSTM for sentences of one length, and the others.

        Args:
            slow: bulk text is for the slower precisions and for the reference in batches.
        """
        subject, settings, section, first = self.subject, self.settings, workload.section, precisions[0]
        found = [self.ours(precision) for precision in precisions]
        if section in ("single", "batch", "ragged"):
            found.insert(1, self.ours(first, known=True))
            if not settings.check:
                found += [self.eager(each, len(workload.sentences)) for each in self._rival_precisions("fp32", "bf16")]
        if section in ("single", "batch") and not settings.check:
            for each in self._rival_precisions("bf16", "fp16"):
                size = len(workload.sentences), len(workload.sentences[0])
                given = (subject.model.config, *size, subject.device, each)
                found.append(Contestant(f"{CUDNN} {each}", each, rivals.stacks, given, is_rival=True))
        if section == "bulk" and slow:
            found.append(self.eager("fp32", settings.eager_batch))
        elif section == "bulk":
            given_text = first, workload
            found.append(Contestant(f"{OURS} {first}, {TEXT_TO_MEANS}", first, self._text_to_means, given_text))
        return self.measure(workload, found)

    def measure(self, workload: Workload, contestants: Sequence[Contestant]) -> list[Row]:
        """A row for each contestant, absent ones with the reason; ours with their ratios to the rivals."""
        subject, section, detail = self.subject, workload.section, workload.detail
        subject.device.free_memory()
        if workload.waits:
            contestants = [replace(each, make=partial(_waiting, each.make)) for each in contestants]
        workers, absent = line_up(contestants, [], None)
        entries = []
        for each in contestants:
            limits = partial(ceilings, subject.model.config, workload, self._card, each.precision, each.words_known)
            entry = Entry(
                each, Row(section, subject.name, each.name, UNIT, detail), [workload.sentences], workload.tokens
            )
            entries.append(entry if each.is_rival else entry._replace(limits=limits))
        seconds = self.settings.sample_seconds
        rows = compete(entries, workers, self.settings, at_least=seconds, warm_ups=WARM_UPS, pause=0.0)
        return rows + [replace(row, detail=detail) for row in absentees(section, subject.name, absent, UNIT)]

    # ------------------------------------------------------------------------------------------------ who takes part

    def ours(self, precision: str, known: bool = False) -> Contestant:
        """The engine from token lists."""

        def make() -> Way:
            embedder = self._embedder(precision, known)
            return self._way(embedder, partial(leave_on_device, embedder))

        name = f"{OURS} {precision}" + (f", {KNOWN}" if known else "")
        return Contestant(name, precision, make, place="cuda", words_known=known)

    def _text_to_means(self, precision: str, workload: Workload) -> Way:
        """The engine from a text file to the mean of each sentence's average of layers on the host."""
        embedder = self._embedder(precision)
        path = write_sentences(self._folder / "text.txt", workload.sentences)
        return self._way(embedder, lambda sentences: [None for _ in file_means(embedder, path)])

    def _embedder(self, precision: str, known: bool = False) -> Any:
        if not self.is_right(precision):
            raise FlashElmoError(NOT_TIMED)
        return self.subject.timed(precision, known)

    def _way(self, embedder: Any, run: Callable[[Sentences], object]) -> Way:
        return Way(lambda batch: list(embedder.embed(batch)), run, wait=self.subject.device.synchronize)

    def eager(self, precision: str, batch_size: int) -> Contestant:
        """The reference in batches."""

        def make() -> Way:
            return self._reference(precision).way(batch_size)

        return Contestant(f"{EAGER} {precision}", precision, make, is_rival=True)

    def _made_reference(self, precision: str) -> Eager:
        """Checked on a few sentences."""
        made = Eager(self.subject.model, self.subject.device, precision)
        few = [k for k, sentence in enumerate(self.truth.sentences) if sentence][:8]
        return made.check([self.truth.sentences[k] for k in few], [self.truth.vectors[k] for k in few])

    def _rival_precisions(self, *precisions: str) -> Sequence[str]:
        """On the CPU, float32 alone."""
        return precisions if self.subject.device.is_cuda else ("fp32",)


def _waiting(make: Callable[..., Way], *arguments: Any) -> Way:
    """A way whose every call is waited for: its latency counts."""
    way = make(*arguments)

    def run(work: Any) -> None:
        way.run(work)
        way.wait()

    return way._replace(run=run)
