"""Training, timed: everybody takes steps, the plain modules compute the same network, figures are compared."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import BILM

from flashelmo.benchmarks import train as bench
from flashelmo.benchmarks.contestant import Subject
from flashelmo.benchmarks.text import generate
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.training.corpus import EncodedCorpus
from flashelmo.engine.training.initial import initial_tensors
from flashelmo.engine.training.model import BiLM, State

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = replace(BILM, cell_clip=None, projection_clip=None)


@pytest.fixture
def subject(monkeypatch: pytest.MonkeyPatch) -> Iterator[Subject]:
    """A model, with a generated text and made-up peaks."""
    peaks = {"fp32": 1e9, "bf16": 2e9}
    monkeypatch.setattr(bench, "load_sentences", lambda n_tokens, path, seed: (generate(n_tokens, seed), "generated"))
    monkeypatch.setattr(bench, "Roofline", lambda threads, seconds: SimpleNamespace(peaks=lambda: peaks))
    monkeypatch.setattr(bench, "PUBLISHED_WORDS", 3000)
    with Pool() as pool:
        yield Subject("tiny", Path("tiny"), BILM, pool)


SETTINGS = replace(bench.SUITE.defaults.quick(), batches=(2,), text_tokens=400, threads=1, sample_seconds=0.0)


def test_everybody_is_timed(subject: Subject) -> None:
    rows = bench.SECTIONS["train"](subject, SETTINGS)
    names = [row.name for row in rows]
    assert names[:3] == ["flashelmo fp32", "PyTorch fp32, every token", "PyTorch fp32, distinct words"]
    assert len(rows) == 6 and not [row for row in rows if not row.median or row.unit != "tokens/s" or row.failed]
    assert list(rows[0].ratios) == names[1:3] and all(ratio > 0 for ratio in rows[3].ratios.values())
    assert rows[0].ceiling and rows[3].ceiling == 2 * rows[0].ceiling and "cpu; generated; " in rows[0].note


def test_vocabularies_are_compared(subject: Subject) -> None:
    rows = bench.SECTIONS["vocabulary"](subject, replace(SETTINGS, precisions=("fp32",)))
    assert [row.name.partition(", ")[0] for row in rows] == ["Adagrad", "Adagrad", "Adagrad", "Adam"]
    assert rows[2].name == "Adagrad, whole gradients, 3,000 words" and rows[2].name in rows[1].ratios
    assert not [row for row in rows if not row.median or row.unit != "tokens/s" or row.failed]


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")  # oneDNN has none; said once by a process
def test_the_plain_modules_are_the_same_network() -> None:
    """With our weights put into them, states and word vectors are ours; `test_training_model.py` has the rest."""
    torch.manual_seed(0)
    n_words = 9
    ours = BiLM(CONFIG, initial_tensors(CONFIG, n_words, 0)).eval()
    plain = bench.Plain(CONFIG, n_words).eval()
    tensors = ours.tensors
    with torch.no_grad():
        plain.characters.weight.copy_(tensors["character_embedding"])
        for i, convolution in enumerate(plain.convolutions):
            convolution.weight.copy_(tensors[f"convolutions_{i}_weight"].permute(2, 1, 0))  # type: ignore[operator]
            convolution.bias.copy_(tensors[f"convolutions_{i}_bias"])  # type: ignore[operator]
        for k in range(CONFIG.n_highway):
            for part in ("weight", "bias"):
                halves = tensors[f"highways_{k}_{part}"].chunk(2, -1)
                for module, half in zip((plain.transforms[k], plain.gates[k]), halves, strict=True):
                    getattr(module, part).copy_(half.t() if part == "weight" else half)
        plain.projection.weight.copy_(tensors["projection_weight"].t())
        plain.projection.bias.copy_(tensors["projection_bias"])
        for d in range(2):
            for k in range(CONFIG.n_layers):
                lstm = plain.lstms[d][k]
                lstm.weight_ih_l0.copy_(tensors[f"lstm_{k}_input_weight"][d].t())
                lstm.weight_hh_l0.copy_(tensors[f"lstm_{k}_recurrent_weight"][d].t())
                lstm.bias_ih_l0.copy_(tensors[f"lstm_{k}_bias"][d])
                lstm.bias_hh_l0.zero_()
                lstm.weight_hr_l0.copy_(tensors[f"lstm_{k}_projection"][d].t())
    data = bench.Data(CONFIG, EncodedCorpus.of([["the", "cat", "sat"], ["on", "the", "mat"]] * 20), batch=2)
    batch = data.streams[0]
    ids = torch.from_numpy(data.spelling.characters[batch.inputs.ravel()])
    vectors = ours.word_vectors([ids])
    torch.testing.assert_close(plain.word_vectors(ids), vectors)
    words = torch.arange(len(ids)).view(batch.inputs.shape)
    hidden, after = ours.hidden(vectors, words, State.zero(CONFIG, 2, vectors))
    inputs = vectors.view(*batch.inputs.shape, -1)
    for d in range(2):
        x = inputs[d]
        for k, lstm in enumerate(plain.lstms[d]):
            h, (_, cell) = lstm(x)
            x = h + x if k else h
            np.testing.assert_allclose(cell[0].detach(), after.cell[k, d].detach(), atol=1e-5)
        np.testing.assert_allclose(x.detach(), hidden[-1][d].detach(), atol=1e-5)
