"""AllenNLP's module: the mix, the mask, caching, fine-tuning, and state dicts."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BILM, MODELS, SENTENCES, WORD_MODEL, WORDS, random_model

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.convert import convert
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.named.locate import bundled
from flashelmo.engine.precision import tolerance
from flashelmo.engine.reference import trainable as trainable_module
from flashelmo.engine.reference.elmo import Elmo
from flashelmo.engine.reference.padding import pad_tokens, positions_before
from flashelmo.engine.reference.reference import ReferenceElmo, ReferenceRuntime, encode
from flashelmo.engine.reference.scalar_mix import ScalarMix
from flashelmo.engine.reference.trainable import TrainableElmo
from flashelmo.engine.text.characters import WordEncoder, batch_to_ids
from flashelmo.engine.training.recurrence import Clips, Weights, lstm_layer

pytestmark = pytest.mark.usefixtures("one_thread")

WEIGHTS = [0.3, -1.2, 0.7]
VOCABULARY = ["@@PADDING@@", "the", "cat", "sat", "incomprehensibilities", "é"]
FLAT = [word for sentence in SENTENCES for word in sentence]
FOLDERS = {
    "bilm": "skip",
    "manylangs": "manylangs",
    "words": "words alone",
    "manylangs characters": "manylangs, characters alone",
    "manylangs words": "manylangs, words alone",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    for name, model in FOLDERS.items():
        write_native(MODELS[model], path / name)
    return path


@pytest.fixture
def build(folder):
    def elmo(count=1, name="bilm", dropout=0.0, **kwargs):
        return Elmo(folder / name, None, count, dropout=dropout, **kwargs)

    return elmo


@pytest.fixture(scope="module")
def ids():
    """int64 [B, T, 12]: the tiny model's words are shorter than the 50 positions of `batch_to_ids`."""
    return pad(WordEncoder(BILM, None).character_ids(FLAT))


def pad(flat):
    lengths = torch.tensor([len(sentence) for sentence in SENTENCES])
    return pad_tokens(torch.from_numpy(flat.astype(np.int64)), positions_before(lengths, int(lengths.max())))


WORD_IDS = pad(np.array([VOCABULARY.index(word) for word in FLAT]))


def padded_layers(name="bilm", boundaries=False):
    """[L, B, T, 2P] as the reference runtime gives them sentence by sentence, zero where padded, and the mask."""
    rows = ReferenceRuntime(MODELS[FOLDERS[name]]).embed_batch(SENTENCES, keep_sentence_boundaries=boundaries)
    size = max(row.shape[1] for row in rows)
    padded = [np.pad(row.astype(np.float64), ((0, 0), (0, size - row.shape[1]), (0, 0))) for row in rows]
    return np.stack(padded, axis=1), np.arange(size) < np.array([[row.shape[1]] for row in rows])


def close(found, expected, number="fp32"):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=tolerance(number))


def softmax(values):
    return np.exp(values) / np.exp(values).sum()


def test_scalar_mix_formula():
    tensors = np.random.default_rng(1).normal(size=(3, 2, 4, 5))
    mix = ScalarMix(3, initial_scalar_parameters=WEIGHTS).double()
    mix.gamma.data.fill_(1.7)
    expected = 1.7 * np.tensordot(softmax(np.array(WEIGHTS, np.float32).astype(float)), tensors, 1)
    close(mix(list(torch.from_numpy(tensors))), expected, "fp64")
    with pytest.raises(FlashElmoError, match="expected 3 tensors, found 2"):
        mix(list(torch.from_numpy(tensors[:2])))
    with pytest.raises(FlashElmoError, match="expected 2, one a layer, found 3"):
        ScalarMix(2, initial_scalar_parameters=WEIGHTS)


def test_scalar_mix_with_layer_norm():
    tensors = np.random.default_rng(2).normal(1, 3, size=(3, 2, 4, 5))
    mask = np.array([[True, True, True, False], [True, False, False, False]])
    mix = ScalarMix(3, do_layer_norm=True, initial_scalar_parameters=WEIGHTS).double()
    normed = [(t - t[mask].mean()) / np.sqrt(t[mask].var() + 1e-13) for t in tensors]
    expected = np.tensordot(softmax(np.array(WEIGHTS, np.float32).astype(float)), np.stack(normed), 1)
    close(mix(list(torch.from_numpy(tensors)), torch.from_numpy(mask)), expected, "fp64")
    with pytest.raises(FlashElmoError, match="needs a mask"):
        mix(list(torch.from_numpy(tensors)))


@pytest.mark.parametrize("boundaries", [False, True])
def test_representations(build, ids, boundaries):
    module = build(2, keep_sentence_boundaries=boundaries)
    for value, parameter in zip(WEIGHTS, module.scalar_mix_1.scalar_parameters, strict=True):
        parameter.data.fill_(value)
    output = module(ids)
    layers, mask = padded_layers(boundaries=boundaries)
    np.testing.assert_array_equal(output["mask"].numpy(), mask)
    assert len(output["elmo_representations"]) == 2
    close(output["elmo_representations"][0], layers.mean(axis=0))
    close(output["elmo_representations"][1], np.tensordot(softmax(WEIGHTS), layers, 1))
    assert module.get_output_dim() == output["elmo_representations"][0].shape[-1] == 8


def test_layer_norm_counts_boundaries(build, ids):
    layers, mask = padded_layers(boundaries=True)
    normed = [(layer - layer[mask].mean()) / np.sqrt(layer[mask].var() + 1e-13) for layer in layers]
    tokens = np.mean(normed, axis=0)[:, 1:-1]
    output = build(do_layer_norm=True)(ids)
    close(output["elmo_representations"][0], tokens * output["mask"].unsqueeze(-1).numpy())


def test_fixed_mix(build, ids):
    module = build(scalar_mix_parameters=[-9e10, 1, -9e10])
    assert not any(parameter.requires_grad for parameter in module.parameters())
    close(module(ids)["elmo_representations"][0], padded_layers()[0][1])


def test_cached_words(build, ids):
    module, words = build(vocab_to_cache=VOCABULARY), WORD_IDS
    plain = build()(ids)
    for given in ((ids, words), (None, words), (ids, None)):
        cached = module(*given)
        assert torch.equal(cached["mask"], plain["mask"])
        close(cached["elmo_representations"][0], plain["elmo_representations"][0].detach().numpy())
    module.bilm.character_embedding.data.fill_(0.0)  # the cached vectors no longer depend on it
    close(module(ids, words)["elmo_representations"][0], plain["elmo_representations"][0].detach().numpy())


def test_words_that_are_not_cached(build, ids):
    module, words = build(vocab_to_cache=VOCABULARY[:3]), WORD_IDS
    close(module(ids, words)["elmo_representations"][0], padded_layers()[0].mean(axis=0))
    with pytest.raises(FlashElmoError, match="word_inputs: expected ids from 0 to 2, found 5"):
        module(None, words)
    with pytest.raises(FlashElmoError, match="word_inputs: expected ids from 0 to 2, found -1"):
        module(ids, words - 1)
    with pytest.raises(FlashElmoError, match=r"expected shapes \[..., T, M\], \[..., T\], found \["):
        module(ids[:-1], words)


def test_word_inputs_without_a_cache_are_ignored(build, ids, caplog):
    output = build()(ids, torch.ones_like(ids[:, :, 0]))
    close(output["elmo_representations"][0], padded_layers()[0].mean(axis=0))
    assert "word_inputs is ignored" in caplog.text


def test_other_families(build):
    manylangs = build(name="manylangs", vocab_to_cache=VOCABULARY)
    close(manylangs(None, WORD_IDS)["elmo_representations"][0], padded_layers("manylangs")[0].mean(axis=0))
    words = pad(WordEncoder(WORD_MODEL, WORDS).word_ids(FLAT))  # its rows count from 1, 0 is padding
    close(build(name="words")(None, words)["elmo_representations"][0], padded_layers("words")[0].mean(axis=0))


def test_more_dimensions(build, ids):
    flat = build()(ids)
    deep = torch.stack([ids, ids.flip(0)], dim=1)
    output = build()(deep)
    assert output["mask"].shape == deep.shape[:3]
    assert torch.equal(output["mask"][:, 0], flat["mask"])
    close(output["elmo_representations"][0][:, 0], flat["elmo_representations"][0].detach().numpy())
    close(output["elmo_representations"][0][:, 1], flat["elmo_representations"][0].flip(0).detach().numpy())
    words = WORD_IDS[:, None, None]
    cached = build(vocab_to_cache=VOCABULARY, keep_sentence_boundaries=True, stateful=True)(ids[:, None, None], words)
    assert cached["mask"].shape[:3] == (5, 1, 1)
    close(cached["elmo_representations"][0][:, 0, 0], padded_layers(boundaries=True)[0].mean(axis=0))


def test_dropout(build, ids):
    torch.manual_seed(0)
    module = build(dropout=0.5)
    trained = module.train()(ids)["elmo_representations"][0]
    plain = module.eval()(ids)["elmo_representations"][0]
    kept = trained != 0
    close(trained[kept], 2 * plain[kept].detach().numpy())
    assert 0.3 < 1 - kept.sum() / plain.ne(0).sum() < 0.7


def test_stateful_only_when_asked(build, ids):
    calls = [[module(ids)["elmo_representations"][0] for _ in range(2)] for module in (build(), build(stateful=True))]
    assert torch.equal(*calls[0])
    assert torch.equal(calls[0][0], calls[1][0])
    runtime = ReferenceRuntime(MODELS["skip"], stateful=True)
    second = [runtime.embed_batch(SENTENCES) for _ in range(2)][1]
    for row, layers in zip(calls[1][1], second, strict=True):
        close(row[: layers.shape[1]], layers.mean(axis=0))
    assert (calls[1][0] - calls[1][1]).abs().max() > 1e-4


def test_state_can_be_reset_and_trained_through(build, ids):
    module = build(stateful=True, requires_grad=True)
    with torch.inference_mode():
        first = module(ids)["elmo_representations"][0].clone()
    module(ids)["elmo_representations"][0].sum().backward()  # through a state that inference left
    assert module.bilm.forward_layers[0].recurrent_weight.grad.abs().sum() > 0
    module.reset_state()
    assert torch.equal(module(ids)["elmo_representations"][0], first)


def test_fine_tuning_reaches_every_parameter(build, ids):
    frozen, tuned = build(), build(requires_grad=True)
    for module in (frozen, tuned):
        module(ids)["elmo_representations"][0].square().sum().backward()
    moved = {name for name, parameter in frozen.named_parameters() if parameter.grad is not None}
    assert moved == {"scalar_mix_0.gamma", *(f"scalar_mix_0.scalar_parameters.{k}" for k in range(3))}
    assert all(parameter.grad.abs().sum() > 0 for parameter in tuned.parameters())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_fine_tuning_has_the_references_outputs_and_gradients(name):
    """Of sentences of any length, equal words among them, and an empty one; at clips that act."""
    model = MODELS[name]
    sentences = [["the", "cat", "sat", "the"], [], ["é"], ["incomprehensibilities", "the"]]
    encoder = WordEncoder(model.config, model.lexicon)
    mask = positions_before(torch.tensor([len(sentence) for sentence in sentences]), 4)
    ids = [
        None if each is None else pad_tokens(each, mask)
        for each in encode(encoder, [word for sentence in sentences for word in sentence])
    ]
    found = []
    for kind in (ReferenceElmo, TrainableElmo):
        module = kind(model.config, model.weights, model.lexicon, requires_grad=True).double()
        activations = module(*ids, mask)["activations"]
        sum((k + 1) * layer.square().sum() for k, layer in enumerate(activations)).backward()
        gradients = {each: parameter.grad for each, parameter in module.named_parameters()}
        with torch.no_grad():
            again = module(*ids, mask)["activations"]
        found.append((activations, gradients, again))
    (expected, slopes, _), (layers, gradients, again) = found
    for wanted, layer, other in zip(expected, layers, again, strict=True):
        torch.testing.assert_close(layer, wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other, wanted, rtol=0, atol=0)  # without gradients it is the reference
    assert gradients.keys() == slopes.keys()
    for each, slope in slopes.items():
        torch.testing.assert_close(gradients[each], slope, rtol=1e-9, atol=1e-10, msg=each)


@pytest.mark.parametrize("inside", [False, True])
def test_fine_tuning_under_autocast(inside):
    """The LSTMs' gradients are as near as the reference's under autocast; a word's maxima may lie elsewhere."""
    module = Elmo(bundled(), None, 1, requires_grad=True, dropout=0.0)
    ids = batch_to_ids([["The", "cat", "sat", "on", "the", "mat", "."], ["Hello", "."]])
    found = []
    for enabled in (False, True):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = module(ids)["elmo_representations"][0]
            loss = output.float().square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        grads = {name: torch.as_tensor(each.grad).clone() for name, each in module.named_parameters()}
        found.append((output.detach(), grads))
    (expected, slopes), (output, gradients) = found
    assert output.dtype == torch.float32
    assert 0 < (output - expected).abs().max() < 0.03
    for name, slope in slopes.items():
        assert gradients[name].dtype == torch.float32
        bound = 0.03 if "_layers" in name else 0.5
        assert (gradients[name] - slope).norm() < bound * slope.norm(), name


@pytest.mark.parametrize("kind", [None, torch.bfloat16])
def test_fine_tuning_by_the_kernels_of_training(monkeypatch: pytest.MonkeyPatch, build, ids, device, kind):
    """As on a card; in the interpreter they are asked for."""
    pytest.importorskip("triton")
    found = []
    for kernels in (False, True):
        monkeypatch.setattr(trainable_module, "kernels_work", lambda device, kernels=kernels: kernels)
        module = build(requires_grad=True).to(device)
        with torch.autocast(device, kind, enabled=kind is not None):
            output = module(ids.to(device))["elmo_representations"][0]
        output.square().sum().backward()
        found.append([output.detach(), *(each.grad for each in module.bilm.forward_layers.parameters())])
    for with_kernels, formula in zip(found[1], found[0], strict=True):
        bound = 1e-5 if kind is None else 0.02
        assert (with_kernels - formula).norm() < bound * formula.norm()


def test_double_precision_stays_under_autocast(build, ids):
    """As it does in PyTorch's own layers."""
    module = build(requires_grad=True).double()
    expected = module(ids)["elmo_representations"][0]
    with torch.autocast("cpu", torch.bfloat16):
        found = module(ids)["elmo_representations"][0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_device_without_autocast(build):
    x, hidden, cell = (torch.empty(shape, device="meta") for shape in ((2, 3, 4, 8), (2, 4, 8), (2, 4, 16)))
    shapes = (2, 8, 64), (2, 8, 64), (2, 64), (2, 16, 8)
    weights = Weights(*(torch.empty(shape, device="meta", requires_grad=True) for shape in shapes))
    found, *_ = lstm_layer(x, weights, hidden, cell, Clips(None, None))
    found.sum().backward()
    assert found.shape == x.shape and weights.input.grad is not None


def test_gradients_of_gradients_are_refused(build, ids):
    module = build(requires_grad=True)
    output = module(ids)["elmo_representations"][0].square().sum()
    (slope,) = torch.autograd.grad(output, [module.bilm.forward_layers[0].bias], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        slope.sum().backward()


def test_fine_tuned_weights_are_a_model(build, ids, tmp_path):
    module = build(requires_grad=True)
    module(ids)["elmo_representations"][0].square().mean().backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    module.save(tmp_path / "tuned")
    convert(tmp_path / "tuned", tmp_path / "converted")
    model = load_model(tmp_path / "converted")
    assert model.sha256 == module.to_model().sha256 != MODELS["skip"].sha256
    found = ReferenceRuntime(model).embed_batch(SENTENCES, keep_sentence_boundaries=True)
    for k, layer in enumerate(module.bilm(ids)["activations"]):  # the mix has moved too, so compare the layers
        close(layer[0, : len(SENTENCES[0]) + 2], found[0][k])
    before = ReferenceRuntime(MODELS["skip"]).embed_batch(SENTENCES)
    assert np.abs(found[0][:, 1:-1] - before[0]).max() > 1e-3


@pytest.mark.parametrize("name", FOLDERS)
def test_a_module_is_the_model_it_was_made_from(build, name):
    made, read = build(name=name).to_model(), MODELS[FOLDERS[name]]
    assert (made.sha256, made.config, made.lexicon) == (read.sha256, read.config, read.lexicon)


def test_what_is_no_model(build, tmp_path):
    assert build(vocab_to_cache=VOCABULARY).to_model().sha256 == MODELS["skip"].sha256
    with pytest.raises(FlashElmoError, match="vocab_to_cache: a model has no place"):
        build(vocab_to_cache=VOCABULARY, requires_grad=True).to_model()
    given = Elmo(None, None, 1, module=build().bilm)
    with pytest.raises(FlashElmoError, match="module: expected a biLM loaded from files"):
        given.save(tmp_path / "given")
    broken = build()
    broken.bilm.projection.bias.data[0] = torch.nan
    with pytest.raises(FlashElmoError, match=r"projection\.bias holds NaN"):
        broken.save(tmp_path / "broken")
    assert not list(tmp_path.iterdir())


def test_state_dict_comes_back(build, folder, tmp_path, ids):
    write_native(random_model(BILM, seed=5), tmp_path / "other")
    source = Elmo(tmp_path / "other", None, 2, scalar_mix_parameters=WEIGHTS, dropout=0.0)
    target = build(2)
    target.load_state_dict(source.state_dict())
    for a, b in zip(source(ids)["elmo_representations"], target(ids)["elmo_representations"], strict=True):
        assert torch.equal(a, b)


def test_cached_words_go_with_the_boundaries_of_the_model_that_is_loaded(folder, tmp_path, build):
    write_native(random_model(BILM, seed=5), tmp_path / "other")
    source = Elmo(tmp_path / "other", None, 1, dropout=0.0, vocab_to_cache=VOCABULARY)
    target = torch.nn.ModuleDict({"embedder": build(vocab_to_cache=VOCABULARY)})
    target.load_state_dict({f"embedder.{name}": tensor for name, tensor in source.state_dict().items()})
    expected = source(None, WORD_IDS)["elmo_representations"][0]
    assert torch.equal(target["embedder"](None, WORD_IDS)["elmo_representations"][0], expected)
    assert (build(vocab_to_cache=VOCABULARY)(None, WORD_IDS)["elmo_representations"][0] - expected).abs().max() > 1e-2


def allennlp_state_dict(model):
    """The names and layouts that AllenNLP's Elmo has."""
    w, state = model.weights, {}
    embedder, lstm = "_elmo_lstm._token_embedder", "_elmo_lstm._elmo_lstm"
    state[f"{embedder}._char_embedding_weights"] = w.character_embedding
    for i, convolution in enumerate(w.convolutions):
        state[f"{embedder}.char_conv_{i}.weight"] = convolution.weight.transpose(2, 1, 0)
        state[f"{embedder}.char_conv_{i}.bias"] = convolution.bias
    for k, highway in enumerate(w.highways):
        name = f"{embedder}._highways._layers.{k}"
        state[f"{name}.weight"] = np.concatenate([highway.transform.weight.T, -highway.gate.weight.T])
        state[f"{name}.bias"] = np.concatenate([highway.transform.bias, -highway.gate.bias])
    state[f"{embedder}._projection.weight"] = w.projection.weight.T
    state[f"{embedder}._projection.bias"] = w.projection.bias
    for k, cells in enumerate(w.lstm):
        for direction, cell in zip(("forward", "backward"), cells, strict=True):
            name = f"{lstm}.{direction}_layer_{k}"
            state[f"{name}.input_linearity.weight"] = np.concatenate([gate.T for gate in cell.input_weight])
            state[f"{name}.state_linearity.weight"] = np.concatenate([gate.T for gate in cell.recurrent_weight])
            state[f"{name}.state_linearity.bias"] = np.concatenate(list(cell.bias))
            state[f"{name}.state_projection.weight"] = cell.projection.T
    state["scalar_mix_0.gamma"] = np.array([1.5], np.float32)
    state |= {f"scalar_mix_0.scalar_parameters.{k}": np.array([value], np.float32) for k, value in enumerate(WEIGHTS)}
    return {name: torch.from_numpy(np.array(array)) for name, array in state.items()}


def test_allennlp_state_dict_loads(build, ids):
    other = random_model(BILM, seed=5)
    state = {f"embedder.{name}": tensor for name, tensor in allennlp_state_dict(other).items()}
    parent = torch.nn.ModuleDict({"embedder": build()})
    parent.load_state_dict(state)
    layers = ReferenceRuntime(other).embed_batch(SENTENCES)
    found = parent["embedder"](ids)["elmo_representations"][0]
    for row, expected in zip(found, layers, strict=True):
        close(row[: expected.shape[1]], 1.5 * np.tensordot(softmax(WEIGHTS), expected, 1))
    assert all(name.startswith("embedder._elmo_lstm") or "scalar_mix" in name for name in state)  # not altered
    with pytest.raises(RuntimeError, match=r"Unexpected key.*embedder\.bilm\.nonsense"):
        parent.load_state_dict({**state, "embedder._elmo_lstm.nonsense": torch.zeros(1)})


class Given(torch.nn.Module):
    """A module in place of the biLM, as AllenNLP allows."""

    num_layers = 2

    def get_output_dim(self):
        return 3

    def forward(self, inputs, word_inputs):
        mask = torch.ones(inputs.shape[:2], dtype=torch.bool)
        return {"activations": [torch.full((*mask.shape, 3), value) for value in (1.0, 3.0)], "mask": mask}


def test_module_is_used():
    module = Elmo(None, None, 1, dropout=0.0, module=Given())
    output = module(torch.ones(2, 6, 12, dtype=torch.int64))
    assert module.get_output_dim() == 3
    close(output["elmo_representations"][0], np.full((2, 4, 3), 2.0))
    with pytest.raises(FlashElmoError, match="module: cannot be combined with options_file and weight_file"):
        Elmo("options.json", None, 1, module=Given())


@pytest.mark.parametrize("number", [torch.int64, torch.int32, torch.float32])
@pytest.mark.parametrize("boundaries", [False, True])
def test_a_module_may_have_a_mask_of_numbers(boundaries, number):
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=number)
    layers = torch.from_numpy(np.random.default_rng(3).normal(1, 3, (2, 2, 4, 3)))

    class Numbers(Given):
        def forward(self, inputs, word_inputs):
            return {"activations": list(layers), "mask": mask}

    settings = {"do_layer_norm": True, "dropout": 0.0, "keep_sentence_boundaries": boundaries}
    output = Elmo(None, None, 1, module=Numbers(), **settings)(torch.ones(2, 2, 12, dtype=torch.int64))
    kept = mask.bool().numpy()
    normed = np.mean([(t - t[kept].mean()) / np.sqrt(t[kept].var() + 1e-13) for t in layers.numpy()], axis=0)
    expected = torch.tensor([[True, True], [True, False]])
    if boundaries:
        expected = mask.bool()
    else:
        normed = normed[:, 1:-1] * expected.unsqueeze(-1).numpy()
    close(output["elmo_representations"][0], normed)
    assert output["mask"].dtype == torch.bool and torch.equal(output["mask"], expected)


def test_the_bilm_takes_a_mask_of_numbers(build, ids):
    bilm, mask = build().bilm, (ids > 0).any(dim=-1)
    for given in (mask.long(), mask.float()):
        found = bilm(ids, mask=given)
        assert found["mask"].dtype == torch.bool and torch.equal(found["mask"], bilm(ids)["mask"])


@pytest.mark.parametrize("number", [torch.int32, torch.int16])
def test_ids_of_any_integer_type(build, ids, number):
    plain, cached = build(), build(vocab_to_cache=VOCABULARY)
    words = pad(WordEncoder(WORD_MODEL, WORDS).word_ids(FLAT))
    for module, given in ((plain, (ids,)), (cached, (None, WORD_IDS)), (build(name="words"), (None, words))):
        expected = module(*given)["elmo_representations"][0]
        found = module(*(each if each is None else each.to(number) for each in given))["elmo_representations"][0]
        assert torch.equal(found, expected)


def test_ids_that_are_no_tensor_of_integers(build, ids):
    for given, found in ((ids.numpy(), "ndarray"), (ids.tolist(), "list")):
        with pytest.raises(FlashElmoError, match=f"^inputs: expected a tensor of integers, found {found}$"):
            build()(given)
        with pytest.raises(FlashElmoError, match=f"^character_ids: expected a tensor of integers, found {found}$"):
            build().bilm(given)
    with pytest.raises(FlashElmoError, match=r"^word_inputs: expected a tensor of integers, found ndarray$"):
        build(vocab_to_cache=VOCABULARY)(ids, WORD_IDS.numpy())
    for number in (torch.float32, torch.bool):
        with pytest.raises(FlashElmoError, match=rf"^character_ids: expected integers, found {number}$"):
            build()(ids.to(number))
        with pytest.raises(FlashElmoError, match=rf"^word_inputs: expected integers, found {number}$"):
            build(vocab_to_cache=VOCABULARY)(None, WORD_IDS.to(number))


def test_texts_where_lists_are_meant(build):
    assert torch.equal(batch_to_ids(["the cat", "sat"]), batch_to_ids([["the", "cat"], ["sat"]]))
    cases: list[tuple[Any, str]] = [("the cat", "one text"), ({"the cat": 1}, "a dict")]
    for given, found in cases:
        with pytest.raises(FlashElmoError, match=rf"^batch: expected .* found {found}"):
            batch_to_ids(given)
        with pytest.raises(FlashElmoError, match=rf"^vocab_to_cache: expected .* found {found}"):
            build(vocab_to_cache=given)


def test_bad_input(build, ids):
    with pytest.raises(FlashElmoError, match="expected files or a module, found neither"):
        Elmo(None, None, 1)
    with pytest.raises(FlashElmoError, match="scalar_mix_parameters: expected 3, one a layer, found 2"):
        build(scalar_mix_parameters=[1.0, 2.0])
    with pytest.raises(FlashElmoError, match=r"expected shapes \[\.\.\., T, M\], \[\.\.\., T\], found \[5, 12\], None"):
        build()(ids[:, 0])
    with pytest.raises(FlashElmoError, match=r"character_ids: expected \[\.\.\., 12\], found"):
        build()(ids[:, :, :11])
    no_models: dict[str, Any] = {
        "that has num_layers, found Linear": torch.nn.Linear(1, 1),
        "torch.nn.Module, found": "a",
    }
    for found, module in no_models.items():
        with pytest.raises(FlashElmoError, match=f"^module: expected (a|one) {found}"):
            Elmo(None, None, 1, module=module)


def test_missing_torch_names_the_extra():
    code = "import sys; sys.modules['torch'] = None\nimport flashelmo.engine.reference.elmo"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "MissingExtraError: the module Elmo, or the PyTorch reference, needs the package torch" in result.stderr
    assert "pip install 'flashelmo[torch]'" in result.stderr


def ids_of(elmo, batch):
    """Both kinds of ids, None where the model has none."""
    config = elmo.bilm.config
    return (
        elmo.batch_to_ids(batch) if config.character_size else None,
        elmo.batch_to_word_ids(batch) if config.word_size else None,
    )


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("batch", [[], [[]], [[], []]], ids=str)
@pytest.mark.parametrize("boundaries", [False, True])
def test_batches_without_words(build, name, batch, boundaries):
    elmo = build(name=name, keep_sentence_boundaries=boundaries, do_layer_norm=True)
    output = elmo(*ids_of(elmo, batch))
    shape = (len(batch), 2 * boundaries)
    assert output["mask"].shape == shape and output["mask"].all()
    found = output["elmo_representations"][0]
    assert found.shape == (*shape, elmo.get_output_dim()) and found.isfinite().all()
    assert (found != 0).any() == (found.numel() > 0)


@pytest.mark.parametrize("shape", [(0, 0, 12), (0, 2, 0, 12), (2, 2, 0, 12), (0, 3, 12)])
def test_empty_dimensions_are_kept(build, shape):
    output = build()(torch.zeros(*shape, dtype=torch.long))
    assert output["elmo_representations"][0].shape[:-1] == shape[:-1] == output["mask"].shape


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_of_a_model(build, name):
    """Of models that spell otherwise than AllenNLP's, or whose words have another length."""
    elmo = build(name=name)
    layers, mask = padded_layers(name)
    output = elmo(*ids_of(elmo, SENTENCES))
    np.testing.assert_array_equal(output["mask"], mask)
    close(output["elmo_representations"][0], layers.mean(axis=0))


def test_ids_that_a_model_lacks(build):
    with pytest.raises(FlashElmoError, match="ids: this model has none of words"):
        build().batch_to_word_ids(SENTENCES)
    with pytest.raises(FlashElmoError, match="ids: this model has none of characters"):
        build(name="words").batch_to_ids(SENTENCES)
    with pytest.raises(FlashElmoError, match="found a module passed in"):
        Elmo(None, None, 1, module=build().bilm).batch_to_ids(SENTENCES)
