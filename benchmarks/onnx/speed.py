"""Ragged batches of real sentences in the order of their text, as a caller may give them: from tokens to vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from operator import truediv

from flashelmo.benchmarks.contestant import REFERENCE, Contestant, absentees, line_up
from flashelmo.benchmarks.onnx.contestants import Exported, contestant
from flashelmo.benchmarks.results import Row, with_ratios
from flashelmo.benchmarks.roofline import Limits, Roofline, Work
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import PASSAGE, Sentences, draw_passages, load_sentences
from flashelmo.benchmarks.timing import Timing, take_turns
from flashelmo.benchmarks.worker import Here, Pool, Worker
from flashelmo.engine.model.config import ElmoConfig

UNIT = "tokens/s"
Batches = list[Sentences]
Workers = Mapping[tuple[str, str], Worker | Here]


def measure_speed(exported: Exported, settings: Settings) -> list[Row]:
    """Tokens a second of everybody at every size of batch; the engine knows the words from the round before."""
    passages, source = passages_of(settings)
    work = {size: batches_of(passages, size) for size in settings.batches}
    contestants = [contestant(name, exported, settings) for name in (REFERENCE, *settings.contestants)]
    model = exported.subject.name
    checked = passages[0][: settings.checked]
    with Pool() as pool:
        reference = contestants[0].start(exported.subject.pool)
        workers, absent = line_up(contestants[1:], checked, reference.call("vectors", checked), pool)
        workers = {contestants[0].key: reference, **workers}
        limits = limits_of(exported, settings)
        timings = time_all(workers, work, settings, warm_ups=1, limits=limits)  # new shapes take longer at first

    rows = []
    for size, batches in work.items():
        group = []
        for each in contestants:
            if each.key in workers:
                lstm, both = ceilings_of(exported.subject.config, batches, each, limits)
                row = row_of("speed", model, each.name, size, batches, source)
                row = replace(row, ceiling=lstm, ceiling_both=both)
                group.append(timed(row, timings[each.name, size], batches))
        rows += with_ratios(group, {REFERENCE: group[0]})
    return [*limits.rows(model, "speed"), *rows, *absentees("speed", model, absent)]


def limits_of(exported: Exported, settings: Settings) -> Limits:
    """The processor's limits, to be measured in turns."""
    return Limits(exported.subject.pool.worker(Roofline, settings.threads, settings.peak_seconds))


def time_all(
    workers: Workers, work: Mapping[int, Batches], settings: Settings, warm_ups: int, limits: Limits | None = None
) -> dict[tuple[str, int], Timing]:
    """Everybody's seconds at every size of batch, in turns, after some passes over every batch."""
    warm: dict[tuple[str, int], Callable[[], float]] = {}
    measures: dict[tuple[str, int], Callable[[], float]] = {}
    if limits is not None:
        measures["limits", 0] = limits.measure_peaks
    for size, batches in work.items():
        for (name, _), worker in workers.items():
            warm[name, size] = partial(worker.call, "seconds", batches)
            measures[name, size] = partial(worker.call, "seconds", batches, settings.sample_seconds)
    take_turns(warm_ups, warm, pause=0)
    return take_turns(settings.rounds, measures)


def row_of(section: str, model: str, name: str, size: int, batches: Batches, source: str) -> Row:
    """A row without figures."""
    note = f"{described(size)}: {describe_batches(batches)} of {source}"
    return Row(section, model, name, UNIT, described(size), note=note)


def timed(row: Row, timing: Timing, batches: Batches) -> Row:
    """The row with its tokens a second."""
    return row.timed(timing, partial(truediv, count_tokens(batches)))


def passages_of(settings: Settings) -> tuple[list[Sentences], str]:
    """Runs of 32 sentences, evenly spaced over the text, and the text's name."""
    text, source = load_sentences(settings.text_tokens, settings.text, settings.seed)
    drawn = draw_passages(text, settings.passages)
    return [drawn[first : first + PASSAGE] for first in range(0, len(drawn), PASSAGE)], source


def batches_of(passages: Sequence[Sentences], size: int) -> Batches:
    """Of few sentences, the first ones of each passage; of 32 and more, one batch of the passages end to end."""
    if size < PASSAGE:
        return [passage[:size] for passage in passages]
    return [list(chain.from_iterable(passages))[:size]]


def count_tokens(batches: Batches) -> int:
    """Tokens of all of them."""
    return sum(len(sentence) for batch in batches for sentence in batch)


def described(size: int) -> str:
    """A batch's size in words."""
    return "1 sentence" if size == 1 else f"{size} sentences"


def describe_batches(batches: Batches) -> str:
    """How many there are, their tokens, and their positions, padding included."""
    positions = sum(len(batch) * max(map(len, batch)) for batch in batches)
    number = f"{len(batches)} batch{'es' if len(batches) > 1 else ''}"
    return f"{number}, {count_tokens(batches)} tokens in {positions} positions"


def ceilings_of(
    config: ElmoConfig, batches: Batches, each: Contestant, limits: Limits
) -> tuple[float, float] | tuple[None, None]:
    """Tokens a second at the matrix peak: of the LSTM alone, and with the words of each batch, if they are not known.

    Padding is no work, and nothing is shared between sentences, which takes the engine above its ceiling.
    """
    works = [Work.of(config, batch) for batch in batches]
    characters = 0 if each.words_known else sum(work.characters for work in works)
    tokens, lstm = sum(work.tokens for work in works), sum(work.lstm for work in works)
    return Work(tokens, lstm, characters).ceilings(limits, each.precision)
