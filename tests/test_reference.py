"""The reference runtime against the formulas written out in numpy; `test_embedder` has published outputs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BILM, MANYLANGS, MANYLANGS_LEXICON, MODELS, SENTENCES, random_model

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import tolerance
from flashelmo.engine.reference.reference import ReferenceElmo, ReferenceRuntime
from flashelmo.engine.text.characters import WordEncoder

pytestmark = pytest.mark.usefixtures("one_thread")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def word_vector(model: ElmoModel, encoder: WordEncoder, word: str) -> np.ndarray:
    """One word, one window at a time."""
    weights, config = model.weights, model.config
    word_ids, character_ids = encoder.word_ids([word]), encoder.character_ids([word])
    parts = []
    if weights.word_embedding is not None and word_ids is not None:
        parts.append(weights.word_embedding[word_ids[0]])
    if weights.character_embedding is not None and character_ids is not None:
        characters = weights.character_embedding[character_ids[0]].astype(np.float64)
        maxima = []
        for (width, _), kernel in zip(config.filters, weights.convolutions, strict=True):
            starts = range(config.max_characters - width + 1)
            windows = [np.tensordot(characters[s : s + width], kernel.weight, 2) + kernel.bias for s in starts]
            maxima.append(np.max(windows, axis=0))
        x = np.concatenate(maxima)
        x = np.maximum(x, 0) if config.activation == "relu" else np.tanh(x)
        for highway in weights.highways:
            g = sigmoid(x @ highway.gate.weight + highway.gate.bias)
            x = g * np.maximum(x @ highway.transform.weight + highway.transform.bias, 0) + (1 - g) * x
        parts.append(x)
    x = np.concatenate(parts).astype(np.float64)
    return x if weights.projection is None else x @ weights.projection.weight + weights.projection.bias


def expected_layers(model: ElmoModel, sentence: list[str], state: dict | None = None) -> np.ndarray:
    """[L, T + 2, 2P] of one sentence; `state` maps (layer, direction) to the pair (h, c) before, then after."""
    config = model.config
    state = {} if state is None else state
    encoder = WordEncoder(config, model.lexicon)
    begin, end = encoder.boundary_words
    vectors = np.stack([word_vector(model, encoder, word) for word in [begin, *sentence, end]])
    inputs = [vectors, vectors[::-1]]
    layers = [np.concatenate([vectors, vectors], axis=1)]
    for k, cells in enumerate(model.weights.lstm):
        for d, cell in enumerate(cells):
            h, c = state.get((k, d), (np.zeros(config.projection_size), np.zeros(config.cell_size)))
            outputs = []
            for x in inputs[d]:
                i, f, g, o = (x @ cell.input_weight[q] + h @ cell.recurrent_weight[q] + cell.bias[q] for q in range(4))
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                c = c if config.cell_clip is None else np.clip(c, -config.cell_clip, config.cell_clip)
                h = sigmoid(o) * np.tanh(c)
                if cell.projection is not None:
                    h = h @ cell.projection
                    clip = config.projection_clip
                    h = h if clip is None else np.clip(h, -clip, clip)
                outputs.append(h + x if k > 0 and config.skip_connections else h)
            state[k, d] = h, c
            inputs[d] = np.stack(outputs)
        layers.append(np.concatenate([inputs[0], inputs[1][::-1]], axis=1))
    return np.stack(layers)


@pytest.mark.parametrize("name", MODELS)
def test_formulas_written_out(name):
    model = MODELS[name]
    found = ReferenceRuntime(model, precision="fp64").embed_batch(SENTENCES, keep_sentence_boundaries=True)
    for sentence, layers in zip(SENTENCES, found, strict=True):
        np.testing.assert_allclose(layers, expected_layers(model, sentence), rtol=0, atol=tolerance("fp64"))


@pytest.mark.parametrize("name", ["skip", "no skip", "manylangs"])
def test_state_is_carried_by_row(name):
    """Batches of 2, 4, 1, 3 and 4 sentences: rows that rest keep their state, new rows start at zero.

    Each is one batch, though fewer sentences are computed together where no state is carried.
    """
    model = MODELS[name]
    runtime = ReferenceRuntime(model, precision="fp64", stateful=True, batch_size=2)
    states: list[dict] = [{} for _ in range(4)]
    for k, size in enumerate((2, 4, 1, 3, 4)):
        batch = (SENTENCES * 2)[k : k + size]
        found = runtime.embed_batch(batch)
        for sentence, state, layers in zip(batch, states, found, strict=False):
            expected = expected_layers(model, sentence, state)[:, 1:-1]
            assert layers.shape == expected.shape
            np.testing.assert_allclose(layers, expected, rtol=0, atol=tolerance("fp64"))
    runtime.reset_state()
    fresh = runtime.embed_batch(SENTENCES[:1])[0]
    np.testing.assert_allclose(fresh, expected_layers(model, SENTENCES[0])[:, 1:-1], rtol=0, atol=tolerance("fp64"))


def test_precisions_agree(text):
    model = MODELS["skip"]
    single = ReferenceRuntime(model).embed_batch(text[:8])
    double = ReferenceRuntime(model, precision="fp64").embed_batch(text[:8])
    for a, b in zip(single, double, strict=True):
        assert (a.dtype, b.dtype) == (np.float32, np.float64)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance("fp32"))
    assert max(np.abs(a - b).max() for a, b in zip(single, double, strict=True)) > 0


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batches_do_not_matter(text, batch_size):
    sentences = [*text[:9], []]
    together = ReferenceRuntime(MODELS["skip"], batch_size=batch_size).embed_batch(sentences)
    alone = ReferenceRuntime(MODELS["skip"], batch_size=4).embed_batch(sentences[::-1])[::-1]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance("fp32"))


def test_empty_input():
    runtime = ReferenceRuntime(MODELS["skip"])
    assert runtime.embed_batch([]) == []
    assert [layers.shape for layers in runtime.embed_batch([[], []])] == [(3, 0, 8)] * 2
    assert runtime.embed_batch([[]], keep_sentence_boundaries=True)[0].shape == (3, 2, 8)


def test_padding_is_zero_and_masked():
    module = ReferenceElmo(BILM, MODELS["skip"].weights)
    ids = torch.zeros(2, 5, 12, dtype=torch.int64)
    ids[0, :3], ids[1, :1] = 7, 9
    output = module(ids)
    assert output["mask"].tolist() == [[True] * 5 + [False] * 2, [True] * 3 + [False] * 4]
    for layer in output["activations"]:
        assert layer.shape == (2, 7, 8)
        assert torch.equal(layer.ne(0).any(dim=-1), output["mask"])


@pytest.mark.parametrize("name", MODELS)
def test_weights_come_back(name):
    model = MODELS[name]
    found = dict(ReferenceElmo(model.config, model.weights, model.lexicon).to_weights().named_tensors())
    expected = dict(model.weights.named_tensors())
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor, err_msg=key)


def test_gradients_are_finite_differences():
    model = random_model(replace(BILM, activation="tanh", cell_clip=3.0, projection_clip=3.0))
    module = ReferenceElmo(model.config, model.weights, requires_grad=True).double()
    ids = torch.zeros(2, 3, 12, dtype=torch.int64)
    ids[0], ids[1, :2] = torch.arange(36).reshape(3, 12) + 1, torch.arange(24).reshape(2, 12) + 40

    def loss() -> torch.Tensor:
        return sum(layer.square().sum() for layer in module(ids)["activations"][1:])

    loss().backward()
    step = 1e-6
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        place = int(parameter.grad.abs().argmax())
        slope = parameter.grad.flatten()[place].item()
        assert abs(slope) > 1e-4, name
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.view(-1)[place] += sign * step
                values.append(loss().item())
                parameter.view(-1)[place] -= sign * step
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5), name


def test_bad_input():
    module = ReferenceElmo(BILM, MODELS["skip"].weights)
    ids = torch.ones(1, 3, 12, dtype=torch.int64)
    ids[0, 1] = 0
    with pytest.raises(FlashElmoError, match="sentence 0 of the batch: expected padding after its last token"):
        module(ids)
    with pytest.raises(FlashElmoError, match="character_ids: expected ids from 0 to 261, found 300 to 300"):
        module(torch.full((1, 1, 12), 300))
    with pytest.raises(FlashElmoError, match=r"character_ids: expected \[..., 12\], found \[1, 1, 50\]"):
        module(torch.ones(1, 1, 50, dtype=torch.int64))
    with pytest.raises(FlashElmoError, match="character_ids: this model needs them, found none"):
        module(None)
    with pytest.raises(FlashElmoError, match=r"character_ids: expected integers, found torch.float32"):
        module(torch.ones(1, 1, 12))
    manylangs = ReferenceElmo(MANYLANGS, MODELS["manylangs"].weights, MANYLANGS_LEXICON)
    with pytest.raises(FlashElmoError, match="word_ids: expected ids from -1 to 5, found -2 to -2"):
        manylangs(torch.ones(1, 1, 12, dtype=torch.int64), torch.full((1, 1), -2))
    with pytest.raises(FlashElmoError, match="word_ids: this model needs them"):
        manylangs(torch.ones(1, 1, 12, dtype=torch.int64), mask=torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(FlashElmoError, match="precision: expected fp32 or fp64 for the reference, found 'bf16'"):
        ReferenceRuntime(MODELS["skip"], precision="bf16")  # type: ignore[arg-type]
    with pytest.raises(FlashElmoError, match="batch_size: expected 1 or more, found 0"):
        ReferenceRuntime(MODELS["skip"], batch_size=0)


@pytest.mark.parametrize("own", ["ieee", "tf32"])
def test_on_a_card_float32_is_multiplied_as_such_whatever_a_program_has_set(
    own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By PyTorch's newer way, with which its older one raises."""
    cudnn: Any = torch.backends.cudnn
    places: list[Any] = [torch.backends.cuda.matmul, cudnn.conv]
    if not hasattr(places[0], "fp32_precision"):
        pytest.skip("PyTorch before 2.9 has the older way alone")
    before = [place.fp32_precision for place in places]
    runtime = ReferenceRuntime(MODELS["skip"])
    monkeypatch.setattr(runtime, "device", torch.device("cuda"))
    try:
        for place in places:
            place.fp32_precision = own
        with runtime._full_float32():
            assert [place.fp32_precision for place in places] == ["ieee", "ieee"]
        assert [place.fp32_precision for place in places] == [own, own]
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision
