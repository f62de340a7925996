"""What AllenNLP, bilm-tf and ELMoForManyLangs computed of this project's models, against all that is float32 here."""

from pathlib import Path
from typing import Any

import golden_outputs
import h5py
import numpy as np
import pytest
from golden_outputs import CASES, FOLDER, Case
from peer_runs import Vectors

from flashelmo import Elmo, ElmoEmbedder, batch_to_ids
from flashelmo.cli import main
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.precision import PRECISIONS, tolerance
from flashelmo.engine.settings import RuntimeName
from flashelmo.export.build import build_onnx
from flashelmo.export.onnx_elmo import OnnxElmo

FLOAT32_RUNTIMES = PRECISIONS["fp32"].runtimes
OF_ALLENNLP = [case for case in CASES if case.peer == "allennlp"]
BATCH = max(len(batch) for batch in golden_outputs.BATCHES)


def ids(case: Case) -> str:
    return f"{case.peer}-{case.name}"


@pytest.fixture(scope="module", params=CASES, ids=ids)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def folder(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as the program read it, not as it was made."""
    return case.write_model(tmp_path_factory.mktemp("golden") / "model")


def assert_close(found: Any, expected: Vectors, bound: float = tolerance("fp32")) -> None:
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
        assert np.abs(ours - theirs).max() < bound


def test_the_outputs_are_those_of_the_models_here(case: Case) -> None:
    made = golden_outputs.made()[case.peer]["models"][case.name]
    assert case.model.sha256 == made, "other weights than those of tests/golden: write it again, as its README says"
    expected = {"stateful"}
    if case.peer != "bilm":
        expected.add("stateless")
    elif case.name != "words alone":
        expected.add("one by one")
    if case.peer == "allennlp":
        expected.add("mix")
    outputs = case.outputs()
    assert outputs.keys() == expected
    lengths = [len(sentence) for sentence in case.sentences]
    assert all([each.shape[-2] for each in vectors] == lengths for vectors in outputs.values())


def test_the_programs_carried_their_state(case: Case) -> None:
    """Else a comparison would show nothing of it: the same sentence comes twice, and later as the first of its row."""
    first, again = (k for k, sentence in enumerate(case.sentences) if sentence == ["Adam"])
    carried = case.outputs()["stateful"]
    assert np.abs(carried[first] - carried[again]).max() > 0.01
    assert_close([carried[first][:1]], [carried[again][:1]])  # of which the word's own vector is no part


def test_all_is_small_and_says_what_it_is_of() -> None:
    for peer, about in golden_outputs.made().items():
        for package in about["versions"].split(", ")[:2]:
            assert package.rpartition(" ")[2] in (FOLDER / "README.md").read_text(encoding="utf-8"), (peer, package)
    assert {path.name for path in FOLDER.iterdir()} == {
        "README.md",
        "made.json",
        *(f"{case.peer}.npz" for case in CASES),
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 200_000


@pytest.mark.usefixtures("kept_runtimes")
@pytest.mark.parametrize("runtime", FLOAT32_RUNTIMES)
def test_without_state(case: Case, folder: Path, runtime: RuntimeName) -> None:
    expected = case.fresh_outputs()
    sentences = case.sentences[: len(expected)]
    embedder = ElmoEmbedder.load(folder, device="cpu", precision="fp32", runtime=runtime)
    assert_close(embedder.embed_batch(sentences), expected)
    assert_close([embedder.embed_sentence(sentence) for sentence in sentences], expected)


@pytest.mark.usefixtures("kept_runtimes")
@pytest.mark.parametrize("runtime", FLOAT32_RUNTIMES)
def test_with_state(case: Case, folder: Path, runtime: RuntimeName) -> None:
    settings: dict[str, Any] = {"device": "cpu", "precision": "fp32", "runtime": runtime, "stateful": True}
    outputs = case.outputs()
    embedder = ElmoEmbedder.load(folder, batch_size=BATCH, **settings)
    assert_close(case.in_batches(embedder.embed_batch), outputs["stateful"])
    if "one by one" in outputs:
        embedder = ElmoEmbedder.load(folder, batch_size=1, **settings)
        assert_close(list(embedder.embed(case.sentences)), outputs["one by one"])


def test_an_exported_file(case: Case, folder: Path, tmp_path: Path) -> None:
    model, bound = load_model(folder), tolerance("fp32", "onnx")
    build_onnx(model, tmp_path / "model.onnx")
    expected = case.fresh_outputs()
    assert_close(OnnxElmo(tmp_path / "model.onnx").embed(case.sentences[: len(expected)]), expected, bound)
    build_onnx(model, tmp_path / "stateful.onnx", stateful=True)
    elmo, outputs = OnnxElmo(tmp_path / "stateful.onnx"), case.outputs()
    assert_close(case.in_batches(elmo.embed), outputs["stateful"], bound)
    if "one by one" in outputs:
        elmo.reset_state()
        assert_close(elmo.embed(case.sentences, batch_size=1), outputs["one by one"], bound)


@pytest.mark.parametrize("case", OF_ALLENNLP, ids=ids, scope="module")
def test_a_mix_of_layers(case: Case, folder: Path) -> None:
    expected = case.outputs()["mix"]
    assert_close(module_vectors(Elmo(*files(folder), 1, scalar_mix_parameters=case.mix), case.sentences), expected)
    weights = np.exp(case.mix) / np.exp(case.mix).sum()
    embedder = ElmoEmbedder.load(folder, device="cpu", precision="fp32")
    assert_close(list(embedder.embed(case.sentences, mix=list(weights))), expected)


@pytest.mark.parametrize("case", OF_ALLENNLP, ids=ids, scope="module")
def test_the_module_with_state(case: Case, folder: Path) -> None:
    top = [-9e10] * (len(case.mix) - 1) + [1.0]
    module = Elmo(*files(folder), 1, scalar_mix_parameters=top, stateful=True)
    found = case.in_batches(lambda batch: module_vectors(module, batch))
    assert_close(found, [layers[-1] for layers in case.outputs()["stateful"]])


def files(folder: Path) -> tuple[Path, Path]:
    return folder / "options.json", folder / "weights.hdf5"


def module_vectors(module: Elmo, sentences: list[list[str]]) -> Vectors:
    rows = module.eval()(batch_to_ids(sentences))["elmo_representations"][0].detach().numpy()
    return [row[: len(sentence)] for row, sentence in zip(rows, sentences, strict=True)]


def test_the_command_line(case: Case, folder: Path, here: Path) -> None:
    outputs = case.outputs()
    (here / "text.txt").write_text("".join(f"{' '.join(each)}\n" for each in case.sentences), encoding="utf-8")

    def written(*arguments: object) -> Vectors:
        assert main([str(each) for each in (*arguments, "--overwrite", "--quiet")]) == 0
        with h5py.File("v.h5") as file:
            return [file[str(k)][()] for k in range(len(case.sentences))]

    embed = "embed", "text.txt", "v.h5", "--model", folder, "--device", "cpu", "--precision", "fp32"
    if "stateless" in outputs:
        assert_close(written(*embed), outputs["stateless"])
    if "one by one" in outputs:
        assert_close(written(*embed, "--stateful", "--batch-size", 1), outputs["one by one"])
        options, weights = files(folder)
        elmo = "elmo", "text.txt", "v.h5", "--all", "--options-file", options, "--weight-file", weights
        assert_close(written(*elmo, "--batch-size", 1), outputs["one by one"])
