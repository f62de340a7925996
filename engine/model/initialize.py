"""Random models at the published sizes, for benchmarks, demonstrations and tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel, ElmoWeights, expected_shapes

PUBLISHED_FILTERS = ((1, 32), (2, 32), (3, 64), (4, 128), (5, 256), (6, 512), (7, 1024))

# Preset -> cell, projection, highway layers, filters (https://allenai.org/allennlp/software/elmo; tiny is our own)
PRESETS = {
    "tiny": (512, 128, 1, PUBLISHED_FILTERS[:5]),
    "small": (1024, 128, 1, PUBLISHED_FILTERS),
    "medium": (2048, 256, 1, PUBLISHED_FILTERS),
    "original": (4096, 512, 2, PUBLISHED_FILTERS),
}


def preset_config(preset: str) -> ElmoConfig:
    """Return a size's configuration: "tiny" (3.0M parameters), "small" (13.6M), "medium" (28.0M), "original" (93.6M).

    Raises:
        FlashElmoError: there is no such size.
    """
    if preset not in PRESETS:
        raise FlashElmoError(f"preset: expected one of {', '.join(PRESETS)}, found {preset!r}")
    cell, projection, n_highway, filters = PRESETS[preset]
    return ElmoConfig(
        family="bilm",
        cell_size=cell,
        projection_size=projection,
        n_layers=2,
        cell_clip=3.0,
        projection_clip=3.0,
        skip_connections=True,
        filters=filters,
        n_highway=n_highway,
        activation="relu",
        character_size=16,
        n_characters=262,
        max_characters=50,
    )


def random_model(preset: str, seed: int) -> ElmoModel:
    """Return a model of a published size with random weights, the same for the same seed.

    Its activations neither vanish nor saturate.

    Raises:
        FlashElmoError: an unknown preset or a negative seed.
    """
    config = preset_config(preset)
    return ElmoModel(config, random_weights(config, seed), None, Path(f"{preset} (random, seed {seed})"), "native")


def random_weights(config: ElmoConfig, seed: int) -> ElmoWeights:
    """Return random float32 tensors of `expected_shapes(config)`, the same for the same seed.

    Raises:
        FlashElmoError: a negative seed.
    """
    if seed < 0:
        raise FlashElmoError(f"seed: expected zero or more, found {seed}")
    rng = np.random.default_rng(seed)
    tensors = {name: _random_tensor(name, shape, rng) for name, shape in expected_shapes(config).items()}
    if "character_embedding" in tensors:
        tensors["character_embedding"][0] = 0.0  # no token
    return ElmoWeights.from_named_tensors(tensors, config)


def _random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Float32:
    """Return uniform values, with the variance that keeps a layer's output about as large as its input."""
    kind = name.rpartition(".")[2]
    if kind == "bias":
        bias = np.zeros(shape, np.float32)
        if name.startswith("lstm."):
            bias[1] = 1.0  # forget gates remember at first
        elif ".gate." in name:
            bias[...] = -1.0  # highways carry their input at first
        return bias
    fan_in = 1 if kind == "character_embedding" else int(np.prod(shape[:-1])) if name.startswith("conv") else shape[-2]
    bound = np.float32(np.sqrt(3.0 / fan_in))
    tensor = rng.random(shape, dtype=np.float32)
    tensor *= 2 * bound
    tensor -= bound
    return tensor
