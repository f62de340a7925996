"""The engine on the processor, in turns with the PyTorch reference, with the machine's ceiling beside each figure.

It also measures what a run costs besides its arithmetic: memory and load time, each in fresh processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from rich.console import Console

from flashelmo.benchmarks.contestant import (
    PROCESSOR,
    REFERENCE,
    Contestant,
    Entry,
    Subject,
    Workers,
    absentees,
    compete,
    contestant,
    errors_of,
    line_up,
    options_of,
    prepare,
)
from flashelmo.benchmarks.fresh import run_fresh
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.roofline import (
    BYTES,
    Limits,
    Work,
    has_products,
    packed_products,
    recurrent_weights,
    streamed_weights,
)
from flashelmo.benchmarks.run import PROCESSOR_OPTIONS, Suite, run_sections
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import PASSAGE, draw_passages, first_sentences, load_sentences, write_sentences
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import PRECISIONS

FILE_ORDER, SORTED = "file order", "by length"
COLD, WARM = "cold cache", "warm cache"
LOADED = ("fp32", "int8")
PRODUCT_ROWS, PASSED_ROWS = (128, 512), 4096  # for products alone, and of all passes in a measurement
ALONE = "every matrix of the LSTM, no cells and no words"
GIB = 2**30
CACHES: Mapping[str, Mapping[str, Any]] = {COLD: {"cache_bytes": 0}, WARM: {}}


def measure_bulk(subject: Subject, settings: Settings) -> list[Row]:
    """Measure tokens per second on real text, from the file to every sentence's vectors, with no word known before.

    The reference gets batches of 32 sentences drawn evenly over the same text in file order, and drawn evenly over the
    text sorted by length.
    """
    ours = [contestant(subject, settings, name, cache_bytes=0) for name in settings.contestants]
    reference, workers, absent = _line_up(subject, settings, ours)
    n_tokens = settings.bulk_tokens or max(
        worker.call("window_tokens") for (name, _), worker in workers.items() if name != REFERENCE
    )
    text, source = load_sentences(n_tokens, settings.text, settings.seed)
    limits, work = Limits(subject.pool, settings), Work.of(subject.config, text)
    note = f"{n_tokens} tokens of {source}; the reference: {PASSAGE * settings.reference_batches} sentences of it in "
    bulk = Row("bulk", subject.name, unit="tokens/s", note=f"{note}batches of {PASSAGE}")

    def entry(who: Contestant, file: str, sentences: list[list[str]]) -> Entry:
        path = write_sentences(subject.folder.parent / f"{file}.txt", sentences)
        row = replace(bulk, name=who.name, detail=file if who.is_rival else "")
        return Entry(who, row, [path], sum(map(len, sentences)), partial(work.ceilings, limits, who.precision))

    entries = [
        entry(reference, order, draw_passages(sentences, settings.reference_batches))
        for order, sentences in ((FILE_ORDER, text), (SORTED, sorted(text, key=len)))
    ]
    entries += [entry(who, "text", text) for who in ours]
    entries += _products(subject, settings, bulk, {each.precision for each in ours}, workers)
    rows = compete(entries, workers, settings, {"limits": limits.measure_peaks})
    return [*limits.rows(subject.name, "bulk"), *rows, *absentees("bulk", subject.name, absent)]


def _products(
    subject: Subject, settings: Settings, bulk: Row, precisions: set[str], workers: Workers
) -> Iterator[Entry]:
    """Yield oneDNN's products alone in each precision, if available; one worker does them all."""
    for precision, n_rows in product(filter(has_products, sorted(precisions)), PRODUCT_ROWS):
        name, detail = f"{precision} oneDNN products", f"{n_rows} rows"
        arguments = (subject.config, settings.threads)
        who = Contestant(name, precision, packed_products, arguments, detail=detail, is_rival=True)
        with suppress(FlashElmoError):
            workers[name, detail] = who.start(subject.pool)
            row = replace(bulk, name=name, detail=detail, note=ALONE)
            yield Entry(who, row, [(precision, n_rows, PASSED_ROWS // n_rows)], PASSED_ROWS)


def measure_single(subject: Subject, settings: Settings) -> list[Row]:
    """Measure milliseconds for one sentence; the cold cache knows none of its words, the warm one all."""
    text, source = load_sentences(settings.tokens, settings.text, settings.seed)
    sentence = [token for tokens in text for token in tokens]
    ours = [
        contestant(subject, settings, name, cache, **CACHES[cache]) for name in settings.contestants for cache in CACHES
    ]
    reference, workers, absent = _line_up(subject, settings, ours)
    limits, work = Limits(subject.pool, settings), Work.of(subject.config, [sentence])

    def ceilings(who: Contestant) -> tuple[float, float]:
        read = BYTES[who.precision] * streamed_weights(subject.config, len(sentence))
        lstm = 1e3 * read / limits.stream(who.precision)
        characters = 0.0 if who.detail == WARM else 1e3 * work.characters / (limits.peak("fp32") or np.inf)
        return lstm, lstm + characters

    note, entries = f"{len(sentence)} tokens of {source}", []
    for who in (reference, *ours):
        row = Row("single", subject.name, who.name, "ms", who.detail, note=note)
        entries.append(Entry(who, row, [[sentence]], limits=partial(ceilings, who)))
    measures: dict[str, Callable[[], float]] = {
        "peaks": limits.measure_peaks,
        "streams": partial(limits.measure_streams, recurrent_weights(subject.config)),
    }
    rows = compete(entries, workers, settings, measures, at_least=settings.sample_seconds, warm_ups=1)
    return [*limits.rows(subject.name, "single"), *rows, *absentees("single", subject.name, absent, "ms")]


def measure_errors(subject: Subject, settings: Settings) -> list[Row]:
    """Measure how far each precision is from the reference in float64."""
    exact = contestant(subject, settings, REFERENCE, precision="fp64")
    ours = [contestant(subject, settings, name) for name in settings.contestants]
    return errors_of(subject.name, ours, exact, *first_sentences(settings), subject.pool)


def _line_up(
    subject: Subject, settings: Settings, ours: Sequence[Contestant]
) -> tuple[Contestant, Workers, dict[str, str]]:
    """Return the reference; workers of it and of those whose vectors are right; and why the others cannot take part."""
    text, _ = load_sentences(100 * settings.checked, settings.text, settings.seed)
    checked, reference = text[: settings.checked], contestant(subject, settings, REFERENCE)
    exact = reference.start(subject.pool)
    workers, absent = line_up(ours, checked, exact.call("vectors", checked), subject.pool)
    if not workers:
        raise FlashElmoError(f"nobody to compare with the reference: {'; '.join(absent.values())}")
    return reference, {(REFERENCE, ""): exact, **workers}, absent


# --------------------------------------------------------------------------------------------------------------- costs


def measure_memory(subject: Subject, settings: Settings) -> list[Row]:
    """Measure peak memory beyond the model's file while a text and one twice as long are embedded in float32.

    If memory is bounded, both figures are similar. The model's file is memory-mapped, so its pages count once they are
    read; they are subtracted.
    """
    lengths = settings.memory_tokens
    if not lengths:
        window = contestant(subject, settings, "fp32").start(subject.pool).call("window_tokens")
        lengths = window, 2 * window
    model_bytes = sum(path.stat().st_size for path in subject.folder.iterdir())
    rows = []
    for n_tokens in lengths:
        text, _ = load_sentences(n_tokens, settings.text, settings.seed)
        path = write_sentences(subject.folder.parent / f"memory_{n_tokens}.txt", text)
        found = run_fresh("memory", subject.folder, options_of("fp32", settings), path)
        note = f"loaded {found['loaded'] / GIB:.3f} GiB, model's file {model_bytes / GIB:.3f} GiB"
        detail, unit = f"peak of {n_tokens} tokens", "GiB beyond the model's file"
        row = Row("memory", subject.name, "fp32", unit, detail, note=note)
        rows.append(row.with_samples([(found["peak"] - model_bytes) / GIB]))
    return rows


def measure_load(subject: Subject, settings: Settings) -> list[Row]:
    """Measure seconds to load the native format in fresh processes, with the file in the page cache."""
    names = [name for name in settings.contestants if name in LOADED]
    runs = {name: partial(run_fresh, "load", subject.folder, options_of(name, settings)) for name in names}
    return measure_loads(subject.name, runs, settings)


def measure_loads(model: str, runs: Mapping[str, Callable[[], Mapping[str, float]]], settings: Settings) -> list[Row]:
    """Measure each way to load, in turns: a row for its seconds, and one for those of the imports before it.

    A first process of each, not counted, brings its file into the page cache and does one-time preparations; it is
    omitted for a single repeat.
    """
    for run in runs.values() if settings.load_repeats > 1 else ():
        run()
    found = [{name: run() for name, run in runs.items()} for _ in range(settings.load_repeats)]
    return [
        Row("load", model, name, "s", detail).with_samples([each[name][key] for each in found])
        for name in runs
        for key, detail in (("load", "load"), ("imports", "imports before it"))
    ]


SECTIONS = {
    "bulk": measure_bulk,
    "single": measure_single,
    "memory": measure_memory,
    "load": measure_load,
    "error": measure_errors,
}


def faster_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what this machine does faster than float32, which is what "auto" uses, and with which error."""
    for what, section, detail in (("bulk text", "bulk", ""), ("one sentence", "single", WARM)):
        of_section = [row for row in rows if (row.section, row.detail) == (section, detail) and row.median]
        timed = {(row.model, row.name): row.median or 1.0 for row in of_section if row.unit in ("tokens/s", "ms")}
        for (model, name), figure in timed.items():
            exact = timed.get((model, "fp32"))
            if exact is None or name not in PRECISIONS:
                continue
            times = figure / exact if section == "bulk" else exact / figure
            if times > 1:
                yield f"{model}, {what}: {name} is {times:.2g} times as fast as fp32, {_error_text(model, name, rows)}"


def _error_text(model: str, name: str, rows: Sequence[Row]) -> str:
    """Return the largest relative error of a layer, if it was measured, and the bound."""
    found = [
        row.median
        for row in rows
        if (row.section, row.model, row.name, row.unit) == ("error", model, name, "relative error") and row.median
    ]
    bound = f"below {PRECISIONS[name].on('cpu').bound.relative:g}"
    return f"relative error {max(found):.2g} ({bound})" if found else f"relative error {bound}"


def command(settings: Settings, console: Console) -> int:
    """Measure everything that the settings ask for; return the exit status."""
    run = run_sections("cpu", settings, console, SECTIONS, prepare)
    for line in faster_lines(run.results.rows):
        run.say(line)
    return run.finish()


SUITE = Suite(
    "The engine beside the PyTorch reference and this machine's limits.",
    Settings(sections=tuple(SECTIONS), contestants=("fp32", "int8", "bf16")),
    PROCESSOR_OPTIONS,
    command,
    known={"contestants": [name for name in PROCESSOR if name != REFERENCE]},
)
