"""Word ids to batches: streams of sentences that are read `unroll` tokens at a time, in both directions.

Sentences are shuffled, put end to end and cut into as many pieces as the batch has rows. A row's state is carried from
batch to batch. A sentence of n words gives n + 1 predictions: <S> w1 .. wn predict w1 .. wn </S>, and backward </S> wn
.. w1 predict wn .. w1 <S>, as in bilm-tf. There the two directions are shuffled separately; here the backward direction
reads the same sentences in the same order, each reversed in its place, so that a batch's two halves have nearly the
same distinct words, whose vectors are computed once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flashelmo.engine.arrays import Int32, Int64
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.training.corpus import BEGIN, END, EncodedCorpus


class Batch(NamedTuple):
    """A window of time steps: word ids int32 [2, T, B], forward and backward, to read and to predict."""

    inputs: Int32
    targets: Int32


class Streams:
    """Batches of a corpus, the same for the same seed.

    Args:
        corpus: the sentences.
        batch: B, rows of all processes together.
        unroll: T, time steps of a batch.
        seed: of the order of sentences, which differs in each epoch.
        rows: those of this process.

    Raises:
        FlashElmoError: the corpus is too short for a single batch.
    """

    def __init__(self, corpus: EncodedCorpus, batch: int, unroll: int, seed: int, rows: slice = slice(None)) -> None:
        self._corpus, self._unroll, self._seed = corpus, unroll, seed
        self._lengths = np.diff(corpus.offsets) + 1
        total = corpus.n_tokens + len(corpus)
        self.batches = total // (batch * unroll)
        if not self.batches:
            found = f"found {total:,} tokens with their boundaries"
            raise FlashElmoError(f"corpus: expected {batch * unroll:,} for {batch} streams of {unroll}, {found}")
        self._rows = np.arange(batch)[rows]
        self._epoch = -1

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step, counted over all epochs."""
        epoch, place = divmod(step, self.batches)
        if epoch != self._epoch:
            self._shuffle(epoch)
        row_starts = self._rows * (self.batches * self._unroll) + place * self._unroll
        positions = row_starts + np.arange(self._unroll)[:, None]  # [T, B]
        return self._read(positions)

    def _shuffle(self, epoch: int) -> None:
        self._order: Int64 = np.random.default_rng([self._seed, epoch]).permutation(len(self._lengths))
        self._ends: Int64 = np.cumsum(self._lengths[self._order])
        self._epoch = epoch

    def _read(self, positions: Int64) -> Batch:
        """Return predictions [T, B] of the shuffled sentences."""
        place = np.searchsorted(self._ends, positions, side="right")
        sentence = self._order[place]
        words = self._lengths[sentence] - 1
        k = positions - (self._ends[place] - words - 1)  # among words + 1 predictions
        start = np.asarray(self._corpus.offsets)[sentence]
        last, ids = self._corpus.n_tokens - 1, self._corpus.word_ids

        def word(index: Int64) -> Int32:
            return np.asarray(ids[np.clip(start + index, 0, last)])

        is_first, is_last = k == 0, k == words
        inputs = np.where(is_first, BEGIN, word(k - 1)), np.where(is_first, END, word(words - k))
        targets = np.where(is_last, END, word(k)), np.where(is_last, BEGIN, word(words - 1 - k))
        return Batch(np.stack(inputs).astype(np.int32), np.stack(targets).astype(np.int32))
