"""The tensors with which training begins: random, as bilm-tf draws them, or those of a model to continue from."""

from __future__ import annotations

import numpy as np

from flashelmo.engine.arrays import Float32, Int32
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel, expected_shapes
from flashelmo.engine.training.corpus import BEGIN, END, EncodedCorpus
from flashelmo.engine.training.softmax_files import find_softmax

CONVOLUTION_BOUND = 0.05  # Kim et al. 2015; with tanh it is a normal distribution instead
CARRY = -2.0  # bias of the highways' gates: at first they pass their input through


def word_biases(corpus: EncodedCorpus, rows: Int32, n_words: int) -> Float32:
    """Return logarithms of the words' frequencies [V]: with them a softmax begins as the text's unigram model.

    Args:
        corpus: the text.
        rows: each of its words' row in the softmax [W].
        n_words: V.
    """
    counts = np.bincount(rows, corpus.counts(), n_words).astype(np.float64)
    counts[[BEGIN, END]] += len(corpus) / 2  # each is predicted in one of the directions
    biases: Float32 = np.log(np.maximum(counts, 0.5) / counts.sum()).astype(np.float32)
    return biases


def initial_tensors(config: ElmoConfig, n_words: int, seed: int, biases: Float32 | None = None) -> dict[str, Float32]:
    """Return random canonical tensors, and `softmax.weight` [V, P] and `softmax.bias` [V]; the same for the same seed.

    Args:
        config: of the model.
        n_words: V.
        seed: of the random numbers.
        biases: of the softmax; None for zeros.
    """
    rng = np.random.default_rng(seed)
    tensors = {name: _random(name, shape, config, rng) for name, shape in sorted(expected_shapes(config).items())}
    tensors["character_embedding"][0] = 0.0  # no token
    size = config.projection_size
    tensors["softmax.weight"] = rng.normal(0, size**-0.5, (n_words, size)).astype(np.float32)
    tensors["softmax.bias"] = np.zeros(n_words, np.float32) if biases is None else biases
    return tensors


def tensors_from(model: ElmoModel, vocabulary: list[str], seed: int, biases: Float32) -> dict[str, Float32]:
    """Return a model's tensors and, if a softmax is beside it, its rows for the words that both vocabularies have."""
    tensors = initial_tensors(model.config, len(vocabulary), seed, biases)
    tensors |= dict(model.weights.named_tensors())
    softmax = find_softmax(model)
    if softmax is not None:
        row_of = {word: row for row, word in enumerate(softmax.words)}
        ours = [row for row, word in enumerate(vocabulary) if word in row_of]
        theirs = [row_of[vocabulary[row]] for row in ours]
        tensors["softmax.weight"][ours] = softmax.weight[theirs]
        tensors["softmax.bias"][ours] = softmax.bias[theirs]
    return tensors


def _random(name: str, shape: tuple[int, ...], config: ElmoConfig, rng: np.random.Generator) -> Float32:
    kind, part = name.partition(".")[0], name.rpartition(".")[2]
    if part == "bias":
        bias = np.zeros(shape, np.float32)
        if kind == "lstm":
            bias[1] = 1.0  # forget gates remember at first
        elif ".gate." in name:
            bias[...] = CARRY
        return bias
    if kind == "character_embedding":
        return rng.uniform(-1, 1, shape).astype(np.float32)
    if kind == "convolutions" and config.activation == "relu":
        return rng.uniform(-CONVOLUTION_BOUND, CONVOLUTION_BOUND, shape).astype(np.float32)
    if kind == "lstm":  # Glorot and Bengio 2010, for the matrices of TensorFlow's cell
        size, cells = config.projection_size, config.cell_size
        fans = cells + size if part == "projection" else 2 * size + 4 * cells
        bound = (6 / fans) ** 0.5
        return rng.uniform(-bound, bound, shape).astype(np.float32)
    fan_in = shape[0] * shape[1] if kind == "convolutions" else shape[0]
    return rng.normal(0, fan_in**-0.5, shape).astype(np.float32)
