"""Ragged batches of real sentences in the order of their text, as a caller may give them: from tokens to vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from operator import truediv

from flashelmo.benchmarks.contestant import REFERENCE, Contestant, Workers, absentees, line_up
from flashelmo.benchmarks.onnx.contestants import Exported, contestant
from flashelmo.benchmarks.results import Row, with_ratios
from flashelmo.benchmarks.roofline import Limits, Work
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import PASSAGE, Sentences, draw_passages, load_sentences
from flashelmo.benchmarks.timing import Timing, take_turns
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.model.config import ElmoConfig


@dataclass(frozen=True)
class Batches:
    """Batches of one size from a text: of few sentences, the first ones of each passage; of 32 and more, one batch."""

    size: int
    batches: list[Sentences]
    source: str

    @property
    def tokens(self) -> int:
        """Of all of them."""
        return sum(len(sentence) for batch in self.batches for sentence in batch)

    def row(self, section: str, model: str, name: str, timing: Timing) -> Row:
        """Tokens a second of somebody, with the number of tokens, and of positions, padding included."""
        positions = sum(len(batch) * max(map(len, batch)) for batch in self.batches)
        detail, number = f"{self.size} sentence{'s' * (self.size > 1)}", len(self.batches)
        batches = f"{number} batch{'es' * (number > 1)}, {self.tokens} tokens in {positions} positions"
        row = Row(section, model, name, "tokens/s", detail, note=f"{detail}: {batches} of {self.source}")
        return row.timed(timing, partial(truediv, self.tokens))

    def work(self, config: ElmoConfig, each: Contestant) -> Work:
        """What there is to compute: the words of each batch, if they are not known; padding is no work."""
        works = [Work.of(config, batch) for batch in self.batches]
        characters = 0 if each.words_known else sum(work.characters for work in works)
        return Work(self.tokens, sum(work.lstm for work in works), characters)


def draw_batches(settings: Settings) -> list[Batches]:
    """Batches of every size, of runs of 32 sentences that are evenly spaced over the text."""
    text, source = load_sentences(settings.text_tokens, settings.text, settings.seed)
    drawn = draw_passages(text, settings.passages)
    passages = [drawn[first : first + PASSAGE] for first in range(0, len(drawn), PASSAGE)]

    def batches(size: int) -> list[Sentences]:
        if size < PASSAGE:
            return [passage[:size] for passage in passages]
        return [list(chain.from_iterable(passages))[:size]]

    return [Batches(size, batches(size), source) for size in settings.batches]


def measure_speed(exported: Exported, settings: Settings) -> list[Row]:
    """Tokens a second of everybody at every size of batch; the engine knows the words from the round before."""
    work, model = draw_batches(settings), exported.subject.name
    everybody = [contestant(name, exported, settings) for name in (REFERENCE, *settings.contestants)]
    limits = Limits(exported.subject.pool, settings)
    with Pool() as pool:
        workers, absent = compare(everybody, work, exported, settings, pool)
        timings = time_all(workers, work, settings, warm_ups=1, limits=limits)  # new shapes take longer at first

    rows = []
    for batches in work:
        group = []
        for each in everybody:
            if (each.name, "") in workers:
                lstm, both = batches.work(exported.subject.config, each).ceilings(limits, each.precision)
                row = batches.row("speed", model, each.name, timings[each.name, batches.size])
                group.append(replace(row, ceiling=lstm, ceiling_both=both))
        rows += with_ratios(group, {row.name: row for row in group if row.name == REFERENCE})
    return [*limits.rows(model, "speed"), *rows, *absentees("speed", model, absent)]


def compare(
    contestants: Sequence[Contestant], work: Sequence[Batches], exported: Exported, settings: Settings, pool: Pool
) -> tuple[Workers, dict[str, str]]:
    """Those whose vectors of a few sentences are the reference's, and why the others do not take part."""
    sentences = max(work, key=lambda batches: batches.size).batches[0][: settings.checked]
    reference = contestant(REFERENCE, exported, settings).start(exported.subject.pool)
    return line_up(contestants, sentences, reference.call("vectors", sentences), pool)


def time_all(
    workers: Workers, work: Sequence[Batches], settings: Settings, warm_ups: int, limits: Limits | None = None
) -> dict[tuple[str, int], Timing]:
    """Everybody's seconds at every size of batch, in turns, after some passes over every batch."""
    warm: dict[tuple[str, int], Callable[[], float]] = {}
    measures: dict[tuple[str, int], Callable[[], float]] = {("limits", 0): limits.measure_peaks} if limits else {}
    for batches in work:
        for (name, _), worker in workers.items():
            warm[name, batches.size] = partial(worker.call, "seconds", batches.batches)
            measures[name, batches.size] = partial(worker.call, "seconds", batches.batches, settings.sample_seconds)
    take_turns(warm_ups, warm, pause=0)
    return take_turns(settings.rounds, measures)
