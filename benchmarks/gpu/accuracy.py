"""The engine on the card against the truth, end to end, before anything is timed.

Random models of the published sizes are compared with the reference on the CPU, in float32, on ragged real sentences
and on odd ones: none, a token, a word longer than any model's, letters that are no ASCII. Every way to embed is taken:
a sentence by itself, a batch, batches again and again (what is captured as a graph comes to be replayed), many windows,
a text file, means over sentences, boundaries kept, and the state carried from batch to batch. Small models are compared
with vectors that the published implementations computed (the folder's README says which).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashelmo.benchmarks.gpu.subject import Subject
from flashelmo.benchmarks.gpu.workloads import batches, equal_batch
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import REAL_TEXT, Sentences, write_sentences
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output, pool_mean, select_layers
from flashelmo.engine.precision import PRECISIONS
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.text.windows import read_ahead, read_windows

ODD_SENTENCES = [[], ["x"], ["x" * 70, "é", "日本"], [], ["The", "end", "."]]
PASSES = 4  # of repeated batches: compiled, captured, replayed, replayed
GOLDEN = REAL_TEXT.parents[1] / "golden"  # beside the checkout
PUBLISHED = "fp32"  # precision of the published vectors


class Piece(NamedTuple):
    """Vectors [rows, 2P] that should be alike, or have the same bits; `detail` says which, as "layer 0"."""

    detail: str
    found: Array
    expected: Array
    same_bits: bool = False

    def errors(self, precision: str) -> Iterator[tuple[str, float, str]]:
        """Unit and figure of the largest absolute and of the relative error, and what is wrong with it."""
        difference, bound = np.abs(self.found - self.expected), PRECISIONS[precision].bounds["cuda"]
        norm = max(float(np.linalg.norm(self.expected)), float(np.finfo(np.float64).tiny))
        for unit, error, limit in (
            ("max abs error", float(difference.max(initial=0)), bound.max_abs),
            ("relative error", float(np.linalg.norm(difference)) / norm, bound.relative),
        ):
            if self.same_bits:
                wrong, wanted = error != 0, "the same bits"
            else:
                wrong, wanted = limit is not None and not error < limit, f"less than {limit or 0:g}"  # NaN breaks it
            yield unit, error, f"{FAILED}: {unit} {error:.2g}, expected {wanted}" if wrong else ""


def layers(found: Sequence[Array], expected: Sequence[Array]) -> Iterator[Piece]:
    """A piece for each layer of all sentences together, whose vectors are [L, ..., 2P].

    Raises:
        FlashElmoError: another number of sentences or another shape than expected.
    """
    if len(found) != len(expected):
        raise FlashElmoError(f"expected vectors of {len(expected)} sentences, found {len(found)}")
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a.shape != b.shape:
            raise FlashElmoError(f"sentence {k}: expected shape {list(b.shape)}, found {list(a.shape)}")
    for k, (a, b) in enumerate(zip(_end_to_end(found), _end_to_end(expected), strict=True)):
        yield Piece(f"layer {k}", a, b)


def single(detail: str, found: Iterable[Any], expected: Sequence[Array]) -> Piece:
    """One piece: a vector for each sentence or token, [..., 2P]."""
    (piece,) = layers([np.asarray(x)[None] for x in found], [x[None] for x in expected])
    return piece._replace(detail=detail)


def _end_to_end(vectors: Sequence[Array]) -> Array:
    """All sentences' [L, ..., 2P] as [L, rows, 2P] in float64."""
    return np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in vectors], axis=1).astype(np.float64)


def error_rows(row: Row, precision: str, pieces: Iterable[Piece]) -> list[Row]:
    """The row with each piece's errors; those that break their bound say so."""
    return [
        replace(
            row, unit=unit, detail=piece.detail, median=float(f"{error:.3g}") if np.isfinite(error) else None, note=said
        )
        for piece in pieces
        for unit, error, said in piece.errors(precision)
    ]


class Truth:
    """What is embedded, and what the reference on the CPU makes of it."""

    def __init__(self, subject: Subject, text: Sentences, settings: Settings) -> None:
        self._model, self.batch_size = subject.model, settings.stateful_rows
        short = equal_batch(text, settings.short_sentences, 3).sentences if settings.short_sentences else []
        self.sentences: Sentences = [*ODD_SENTENCES, *text[: settings.sentences], *short]

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
        runtime, stream, size = ReferenceRuntime(self._model, stateful=True), self.stream, self.batch_size
        batches = (stream[start : start + size] for start in range(0, len(stream), size))
        return [layers for batch in batches for layers in runtime.embed_batch(batch)]

    @property
    def stream(self) -> Sentences:
        """Batches of ragged sentences, the last one smaller; none is empty."""
        return [sentence for sentence in self.sentences if sentence][: 4 * self.batch_size - 1]


def batch(subject: Subject, truth: Truth, precision: str) -> Iterator[Piece]:
    """All sentences at once."""
    yield from layers(list(subject.embedder(precision).embed(truth.sentences)), truth.vectors)


def one_by_one(subject: Subject, truth: Truth, precision: str) -> Iterator[Piece]:
    """The odd sentences and some more, each by itself."""
    sentences = truth.sentences[: len(ODD_SENTENCES) + 8]
    found = [vectors for each in sentences for vectors in subject.embedder(precision).embed([each])]
    yield from layers(found, truth.vectors[: len(sentences)])


def repeated(subject: Subject, truth: Truth, precision: str) -> Iterator[Piece]:
    """Batches of one size in turn, several times; and the last two times give the same bits."""
    embedder, size = subject.embedder(precision), max(2, len(truth.sentences) // 8)
    again: list[Array] = []
    last: list[Array] = []
    for _ in range(PASSES):
        again, last = last, [x for each in batches(truth.sentences, size) for x in embedder.embed(each)]
    yield from layers(last, truth.vectors)
    after, before = (np.concatenate([x.ravel() for x in each])[None] for each in (last, again))
    yield Piece("two calls", after, before, same_bits=True)


def bulk(subject: Subject, truth: Truth, precision: str) -> Iterator[Piece]:
    """Everything three times in windows of a fifth, the vectors left on the device until the end."""
    embedder = subject.embedder(precision, window_tokens=max(1, sum(map(len, truth.sentences)) // 5))
    yield from layers(
        _from_device(subject, embedder.embed(truth.sentences * 3, convert_to_numpy=False)), truth.vectors * 3
    )


def pooled(subject: Subject, truth: Truth, precision: str) -> Iterator[Piece]:
    """Means over the tokens on the device, of the average and of one layer; the top layer; and a file's means."""
    embedder, sentences = subject.embedder(precision), truth.sentences
    mean = [pool_mean(select_layers(vectors, "average")) for vectors in truth.vectors]
    found = embedder.embed(sentences, layers="average", pool="mean", convert_to_numpy=False)
    yield single("mean of the average", _from_device(subject, found), mean)
    found = embedder.embed(sentences, layers=1, pool="mean")
    yield single("mean of layer 1", found, [pool_mean(vectors[1]) for vectors in truth.vectors])
    yield single("top layer", embedder.embed(sentences, layers="top"), [vectors[-1] for vectors in truth.vectors])
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        path = write_sentences(Path(folder) / "text", sentences)
        yield single("means of a file", file_means(embedder, path), mean)


def _from_device(subject: Subject, tensors: Iterable[Any]) -> list[Array]:
    """Tensors as arrays, after all of them were made."""
    found = list(tensors)
    subject.device.synchronize()
    return [tensor.cpu().numpy() for tensor in found]


def file_means(embedder: Any, path: Path) -> Iterator[Array]:
    """Means of the average of the layers, on the host, of every sentence of a file."""
    max_sentences, max_tokens = embedder.window_limits
    windows = read_windows(path, max_sentences=max_sentences, max_tokens=max_tokens)
    if embedder.reads_ahead:  # as `embed_file` does
        windows = read_ahead(windows)
    for _, means in embedder.embed_windows(windows, output=Output("average", pool="mean")):
        yield from means


def boundaries(subject: Subject, truth: Truth, precision: str) -> Iterator[Piece]:
    """With the vectors of the begin and the end of each sentence."""
    found = subject.embedder(precision, keep_sentence_boundaries=True).embed(truth.sentences)
    yield from layers(list(found), truth.bounded)


def stateful(subject: Subject, truth: Truth, precision: str) -> Iterator[Piece]:
    """The state carried from batch to batch."""
    embedder = subject.embedder(precision, stateful=True, batch_size=truth.batch_size)
    yield from layers(list(embedder.embed(truth.stream)), truth.streamed)


Way = Callable[[Subject, Truth, str], Iterator[Piece]]
ALWAYS: dict[str, Way] = {"batch": batch, "repeated": repeated}
THOROUGH: dict[str, Way] = {
    "one by one": one_by_one,
    "bulk": bulk,
    "pooled": pooled,
    "boundaries": boundaries,
    "stateful": stateful,
}


def ways(settings: Settings) -> Iterator[tuple[str, str, Way]]:
    """Precision, name and way of every check, the batch first."""
    for precision in settings.precisions:
        for name, way in (ALWAYS | (THOROUGH if precision in settings.thorough else {})).items():
            yield precision, name, way


# ----------------------------------------------------------------------------------------------------------- published


def published(
    make: Callable[[Path], Subject], folder: Path
) -> Iterator[tuple[str, str, Callable[[], Iterator[Piece]]]]:
    """Model, name and pieces of every check: from a fresh state, and with the state carried from batch to batch.

    Args:
        make: a subject of a model's folder.
    """
    table: list[tuple[str, str, Callable[[Subject, Path], Iterator[Piece]]]] = [
        ("bilm_skip", "published", _lines),
        ("manylangs", "published", _tokens),
        ("bilm_skip", "published, stateful", partial(_streams, (0, 1))),
        ("bilm_noskip", "published, stateful", partial(_streams, (0,))),
    ]

    def pieces(compare: Callable[[Subject, Path], Iterator[Piece]], folder: Path) -> Iterator[Piece]:
        return compare(make(folder), folder)

    for model, name, compare in table:
        yield model, name, partial(pieces, compare, folder / model)


def _lines(subject: Subject, folder: Path) -> Iterator[Piece]:
    sentences = [line.split() for stream in _stored(folder) for line in stream]
    return _fresh(subject, sentences, folder / "expected_stateless.hdf5")


def _tokens(subject: Subject, folder: Path) -> Iterator[Piece]:
    return _fresh(subject, _stored(folder), folder / "expected_layers.hdf5")


def _fresh(subject: Subject, sentences: Sentences, path: Path) -> Iterator[Piece]:
    """The first sentences, as many as have published vectors."""
    expected = _vectors(path)
    return layers(list(subject.embedder(PUBLISHED).embed(sentences[: len(expected)])), expected)


def _streams(published: Sequence[int], subject: Subject, folder: Path) -> Iterator[Piece]:
    """TensorFlow's bilm ran sentence i of all streams as batch i, and carried each row's state on."""
    streams = _stored(folder)
    lines = [stream[i].split() for i in range(len(streams[0])) for stream in streams]
    found = list(subject.embedder(PUBLISHED, stateful=True, batch_size=len(streams)).embed(lines))
    for stream in published:
        expected = [np.concatenate(list(both), axis=-1) for both in _vectors(folder / f"lm_embeddings_{stream}.hdf5")]
        yield single(f"top layer, stream {stream}", [x[-1] for x in found[stream :: len(streams)]], expected)


def _stored(folder: Path) -> Any:
    return json.loads((folder / "sentences.json").read_text(encoding="utf-8"))


def _vectors(path: Path) -> list[Array]:
    """Of every sentence, by its number."""
    import h5py  # which a machine with a card may lack, as it may the files

    with h5py.File(path) as stored:
        return [np.asarray(stored[str(k)]) for k in range(len(stored))]
