"""One window of sentences from words to vectors: schedule, word vectors, LSTM, gather."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from flashelmo.engine.bilstm import BiLstm, LstmState
from flashelmo.engine.characters import WordEncoder
from flashelmo.engine.runtimes import Array, Runtime
from flashelmo.engine.schedule import Boundaries, Schedule, build_schedule
from flashelmo.engine.text import Window
from flashelmo.engine.weights import ElmoModel
from flashelmo.engine.word_vectors import WordVectors

if TYPE_CHECKING:
    from flashelmo.engine.runtimes.reference import ReferenceRuntime

LayerStates = list[tuple[Array, Array]]


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


class Pipeline:
    """Embeds windows on a runtime that executes the graph's pieces.

    Args:
        model, runtime: what to compute and what computes it.
        keep_boundaries: give the vectors of the begin and end of every sentence too.
        share: compute equal prefixes and suffixes once. Stateful runs never share.
        stateful: carry the LSTM state from window to window, row by row.
        cache_bytes: bound of the word vectors kept.
    """

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
        self.statistics = Statistics()

    def reset_state(self) -> None:
        """Let every row start at zero again."""
        if self._state is not None:
            self._state = LstmState()

    def run(self, window: Window, on_nodes: Callable[[float], None] = lambda share: None) -> Iterator[Array]:
        """Compute a window; then iterate over its sentences' layers [L, T, 2P] in input order.

        `on_nodes` is called after every step with the share of the window's steps done.
        """
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
            self.reset_state()
        done = 0

        lock = threading.Lock()

        def count(nodes: int) -> None:
            nonlocal done
            with lock:
                done += nodes
                on_nodes(done / (schedule.n_nodes * self._config.n_layers))

        layers = self._bilstm.run(schedule, vectors, self._state, count)
        self._count(window, schedule, n_new)
        return _sentences(schedule, vectors, layers)

    def _count(self, window: Window, schedule: Schedule, n_new: int) -> None:
        lengths = np.diff(window.offsets)
        alone = 2 * int(np.where(lengths > 0, lengths + 1 + self._keep_boundaries, 0).sum())
        self.statistics.sentences += len(lengths)
        self.statistics.tokens += int(window.offsets[-1])
        self.statistics.distinct_words += n_new
        self.statistics.steps += schedule.n_nodes
        self.statistics.steps_saved += max(0, alone - schedule.n_nodes)


class ReferencePipeline:
    """The PyTorch reference behind the same face as `Pipeline`."""

    def __init__(self, runtime: ReferenceRuntime, keep_boundaries: bool) -> None:
        self._runtime = runtime
        self._keep_boundaries = keep_boundaries
        self.statistics = Statistics()

    def reset_state(self) -> None:
        """Let every row start at zero again."""
        self._runtime.reset_state()

    def run(self, window: Window, on_share: Callable[[float], None] = lambda share: None) -> Iterator[Array]:
        """Compute a window; then iterate over its sentences' layers [L, T, 2P]."""
        sentences = [window.tokens(b) for b in range(len(window))]
        results = self._runtime.embed_batch(sentences, self._keep_boundaries)
        on_share(1.0)
        tokens = sum(map(len, sentences))
        self.statistics.sentences += len(sentences)
        self.statistics.tokens += tokens
        self.statistics.distinct_words += tokens + 2 * len(sentences)
        self.statistics.steps += 2 * tokens + 4 * len(sentences)
        return iter(results)


def _sentences(schedule: Schedule, vectors: Array, layers: LayerStates) -> Iterator[Array]:
    """Gather each sentence's rows: layer 0 is [x, x], the others are [forward, backward]."""
    size = vectors.shape[1]
    for start, stop in zip(schedule.offsets[:-1], schedule.offsets[1:], strict=True):
        result = np.empty((len(layers) + 1, stop - start, 2 * size), np.float32)
        words = schedule.token_words[start:stop]
        result[0, :, :size] = result[0, :, size:] = vectors[words]
        for k, (forward, backward) in enumerate(layers, start=1):
            result[k, :, :size] = forward[schedule.forward.token_nodes[start:stop]]
            result[k, :, size:] = backward[schedule.backward.token_nodes[start:stop]]
        yield result
