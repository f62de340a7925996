"""Small random models of every kind, for tests that need no trained weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel, ElmoWeights, Lexicon, expected_shapes

BILM = ElmoConfig(
    family="bilm",
    cell_size=6,
    projection_size=4,
    n_layers=2,
    cell_clip=0.5,
    projection_clip=0.4,
    skip_connections=True,
    filters=((1, 3), (2, 4), (3, 5)),
    n_highway=2,
    activation="relu",
    character_size=3,
    n_characters=262,
    max_characters=12,
)
WORDS = Lexicon({}, {word: 1 + k for k, word in enumerate(["<S>", "</S>", "<UNK>", "the", "cat", "sat"])})
MANYLANGS = replace(BILM, family="manylangs", word_size=5, n_words=6, n_characters=9)
MANYLANGS_LEXICON = Lexicon(
    {token: row for row, token in enumerate(["<oov>", "<bow>", "<eow>", "<pad>", "<bos>", "<eos>", "c", "a", "t"])},
    {token: row for row, token in enumerate(["<oov>", "<pad>", "<bos>", "<eos>", "cat", "the"])},
)
WORD_MODEL = replace(
    BILM, filters=(), n_highway=0, character_size=0, n_characters=0, projection_size=4, word_size=4, n_words=7
)
SENTENCES = [
    ["the", "cat", "sat"],
    ["cat"],
    [],
    ["incomprehensibilities", "the", "é", "cat", "the", "sat"],
    ["sat", "cat"],
]


def random_model(
    config: ElmoConfig, lexicon: Lexicon | None = None, seed: int = 0, deviation: float = 0.7
) -> ElmoModel:
    """A model with normally distributed weights of any configuration."""
    rng = np.random.default_rng(seed)
    shapes = expected_shapes(config)
    tensors = {name: rng.normal(0, deviation, shape).astype(np.float32) for name, shape in sorted(shapes.items())}
    return ElmoModel(config, ElmoWeights.from_named_tensors(tensors, config), lexicon, Path("random"), "native")


# Vectors as large as a trained model's: no gate is saturated and no clip cuts, so that few bits suffice.
GENTLE = random_model(
    replace(BILM, cell_size=64, projection_size=16, cell_clip=3.0, projection_clip=3.0), deviation=0.2
)
MODELS = {
    "skip": random_model(BILM),
    "no skip": random_model(replace(BILM, skip_connections=False)),
    "no clips, tanh": random_model(replace(BILM, cell_clip=None, projection_clip=None, activation="tanh")),
    "no projection": random_model(replace(BILM, cell_size=4)),
    "three layers, no highway": random_model(replace(BILM, n_layers=3, n_highway=0)),
    "no character projection": random_model(replace(BILM, projection_size=12)),
    "words alone": random_model(WORD_MODEL, WORDS),
    "manylangs": random_model(MANYLANGS, MANYLANGS_LEXICON),
    "manylangs, characters alone": random_model(replace(MANYLANGS, word_size=0, n_words=0), MANYLANGS_LEXICON),
    "manylangs, words alone": random_model(
        replace(MANYLANGS, filters=(), n_highway=0, character_size=0, n_characters=0), MANYLANGS_LEXICON
    ),
}


def with_tensors(model: ElmoModel, tensors: dict[str, npt.NDArray[np.float32]]) -> ElmoModel:
    """A model of other tensors that is not checked: the reference takes projections that no configuration has."""
    changed = replace(model)
    object.__setattr__(changed, "weights", ElmoWeights.from_named_tensors(tensors, model.config))
    return changed
