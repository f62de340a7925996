"""Log-probabilities and perplexity, against the formula by hand; `flashelmo perplexity` and `flashelmo train`."""

import math
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny_models import BILM, MODELS

from flashelmo import FlashElmoError, LanguageModel, load_model
from flashelmo.cli import main
from flashelmo.engine.model.checkpoints.bilm import write_bilm
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.training.model import BiLM, State
from flashelmo.engine.training.settings import TrainSettings
from flashelmo.engine.training.softmax_files import find_softmax
from flashelmo.engine.training.task import Task
from flashelmo.engine.training.trainer import train

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = replace(BILM, cell_clip=3.0, projection_clip=3.0)
TEXT = "the cat sat on the mat .\na dog saw the cat .\nthe dog sat .\n" * 4
SENTENCES = [["the", "cat", "purred"], [], ["a", "dog", "saw", "the", "mat", "."]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    settings = TrainSettings(batch=4, unroll=5, steps=60, lr=0.02, device="cpu", precision="fp32", log_every=10)
    train(Task([folder / "text.txt"], folder / "model", CONFIG), settings)
    return folder / "model"


def by_hand(folder: Path, sentence: list[str]) -> tuple[list[float], list[float]]:
    """From the engine's top layer with boundaries, and the softmax's definition."""
    model = load_model(folder)
    softmax = find_softmax(model)
    assert softmax is not None
    top = ReferenceRuntime(model).embed_batch([sentence], keep_sentence_boundaries=True)[0][-1]
    forward, backward = np.split(top, 2, axis=-1)
    padded = ["<S>", *sentence, "</S>"]
    rows = [softmax.words.index(word) if word in softmax.words else 2 for word in padded]

    def logs(hidden: np.ndarray, targets: list[int]) -> list[float]:
        logits = hidden.astype(np.float64) @ softmax.weight.T.astype(np.float64) + softmax.bias
        return [float(line[row] - np.log(np.exp(line).sum())) for line, row in zip(logits, targets, strict=True)]

    return logs(forward[:-1], rows[1:]), logs(backward[1:], rows[:-1])


def test_log_probabilities_are_those_by_hand(trained: Path) -> None:
    model = LanguageModel.load(trained, device="cpu")
    for sentence, scores in zip(SENTENCES, model.log_probabilities(SENTENCES), strict=True):
        forward, backward = by_hand(trained, sentence)
        np.testing.assert_allclose(scores.forward, forward, atol=1e-5)
        np.testing.assert_allclose(scores.backward, backward, atol=1e-5)
    assert model.log_probabilities([]) == []


def test_perplexity_is_that_by_hand(trained: Path, tmp_path: Path) -> None:
    model = LanguageModel.load(trained, device="cpu")
    both = [by_hand(trained, sentence) for sentence in SENTENCES if sentence]
    forward, backward = ([value for each in both for value in each[d]] for d in range(2))
    (tmp_path / "text.txt").write_text("".join(" ".join(s) + "\n" for s in SENTENCES), encoding="utf-8")
    for text in (tmp_path / "text.txt", SENTENCES):
        scores = model.perplexity(text)
        assert scores.forward == pytest.approx(math.exp(-np.mean(forward)), rel=1e-5)
        assert scores.backward == pytest.approx(math.exp(-np.mean(backward)), rel=1e-5)
        assert scores.predictions == 11 and scores.unknown == pytest.approx(1 / 9)
    assert model.perplexity(trained.parent / "text.txt").forward < 9
    for nothing in list[list[list[str]]]([[], [[]]]):
        with pytest.raises(FlashElmoError, match="text: expected a sentence, found no token"):
            model.perplexity(nothing)
    (alone,) = model.log_probabilities([[]])
    (among, _) = model.log_probabilities([[], ["cat"]])
    assert alone.forward.shape == (1,) and np.allclose(alone, among)


def test_long_sentences_and_many_short_ones_are_batched(trained: Path) -> None:
    model = LanguageModel.load(trained, device="cpu")
    rng = np.random.default_rng(0)
    words = TEXT.split()
    sentences = [list(rng.choice(words, n)) for n in [*rng.integers(1, 9, 2000), 700]]
    scores = model.log_probabilities(sentences)
    for k in (0, 1999, 2000):
        alone = model.log_probabilities([sentences[k]])[0]
        np.testing.assert_allclose(scores[k].forward, alone.forward, atol=1e-4)
        np.testing.assert_allclose(scores[k].backward, alone.backward, atol=1e-4)


def test_a_sentence_of_any_length_takes_the_memory_of_a_batch(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sentences = LanguageModel.load(trained, device="cpu"), [TEXT.split(), ["the", "cat"], []]
    expected, hidden, sizes = model.log_probabilities(sentences), BiLM.hidden, list[int]()

    def counted(self: BiLM, vectors: torch.Tensor, words: torch.Tensor, state: State) -> Any:
        sizes.append(words[0].numel())
        return hidden(self, vectors, words, state)

    monkeypatch.setattr(BiLM, "hidden", counted)
    monkeypatch.setattr("flashelmo.engine.training.evaluate.BATCH_TOKENS", 10)
    for found, right in zip(model.log_probabilities(sentences), expected, strict=True):
        np.testing.assert_allclose(found.forward, right.forward, atol=1e-5)
        np.testing.assert_allclose(found.backward, right.backward, atol=1e-5)
    assert max(sizes) == 10 and len(sizes) > 6


def test_a_bilm_file_that_carries_its_softmax(trained: Path, tmp_path: Path) -> None:
    softmax = find_softmax(load_model(trained))
    assert softmax is not None
    write_bilm(load_model(trained), tmp_path / "bilm")
    with pytest.raises(FlashElmoError, match=r"hdf5: expected a softmax .* ELMo's published weights come without"):
        LanguageModel.load(tmp_path / "bilm")
    with h5py.File(tmp_path / "bilm" / "weights.hdf5", "a") as file:
        file["softmax/W"], file["softmax/b"] = softmax.weight, softmax.bias
    with pytest.raises(FlashElmoError, match=r"vocab\.txt: expected the words of the softmax in weights\.hdf5"):
        LanguageModel.load(tmp_path / "bilm")
    (tmp_path / "bilm" / "vocab.txt").write_bytes((trained / "vocab.txt").read_bytes())
    for path in (tmp_path / "bilm", tmp_path / "bilm" / "weights.hdf5"):
        model = LanguageModel.load(path, device="cpu")
        expected = LanguageModel.load(trained, device="cpu").log_probabilities(SENTENCES)
        for ours, native in zip(model.log_probabilities(SENTENCES), expected, strict=True):
            np.testing.assert_allclose(ours.forward, native.forward, atol=1e-5)
    (tmp_path / "bilm" / "vocab.txt").write_text("<S>\n</S>\n<UNK>\nthe\n", encoding="utf-8")
    with pytest.raises(
        FlashElmoError, match=r"5: tensor softmax/W has shape \(12, 4\), expected \(4, 4\) by vocab\.txt"
    ):
        LanguageModel.load(tmp_path / "bilm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: {**tensors, "weight": tensors["weight"][:, :3]},
            r"weight has shape \(12, 3\), expected \(12, 4\)",
        ),
        (
            lambda tensors: {**tensors, "bias": np.full_like(tensors["bias"], np.nan)},
            "tensor bias holds NaN or infinity",
        ),
        (lambda tensors: {"weight": tensors["weight"]}, "tensor bias is missing"),
    ],
    ids=["another size", "not finite", "missing"],
)
def test_a_softmax_that_is_not_the_models(
    trained: Path, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]], message: str
) -> None:
    folder = shutil.copytree(trained, tmp_path / "model")
    file = folder / "softmax.safetensors"
    save_file(change(load_file(file)), file)
    task = Task([trained.parent / "text.txt"], tmp_path / "tuned", start=folder)
    for use in (lambda: LanguageModel.load(folder), lambda: train(task, TrainSettings(batch=2, unroll=5, steps=1))):
        with pytest.raises(FlashElmoError, match=rf"softmax\.safetensors: .*{message}"):
            use()


def test_a_softmax_in_hdf5_that_is_no_softmax(trained: Path, tmp_path: Path) -> None:
    """Whole numbers, and values in another file, which a stranger's model must not make anyone read."""
    folder = tmp_path / "bilm"
    write_bilm(load_model(trained), folder)
    (folder / "vocab.txt").write_bytes((trained / "vocab.txt").read_bytes())
    softmax = find_softmax(load_model(trained))
    assert softmax is not None
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["W"], file["b"] = softmax.weight, softmax.bias
    with h5py.File(folder / "weights.hdf5", "a") as file:
        for name in "Wb":
            file[f"softmax/{name}"] = h5py.ExternalLink(tmp_path / "other.hdf5", name)
    assert find_softmax(load_model(folder)) is None
    with h5py.File(folder / "weights.hdf5", "a") as file:
        del file["softmax"]
        file["softmax/W"], file["softmax/b"] = softmax.weight.astype(int), softmax.bias
    with pytest.raises(FlashElmoError, match=r"weights\.hdf5: tensor softmax/W has type int64, expected float32"):
        find_softmax(load_model(folder))


def test_the_softmax_is_the_one_beside_the_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in an archive; never one that lies in the working directory or beside an archive."""
    archive = shutil.make_archive(str(tmp_path / "model"), "zip", trained.parent, trained.name)
    write_native(load_model(trained), tmp_path / "alone")
    alone = shutil.make_archive(str(tmp_path / "alone"), "gztar", tmp_path, "alone")
    for name in ("softmax.safetensors", "vocab.txt"):
        shutil.copy(trained / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert find_softmax(load_model("tiny")) is None and find_softmax(load_model(alone)) is None
    expected, found = (LanguageModel.load(path, device="cpu").perplexity(SENTENCES) for path in (trained, archive))
    assert found == expected


def test_models_of_words_have_no_such_softmax(tmp_path: Path) -> None:
    write_native(MODELS["words alone"], tmp_path / "words")
    with pytest.raises(FlashElmoError, match="expected a model of characters of the bilm family to train"):
        LanguageModel.load(tmp_path / "words")


def test_the_command_scores_a_text(
    trained: Path, succeed: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    (tmp_path / "text.txt").write_text("the cat\n\n", encoding="utf-8")
    scores = LanguageModel.load(trained, device="cpu").perplexity(tmp_path / "text.txt")
    printed = succeed("perplexity", trained, tmp_path / "text.txt", "--device", "cpu", "--threads", "2")
    assert asked == [2]
    assert printed == (
        f"forward {scores.forward:.3f}\nbackward {scores.backward:.3f}\npredictions 3\nunknown 0.0000%\n"
    )
    lines = [
        line.split("\t") for line in succeed("perplexity", trained, tmp_path / "text.txt", "--tokens").splitlines()
    ]
    assert [line[-1] for line in lines] == ["<S>", "the", "cat", "</S>"]
    forward = [float(line[0]) for line in lines[:4] if line[0]]
    assert math.exp(-np.mean(forward)) == pytest.approx(scores.forward, rel=1e-3)


def test_a_text_without_tokens_is_refused_with_tokens_too(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blank = tmp_path / "blank.txt"
    blank.write_text("\n \n", encoding="utf-8")
    for option in ([], ["--tokens"]):
        assert main(["perplexity", str(trained), str(blank), "--device", "cpu", *option]) == 1
        captured = capfd.readouterr()
        assert not captured.out and captured.err == f"flashelmo: {blank}: expected a sentence a line, found no token\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--license-text", "line 2, byte 4: expected UTF-8, found 0xe9 (invalid continuation byte)"),
        ("--heldout", "line 2, byte 4: expected UTF-8, found 0xe9 (invalid continuation byte)"),
        ("--vocabulary", "expected UTF-8: 'utf-8' codec can't decode byte 0xe9 in position 7"),
        ("--config", "expected JSON: 'utf-8' codec can't decode byte 0xe9 in position 7"),
    ],
)
def test_files_that_are_no_utf8_are_one_line(
    trained: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], option: str, message: str
) -> None:
    latin, text = tmp_path / "latin.txt", trained.parent / "text.txt"
    latin.write_bytes(b"<S>\ncaf\xe9\n")
    arguments = ["train", str(text), "--output", str(tmp_path / "model"), "--steps", "1", "--batch", "2"]
    assert main([*arguments, "--unroll", "5", "--device", "cpu", option, str(latin)]) == 1
    error = capfd.readouterr().err
    assert error.startswith(f"flashelmo: {latin}: {message}") and error.count("\n") == 1


def test_a_name_that_is_no_utf8_is_in_the_card(trained: Path, succeed: Callable[..., str], tmp_path: Path) -> None:
    text = tmp_path / os.fsdecode(b"caf\xe9.txt")
    try:
        text.write_bytes((trained.parent / "text.txt").read_bytes())
    except OSError:
        pytest.skip("this file system takes no such name")
    arguments = ["--output", tmp_path / "model", "--config", trained / "config.json", "--batch", "2", "--steps", "1"]
    succeed("train", text, *arguments, "--unroll", "5", "--device", "cpu", "--heldout", text)
    assert "caf?.txt" in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")


def test_the_command_trains(
    trained: Path,
    succeed: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("flashelmo.cli.terminal.SECONDS_A_LINE", 0)
    arguments = ["--batch", "2", "--unroll", "5", "--steps", "4", "--threads", str(torch.get_num_threads())]
    config, text = trained / "config.json", trained.parent / "text.txt"
    license_file = tmp_path / "license.txt"
    license_file.write_text("Anybody may use it.", encoding="utf-8")
    settings = ["--heldout", text, "--license-text", license_file, "--dtype", "float16", "--device", "cpu"]
    printed = succeed("train", text, "--output", tmp_path / "model", "--config", config, *arguments, *settings)
    bar = r"^ *100%\|#+\| step 4, 00:00 left, perplexity [\d.]+ forward, [\d.]+ backward, [\d,]+ tokens/s$"
    assert re.search(bar, printed, re.MULTILINE), printed
    assert re.search(r"4 steps, 40 tokens, [\d.]+ s", printed)
    assert re.search(r"text\.txt: perplexity [\d.]+ forward, [\d.]+ backward; 0\.00% unknown", printed)
    assert "Anybody may use it." in (tmp_path / "model" / "README.md").read_text(encoding="utf-8")
    options = trained / "bilm" / "options.json"
    succeed("train", text, "--output", tmp_path / "other", "--config", options, *arguments[:4], "--minutes", "0.001")
    assert load_model(tmp_path / "other").config == CONFIG
    assert main(["train", str(text), "--output", str(tmp_path / "none"), "--minutes", "0"]) == 1
    assert "--minutes: expected a positive number in float32's range, found 0.0" in capfd.readouterr().err
