"""Sentences of equal length: what share of the matrix peak the exported file reaches, and what its products alone.

Operations are those of the LSTM's products for every token. The file spares some of them, and so do its products
alone: the lowest layer's input products are computed for each distinct word once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from flashelmo.benchmarks.contestant import REFERENCE, Clock, Contestant, Way, absentees, line_up
from flashelmo.benchmarks.onnx.contestants import BASELINE, FILES, Exported, contestant, session_options
from flashelmo.benchmarks.onnx.products import feeds, write_products
from flashelmo.benchmarks.results import Row, with_ratios
from flashelmo.benchmarks.roofline import BYTES, Limits, Work, recurrent_weights, streamed_weights
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import Subject
from flashelmo.benchmarks.text import Sentences, load_sentences
from flashelmo.benchmarks.timing import take_turns
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.processor import cache_bytes
from flashelmo.export.build import check_precision
from flashelmo.export.onnx_elmo import OnnxElmo
from flashelmo.export.open_session import open_session

PRODUCTS = "products"  # begins the names of rows of products alone


@dataclass(frozen=True)
class Batch:
    """Sentences of equal length, cut from a text without regard to its own sentences."""

    sentences: Sentences
    source: str

    @property
    def size(self) -> tuple[int, int, int]:
        """Sentences, tokens of each, and distinct words."""
        return len(self.sentences), len(self.sentences[0]), len(set(chain.from_iterable(self.sentences)))

    @property
    def detail(self) -> str:
        """In words."""
        return "{} sentences of {} tokens, {} distinct words".format(*self.size)


def equal_batch(settings: Settings) -> Batch:
    """The text's first tokens in rows of equal length."""
    n_tokens, steps = settings.peak_rows * settings.peak_steps, settings.peak_steps
    text, source = load_sentences(n_tokens, settings.text, settings.seed)
    tokens = list(chain.from_iterable(text))
    return Batch([tokens[first : first + steps] for first in range(0, n_tokens, steps)], source)


def file_run(path: Path, sentences: Sentences, threads: int | None, parallel: bool) -> Way:
    """An exported file, and one batch spelled and padded beforehand, which is all that is timed."""
    elmo = OnnxElmo(path, session_options=session_options(threads, parallel))
    run = partial(elmo.run, outputs=[f"hidden_states.{layer}" for layer in elmo.layers], **elmo.inputs(sentences))
    return Way(lambda batch: elmo.embed(batch, batch_size=len(batch)), lambda work: run())


def products_run(path: Path, config: ElmoConfig, batch: Batch, threads: int | None) -> Way:
    """The products of a batch alone, in a session like the file's; its "vectors" are all outputs of the last run."""
    session = open_session(path, [("CPUExecutionProvider", {})], session_options(threads, parallel=False))
    rows, steps, words = batch.size
    binding, given = session.io_binding(), feeds(config, words, rows, steps)
    for name, array in given.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)

    def run(work: Any, kept: object = given) -> None:  # the binding knows addresses alone: keep what lies there
        session.run_with_iobinding(binding)

    return Way(lambda sentences: [value.numpy() for value in binding.get_outputs()], run)


def measure_peak(exported: Exported, settings: Settings) -> list[Row]:
    """GFLOP/s of the exported files and of their products alone, beside the matrix peak of the same rounds."""
    batch, subject, threads = equal_batch(settings), exported.subject, settings.threads
    files = []
    for name in (name for name in settings.contestants if name in FILES):
        _, precision, *parallel = name.split()
        given = exported.files[precision], batch.sentences, threads, bool(parallel)
        files.append(Contestant(name, precision, file_run, given, "onnx"))
    if not files:
        return []
    with Pool() as pool:
        checked = batch.sentences[: settings.checked]
        reference = contestant(REFERENCE, exported, settings).start(subject.pool)
        workers, absent = line_up(files, checked, reference.call("vectors", checked), pool)
        for precision in dict.fromkeys(each.precision for each in files if (each.name, "") in workers):
            path = exported.folder / f"{PRODUCTS} {precision}.onnx"
            rows, _, words = batch.size
            write_products(load_model(subject.folder), check_precision(precision), words, rows, path)
            products = pool.worker(Clock, products_run, path, subject.config, batch, threads)
            workers[f"{PRODUCTS} {precision}", ""] = products
        limits = Limits(exported.subject.pool, settings)
        measures: dict[str, Callable[[], float]] = {
            "peaks": limits.measure_peaks,
            "streams": partial(limits.measure_streams, recurrent_weights(subject.config)),
        }
        for (name, _), worker in workers.items():
            measures[name] = partial(worker.call, "seconds", [batch.sentences], 0.0, settings.peak_repeats, 1)
        timings = take_turns(settings.rounds, measures)

    operations = Work.of(subject.config, batch.sentences).lstm
    found: dict[str, Row] = {}
    for name, _ in workers:
        row = _row(subject, batch, name, limits)
        found[name] = row.timed(timings[name], lambda seconds: operations / seconds / 1e9)
    compared = []
    for name, row in found.items():  # files with their speed in those of their products and of the float32 file
        opponents = (f"{PRODUCTS} {name.split()[1]}", BASELINE) if name in FILES else ()
        compared += with_ratios([row], {other: found[other] for other in opponents if other in found})
    return [*limits.rows(subject.name, "peak"), *compared, *absentees("peak", subject.name, absent, "GFLOP/s")]


def _row(subject: Subject, batch: Batch, name: str, limits: Limits) -> Row:
    """A file's or its products' row, with what the matrix peak allows, and what sharing words spares."""
    config, (rows, steps, words), precision = subject.config, batch.size, name.split()[1]
    lstm, both = Work.of(config, batch.sentences).ceilings(limits, precision)
    scale = config.lstm_flops_per_token / 1e9
    row = Row("peak", subject.name, name, "GFLOP/s", batch.detail, ceiling=scale * lstm if lstm else None)
    if name not in FILES:
        return replace(row, note=_note_on_products(subject, batch, precision, limits))
    lowest = 2 * 2 * 4 * config.projection_size * config.cell_size  # operations of a token's input products there
    computed = 1 - (1 - words / (rows * steps)) * lowest / config.lstm_flops_per_token
    note = f"{batch.detail} of {batch.source}: {computed:.0%} of the LSTM's operations are computed"
    return replace(row, ceiling_both=scale * both if both else None, note=note)


def _note_on_products(subject: Subject, batch: Batch, precision: str, limits: Limits) -> str:
    """What streaming the weights allows."""
    config, (rows, steps, _), speed = subject.config, batch.size, limits.stream(precision)
    step = BYTES[precision] * recurrent_weights(config) / (2 * config.n_layers)
    seconds = BYTES[precision] * streamed_weights(config, steps) / speed
    allowed = rows * steps * config.lstm_flops_per_token / seconds
    return (
        f"{subject.name}, {precision}: the weights of a step, layer and direction are {step / 1e6:.1f} MB, the "
        f"last-level cache {cache_bytes() / 1e6:.1f} MB; at {speed / 1e9:.0f} GB/s, as one row streams them, {rows} "
        f"rows a step allow {allowed / 1e9:,.0f} GFLOP/s"
    )
