"""Random models: the published sizes, the same weights for the same seed, and a network that is alive."""

import numpy as np
import pytest

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import PRESETS, preset_config, random_model
from flashelmo.engine.model.weights import ElmoModel, check_tensors, expected_shapes

# Parameters, from https://allenai.org/allennlp/software/elmo, but for tiny
PUBLISHED = {"tiny": "3.0M", "small": "13.6M", "medium": "28.0M", "original": "93.6M"}


@pytest.fixture(scope="module")
def small() -> ElmoModel:
    return random_model("small", 0)


def count(preset: str) -> int:
    """Parameters from the formulas of the layers."""
    cell, size, n_highway, _ = PRESETS[preset]
    widths = {1: 32, 2: 32, 3: 64, 4: 128, 5: 256} | ({6: 512, 7: 1024} if preset != "tiny" else {})
    convolutions = sum(width * 16 * number + number for width, number in widths.items())
    filters = sum(widths.values())
    highways = n_highway * 2 * (filters * filters + filters)
    lstm = 2 * 2 * (2 * size * 4 * cell + 4 * cell + cell * size)
    return 262 * 16 + convolutions + highways + filters * size + size + lstm


@pytest.mark.parametrize("preset", PRESETS)
def test_the_sizes_are_the_published_ones(preset: str) -> None:
    found = sum(int(np.prod(shape)) for shape in expected_shapes(preset_config(preset)).values())
    assert found == count(preset)
    assert f"{found / 1e6:.1f}M" == PUBLISHED[preset]


def test_a_made_model_has_all_its_parameters(small: ElmoModel) -> None:
    assert small.weights.n_parameters == count("small")
    check_tensors(small.weights, small.config, "small")
    assert small.lexicon is None


def test_the_seed_alone_decides(small: ElmoModel) -> None:
    again, other = random_model("small", 0), random_model("small", 1)
    for (name, a), (_, b), (_, c) in zip(
        small.weights.named_tensors(), again.weights.named_tensors(), other.weights.named_tensors(), strict=True
    ):
        assert np.array_equal(a, b), name
        assert np.array_equal(a, c) == name.endswith("bias"), name  # biases are constants


def test_biases_remember_and_carry(small: ElmoModel) -> None:
    for cell in (cell for cells in small.weights.lstm for cell in cells):
        assert cell.bias.tolist() == [[0] * 1024, [1] * 1024, [0] * 1024, [0] * 1024]  # i, f, g, o
    for highway in small.weights.highways:
        assert (highway.gate.bias < 0).all() and not highway.transform.bias.any()
    assert small.weights.character_embedding is not None
    assert not small.weights.character_embedding[0].any() and small.weights.character_embedding[1:].any(axis=1).all()


def test_the_network_is_alive_and_not_saturated(small: ElmoModel, text: list[list[str]]) -> None:
    """Each layer's values spread about as widely as real models', differ from word to word, and are rarely clipped."""
    vectors = np.concatenate(ElmoEmbedder(small).embed_batch(text[:12]), axis=1)
    assert np.isfinite(vectors).all()
    for layer in vectors:
        spread = layer.std(axis=0)  # over tokens
        assert 0.01 < np.median(spread) < 3
        assert (spread > 1e-3).mean() > 0.99
        assert np.abs(layer).mean() > 0.01
    bound = small.config.projection_clip
    assert bound is not None
    assert (np.abs(vectors[1]) >= bound).mean() < 0.01
    assert np.abs(vectors[1]).max() < bound  # tanh and sigmoid have room left on both sides
    assert np.abs(vectors[2] - vectors[1]).mean() > 0.01


def test_unknown_presets_and_seeds() -> None:
    with pytest.raises(FlashElmoError, match=r"^preset: expected one of tiny, small, medium, original, found 'large'$"):
        preset_config("large")
    with pytest.raises(FlashElmoError, match=r"preset: .*'huge'"):
        random_model("huge", 0)
    with pytest.raises(FlashElmoError, match=r"^seed: expected zero or more, found -1$"):
        random_model("small", -1)
