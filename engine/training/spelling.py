"""Distinct words of a batch and their characters, with short words separate from long ones.

A word of k characters, begin and end included, gives the same in k + w positions as in all M, where w is the width of
the widest convolution: every window that touches a character is there, and one of only padding, like all that follow.
Words that are sorted by length and computed in pieces take a third of the positions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flashelmo.engine.arrays import Int32
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.text.characters import WordEncoder

PIECE = 256  # words that are computed together


class Spelling:
    """The characters of all words of a corpus.

    Args:
        config: of the model.
        words: the W words.

    Attributes:
        characters: ids [W, M].
    """

    def __init__(self, config: ElmoConfig, words: list[str]) -> None:
        encoder = WordEncoder(config, None)
        ids = encoder.character_ids(words)
        assert ids is not None  # only character models are trained
        self.characters = ids
        self._positions = encoder.lengths(ids) + max(width for width, _ in config.filters)
        self._seen = np.zeros(len(words), bool)
        self._place = np.zeros(len(words), np.int32)

    def distinct(self, inputs: Int32) -> tuple[Int32, Int32]:
        """Return distinct words [U], short ones first, and the index of each input among them."""
        self._seen[inputs] = True
        found = np.flatnonzero(self._seen)
        self._seen[found] = False
        found = found[np.argsort(self._positions[found], kind="stable")]
        self._place[found] = np.arange(len(found), dtype=np.int32)
        return found.astype(np.int32), self._place[inputs]

    def pieces(self, distinct: Int32) -> list[Tensor]:
        """Return their ids [n, positions] in pieces of similar lengths, on the CPU."""
        parts = [distinct[start : start + PIECE] for start in range(0, len(distinct), PIECE)]
        return [torch.from_numpy(self.characters[part, : self._positions[part].max()]) for part in parts]
