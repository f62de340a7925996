"""Ragged batches of real sentences in the order of their text, as a caller may give them: from tokens to vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import chain

from flashelmo.benchmarks.contestant import take_turns
from flashelmo.benchmarks.onnx.contestants import Start, count_tokens, line_up, start
from flashelmo.benchmarks.onnx.exported import Exported
from flashelmo.benchmarks.onnx.settings import ENTRANTS, REFERENCE, OnnxSettings
from flashelmo.benchmarks.results import Row, with_ratios
from flashelmo.benchmarks.roofline import Roofline, Work
from flashelmo.benchmarks.settings import BATCH
from flashelmo.benchmarks.speed import Limits, draw_batches
from flashelmo.benchmarks.text import Sentences, load_sentences
from flashelmo.benchmarks.worker import Worker
from flashelmo.engine.model.config import ElmoConfig

UNIT = "tokens/s"
Batches = list[Sentences]


def measure_speed(exported: Exported, settings: OnnxSettings) -> list[Row]:
    """Tokens a second of everybody at every size of batch; the engine knows the words from the round before."""
    passages, source = draw_passages(settings)
    work = {size: batches_of(passages, size) for size in settings.batch_sizes}
    with ExitStack() as stack:
        reference = stack.enter_context(start(REFERENCE, exported, settings))
        starts = {
            name: Start(ENTRANTS[name].precision, partial(start, name, exported, settings))
            for name in settings.contestants
        }
        checked = passages[0][: settings.checked]
        workers, left_out = line_up(stack, starts, checked, reference.call("vectors", checked))
        limits = Limits(stack.enter_context(Worker(Roofline, settings.threads, settings.peak_seconds)))
        warm_up(workers, work, 1)  # new shapes take longer at first
        workers = {REFERENCE: reference, **workers}
        measures = {("limits", 0): limits.measure_peaks, **measures_of(workers, work, settings)}
        samples = take_turns(settings.rounds, measures)

    rows = []
    for size, batches in work.items():
        values = values_of("speed", exported, size, batches, source)
        group = []
        for name in workers:
            ceilings = ceilings_of(exported.subject.config, batches, name, limits)
            group.append(Row.of(samples[name, size], **values, name=name, **ceilings))
        rows += with_ratios(group, {REFERENCE: group[0]})
    return [*limits.rows(exported.subject, "speed"), *rows, *absentees("speed", exported, left_out)]


def warm_up(workers: Mapping[str, Worker], work: Mapping[int, Batches], times: int) -> None:
    """Let everybody see every batch so often."""
    for worker in workers.values():
        for batches in work.values():
            for _ in range(times):
                worker.call("speed", batches, 0.0)


def measures_of(
    workers: Mapping[str, Worker], work: Mapping[int, Batches], settings: OnnxSettings
) -> dict[tuple[str, int], Callable[[], float]]:
    """Every contestant's speed at every size, as `take_turns` takes them."""
    return {
        (name, size): partial(worker.call, "speed", batches, settings.sample_seconds)
        for size, batches in work.items()
        for name, worker in workers.items()
    }


def values_of(section: str, exported: Exported, size: int, batches: Batches, source: str) -> dict[str, str]:
    """What rows of one size have in common."""
    note = f"{described(size)}: {describe_batches(batches)} of {source}"
    model = exported.subject.name
    return {"section": section, "model": model, "detail": described(size), "unit": UNIT, "note": note}


def absentees(section: str, exported: Exported, left_out: Mapping[str, str], unit: str = UNIT) -> list[Row]:
    """A row without a figure for everybody who is left out, and why."""
    return [Row(section, exported.subject.name, name, unit, note=why) for name, why in left_out.items()]


def draw_passages(settings: OnnxSettings) -> tuple[list[Sentences], str]:
    """Runs of 32 sentences, evenly spaced over the text, and the text's name."""
    text, source = load_sentences(settings.text_tokens, settings.text, settings.seed)
    drawn = draw_batches(text, settings.passages)
    return [drawn[first : first + BATCH] for first in range(0, len(drawn), BATCH)], source


def batches_of(passages: Sequence[Sentences], size: int) -> Batches:
    """Of few sentences, the first ones of each passage; of 32 and more, one batch of the passages end to end."""
    if size < BATCH:
        return [passage[:size] for passage in passages]
    return [list(chain.from_iterable(passages))[:size]]


def described(size: int) -> str:
    """A batch's size in words."""
    return "1 sentence" if size == 1 else f"{size} sentences"


def describe_batches(batches: Batches) -> str:
    """How many there are, their tokens, and their positions, padding included."""
    tokens = count_tokens(batches)
    positions = sum(len(batch) * max(map(len, batch)) for batch in batches)
    return f"{len(batches)} batch{'es' if len(batches) > 1 else ''}, {tokens} tokens in {positions} positions"


def ceilings_of(config: ElmoConfig, batches: Batches, name: str, limits: Limits) -> dict[str, float]:
    """Tokens a second at the matrix peak: of the LSTM alone, and with the words of each batch, if they are not known.

    Padding is no work, and nothing is shared between sentences, which takes the engine above its ceiling.
    """
    entrant = ENTRANTS[name]
    peak, characters_peak = limits.peak(entrant.precision), limits.peak("fp32")
    if not (peak and characters_peak):
        return {}
    each = [Work.of(config, batch) for batch in batches]
    characters = 0 if entrant.runs == "engine" else sum(work.characters for work in each)
    work = replace(each[0], tokens=sum(w.tokens for w in each), lstm=sum(w.lstm for w in each), characters=characters)
    return {"ceiling": work.lstm_ceiling(peak), "ceiling_both": work.both_ceiling(peak, characters_peak)}
