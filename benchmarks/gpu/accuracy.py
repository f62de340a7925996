"""The engine on the card against the truth, end to end, before anything is timed.

Random models of the published sizes are compared with the reference on the CPU, in float32, on ragged real sentences
and on odd ones: none, a token, a word longer than any model's, letters that are no ASCII. (Published vectors are
compared by the tests of the CUDA runtime, on a card where there is one.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks.accuracy import Piece, error_rows, layers
from flashelmo.benchmarks.kernels.card import Device
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import Sentences, batches, equal_batch, write_sentences
from flashelmo.benchmarks.worker import one_line
from flashelmo.engine.arrays import Float32
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Output, pool_mean, select_layers
from flashelmo.engine.precision import PRECISIONS
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.settings import CudaSettings
from flashelmo.engine.text.windows import read_ahead, read_windows

ODD_SENTENCES = [[], ["x"], ["x" * 70, "é", "日本"], [], ["The", "end", "."]]
PASSES = 4  # of repeated batches: compiled, captured, replayed, replayed


class CardSubject:
    """A model on the card and its embedders, made when they are first asked for by `make`, as by `ElmoEmbedder`."""

    def __init__(
        self, name: str, model: ElmoModel, device: Device, make: Callable[..., Any], cuda: CudaSettings
    ) -> None:
        self.name, self.model, self.device, self.cuda, self._make = name, model, device, cuda, make
        self._made: dict[tuple[str, frozenset[tuple[str, object]]], Any] = {}

    def embedder(self, precision: str, **options: Any) -> Any:
        """The embedder with these options; the same one for the same options."""
        options = {"cuda": self.cuda} | options
        key = precision, frozenset(options.items())
        if key not in self._made:
            self._made[key] = self._make(self.model, device=self.device.engine, precision=precision, **options)
        return self._made[key]

    def timed(self, precision: str, known: bool = False) -> Any:
        """The one that is timed: all words known from an earlier call, or none ever."""
        return self.embedder(precision) if known else self.embedder(precision, cache_bytes=0)

    def let_go(self, *options: str) -> None:
        """Of embedders that were made with one of these options, as "stateful", and of their memory."""
        self._made = {key: value for key, value in self._made.items() if not {name for name, _ in key[1]} & {*options}}
        self.device.free_memory()


def leave_on_device(embedder: Any, sentences: Sentences) -> None:
    """Embed, all layers, and drop the vectors on the device."""
    for _ in embedder.embed(sentences, convert_to_numpy=False):
        pass


def file_means(embedder: Any, path: Path) -> Iterator[Float32]:
    """Means of the average of the layers, on the host, of every sentence of a file."""
    max_sentences, max_tokens = embedder.window_limits
    windows = read_windows(path, max_sentences=max_sentences, max_tokens=max_tokens, first_tokens=embedder.first_tokens)
    if embedder.reads_ahead:  # as `embed_file` does
        windows = read_ahead(windows)
    for _, means in embedder.embed_windows(windows, output=Output("average", pool="mean")):
        yield from means


class Truth:
    """What is embedded, and what the reference on the CPU makes of it."""

    def __init__(self, subject: CardSubject, text: Sentences, settings: Settings) -> None:
        self._model, self.batch_size = subject.model, settings.stateful_rows
        short = equal_batch(text, settings.short_sentences, 3).sentences if settings.short_sentences else []
        self.sentences: Sentences = [*ODD_SENTENCES, *text[: settings.sentences], *short]

    @cached_property
    def bounded(self) -> list[Float32]:
        """Layers [L, T + 2, 2P] of every sentence with its boundaries."""
        return list(ReferenceRuntime(self._model, batch_size=64).embed_batch(self.sentences, True))

    @cached_property
    def vectors(self) -> list[Float32]:
        """Layers [L, T, 2P] of every sentence."""
        return [vectors[:, 1:-1] for vectors in self.bounded]

    @property
    def stream(self) -> Sentences:
        """Batches of ragged sentences, the last one smaller; none is empty."""
        return [sentence for sentence in self.sentences if sentence][: 4 * self.batch_size - 1]

    @cached_property
    def streamed(self) -> list[Float32]:
        """Layers of the stream's sentences, embedded in batches that carry the state on."""
        runtime = ReferenceRuntime(self._model, stateful=True)
        return [layers for batch in batches(self.stream, self.batch_size) for layers in runtime.embed_batch(batch)]


Way = Callable[[CardSubject, Truth, str], Iterator[Piece]]


def _repeated(subject: CardSubject, truth: Truth, precision: str) -> Iterator[Piece]:
    """Small batches several times, so that captured graphs are replayed; the last two times give the same bits."""
    embedder, size = subject.embedder(precision), max(2, len(truth.sentences) // 8)
    again: list[Float32] = []
    last: list[Float32] = []
    for _ in range(PASSES):
        again, last = last, [x for each in batches(truth.sentences, size) for x in embedder.embed(each)]
    yield from layers(last, truth.vectors)
    after, before = (np.concatenate([x.ravel() for x in each])[None] for each in (last, again))
    yield Piece("two calls", after, before, same_bits=True)


def _bulk(subject: CardSubject, truth: Truth, precision: str) -> Iterator[Piece]:
    """Everything three times in windows of a fifth, the vectors left on the device until the end."""
    embedder = subject.embedder(precision, window_tokens=max(1, sum(map(len, truth.sentences)) // 5))
    found = list(embedder.embed(truth.sentences * 3, convert_to_numpy=False))
    subject.device.synchronize()
    return layers([tensor.cpu().numpy() for tensor in found], truth.vectors * 3)


def _pooled(subject: CardSubject, truth: Truth, precision: str) -> Iterator[Piece]:
    """Means over the tokens, of the average of the layers and of one; the top layer; and a file's means."""
    embedder, sentences = subject.embedder(precision), truth.sentences
    mean = [pool_mean(select_layers(vectors, "average")) for vectors in truth.vectors]
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        path = write_sentences(Path(folder) / "text", sentences)
        yield _single("means of a file", file_means(embedder, path), mean)
    yield _single("mean of the average", embedder.embed(sentences, layers="average", pool="mean"), mean)
    found = embedder.embed(sentences, layers=1, pool="mean")
    yield _single("mean of layer 1", found, [pool_mean(vectors[1]) for vectors in truth.vectors])
    yield _single("top layer", embedder.embed(sentences, layers="top"), [vectors[-1] for vectors in truth.vectors])


def _single(detail: str, found: Iterable[Any], expected: Sequence[Float32]) -> Piece:
    """One piece: a vector for each sentence or token, [..., 2P]."""
    (piece,) = layers([np.asarray(x)[None] for x in found], [x[None] for x in expected])
    return piece._replace(detail=detail)


def _with(**options: Any) -> Way:
    """All sentences in one call, by an embedder with these options; what is stateful in batches of a stream."""

    def compare(subject: CardSubject, truth: Truth, precision: str) -> Iterator[Piece]:
        if "stateful" in options:
            embedder = subject.embedder(precision, batch_size=truth.batch_size, **options)
            return layers(list(embedder.embed(truth.stream)), truth.streamed)
        expected = truth.bounded if options else truth.vectors
        return layers(list(subject.embedder(precision, **options).embed(truth.sentences)), expected)

    return compare


ALWAYS = {"batch": _with(), "repeated": _repeated}
WAYS = ALWAYS | {
    "bulk": _bulk,
    "pooled": _pooled,
    "boundaries": _with(keep_sentence_boundaries=True),
    "stateful": _with(stateful=True),
}


def check_way(subject: CardSubject, truth: Truth, way: str, precision: str) -> list[Row]:
    """Rows of the errors of one way to embed; what raises has failed."""
    row = Row("error", subject.name, f"{way} {precision}", "relative error")
    try:
        return error_rows(row, WAYS[way](subject, truth, precision), PRECISIONS[precision].bounds["cuda"])
    except Exception as error:
        return [Row(row.section, row.model, row.name, row.unit, note=f"{FAILED}: {one_line(error)}")]
    finally:
        subject.let_go("stateful", "keep_sentence_boundaries", "window_tokens")
