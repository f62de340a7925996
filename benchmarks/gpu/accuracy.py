"""The engine on the card against the truth, end to end, before anything is timed.

Random models of the published sizes are compared with the reference on the CPU, in float32, on ragged real sentences
and on odd ones: none, a token, a word longer than any model's, letters that are no ASCII. Every way to embed is taken:
a sentence by itself, a batch, batches again and again (what is captured as a graph comes to be replayed), many windows,
a text file, means over sentences, boundaries kept, and the state carried from batch to batch.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashelmo.benchmarks.gpu.settings import EngineSettings
from flashelmo.benchmarks.gpu.subject import Embedder, Subject
from flashelmo.benchmarks.gpu.workloads import batches, equal_batch
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.text import Sentences, write_sentences
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output, pool_mean, select_layers
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.text.windows import read_windows

# Largest absolute difference in float32: hidden states lie in about [-3, 3]; sums of up to 4,096 products in another
# order, two layers and some dozen steps deep, where small golden models have 64.
ABSOLUTE = {"fp32": 1e-4}
# Largest relative error of layer 0, ||a - b|| / ||b||; each LSTM layer may add as much again.
RELATIVE = {
    "fp32": 1e-4,
    "tf32": 3e-3,  # Triton cuts to 10 bits instead of rounding: 7e-4 a product, and words take four in a row
    "fp16": 2e-3,  # 11 bits
    "bf16": 0.01,  # 8 bits of mantissa: each rounding is off by 0.4% at most, and a sum averages them
    "int8": 0.05,  # 8-bit weights with a scale for each output column
}
ODD_SENTENCES = [[], ["x"], ["x" * 70, "é", "日本"], [], ["The", "end", "."]]
PASSES = 4  # of repeated batches: compiled, captured, replayed, replayed


class LayerError(NamedTuple):
    """How far vectors are from the truth, and how far they may be; None where nothing is expected."""

    detail: str
    absolute: float
    relative: float
    absolute_bound: float | None
    relative_bound: float | None


@dataclass(frozen=True)
class Check:
    """One way to embed in one precision; `errors` computes."""

    model: str
    name: str
    precision: str
    errors: Callable[[], list[LayerError]]

    def rows(self) -> list[Row]:
        """Two rows for each layer; those that break their bound say so."""
        rows = []
        for error in self.errors():
            for unit, value, bound in (
                ("max abs error", error.absolute, error.absolute_bound),
                ("relative error", error.relative, error.relative_bound),
            ):
                note = ""
                if bound is not None and not value <= bound:  # NaN breaks every bound
                    note = f"{FAILED}: {unit} {value:.2g}, expected at most {bound:g}"
                figure = float(f"{value:.3g}") if math.isfinite(value) else None
                label = f"{self.name} {self.precision}"
                rows.append(Row("error", self.model, label, unit, error.detail, median=figure, note=note))
        return rows


def compare(found: Sequence[Array], expected: Sequence[Array], precision: str) -> list[LayerError]:
    """Errors of each layer of all sentences together, vectors [L, ..., 2P].

    Raises:
        FlashElmoError: another number of sentences or another shape than expected.
    """
    if len(found) != len(expected):
        raise FlashElmoError(f"expected vectors of {len(expected)} sentences, found {len(found)}")
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a.shape != b.shape:
            raise FlashElmoError(f"sentence {k}: expected shape {list(b.shape)}, found {list(a.shape)}")
    ours, theirs = (_end_to_end(vectors) for vectors in (found, expected))
    return [
        _error(f"layer {k}", a, b, ABSOLUTE.get(precision), (k + 1) * RELATIVE[precision])
        for k, (a, b) in enumerate(zip(ours, theirs, strict=True))
    ]


def _end_to_end(vectors: Sequence[Array]) -> Array:
    """All sentences' [L, ..., 2P] as [L, rows, 2P] in float64."""
    return np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in vectors], axis=1).astype(np.float64)


def _error(detail: str, found: Array, expected: Array, absolute: float | None, relative: float | None) -> LayerError:
    largest = float(np.abs(found - expected).max(initial=0))
    norm = float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), np.finfo(np.float64).tiny))
    return LayerError(detail, largest, norm, absolute, relative)


def one_vector(
    found: Sequence[Any], expected: Sequence[Array], precision: str, detail: str, layer: int
) -> list[LayerError]:
    """The error of one vector for each sentence or token, [..., 2P], which has been through so many LSTM layers."""
    errors = compare([np.asarray(x)[None] for x in found], [x[None] for x in expected], precision)
    return [error._replace(detail=detail, relative_bound=(layer + 1) * RELATIVE[precision]) for error in errors]


def on_host(vectors: Sequence[Any]) -> list[Array]:
    """Tensors as arrays, after all of them were made."""
    return [vector.cpu().numpy() for vector in vectors]


class Truth:
    """What is embedded, and what the reference on the CPU makes of it."""

    def __init__(self, subject: Subject, text: Sentences, settings: EngineSettings) -> None:
        self._model = subject.model
        self.rows = settings.stateful_rows
        real = text[: settings.real_sentences]
        short = equal_batch(text, settings.short_sentences, 3).sentences if settings.short_sentences else []
        self.sentences: Sentences = [*ODD_SENTENCES, *real, *short]

    @cached_property
    def bounded(self) -> list[Array]:
        """Layers [L, T + 2, 2P] of every sentence with its boundaries."""
        return list(ReferenceRuntime(self._model, batch_size=64).embed_batch(self.sentences, True))

    @cached_property
    def vectors(self) -> list[Array]:
        """Layers [L, T, 2P] of every sentence."""
        return [vectors[:, 1:-1] for vectors in self.bounded]

    @cached_property
    def streamed(self) -> list[Array]:
        """Layers of the first sentences, embedded in batches that carry the state on."""
        runtime = ReferenceRuntime(self._model, stateful=True, batch_size=self.rows)
        return list(runtime.embed_batch(self.stream))

    @property
    def stream(self) -> Sentences:
        """Batches of ragged sentences, the last one smaller; none is empty."""
        whole = [sentence for sentence in self.sentences if sentence]
        return whole[: 4 * self.rows - 1]


def checks(subject: Subject, truth: Truth, settings: EngineSettings) -> Iterator[Check]:
    """All ways to embed, the batch first; precisions that are not checked thoroughly are checked in batches alone."""
    for precision in settings.precisions:
        ways: dict[str, Callable[..., list[LayerError]]] = {"batch": _batch, "repeated": _repeated}
        if precision in settings.thorough:
            ways |= {
                "one by one": _one_by_one,
                "bulk": _bulk,
                "pooled": _pooled,
                "boundaries": _boundaries,
                "stateful": _stateful,
            }
        for name, errors in ways.items():
            yield Check(subject.name, name, precision, partial(errors, subject, truth, precision))


def _batch(subject: Subject, truth: Truth, precision: str) -> list[LayerError]:
    return compare(list(subject.embedder(precision).embed(truth.sentences)), truth.vectors, precision)


def _one_by_one(subject: Subject, truth: Truth, precision: str) -> list[LayerError]:
    embedder = subject.embedder(precision)
    n = min(len(truth.sentences), len(ODD_SENTENCES) + 8)
    found = [vectors for sentence in truth.sentences[:n] for vectors in embedder.embed([sentence])]
    return compare(found, truth.vectors[:n], precision)


def _repeated(subject: Subject, truth: Truth, precision: str) -> list[LayerError]:
    """Batches of one size in turn, several times; and the last two times give the same bits."""
    embedder = subject.embedder(precision)
    size = max(2, len(truth.sentences) // 8)
    passes: list[list[Array]] = []
    for _ in range(PASSES):
        found = [list(embedder.embed(batch)) for batch in batches(truth.sentences, size)]
        passes.append([vectors for batch in found for vectors in batch])
    again, last = (_end_to_end(found) for found in passes[-2:])
    return [*compare(passes[-1], truth.vectors, precision), _error("two calls", last, again, 0.0, None)]


def _bulk(subject: Subject, truth: Truth, precision: str) -> list[LayerError]:
    """Everything three times in windows of a fifth, the vectors left on the device until the end."""
    n_tokens = sum(map(len, truth.sentences))
    embedder = subject.embedder(precision, window_tokens=max(1, n_tokens // 5))
    tensors = list(embedder.embed(truth.sentences * 3, convert_to_numpy=False))
    subject.place.synchronize()
    return compare(on_host(tensors), truth.vectors * 3, precision)


def _pooled(subject: Subject, truth: Truth, precision: str) -> list[LayerError]:
    """Means over the tokens on the device, of the average and of one layer; the top layer; and a file's means."""
    embedder, last = subject.embedder(precision), subject.model.config.n_layers
    mean = [pool_mean(select_layers(vectors, "average")) for vectors in truth.vectors]
    found = list(embedder.embed(truth.sentences, layers="average", pool="mean", convert_to_numpy=False))
    subject.place.synchronize()
    errors = one_vector(on_host(found), mean, precision, "mean of the average", last)
    first = [pool_mean(vectors[1]) for vectors in truth.vectors]
    found = list(embedder.embed(truth.sentences, layers=1, pool="mean"))
    errors += one_vector(found, first, precision, "mean of layer 1", 1)
    top = [vectors[-1] for vectors in truth.vectors]
    errors += one_vector(list(embedder.embed(truth.sentences, layers="top")), top, precision, "top layer", last)
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        path = write_sentences(Path(folder) / "text", truth.sentences)
        errors += one_vector(list(file_means(embedder, path)), mean, precision, "means of a file", last)
    return errors


def file_means(embedder: Embedder, path: Path) -> Iterator[Array]:
    """Means of the average of the layers, on the host, of every sentence of a file."""
    max_sentences, max_tokens = embedder.window_limits
    windows = read_windows(path, max_sentences=max_sentences, max_tokens=max_tokens)
    for _, means in embedder.embed_windows(windows, output=Output("average", pool="mean")):
        yield from means


def _boundaries(subject: Subject, truth: Truth, precision: str) -> list[LayerError]:
    embedder = subject.embedder(precision, keep_sentence_boundaries=True)
    return compare(list(embedder.embed(truth.sentences)), truth.bounded, precision)


def _stateful(subject: Subject, truth: Truth, precision: str) -> list[LayerError]:
    embedder = subject.embedder(precision, stateful=True, batch_size=truth.rows)
    return compare(list(embedder.embed(truth.stream)), truth.streamed, precision)
