"""Bulk text and single sentences: the engine against the reference, in turns, with the machine's ceiling beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks.accuracy import check
from flashelmo.benchmarks.contestant import start, take_turns
from flashelmo.benchmarks.results import Row, with_ratios
from flashelmo.benchmarks.roofline import BYTES, Roofline, Work, recurrent_weights, streamed_weights
from flashelmo.benchmarks.settings import BATCH, Settings, Subject, precision_of
from flashelmo.benchmarks.text import Sentences, load_sentences, write_sentences
from flashelmo.benchmarks.worker import Worker
from flashelmo.engine.errors import FlashElmoError

Entry = tuple[str, str]  # who takes part, and on what
REFERENCE = "reference"
FILE_ORDER, SORTED = "file order", "by length"
COLD, WARM = "cold cache", "warm cache"
CACHES: Mapping[str, Mapping[str, Any]] = {COLD: {"cache_bytes": 0}, WARM: {}}
CHECKED = 3  # sentences whose vectors are compared before anything is timed


class Limits:
    """The machine's limits as one more contestant: measured in every round, the best counts."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.samples: dict[str, list[float]] = {}

    def measure_peaks(self) -> float:
        """Matrix peaks of all precisions, operations a second; the result is float32's."""
        for precision, peak in self._worker.call("peaks").items():
            self.samples.setdefault(f"{precision} matrix peak", []).append(peak)
        return self.samples["fp32 matrix peak"][-1]

    def measure_streams(self, n_weights: int) -> float:
        """Bytes of weights read a second by products of one row; the result is float32's."""
        for precision in ("int8", "fp32"):
            bandwidth = self._worker.call("stream_bandwidth", n_weights, precision)
            self.samples.setdefault(f"{precision} weights streamed", []).append(bandwidth)
        return float(bandwidth)

    def measure_copy(self) -> float:
        """Bytes read and written a second by a copy."""
        self.samples.setdefault("copy", []).append(self._worker.call("copy_bandwidth"))
        return self.samples["copy"][-1]

    def peak(self, precision: str) -> float | None:
        """Best matrix peak; None where there is none of this precision."""
        return max(self.samples.get(f"{precision} matrix peak", []), default=None)

    def stream(self, precision: str) -> float:
        """Best bandwidth of streamed weights; bf16 moves no faster than float32."""
        return max(self.samples.get(f"{precision} weights streamed") or self.samples["fp32 weights streamed"])

    def rows(self, subject: Subject, section: str) -> list[Row]:
        """What was measured beside a section, in GFLOP/s and GB/s."""
        rows = []
        for name, samples in self.samples.items():
            unit = "GFLOP/s" if name.endswith("peak") else "GB/s"
            values = {"section": "limits", "model": subject.name, "name": name, "detail": section, "unit": unit}
            rows.append(Row.of([sample / 1e9 for sample in samples], **values))
        return rows


def measure_bulk(subject: Subject, settings: Settings, folder: Path) -> list[Row]:
    """Tokens a second on real text, from the file to every sentence's vectors, no word known before.

    The reference gets batches of 32 sentences drawn evenly over the same text in file order, and drawn evenly over the
    text sorted by length. `folder` takes the texts as files.
    """
    with ExitStack() as stack:
        entries: dict[Entry, dict[str, Any]] = {(name, ""): {"cache_bytes": 0} for name in settings.contestants}
        workers, absent = _line_up(stack, subject, settings, entries)
        engine = {entry: worker for entry, worker in workers.items() if entry[0] != REFERENCE}
        n_tokens = settings.bulk_tokens or max(worker.call("window_tokens") for worker in engine.values())
        text, source = load_sentences(n_tokens, settings.text, settings.seed)
        whole = write_sentences(folder / "text.txt", text)
        measures: dict[Entry, Callable[[], float]] = {}
        for order, sentences in (FILE_ORDER, text), (SORTED, sorted(text, key=len)):
            path = write_sentences(folder / f"{order}.txt", draw_batches(sentences, settings.reference_batches))
            measures[REFERENCE, order] = partial(workers[REFERENCE, ""].call, "bulk", path)
        measures |= {entry: partial(worker.call, "bulk", whole) for entry, worker in engine.items()}
        limits = Limits(stack.enter_context(Worker(Roofline, settings.threads, settings.peak_seconds)))
        samples = take_turns(settings.rounds, {("limits", ""): limits.measure_peaks, **measures})

    work = Work.of(subject.config, text)
    rows = []
    for entry in measures:
        peak, characters_peak = limits.peak(precision_of(entry[0])), limits.peak("fp32")
        ceilings = {}
        if peak and characters_peak:
            ceilings["ceiling"] = work.lstm_ceiling(peak)
            ceilings["ceiling_both"] = work.both_ceiling(peak, characters_peak)
        rows.append(_row("bulk", subject, entry, "tokens/s", samples, ceilings))
    n_drawn = BATCH * settings.reference_batches
    note = f"{work.tokens} tokens of {source}; the reference: {n_drawn} sentences of it in batches of {BATCH}"
    noted = [replace(row, note=note) for row in rows]
    absentees = [Row("bulk", subject.name, name, "tokens/s", note=why) for name, why in absent.items()]
    return [*limits.rows(subject, "bulk"), *_compared(noted), *absentees]


def measure_single(subject: Subject, settings: Settings) -> list[Row]:
    """Milliseconds for one sentence; the cold cache knows no word of it, the warm one all."""
    text, source = load_sentences(settings.single_tokens, settings.text, settings.seed)
    sentence = [token for tokens in text for token in tokens]
    with ExitStack() as stack:
        entries = {(name, cache): dict(CACHES[cache]) for name in settings.contestants for cache in CACHES}
        workers, absent = _line_up(stack, subject, settings, entries)
        limits = Limits(stack.enter_context(Worker(Roofline, settings.threads, settings.peak_seconds)))
        measures: dict[Entry, Callable[[], float]] = {
            ("limits", "peaks"): limits.measure_peaks,
            ("limits", "streams"): partial(limits.measure_streams, recurrent_weights(subject.config)),
            ("limits", "copy"): limits.measure_copy,
        }
        for entry, worker in workers.items():
            measures[entry] = partial(worker.call, "single", sentence, settings.single_repeats)
        samples = take_turns(settings.rounds, measures)

    work = Work.of(subject.config, [sentence])
    rows = []
    for entry in workers:
        precision = precision_of(entry[0])
        lstm = BYTES[precision] * streamed_weights(subject.config, len(sentence)) / limits.stream(precision)
        characters = 0.0 if entry[1] == WARM else work.characters / (limits.peak("fp32") or np.inf)
        ceilings = {"ceiling": 1e3 * lstm, "ceiling_both": 1e3 * (lstm + characters)}
        rows.append(_row("single", subject, entry, "ms", samples, ceilings))
    noted = [replace(row, note=f"{len(sentence)} tokens of {source}") for row in rows]
    absentees = [Row("single", subject.name, name, "ms", note=why) for name, why in absent.items()]
    return [*limits.rows(subject, "single"), *_compared(noted), *absentees]


def draw_batches(sentences: Sentences, n_batches: int) -> Sentences:
    """Runs of 32 sentences, evenly spaced over all: each in the middle of its share of the text."""
    share = len(sentences) / n_batches
    if share < BATCH:
        raise FlashElmoError(
            f"text: expected {n_batches} batches of {BATCH} sentences, found {len(sentences)} sentences"
        )
    starts = [int(share * (k + 0.5) - BATCH / 2) for k in range(n_batches)]
    return [sentence for start in starts for sentence in sentences[start : start + BATCH]]


def _line_up(
    stack: ExitStack, subject: Subject, settings: Settings, entries: Mapping[Entry, dict[str, Any]]
) -> tuple[dict[Entry, Worker], dict[str, str]]:
    """The reference and those who can take part, whose vectors are right; and why the others cannot."""
    text, _ = load_sentences(100 * CHECKED, settings.text, settings.seed)
    reference = stack.enter_context(start(subject, settings, REFERENCE))
    expected = reference.call("vectors", text[:CHECKED])
    workers: dict[Entry, Worker] = {(REFERENCE, ""): reference}
    absent: dict[str, str] = {}
    for (name, detail), options in entries.items():
        if name in absent:
            continue
        try:
            worker = stack.enter_context(start(subject, settings, name, **options))
        except FlashElmoError as error:
            absent[name] = str(error)
            continue
        check(name, worker.call("vectors", text[:CHECKED]), expected)
        workers[name, detail] = worker
    if len(workers) == 1:
        raise FlashElmoError(f"nobody to compare with the reference: {'; '.join(absent.values())}")
    return workers, absent


def _row(
    section: str,
    subject: Subject,
    entry: Entry,
    unit: str,
    samples: Mapping[Entry, list[float]],
    ceilings: Mapping[str, float],
) -> Row:
    values = {"section": section, "model": subject.name, "name": entry[0], "detail": entry[1], "unit": unit}
    return Row.of(samples[entry], **values, **ceilings)


def _compared(rows: list[Row]) -> list[Row]:
    return with_ratios(rows, {row.label: row for row in rows if row.name == REFERENCE})
