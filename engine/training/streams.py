"""Word ids to batches: streams of sentences that are read `unroll` tokens at a time, in both directions.

Sentences are shuffled, put end to end and cut into as many pieces as the batch has rows. A row's state is carried from
batch to batch. In bilm-tf the two directions are shuffled separately; here the backward direction reads the same
sentences in the same order, each reversed in its place, so that a batch's two halves have nearly the same distinct
words, whose vectors are computed once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flashelmo.engine.arrays import Int32, Int64
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.training.corpus import EncodedCorpus


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
        sentences = self._order[place]
        return Batch(*self._corpus.predictions(sentences, positions - self._ends[place] + self._lengths[sentences]))
