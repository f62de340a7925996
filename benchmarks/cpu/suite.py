"""The engine in its precisions, in turns with the PyTorch reference, with the machine's ceiling beside each figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import truediv
from typing import Any

import numpy as np
from rich.console import Console

from flashelmo.benchmarks.contestant import (
    PROCESSOR,
    REFERENCE,
    Contestant,
    Key,
    Workers,
    absentees,
    engine,
    errors_of,
    line_up,
    options_of,
)
from flashelmo.benchmarks.cpu.costs import measure_host, measure_load, measure_memory
from flashelmo.benchmarks.results import Row, new_results, with_ratios
from flashelmo.benchmarks.roofline import BYTES, Limits, Work, recurrent_weights, streamed_weights
from flashelmo.benchmarks.run import PROCESSOR_OPTIONS, Suite, run_sections
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import Subject, prepare
from flashelmo.benchmarks.text import PASSAGE, draw_passages, first_sentences, load_sentences, write_sentences
from flashelmo.benchmarks.timing import take_turns
from flashelmo.benchmarks.worker import Worker
from flashelmo.engine.errors import FlashElmoError

FILE_ORDER, SORTED = "file order", "by length"
COLD, WARM = "cold cache", "warm cache"
CACHES: Mapping[str, Mapping[str, Any]] = {COLD: {"cache_bytes": 0}, WARM: {}}


def contestant(subject: Subject, settings: Settings, name: str, detail: str = "", **options: Any) -> Contestant:
    """One of PROCESSOR, in other respects as the options say."""
    told = options_of(name, settings, **options)
    return Contestant(name, told.get("precision", "fp32"), engine, (subject.folder, told), detail=detail)


def measure_bulk(subject: Subject, settings: Settings) -> list[Row]:
    """Tokens a second on real text, from the file to every sentence's vectors, no word known before.

    The reference gets batches of 32 sentences drawn evenly over the same text in file order, and drawn evenly over the
    text sorted by length.
    """
    ours = [contestant(subject, settings, name, cache_bytes=0) for name in settings.contestants]
    reference, workers, absent = _line_up(subject, settings, ours)
    n_tokens = settings.bulk_tokens or max(worker.call("window_tokens") for worker in workers.values())
    text, source = load_sentences(n_tokens, settings.text, settings.seed)
    limits = Limits(subject.pool, settings)
    measures: dict[Key, Callable[[], float]] = {("limits", ""): limits.measure_peaks}
    tokens: dict[Key, int] = {}
    for order, sentences in (FILE_ORDER, text), (SORTED, sorted(text, key=len)):
        drawn = draw_passages(sentences, settings.reference_batches)
        path = write_sentences(subject.folder.parent / f"{order}.txt", drawn)
        measures[REFERENCE, order] = partial(reference.call, "seconds", [path])
        tokens[REFERENCE, order] = sum(map(len, drawn))
    whole = write_sentences(subject.folder.parent / "text.txt", text)
    for key, worker in workers.items():
        measures[key], tokens[key] = partial(worker.call, "seconds", [whole]), n_tokens
    timings = take_turns(settings.rounds, measures)

    drawn_sentences = f"{PASSAGE * settings.reference_batches} sentences of it in batches of {PASSAGE}"
    note = f"{n_tokens} tokens of {source}; the reference: {drawn_sentences}"
    rows = []
    for (name, detail), n in tokens.items():
        lstm, both = Work.of(subject.config, text).ceilings(limits, PROCESSOR[name].get("precision", "fp32"))
        row = Row("bulk", subject.name, name, "tokens/s", detail, ceiling=lstm, ceiling_both=both, note=note)
        rows.append(row.timed(timings[name, detail], partial(truediv, n)))
    return [*limits.rows(subject.name, "bulk"), *_compared(rows), *absentees("bulk", subject.name, absent)]


def measure_single(subject: Subject, settings: Settings) -> list[Row]:
    """Milliseconds for one sentence; the cold cache knows no word of it, the warm one all."""
    text, source = load_sentences(settings.tokens, settings.text, settings.seed)
    sentence = [token for tokens in text for token in tokens]
    ours = [
        contestant(subject, settings, name, cache, **CACHES[cache]) for name in settings.contestants for cache in CACHES
    ]
    reference, workers, absent = _line_up(subject, settings, ours)
    limits, work = Limits(subject.pool, settings), Work.of(subject.config, [sentence])
    measures: dict[Key, Callable[[], float]] = {
        ("limits", "peaks"): limits.measure_peaks,
        ("limits", "streams"): partial(limits.measure_streams, recurrent_weights(subject.config)),
        ("limits", "copy"): limits.measure_copy,
    }
    everybody = {(REFERENCE, ""): reference, **workers}
    for key, worker in everybody.items():
        measures[key] = partial(worker.call, "seconds", [[sentence]], 0.0, settings.single_repeats, 1)
    timings = take_turns(settings.rounds, measures)

    rows = []
    for name, detail in everybody:
        precision = PROCESSOR[name].get("precision", "fp32")
        lstm = 1e3 * BYTES[precision] * streamed_weights(subject.config, len(sentence)) / limits.stream(precision)
        characters = 0.0 if detail == WARM else 1e3 * work.characters / (limits.peak("fp32") or np.inf)
        row = Row("single", subject.name, name, "ms", detail, note=f"{len(sentence)} tokens of {source}")
        row = replace(row, ceiling=lstm, ceiling_both=lstm + characters)
        rows.append(row.timed(timings[name, detail], lambda seconds: 1e3 * seconds))
    limit_rows = limits.rows(subject.name, "single")
    return [*limit_rows, *_compared(rows), *absentees("single", subject.name, absent, "ms")]


def measure_errors(subject: Subject, settings: Settings) -> list[Row]:
    """How far each precision lies from the reference in float64."""
    exact = contestant(subject, settings, REFERENCE, precision="fp64")
    ours = [contestant(subject, settings, name) for name in settings.contestants]
    return errors_of(subject.name, ours, exact, *first_sentences(settings), subject.pool)


def _line_up(
    subject: Subject, settings: Settings, ours: Sequence[Contestant]
) -> tuple[Worker, Workers, dict[str, str]]:
    """The reference; those who can take part and whose vectors are right; and why the others cannot."""
    text, _ = load_sentences(100 * settings.checked, settings.text, settings.seed)
    checked = text[: settings.checked]
    reference = contestant(subject, settings, REFERENCE).start(subject.pool)
    workers, absent = line_up(ours, checked, reference.call("vectors", checked), subject.pool)
    if not workers:
        raise FlashElmoError(f"nobody to compare with the reference: {'; '.join(absent.values())}")
    return reference, workers, absent


def _compared(rows: Sequence[Row]) -> list[Row]:
    return with_ratios(rows, {row.label: row for row in rows if row.name == REFERENCE})


SECTIONS = {
    "bulk": measure_bulk,
    "single": measure_single,
    "memory": measure_memory,
    "load": measure_load,
    "host": measure_host,
    "error": measure_errors,
}


def command(settings: Settings, console: Console) -> int:
    """Measure everything that the settings ask for; the exit status."""
    return run_sections(settings, console, new_results(settings, "cpu"), SECTIONS, prepare)


SUITE = Suite(
    "The engine beside the PyTorch reference and this machine's limits.",
    Settings(sections=tuple(SECTIONS), contestants=("fp32", "int8", "bf16")),
    PROCESSOR_OPTIONS,
    command,
    known={"contestants": [name for name in PROCESSOR if name != REFERENCE]},
)
