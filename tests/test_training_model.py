"""The language model as it is trained: gradients, softmax, and what its weights give in the engine."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import BILM, SENTENCES
from torch import Tensor

from flashelmo import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.training import spelling
from flashelmo.engine.training.initial import initial_tensors
from flashelmo.engine.training.model import BiLM, State
from flashelmo.engine.training.recurrence import Clips, Weights, lstm_layer
from flashelmo.engine.training.softmax import Negatives, cross_entropy, draw, log_counts, log_uniform

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIGS = {
    "published": replace(BILM, cell_clip=3.0, projection_clip=3.0),
    "clips that act": replace(BILM, cell_clip=0.05, projection_clip=0.02),
    "no clips, tanh, no skip": replace(
        BILM, cell_clip=None, projection_clip=None, activation="tanh", skip_connections=False
    ),
    "no projection, no highway": replace(BILM, cell_size=4, n_highway=0, n_layers=1),
    "no character projection": replace(BILM, projection_size=12),
}
N_WORDS = 11


def model_of(config: ElmoConfig, dtype: torch.dtype = torch.float64, scale: float = 1.0, **options: float) -> BiLM:
    tensors = initial_tensors(config, N_WORDS, seed=3)
    model = BiLM(config, {name: scale * tensor for name, tensor in tensors.items()}, compute=dtype, **options)
    return model.to(dtype)


def some_batch(config: ElmoConfig, steps: int = 4, rows: int = 2) -> tuple[list[Tensor], Tensor, Tensor, State]:
    torch.manual_seed(0)
    words = ["<S>", "</S>", "the", "cat", "incomprehensibilities", "é", "a"]
    characters = torch.from_numpy(np.asarray(WordEncoder(config, None).character_ids(words)))
    inputs = torch.randint(0, len(words), (2, steps, rows))
    targets = torch.randint(0, N_WORDS, (2, steps, rows))
    like = torch.zeros(1, dtype=torch.float64)
    state = State(*(0.1 * torch.randn_like(each) for each in State.zero(config, rows, like)))
    return [characters], inputs, targets, state


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_finite_differences(name: str, sampled: bool) -> None:
    config = CONFIGS[name]
    model, batch = model_of(config, scale=2.0), some_batch(config)
    probabilities = log_uniform(N_WORDS).double()
    rows = torch.tensor([0, 3, 4, 9])
    extra = (Negatives(rows, log_counts(probabilities[rows], torch.tensor(5.0))),) if sampled else ()
    loss = model(*batch, *extra)[0]
    loss.backward()
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for key, parameter in model.tensors.items():
            assert parameter.grad is not None, key
            flat, grad = parameter.view(-1), parameter.grad.view(-1)
            strong = grad.abs().argsort(descending=True)[:1].tolist()
            for place in {*strong, int(rng.integers(len(flat)))}:
                before, values = flat[place].item(), []
                for sign in (1, -1):
                    flat[place] = before + sign * 1e-6
                    values.append(model(*batch, *extra)[0].item())
                flat[place] = before
                difference = (values[0] - values[1]) / 2e-6
                assert grad[place].item() == pytest.approx(difference, rel=1e-5, abs=1e-8), (key, place)


class Clip(torch.autograd.Function):
    """tf.clip_by_value: no gradient where it acts."""

    @staticmethod
    def forward(ctx: object, x: Tensor, bound: float) -> Tensor:  # type: ignore[override]
        ctx.inside = x.abs() <= bound  # type: ignore[attr-defined]
        return x.clamp(-bound, bound)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad * ctx.inside, None  # type: ignore[attr-defined]


def plain_layer(x: Tensor, w: Weights, hidden: Tensor, cell: Tensor, clips: Clips) -> tuple[Tensor, Tensor, Tensor]:
    """The formula, step by step, with PyTorch's gradients."""
    outputs = []
    for t in range(x.shape[1]):
        gates = torch.bmm(x[:, t], w.input) + torch.bmm(hidden, w.recurrent) + w.bias[:, None]
        i, f, g, o = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * cell
        cell = cell if clips.cell is None else Clip.apply(cell, clips.cell)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        if w.projection is not None:
            hidden = torch.bmm(hidden, w.projection)
            hidden = hidden if clips.projection is None else Clip.apply(hidden, clips.projection)
        outputs.append(hidden)
    return torch.stack(outputs, 1), hidden, cell


@pytest.mark.parametrize("clips", [Clips(0.3, 0.2), Clips(None, None), Clips(3.0, None)])
@pytest.mark.parametrize("projects", [True, False])
def test_a_layer_is_the_formula_and_its_gradient(clips: Clips, projects: bool) -> None:
    torch.manual_seed(1)
    size, cells = (3, 5) if projects else (4, 4)
    tensors = [torch.randn(2, 6, 3, size), torch.randn(2, size, 4 * cells), torch.randn(2, size, 4 * cells)]
    tensors += [torch.randn(2, 4 * cells), torch.randn(2, cells, size)]
    before = torch.randn(2, 3, size).double(), 0.2 * torch.randn(2, 3, cells).double()
    weight = torch.randn(2, 6, 3, size).double()
    results = []
    for layer in (plain_layer, lstm_layer):
        x, w_in, w_rec, bias, proj = (tensor.double().requires_grad_() for tensor in tensors)
        h, *after = layer(x, Weights(w_in, w_rec, bias, proj if projects else None), *before, clips)
        used = (x, w_in, w_rec, bias, *((proj,) if projects else ()))
        results.append([h, *after, *torch.autograd.grad((h * weight).sum(), used)])
    for ours, plain in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-12)
    if clips.cell == 0.3:
        assert (results[0][2].abs() == 0.3).any(), "the clip must act for this to show anything"


def test_the_sampled_softmax_is_its_formula() -> None:
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(7, 3), torch.randn(N_WORDS, 3), torch.randn(N_WORDS)
    targets, probabilities = torch.tensor([0, 1, 2, 3, 4, 5, 10]), log_uniform(N_WORDS)
    negatives = draw(probabilities, 5)
    mean, losses = cross_entropy(hidden, targets, weight, bias, negatives)
    corrections = dict(zip(negatives.rows.tolist(), negatives.log_counts.tolist(), strict=True))
    assert set(corrections) & set(targets.tolist()), "a target among the negatives must count once"
    for h, target, loss in zip(hidden, targets.tolist(), losses.tolist(), strict=True):
        corrections_here = {target: 0.0, **{row: value for row, value in corrections.items() if row != target}}
        logits = torch.stack([h @ weight[word] + bias[word] - value for word, value in corrections_here.items()])
        assert loss == pytest.approx(-torch.log_softmax(logits, 0)[0].item(), abs=1e-5)
    assert mean.item() == pytest.approx(losses.mean().item())


def test_negatives_are_drawn_as_often_as_the_correction_expects() -> None:
    torch.manual_seed(0)
    probabilities = log_uniform(50)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    found, total, rounds = torch.zeros(50), torch.zeros(50), 2000
    for _ in range(rounds):
        negatives = draw(probabilities, 8)
        assert len(negatives.rows.unique()) == 8
        found[negatives.rows] += 1
        total[negatives.rows] += (-negatives.log_counts).exp()
    assert found[0] > 3 * found[-1] > 0
    # each counts for one word on average, whatever its rank: what Horvitz and Thompson's estimate needs
    assert total[:10].mean().item() / rounds == pytest.approx(1, abs=0.03)
    assert total[10:].mean().item() / rounds == pytest.approx(1, abs=0.03)


def test_the_sampled_softmax_estimates_the_full_one() -> None:
    torch.manual_seed(0)
    n_words = 400
    hidden, weight, bias = torch.randn(20, 6), 0.5 * torch.randn(n_words, 6), torch.zeros(n_words)
    targets, probabilities = torch.randint(0, n_words, (20,)), log_uniform(n_words)
    full = cross_entropy(hidden, targets, weight, bias)[1]
    torch.testing.assert_close(full, torch.nn.functional.cross_entropy(hidden @ weight.t(), targets, reduction="none"))
    sampled = [cross_entropy(hidden, targets, weight, bias, draw(probabilities, 200))[1] for _ in range(100)]
    assert torch.stack(sampled).mean(0).tolist() == pytest.approx(full.tolist(), abs=0.1)


@pytest.mark.parametrize("name", CONFIGS)
def test_trained_weights_give_the_engine_the_same_layers(name: str) -> None:
    config = CONFIGS[name]
    model = model_of(config, torch.float32, scale=2.0).eval()
    elmo = ElmoModel(config, model.to_weights(), None, Path("trained"), "native")
    sentences = [sentence for sentence in SENTENCES if sentence]
    engine = ReferenceRuntime(elmo).embed_batch(sentences)
    for sentence, layers in zip(sentences, engine, strict=True):
        padded = [["<S>", *sentence], ["</S>", *reversed(sentence)]]
        ids = [np.asarray(WordEncoder(config, None).character_ids(words)) for words in padded]
        characters = torch.from_numpy(np.concatenate(ids))
        words = torch.arange(len(characters)).view(2, -1, 1)
        state = State.zero(config, 1, torch.zeros(1))
        outputs, _ = model.hidden(model.word_vectors([characters]), words, state)
        for k, output in enumerate(outputs):
            both = [output[0, 1:, 0], output[1, 1:, 0].flip(0)]
            np.testing.assert_allclose(torch.cat(both, -1).detach(), layers[k], atol=1e-5)


@pytest.mark.parametrize("name", ["published", "no clips, tanh, no skip"])
def test_words_are_the_same_in_as_few_positions_as_they_need(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIGS[name], max_characters=20)
    model = model_of(config, torch.float32, scale=2.0)
    words = ["incomprehensibilities", "a", "<S>", "cat", "é", "seventeen-letters"]
    monkeypatch.setattr(spelling, "PIECE", 2)
    spelled = spelling.Spelling(config, words)
    inputs = np.array([[5, 1, 3], [0, 1, 2]], np.int32)
    distinct, places = spelled.distinct(inputs)
    pieces = spelled.pieces(distinct)
    assert [piece.shape for piece in pieces] == [(2, 6), (2, 20), (1, 20)] and sorted(distinct) == [0, 1, 2, 3, 5]
    whole = model.word_vectors([torch.from_numpy(spelled.characters[inputs.ravel()])]).view(2, 3, -1)
    torch.testing.assert_close(model.word_vectors(pieces)[places], whole)


def test_dropout_acts_while_training_alone() -> None:
    config = CONFIGS["published"]
    model, batch = model_of(config, scale=2.0, dropout=0.5), some_batch(config)
    assert model.train()(*batch)[0] != model(*batch)[0]
    assert model.eval()(*batch)[0] == model(*batch)[0]


def test_models_of_words_are_refused() -> None:
    config = replace(BILM, word_size=4, n_words=7)
    with pytest.raises(
        FlashElmoError, match="expected a model of characters of the bilm family to train, found family"
    ):
        BiLM(config, {})
