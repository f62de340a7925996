"""What AllenNLP's own tests of its command demand (0.9, `commands/elmo_test.py`), through the public names alone.

What those of its module do (`modules/elmo_test.py`) is in `test_elmo.py`. Where flashelmo differs on purpose
(docs/allennlp.md), the test says so.
"""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tiny_models import MODELS

from flashelmo import Elmo, ElmoEmbedder, batch_to_ids
from flashelmo.cli import main
from flashelmo.engine.model.checkpoints.bilm import write_bilm

TOP = [-9e10, -9e10, 1.0]
LINES = ["the cat sat", "cat", "the cat sat", "sat cat"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("allennlp") / "model"
    write_bilm(MODELS["skip"], folder)
    return str(folder / "options.json"), str(folder / "weights.hdf5")


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
