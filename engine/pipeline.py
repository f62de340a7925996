"""Windows of sentences from words to vectors: schedule, word vectors, LSTM, gather."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from flashelmo.engine.cpu.bilstm import BiLstm, LstmState
from flashelmo.engine.cpu.runtime import Array, Int32, Runtime
from flashelmo.engine.cpu.word_vectors import WordVectors
from flashelmo.engine.errors import MissingExtraError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Output, pool_mean
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.text.schedule import Boundaries, Schedule, build_schedule
from flashelmo.engine.text.windows import Window

if TYPE_CHECKING:
    from flashelmo.engine.reference.reference import ReferenceRuntime

OnShare: TypeAlias = Callable[[float], None]
Stream: TypeAlias = Iterator[tuple[Window, Iterator[Any]]]
Source: TypeAlias = tuple[Array, Int32]  # states [N, P], and which of them each token has [tokens]


@dataclass
class Statistics:
    """What was embedded so far, and what sharing saved.

    Attributes:
        sentences, tokens: of the input.
        distinct_words: word vectors computed; words found in the cache are not counted.
        steps: LSTM steps (of both directions, for one layer) that were run.
        steps_saved: steps that sentence-by-sentence runs would have needed beyond those.
    """

    sentences: int = 0
    tokens: int = 0
    distinct_words: int = 0
    steps: int = 0
    steps_saved: int = 0

    def count(self, window: Window, schedule: Schedule, n_new: int, keep_boundaries: bool) -> None:
        """Add a window whose schedule was run, and for which n_new word vectors were computed."""
        lengths = np.diff(window.offsets)
        alone = 2 * int(np.where(lengths > 0, lengths + 1 + keep_boundaries, 0).sum())
        self.sentences += len(lengths)
        self.tokens += int(window.offsets[-1])
        self.distinct_words += n_new
        self.steps += schedule.n_nodes
        self.steps_saved += max(0, alone - schedule.n_nodes)


class WindowPipeline(Protocol):
    """Turns a stream of windows into what was asked for of their sentences. Several threads may use one at once.

    Attributes:
        statistics: totals of everything that was embedded.
        ahead: windows it reads beyond the one it gives.
    """

    statistics: Statistics
    ahead: int

    def reset_state(self) -> None:
        """Let every row start at zero again."""

    def stream(self, windows: Iterable[Window], output: Output, on_share: OnShare, *, as_numpy: bool = True) -> Stream:
        """Each window with an iterator of its sentences' results, in order; nothing is read before it is iterated.

        Args:
            output: layers and pooling, which the model must have (`Output.check`). A result has the shape
                `output.shape((L, T, 2P))`; it may have `output.dtype` already, or else the number type of the
                computation, float32 or float64.
            on_share: hears again and again what share is computed of the window that comes next.
            as_numpy: numpy arrays; otherwise PyTorch tensors, on the device that computed them.

        Raises:
            MissingExtraError: tensors are asked for, and PyTorch is not installed; raised by the call itself.
        """


class Pipeline:
    """Embeds windows on a runtime that executes the graph's pieces, each when it is asked for.

    Args:
        model, runtime: what to compute and what computes it.
        keep_boundaries: give the vectors of the begin and end of every sentence too.
        share: compute equal prefixes and suffixes once. Stateful runs never share.
        stateful: carry the LSTM state from window to window, row by row.
        cache_bytes: bound of the word vectors kept.
    """

    ahead = 0

    def __init__(
        self,
        model: ElmoModel,
        runtime: Runtime,
        *,
        keep_boundaries: bool = False,
        share: bool = True,
        stateful: bool = False,
        cache_bytes: int = 128 << 20,
    ) -> None:
        self._config = model.config
        self._encoder = WordEncoder(model.config, model.lexicon)
        self._words = WordVectors(model.config, self._encoder, runtime, cache_bytes)
        self._bilstm = BiLstm(model.config, runtime)
        self._keep_boundaries = keep_boundaries
        self._share = share
        self._stateful = stateful
        self._state = LstmState() if stateful or not share else None
        self._lock = threading.Lock()  # a window at a time: state, cache and the LSTM's memory are shared
        self.statistics = Statistics()

    def reset_state(self) -> None:
        """Let every row start at zero again."""
        with self._lock:
            self._clear_state()

    def stream(self, windows: Iterable[Window], output: Output, on_share: OnShare, *, as_numpy: bool = True) -> Stream:
        """See `WindowPipeline`; `on_share` is called after every step."""

        def run(window: Window) -> Iterator[Array]:
            with self._lock:
                return self._run(window, output, on_share)

        return _stream(windows, run, as_numpy)

    def _clear_state(self) -> None:
        if self._state is not None:
            self._state = LstmState()

    def _run(self, window: Window, output: Output, on_share: OnShare) -> Iterator[Array]:
        """Compute a window; then iterate over its sentences' results."""
        n_words = len(window.words)
        words = pa.concat_arrays([window.words, pa.array(self._encoder.boundary_words, pa.string())])
        schedule = build_schedule(
            window.word_ids,
            window.offsets,
            Boundaries(begin=n_words, end=n_words + 1, keep=self._keep_boundaries),
            share=self._share and not self._stateful,
            complete=self._stateful,
        )
        vectors, n_new = self._words.lookup(words)
        if not self._stateful:
            self._clear_state()
        done = 0

        lock = threading.Lock()

        def count(nodes: int) -> None:
            nonlocal done
            with lock:
                done += nodes
                on_share(done / (schedule.n_nodes * self._config.n_layers))

        layers = self._bilstm.run(schedule, vectors, self._state, count)
        self.statistics.count(window, schedule, n_new, self._keep_boundaries)
        return _sentences(schedule, vectors, layers, output)


class ReferencePipeline:
    """The PyTorch reference behind the same face as `Pipeline`."""

    ahead = 0

    def __init__(self, runtime: ReferenceRuntime, keep_boundaries: bool) -> None:
        self._runtime = runtime
        self._keep_boundaries = keep_boundaries
        self._lock = threading.Lock()
        self.statistics = Statistics()

    def reset_state(self) -> None:
        """Let every row start at zero again."""
        with self._lock:
            self._runtime.reset_state()

    def stream(self, windows: Iterable[Window], output: Output, on_share: OnShare, *, as_numpy: bool = True) -> Stream:
        """See `WindowPipeline`; `on_share` is called when a window is computed."""

        def run(window: Window) -> Iterator[Array]:
            with self._lock:
                layers = self._run(window)
            on_share(1.0)
            return map(output.choose, layers)

        return _stream(windows, run, as_numpy)

    def _run(self, window: Window) -> list[Array]:
        """The layers [L, T, 2P] of a window's sentences."""
        sentences = [window.tokens(b) for b in range(len(window))]
        results = self._runtime.embed_batch(sentences, self._keep_boundaries)
        tokens = sum(map(len, sentences))
        self.statistics.sentences += len(sentences)
        self.statistics.tokens += tokens
        self.statistics.distinct_words += tokens + 2 * len(sentences)
        self.statistics.steps += 2 * tokens + 4 * len(sentences)
        return results


def _stream(windows: Iterable[Window], run: Callable[[Window], Iterator[Array]], as_numpy: bool) -> Stream:
    """Each window with its results, computed when it is asked for."""
    if as_numpy:
        return ((window, run(window)) for window in windows)
    try:
        from torch import from_numpy
    except ImportError as error:
        raise MissingExtraError("torch", "torch", "convert_to_numpy=False") from error
    return ((window, map(from_numpy, run(window))) for window in windows)


def _sentences(
    schedule: Schedule, vectors: Array, layers: list[tuple[Array, Array]], output: Output
) -> Iterator[Array]:
    """Gather what is asked for of each sentence and no more. Layer 0 is [x, x], the others are [forward, backward]."""
    words, nodes = schedule.token_words, (schedule.forward.token_nodes, schedule.backward.token_nodes)
    sources = [((vectors, words), (vectors, words))]
    sources += [((forward, nodes[0]), (backward, nodes[1])) for forward, backward in layers]
    groups = [[sources[layer] for layer in group] for group in output.groups(len(sources))]
    mix = output.layers if isinstance(output.layers, tuple) else None
    for start, stop in zip(schedule.offsets[:-1], schedule.offsets[1:], strict=True):
        yield _sentence(groups, mix, slice(start, stop), 2 * vectors.shape[1], output)


def _sentence(
    groups: list[list[tuple[Source, Source]]], mix: tuple[float, ...] | None, tokens: slice, size: int, output: Output
) -> Array:
    """The result for the tokens of one sentence; at a time, at most one layer more is held."""
    n_tokens = tokens.stop - tokens.start
    result = np.empty((len(groups), size) if output.pool else (len(groups), n_tokens, size), np.float32)
    for row, group in zip(result, groups, strict=True):
        mean = np.empty((n_tokens, size), np.float32) if output.pool else row
        for k, halves in enumerate(group):
            _gather(halves, tokens, mean, add=k > 0, factor=None if mix is None else mix[k])
        if mix is None and len(group) > 1:
            mean /= len(group)
        if output.pool:
            row[:] = pool_mean(mean)
    return result if output.layers == "all" else result[0]


def _gather(
    halves: tuple[Source, Source], tokens: slice, into: Array, *, add: bool, factor: float | None = None
) -> None:
    """Write a layer's vectors, times a factor, into [T, 2P], or add them to what it holds."""
    size = into.shape[1] // 2
    for half, (states, rows) in zip((into[:, :size], into[:, size:]), halves, strict=True):
        found = states[rows[tokens]]
        if factor is not None:
            found *= np.float32(factor)
        if add:
            half += found
        else:
            half[:] = found
        del found  # before the next half takes as much
