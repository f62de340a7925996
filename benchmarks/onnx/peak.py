"""Sentences of equal length: what share of the matrix peak the exported file reaches, and what its products alone.

Operations are those of the LSTM's products for every token. The file spares some of them, and so do its products
alone: the lowest layer's input products are computed for each distinct word once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median

from flashelmo.benchmarks.contestant import take_turns
from flashelmo.benchmarks.onnx.contestants import Start, line_up, session_options, start
from flashelmo.benchmarks.onnx.exported import Exported
from flashelmo.benchmarks.onnx.products import feeds, write_products
from flashelmo.benchmarks.onnx.settings import BASELINE, ENTRANTS, PRODUCTS, REFERENCE, OnnxSettings
from flashelmo.benchmarks.onnx.speed import absentees
from flashelmo.benchmarks.results import Row, with_ratios
from flashelmo.benchmarks.roofline import BYTES, Roofline, Work, recurrent_weights, streamed_weights
from flashelmo.benchmarks.settings import Subject
from flashelmo.benchmarks.speed import Limits
from flashelmo.benchmarks.text import Sentences, load_sentences
from flashelmo.benchmarks.worker import Worker
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.processor import cache_bytes
from flashelmo.export.build import check_precision
from flashelmo.export.onnx_elmo import OnnxElmo
from flashelmo.export.open_session import open_session

UNIT = "GFLOP/s"


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


def equal_batch(settings: OnnxSettings) -> Batch:
    """The text's first tokens in rows of equal length."""
    n_tokens, steps = settings.peak_rows * settings.peak_steps, settings.peak_steps
    text, source = load_sentences(n_tokens, settings.text, settings.seed)
    tokens = list(chain.from_iterable(text))
    return Batch([tokens[first : first + steps] for first in range(0, n_tokens, steps)], source)


class FileRun:
    """An exported file and one batch, spelled and padded beforehand.

    Args:
        sentences: the batch that is timed.
    """

    def __init__(self, path: Path, sentences: Sentences, threads: int | None, parallel: bool) -> None:
        self._elmo = OnnxElmo(path, session_options=session_options(threads, parallel))
        self._inputs = self._elmo.inputs(sentences)
        self._outputs = [f"hidden_states.{layer}" for layer in self._elmo.layers]

    def vectors(self, sentences: Sentences) -> list[Array]:
        """Vectors of any batch."""
        return self._elmo.embed(sentences, batch_size=len(sentences))

    def seconds(self, repeats: int) -> float:
        """Median of some runs; one more before them is not timed."""
        return median_seconds(lambda: self._elmo.run(outputs=self._outputs, **self._inputs), repeats)


class ProductsRun:
    """The products alone, in a session like the file's.

    Args:
        batch: what they are of.
    """

    def __init__(self, path: Path, config: ElmoConfig, batch: Batch, threads: int | None) -> None:
        session = open_session(path, [("CPUExecutionProvider", {})], session_options(threads, parallel=False))
        self._feeds = feeds(config, batch.words, batch.rows, batch.steps)
        self._binding = session.io_binding()
        for name, array in self._feeds.items():
            self._binding.bind_cpu_input(name, array)
        for output in session.get_outputs():
            self._binding.bind_output(output.name)
        self._session = session

    def seconds(self, repeats: int) -> float:
        """Median of some runs; one more before them is not timed."""
        return median_seconds(lambda: self._session.run_with_iobinding(self._binding), repeats)


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median of some calls; one more before them is not timed."""
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return median(times[1:])


def measure_peak(exported: Exported, settings: OnnxSettings) -> list[Row]:
    """GFLOP/s of the exported files and of their products alone, beside the matrix peak of the same rounds."""
    names = [name for name in settings.contestants if ENTRANTS[name].runs == "onnx"]
    batch, subject = equal_batch(settings), exported.subject
    if not names:
        return []
    with ExitStack() as stack:
        workers, left_out = _line_up(stack, exported, settings, names, batch)
        for precision in dict.fromkeys(ENTRANTS[name].precision for name in workers):
            products = _start_products(exported, settings, precision, batch)
            workers[f"{PRODUCTS} {precision}"] = stack.enter_context(products)
        limits = Limits(stack.enter_context(Worker(Roofline, settings.threads, settings.peak_seconds)))
        measures: dict[str, Callable[[], float]] = {
            "peaks": limits.measure_peaks,
            "streams": partial(limits.measure_streams, recurrent_weights(subject.config)),
        }
        for name, worker in workers.items():
            measures[name] = partial(worker.call, "seconds", settings.peak_repeats)
        samples = take_turns(settings.rounds, measures)

    rows = {name: _row(exported, batch, name, samples[name], limits) for name in workers}
    return [*limits.rows(subject, "peak"), *_compared(rows), *absentees("peak", exported, left_out, UNIT)]


def _line_up(
    stack: ExitStack, exported: Exported, settings: OnnxSettings, names: Sequence[str], batch: Batch
) -> tuple[dict[str, Worker], dict[str, str]]:
    """The files whose vectors are right, and why others are left out."""
    starts = {}
    for name in names:
        entrant = ENTRANTS[name]
        arguments = exported.files[entrant.precision], batch.sentences, settings.threads, entrant.parallel
        starts[name] = Start(entrant.precision, partial(Worker, FileRun, *arguments))
    checked = batch.sentences[: settings.checked]
    with start(REFERENCE, exported, settings) as reference:
        expected = reference.call("vectors", checked)
    return line_up(stack, starts, checked, expected)


def _start_products(exported: Exported, settings: OnnxSettings, precision: str, batch: Batch) -> Worker:
    path = exported.folder / f"{PRODUCTS} {precision}.onnx"
    model = load_model(exported.subject.folder)
    write_products(model, check_precision(precision), batch.words, batch.rows, path)
    return Worker(ProductsRun, path, model.config, batch, settings.threads)


def _row(exported: Exported, batch: Batch, name: str, seconds: Sequence[float], limits: Limits) -> Row:
    """A file's or its products' GFLOP/s, beside what the matrix peak allows."""
    config, is_file = exported.subject.config, name in ENTRANTS
    precision = ENTRANTS[name].precision if is_file else name.removeprefix(f"{PRODUCTS} ")
    work = Work.of(config, batch.sentences)
    ceilings = {}
    peak, characters_peak = limits.peak(precision), limits.peak("fp32")
    if peak and characters_peak:
        ceilings["ceiling"] = peak / 1e9
        if is_file:
            ceilings["ceiling_both"] = work.both_ceiling(peak, characters_peak) * config.lstm_flops_per_token / 1e9
    values = {"section": "peak", "model": exported.subject.name, "name": name, "detail": batch.detail, "unit": UNIT}
    note = _note_on_file(config, batch) if is_file else _note_on_products(exported.subject, batch, precision, limits)
    return Row.of([work.lstm / taken / 1e9 for taken in seconds], **values, **ceilings, note=note)


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
