"""A model's perplexity on held-out text, with its hidden states in any precision.

The softmax is float32, as it lies beside the weights that `flashelmo train` wrote; what is judged are the states. Each
sentence is read from a fresh state; in it every word and the end are predicted (backward the begin and every word).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashelmo.benchmarks.corpus import BEGIN, END, UNKNOWN, VOCABULARY_FILE, read_vocabulary
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.senses.intervals import Float64
from flashelmo.benchmarks.senses.vectors import Float32
from flashelmo.benchmarks.tasks import Embed
from flashelmo.engine.errors import FlashElmoError

SOFTMAX_FILE = "softmax.safetensors"
DIRECTIONS = ("forward", "backward")
AT_ONCE = 1 << 25  # logits that lie in memory


class Softmax(NamedTuple):
    """weight [V, P], bias [V], and each word's row."""

    weight: Float32
    bias: Float32
    row_of: Mapping[str, int]

    @classmethod
    def beside(cls, folder: Path) -> Softmax:
        """That of a model's folder.

        Raises:
            FlashElmoError: there is none.
        """
        from safetensors.numpy import load_file

        if not (folder / SOFTMAX_FILE).is_file():
            raise FlashElmoError(f"{folder}: expected {SOFTMAX_FILE} with {VOCABULARY_FILE} for perplexity, found none")
        tensors = load_file(folder / SOFTMAX_FILE)
        weight, bias = (tensors[name].astype(np.float32) for name in ("weight", "bias"))
        return cls(weight, bias, read_vocabulary(folder / VOCABULARY_FILE))


def perplexity_rows(row: Row, embed: Embed, sentences: Sequence[list[str]], softmax: Softmax) -> list[Row]:
    """The row with the perplexity of each direction; `embed` gives the boundaries' vectors too, [L, T + 2, 2P]."""
    both = zip(DIRECTIONS, losses(embed, sentences, softmax), strict=True)
    return [replace(row, detail=name).with_samples([float(np.exp(each.mean()))]) for name, each in both]


def losses(embed: Embed, sentences: Sequence[list[str]], softmax: Softmax) -> tuple[Float64, Float64]:
    """Of every prediction the negative logarithm of its probability, forward and backward [predictions].

    Args:
        embed: gives the boundaries' vectors too, [L, T + 2, 2P].
    """
    forward, backward, targets = [], [], []
    for tokens, vectors in zip(sentences, embed(sentences), strict=True):
        size = vectors.shape[-1] // 2
        top = vectors[-1].astype(np.float32)
        forward.append(top[:-1, :size])
        backward.append(top[1:, size:])
        targets.append([BEGIN, *(softmax.row_of.get(token, UNKNOWN) for token in tokens), END])
    ahead = np.concatenate([ids[1:] for ids in targets]), np.concatenate([ids[:-1] for ids in targets])
    return tuple(  # type: ignore[return-value]
        _losses(np.concatenate(hidden), ids, softmax) for hidden, ids in zip((forward, backward), ahead, strict=True)
    )


def _losses(hidden: Float32, targets: np.ndarray[tuple[int, ...], np.dtype[np.int64]], softmax: Softmax) -> Float64:
    """Of hidden [N, P] and the rows of what comes [N]."""
    result, step = np.empty(len(hidden)), max(1, AT_ONCE // len(softmax.bias))
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        logits = hidden[rows] @ softmax.weight.T
        logits += softmax.bias
        target = logits[np.arange(len(logits)), targets[rows]].astype(np.float64)
        most = logits.max(axis=1, keepdims=True)
        logits -= most
        np.exp(logits, out=logits)
        result[rows] = np.log(logits.sum(axis=1, dtype=np.float64)) + most[:, 0] - target
    return result
