"""What AllenNLP's own tests of ELMo demand (0.9 and 2.10), through the public names alone.

`modules/elmo_test.py` and `commands/elmo_test.py` there; where flashelmo differs on purpose (docs/allennlp.md), the
test says so.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tiny_models import MODELS, SENTENCES

from flashelmo import Elmo, ElmoEmbedder, batch_to_ids
from flashelmo.cli import main
from flashelmo.engine.model.checkpoints.bilm import write_bilm

TOP = [-9e10, -9e10, 1.0]
VOCABULARY = ["<pad>", *sorted({word for sentence in SENTENCES for word in sentence})]
WORD_IDS = torch.zeros(5, 6, dtype=torch.long)
for _row, _sentence in enumerate(SENTENCES):
    for _t, _word in enumerate(_sentence):
        WORD_IDS[_row, _t] = VOCABULARY.index(_word)
LINES = ["the cat sat", "cat", "the cat sat", "sat cat"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("allennlp") / "model"
    write_bilm(MODELS["skip"], folder)
    return str(folder / "options.json"), str(folder / "weights.hdf5")


@pytest.fixture
def elmo(files: tuple[str, str]) -> Callable[..., Any]:
    return lambda n=1, **arguments: Elmo(*files, n, dropout=0.0, **arguments)


@pytest.fixture
def ids(elmo: Callable[..., Any]) -> torch.Tensor:
    found: torch.Tensor = elmo().batch_to_ids(SENTENCES)
    return found


@pytest.mark.parametrize("name", ["bilm_skip", "bilm_noskip"])
def test_bilm_over_batches_gives_tensorflows_top_layer(golden: Path, name: str) -> None:
    streams = json.loads((golden / name / "sentences.json").read_text(encoding="utf-8"))
    weights = next((golden / name).glob("*weights*.hdf5"))
    module = Elmo(golden / name / "options.json", weights, 1, dropout=0.0, scalar_mix_parameters=TOP, stateful=True)
    with torch.inference_mode():
        batches = [batch_to_ids([stream[i].split() for stream in streams]) for i in range(len(streams[0]))]
        found = [module(batch)["elmo_representations"][0].numpy() for batch in batches]
    for k in range(len(streams)):
        file = golden / name / f"lm_embeddings_{k}.hdf5"
        if file.exists():
            with h5py.File(file) as expected:
                for i, batch in enumerate(found):
                    top = np.concatenate(list(expected[str(i)]), axis=-1)
                    np.testing.assert_allclose(batch[k, : len(top)], top, atol=1e-6)


def test_cached_words_give_the_vectors_of_their_characters(elmo: Callable[..., Any], ids: torch.Tensor) -> None:
    expected = elmo()(ids)
    cached = elmo(vocab_to_cache=VOCABULARY)
    for arguments in ((ids, WORD_IDS), (None, WORD_IDS), (ids, None)):
        found = cached(*arguments)
        assert torch.equal(found["mask"], expected["mask"])
        torch.testing.assert_close(
            found["elmo_representations"][0], expected["elmo_representations"][0], atol=1e-6, rtol=0
        )


def test_words_that_are_not_cached_fall_back_to_characters(elmo: Callable[..., Any], ids: torch.Tensor) -> None:
    cached = elmo(vocab_to_cache=VOCABULARY[:2])
    expected = elmo()(ids)["elmo_representations"][0]
    torch.testing.assert_close(cached(ids, WORD_IDS)["elmo_representations"][0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("boundaries", [False, True])
def test_representations_have_a_vector_for_every_position(
    elmo: Callable[..., Any], ids: torch.Tensor, n: int, boundaries: bool
) -> None:
    output = elmo(n, keep_sentence_boundaries=boundaries)(ids)
    more = 2 if boundaries else 0
    assert [tuple(each.shape) for each in output["elmo_representations"]] == [(5, 6 + more, 8)] * n
    assert output["mask"].sum(dim=1).tolist() == [len(sentence) + more for sentence in SENTENCES]
    if boundaries:
        inner = elmo()(ids)["elmo_representations"][0]
        found = output["elmo_representations"][0]
        for row, sentence in enumerate(SENTENCES):
            assert torch.equal(found[row, 1 : len(sentence) + 1], inner[row, : len(sentence)])
            assert found[row, [0, len(sentence) + 1]].abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("leading", [(2, 3), (3, 2, 1)])
def test_more_dimensions_are_as_the_flat_batch(
    elmo: Callable[..., Any], leading: tuple[int, ...], cached: bool
) -> None:
    six = [*SENTENCES, SENTENCES[0]]
    module = elmo(2, stateful=True, vocab_to_cache=VOCABULARY if cached else None)
    ids = module.batch_to_ids(six)
    words = torch.cat([WORD_IDS, WORD_IDS[:1]]) if cached else None
    flat = module(ids, words)
    module.reset_state()
    deep = module(ids.view(*leading, *ids.shape[1:]), None if words is None else words.view(*leading, -1))
    assert deep["mask"].shape == (*leading, 6) and torch.equal(deep["mask"].view(6, 6), flat["mask"])
    for a, b in zip(deep["elmo_representations"], flat["elmo_representations"], strict=True):
        assert a.shape == (*leading, 6, 8) and torch.equal(a.view(6, 6, 8), b)


def test_a_bilm_that_is_given_is_used(elmo: Callable[..., Any], ids: torch.Tensor) -> None:
    expected = elmo(2)
    given = Elmo(None, None, 2, dropout=0.0, module=expected.bilm)
    for a, b in zip(given(ids)["elmo_representations"], expected(ids)["elmo_representations"], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("requires_grad", [False, True])
def test_gradients_reach_every_weight_or_the_mix_alone(
    elmo: Callable[..., Any], ids: torch.Tensor, requires_grad: bool
) -> None:
    module = elmo(2, requires_grad=requires_grad)
    sum(each.square().sum() for each in module(ids)["elmo_representations"]).backward()
    for name, parameter in module.named_parameters():
        has_gradient = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert has_gradient == (requires_grad or name.startswith("scalar_mix_")), name


def test_characters_of_words() -> None:
    """`ELMoCharacterMapper`'s ids: one more than the bytes, 259 and 260 around them, 261 behind."""
    (found,) = batch_to_ids([["Sentence", "<S>", "</S>"]]).tolist()
    assert found[0] == [259, *(byte + 1 for byte in b"Sentence"), 260, *[261] * 40]
    assert found[1] == [259, 257, 260, *[261] * 47]
    assert found[2] == [259, 258, 260, *[261] * 47]
    batch = batch_to_ids([["the", "cat"], ["sat"]])
    assert batch.dtype == torch.int64 and batch.shape == (2, 2, 50) and not batch[1, 1].any()


def run_command(files: tuple[str, str], folder: Path, lines: list[str], *flags: str) -> dict[str, Any]:
    (folder / "text").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    arguments = [str(folder / "text"), str(folder / "out.hdf5"), "--options-file", files[0], "--weight-file", files[1]]
    assert main(["elmo", *arguments, "--overwrite", *flags]) == 0
    with h5py.File(folder / "out.hdf5") as file:
        return {key: file[key][()] for key in file}


@pytest.mark.parametrize(("flag", "output_format"), [("--all", "all"), ("--top", "top"), ("--average", "average")])
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_command_and_embed_file_agree_with_the_embedder(
    files: tuple[str, str], tmp_path: Path, flag: str, output_format: str, batch_size: int
) -> None:
    found = run_command(files, tmp_path, LINES, flag, "--batch-size", str(batch_size))
    embedder = ElmoEmbedder(*files, cuda_device=-1, stateful=True)
    tokens = [line.split() for line in LINES]
    layers = list(embedder.embed_sentences(tokens, batch_size))
    expected = {"all": layers, "top": [each[-1] for each in layers], "average": [each.mean(axis=0) for each in layers]}
    for i, vectors in enumerate(expected[output_format]):
        np.testing.assert_allclose(found[str(i)], vectors, atol=1e-6)
        assert found[str(i)].dtype == np.float32
    embedder.reset_state()
    with (tmp_path / "text").open(encoding="utf-8") as text:
        embedder.embed_file(text, str(tmp_path / "same.hdf5"), output_format, batch_size)
    with h5py.File(tmp_path / "same.hdf5") as file:
        assert all(np.array_equal(file[str(i)][()], found[str(i)]) for i in range(len(LINES)))


def test_the_index_of_sentences_collapses_duplicates(files: tuple[str, str], tmp_path: Path) -> None:
    found = run_command(files, tmp_path, LINES, "--all")
    assert json.loads(found["sentence_to_index"][0]) == {"the cat sat": "2", "cat": "1", "sat cat": "3"}
    assert "sentence_to_index" not in run_command(files, tmp_path, LINES, "--all", "--forget-sentences")


def test_sentences_as_keys(files: tuple[str, str], tmp_path: Path) -> None:
    lines = ["the cat sat", "cat"]
    found = run_command(files, tmp_path, lines, "--all", "--use-sentence-keys")
    by_number = run_command(files, tmp_path, lines, "--all")
    assert set(found) == set(lines)
    for i, line in enumerate(lines):
        np.testing.assert_array_equal(found[line], by_number[str(i)])


def test_an_empty_line_is_an_empty_sentence(files: tuple[str, str], tmp_path: Path) -> None:
    """In AllenNLP's command it is an error."""
    found = run_command(files, tmp_path, ["the cat", "", "sat"], "--all")
    assert found["1"].shape == (3, 0, 8) and found["2"].shape == (3, 1, 8)


def test_batches_of_uneven_lengths_and_an_empty_sentence(files: tuple[str, str]) -> None:
    embedder = ElmoEmbedder(*files)
    sentences: list[list[str]] = [["the", "cat", "sat"], [], ["cat"], ["the"] * 7]
    batch = embedder.embed_batch(sentences)
    assert [vectors.shape for vectors in batch] == [(3, len(sentence), 8) for sentence in sentences]
    for vectors, sentence in zip(batch, sentences, strict=True):
        np.testing.assert_allclose(vectors, embedder.embed_sentence(sentence), atol=1e-6)
    assert embedder.embed_sentence([]).shape == (3, 0, 8)
    tensors, mask = embedder.batch_to_embeddings(sentences)
    assert mask.sum(dim=1).tolist() == [3, 0, 1, 7]
    np.testing.assert_array_equal(tensors[0, :, :3], batch[0])
