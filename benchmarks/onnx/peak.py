"""Sentences of equal length: what share of the matrix peak the exported file reaches, and what its products alone.

Operations are those of the LSTM's products for every token. The file spares some of them, and so do its products
alone: the lowest layer's input products are computed for each distinct word once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from flashelmo.benchmarks.contestant import REFERENCE, Clock, Contestant, Way, absentees, line_up
from flashelmo.benchmarks.onnx.contestants import BASELINE, ENTRANTS, Exported, contestant, session_options
from flashelmo.benchmarks.onnx.products import feeds, write_products
from flashelmo.benchmarks.onnx.speed import limits_of
from flashelmo.benchmarks.results import Row, with_ratios
from flashelmo.benchmarks.roofline import BYTES, Limits, Work, recurrent_weights, streamed_weights
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import Subject
from flashelmo.benchmarks.text import Sentences, load_sentences
from flashelmo.benchmarks.timing import take_turns
from flashelmo.benchmarks.worker import Here, Pool, Worker
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.processor import cache_bytes
from flashelmo.export.build import check_precision
from flashelmo.export.onnx_elmo import OnnxElmo
from flashelmo.export.open_session import open_session

UNIT = "GFLOP/s"
PRODUCTS = "products"  # begins the names of rows of products alone


@dataclass(frozen=True)
class Batch:
    """Sentences of equal length, cut from a text without regard to its own sentences."""

    sentences: Sentences
    source: str

    @property
    def rows(self) -> int:
        """Sentences."""
        return len(self.sentences)

    @property
    def steps(self) -> int:
        """Tokens of each."""
        return len(self.sentences[0])

    @property
    def words(self) -> int:
        """Distinct words."""
        return len({word for sentence in self.sentences for word in sentence})

    @property
    def detail(self) -> str:
        """In words."""
        return f"{self.rows} sentences of {self.steps} tokens, {self.words} distinct words"


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
    binding, given = session.io_binding(), feeds(config, batch.words, batch.rows, batch.steps)
    for name, array in given.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)

    def run(work: Any, kept: object = given) -> None:  # the binding knows addresses alone: keep what lies there
        session.run_with_iobinding(binding)

    return Way(lambda sentences: [value.numpy() for value in binding.get_outputs()], run)


def measure_peak(exported: Exported, settings: Settings) -> list[Row]:
    """GFLOP/s of the exported files and of their products alone, beside the matrix peak of the same rounds."""
    names = [name for name in settings.contestants if ENTRANTS[name].runs == "onnx"]
    batch, subject = equal_batch(settings), exported.subject
    if not names:
        return []
    with Pool() as pool:
        workers, absent = _line_up(pool, exported, settings, names, batch)
        for precision in dict.fromkeys(ENTRANTS[name].precision for name, _ in workers):
            workers[f"{PRODUCTS} {precision}", ""] = _start_products(pool, exported, settings, precision, batch)
        limits = limits_of(exported, settings)
        measures: dict[str, Callable[[], float]] = {
            "peaks": limits.measure_peaks,
            "streams": partial(limits.measure_streams, recurrent_weights(subject.config)),
        }
        for (name, _), worker in workers.items():
            measures[name] = partial(worker.call, "seconds", [batch.sentences], 0.0, settings.peak_repeats, 1)
        timings = take_turns(settings.rounds, measures)

    operations = Work.of(subject.config, batch.sentences).lstm
    rows = {
        name: _row(subject, batch, name, limits).timed(timings[name], lambda seconds: operations / seconds / 1e9)
        for name, _ in workers
    }
    return [*limits.rows(subject.name, "peak"), *_compared(rows), *absentees("peak", subject.name, absent, UNIT)]


def _line_up(
    pool: Pool, exported: Exported, settings: Settings, names: list[str], batch: Batch
) -> tuple[dict[tuple[str, str], Worker | Here], dict[str, str]]:
    """The files whose vectors are right, and why others are left out."""
    files = []
    for name in names:
        entrant = ENTRANTS[name]
        given = exported.files[entrant.precision], batch.sentences, settings.threads, entrant.parallel
        files.append(Contestant(name, entrant.precision, file_run, given, place="onnx"))
    checked = batch.sentences[: settings.checked]
    expected = contestant(REFERENCE, exported, settings).start(exported.subject.pool).call("vectors", checked)
    return line_up(files, checked, expected, pool)


def _start_products(pool: Pool, exported: Exported, settings: Settings, precision: str, batch: Batch) -> Worker:
    path = exported.folder / f"{PRODUCTS} {precision}.onnx"
    model = load_model(exported.subject.folder)
    write_products(model, check_precision(precision), batch.words, batch.rows, path)
    return pool.worker(Clock, products_run, path, model.config, batch, settings.threads)


def _row(subject: Subject, batch: Batch, name: str, limits: Limits) -> Row:
    """A file's or its products' row, with what the matrix peak allows."""
    config, is_file = subject.config, name in ENTRANTS
    precision = ENTRANTS[name].precision if is_file else name.removeprefix(f"{PRODUCTS} ")
    note = _note_on_file(config, batch) if is_file else _note_on_products(subject, batch, precision, limits)
    row = Row("peak", subject.name, name, UNIT, batch.detail, note=note)
    lstm, both = Work.of(config, batch.sentences).ceilings(limits, precision)
    if lstm is None or both is None:
        return row
    scale = config.lstm_flops_per_token / 1e9
    return replace(row, ceiling=scale * lstm, ceiling_both=scale * both if is_file else None)


def _note_on_file(config: ElmoConfig, batch: Batch) -> str:
    """What sharing words spares."""
    lowest = 2 * 2 * 4 * config.projection_size * config.cell_size  # operations of a token's input products there
    repeated = 1 - batch.words / (batch.rows * batch.steps)
    computed = 1 - repeated * lowest / config.lstm_flops_per_token
    return f"{batch.detail} of {batch.source}: {computed:.0%} of the LSTM's operations are computed"


def _note_on_products(subject: Subject, batch: Batch, precision: str, limits: Limits) -> str:
    """What streaming the weights allows."""
    config, model = subject.config, subject.name
    step = BYTES[precision] * recurrent_weights(config) / (2 * config.n_layers)
    streamed = BYTES[precision] * streamed_weights(config, batch.steps)
    operations = batch.rows * batch.steps * config.lstm_flops_per_token
    allowed = operations * limits.stream(precision) / streamed
    return (
        f"{model}, {precision}: the weights of a step, layer and direction are {step / 1e6:.1f} MB, the last-level "
        f"cache {cache_bytes() / 1e6:.1f} MB; at {limits.stream(precision) / 1e9:.0f} GB/s, as one row streams them, "
        f"{batch.rows} rows a step allow {allowed / 1e9:,.0f} {UNIT}"
    )


def _compared(rows: Mapping[str, Row]) -> list[Row]:
    """Files with their speed in those of their products and of the float32 file."""
    compared = []
    for name, row in rows.items():
        opponents = (f"{PRODUCTS} {ENTRANTS[name].precision}", BASELINE) if name in ENTRANTS else ()
        compared += with_ratios([row], {other: rows[other] for other in opponents if other in rows})
    return compared
