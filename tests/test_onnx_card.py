"""The model card: its programs run as they stand, and its figures are the reports'."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import javascript
import numpy as np
import pytest
from tiny_models import MODELS

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.precision import PrecisionName, tolerance
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.export.build import build_onnx
from flashelmo.export.card import model_card
from flashelmo.export.card_examples import SENTENCES
from flashelmo.export.metadata import Metadata
from flashelmo.export.onnx_elmo import OnnxElmo
from flashelmo.export.verification.report import Report
from flashelmo.export.verification.sentences import SENTENCES as TEXT
from flashelmo.export.verification.truth import Truth
from flashelmo.export.verification.verify import verify

NAMES = ["skip", "words alone", "manylangs", "manylangs, characters alone", "manylangs, words alone"]
FILES: dict[PrecisionName, str] = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_int8.onnx"}


def export(
    folder: Path, name: str, precisions: tuple[PrecisionName, ...], **options: Any
) -> tuple[list[Any], list[Any]]:
    """Files of each precision below `folder`, with their metadata and reports."""
    (folder / "onnx").mkdir()
    truth = Truth(MODELS[name])
    metadata, reports = [], []
    for precision in precisions:
        path = folder / "onnx" / FILES[precision]
        metadata.append(build_onnx(MODELS[name], path, precision=precision, **options))
        reports.append(verify(path, MODELS[name], sentences=TEXT[:6], batch_sizes=(3,), truth=truth))
        assert reports[-1].passed
    return metadata, reports


def programs(card: str, language: str = "python") -> list[str]:
    """The programs of a card."""
    return re.findall(rf"```{language}\n(.*?)```", card, flags=re.DOTALL)


def run(program: str) -> dict[str, Any]:
    """Run a program; its variables."""
    variables: dict[str, Any] = {}
    exec(compile(program, "README.md", "exec"), variables)
    return variables


@pytest.fixture(params=["stateless", "stateful", "free characters"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    options: dict[str, dict[str, Any]] = {
        "stateless": {"mix": [0.5, 0.25, 2.0]},
        "stateful": {"stateful": True},
        "free characters": {"characters": "dynamic"},
    }
    return options[request.param]


@pytest.mark.parametrize("name", NAMES)
def test_the_programs_run_and_give_the_references_vectors(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata, reports = export(tmp_path, name, ("fp32",), **options)
    write_native(MODELS[name], tmp_path / "WEIGHTS")
    monkeypatch.chdir(tmp_path)
    ours, bare, again = programs(model_card(metadata, reports))

    expected = ReferenceRuntime(MODELS[name]).embed_batch(SENTENCES)
    mixed = [np.tensordot(metadata[0].mix, layers, axes=1) for layers in expected]
    variables = run(ours)
    assert variables["sentences"] == SENTENCES
    for found, layers in zip(variables["layers"], expected, strict=True):
        assert np.abs(found - layers).max() < tolerance("fp32", "onnx")
    assert np.abs(variables["vectors"] - [vectors.mean(axis=0) for vectors in mixed]).max() < tolerance("fp32", "onnx")

    variables = run(bare)
    assert variables["sentences"] == SENTENCES
    for row, layers in enumerate(expected):
        for k, vectors in enumerate(layers):
            assert np.abs(variables["outputs"][f"hidden_states.{k}"][row, : len(vectors)] - vectors).max() < tolerance(
                "fp32", "onnx"
            )
    assert variables["outputs"]["mask"].tolist() == [[True, True, True], [True, True, False]]
    if metadata[0].stateful:
        hidden = variables["outputs"]["new_state.hidden"]
        assert hidden.any() and np.array_equal(variables["inputs"]["state.hidden"], hidden)
        assert np.array_equal(variables["inputs"]["state.cell"], variables["outputs"]["new_state.cell"])

    report = run(again)["report"]
    assert report.passed and report.weights_sha256 == metadata[0].weights_sha256


def test_a_program_takes_words_of_any_length_and_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("skip", "manylangs"):
        (tmp_path / name).mkdir()
        card = model_card(*export(tmp_path / name, name, ("fp32",)))
        monkeypatch.chdir(tmp_path / name)
        sentences = [["incomprehensibilities", "é" * 20, "cat"], ["日本語", "a\ud83d"]]
        variables = run(programs(card)[1].replace(repr(SENTENCES).replace("'", '"'), repr(sentences)))
        assert variables["sentences"] == sentences
        for row, layers in enumerate(ReferenceRuntime(MODELS[name]).embed_batch(sentences)):
            found = variables["outputs"]["hidden_states.2"][row, : layers.shape[1]]
            assert np.abs(found - layers[2]).max() < tolerance("fp32", "onnx")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with npm's packages."""
    if reason := javascript.no_node():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("npm")
    if reason := javascript.install(folder):
        pytest.skip(reason)
    return folder


IN_BROWSER = "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs"
# Of every array: its type, its shape, and its bytes.
DUMP = """
const bytes = ({ data }) => [...new Uint8Array(data.buffer, data.byteOffset, data.byteLength)];
const arrays = Object.entries({ ...outputs, ...inputs });
console.log(JSON.stringify(arrays.map(([name, array]) => [name, array.type, array.dims, bytes(array)])));
"""


def javascript_arrays(
    card: str, sentences: list[list[str]], package: str, folder: Path, modules: Path
) -> Mapping[str, Any]:
    """Inputs and outputs of a card's program in JavaScript, for other sentences than its own."""
    (program,) = programs(card, "js")
    for old, new in ((json.dumps(SENTENCES), json.dumps(sentences)), ("onnxruntime-node", package)):
        assert old in program
        program = program.replace(old, new)
    run = javascript.run_in_browser if package == IN_BROWSER else javascript.run
    printed = run(program + DUMP, folder, modules).splitlines()[-1]
    return {name: np.frombuffer(bytes(data), kind).reshape(dims) for name, kind, dims, data in json.loads(printed)}


def check_javascript(name: str, options: dict[str, Any], package: str, folder: Path, modules: Path) -> None:
    card = model_card(*export(folder, name, ("fp32",), **options))
    sentences = [
        ["incomprehensibilities", "é" * 20, "cat", "constructor"],
        [],
        ["日本語", "a\ud83d", "😀" * 9, ""],
        ["the"],
    ]
    found = javascript_arrays(card, sentences, package, folder, modules)
    elmo = OnnxElmo(folder)
    inputs = elmo.inputs(sentences)
    outputs = elmo.run(**inputs)
    states = {name: outputs[f"new_{name}"] for name in ("state.hidden", "state.cell") if elmo.metadata.stateful}
    assert set(found) == {*inputs, *outputs, *states}
    for name, array in inputs.items():  # of characters it always sends as many as a word may have
        assert found[name].dtype == array.dtype and np.array_equal(found[name][..., : array.shape[-1]], array)
    for name, array in (outputs | states).items():
        assert found[name].dtype == array.dtype
        assert np.abs(found[name] * 1.0 - array).max() < tolerance("fp32", "onnx"), name


@pytest.mark.parametrize("package", ["onnxruntime-node", "onnxruntime-web"])
@pytest.mark.parametrize("name", NAMES)
def test_javascript_gives_the_same(
    name: str, options: dict[str, Any], package: str, modules: Path, tmp_path: Path
) -> None:
    check_javascript(name, options, package, tmp_path, modules)


@pytest.mark.skipif(javascript.CHROMIUM is None, reason="chromium is not installed")
def test_javascript_gives_the_same_in_a_browser(options: dict[str, Any], modules: Path, tmp_path: Path) -> None:
    check_javascript("skip", options, IN_BROWSER, tmp_path, modules)


def test_a_program_suits_a_file_of_one_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = model_card(*export(tmp_path, "skip", ("fp16",), stateful=True, layers=[]))
    assert "In fp32 no value" not in card and '"onnx/model_fp16.onnx"' in card
    monkeypatch.chdir(tmp_path)
    ours, bare, _ = programs(card)
    assert "embed(" not in ours and run(ours)["vectors"].dtype == np.float16
    assert run(bare)["inputs"]["state.hidden"].dtype == np.float16


def test_javascript_suits_a_file_of_fp16(modules: Path, tmp_path: Path) -> None:
    card = model_card(*export(tmp_path, "skip", ("fp16",), stateful=True))
    found = javascript_arrays(card, SENTENCES, "onnxruntime-node", tmp_path, modules)
    elmo = OnnxElmo(tmp_path)
    for name, array in elmo.run(**elmo.inputs(SENTENCES)).items():
        assert found[name].dtype == array.dtype
        assert np.linalg.norm(found[name] * 1.0 - array) <= 2e-3 * np.linalg.norm(array * 1.0), name


@pytest.fixture(scope="module")
def all_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Metadata], list[Report]]:
    options: dict[str, Any] = {"mix": [0.5, -0.25, 2.0], "license": "CC-BY-4.0"}
    # not "skip": its tiny matrices err by more in 7 bits, which is what some processors have
    return export(tmp_path_factory.mktemp("export"), "no clips, tanh", ("fp32", "fp16", "int8"), **options)


def test_the_table_holds_the_reports_figures(all_files: tuple[list[Metadata], list[Report]]) -> None:
    card = model_card(*all_files)
    assert card == model_card(*all_files)
    header, _, *rows = card[card.index("| file |") :].splitlines()[:5]
    names = re.findall("`(.+?)`", header)
    assert names == [f"hidden_states.{k}" for k in range(3)] + ["token_embeddings", "sentence_embedding"]
    for row, report, precision in zip(rows, all_files[1], FILES, strict=True):
        file, found, megabytes, *errors = (cell.strip() for cell in row.strip("|").split("|"))
        assert (file, found, float(megabytes)) == (f"`onnx/{FILES[precision]}`", precision, report.megabytes)
        expected = {error.name: error.relative for error in report.outputs}
        assert [float(error) for error in errors] == pytest.approx([expected[name] for name in names], rel=0.06)
    most = max(error.max_abs for error in all_files[1][0].outputs)
    (found,) = re.findall(r"In fp32 no value is off by more than (\S+)\. ", card)
    assert float(found) == pytest.approx(most, rel=0.06)


def test_inputs_and_outputs_are_those_of_the_file(all_files: tuple[list[Metadata], list[Report]]) -> None:
    lines = model_card(*all_files).splitlines()
    tokens = "[batch_size, sequence_length, "
    for line in (
        f"| `character_ids` | input | int64 {tokens}12] | each word's ids; zeros where there is no token |",
        f"| `hidden_states.2` | output | float32 {tokens}8] | layer 2: an LSTM in both directions |",
        f"| `token_embeddings` | output | float32 {tokens}8] | sum of the 3 layers, weighted by 0.5, -0.25, 2 |",
        "| `mask` | output | bool [batch_size, sequence_length] | true where there is a token |",
        f"| model's sha256 | {all_files[0][0].weights_sha256} |",
        "| weights' format | native |",
        "In the fp16 file, all float32 values are float16, except the cell states of a stateful file.",
    ):
        assert line in lines


def test_the_front_matter_is_the_hubs(all_files: tuple[list[Metadata], list[Report]]) -> None:
    card = model_card(*all_files)
    assert card.startswith(
        "---\nlibrary_name: flashelmo\npipeline_tag: feature-extraction\nlicense: cc-by-4.0\ntags:\n- onnx\n- elmo\n"
    )
    metadata = [replace(each, license='My "own" terms: none') for each in all_files[0]]
    other = model_card(metadata, all_files[1])
    assert '\nlicense: other\nlicense_name: "My \\"own\\" terms: none"\ntags:\n' in other
    assert card.split("---\n")[2].startswith("\n# ELMo in ONNX\n")


@pytest.mark.parametrize("order", [(1, 0), (1, 0, 2), (0, 1), (1, 2)])
def test_types_are_float32_wherever_a_file_has_them(
    order: tuple[int, ...], all_files: tuple[list[Metadata], list[Report]]
) -> None:
    metadata, reports = [all_files[0][k] for k in order], [all_files[1][k] for k in order]
    card = model_card(metadata, reports)
    assert "| `hidden_states.2` | output | float32 " in card and "| output | float16 " not in card
    assert "\nIn the fp16 file, all float32 values are float16, " in card
    shown = next(report.file for report in reports if report.precision != "fp16")
    assert all(f'"{shown}"' in program for program in programs(card))


def test_a_file_of_fp16_alone_has_its_own_types(all_files: tuple[list[Metadata], list[Report]]) -> None:
    card = model_card(all_files[0][1:2], all_files[1][1:2])
    assert "| `hidden_states.2` | output | float16 " in card and "| output | float32 " not in card
    assert "In the fp16 file" not in card


@pytest.mark.parametrize(("levels", "said", "unsaid"), [(127, "without VNNI", "7-bit"), (63, "7-bit", "VNNI")])
def test_int8_says_where_its_weights_are_exact(
    levels: int, said: str, unsaid: str, all_files: tuple[list[Metadata], list[Report]]
) -> None:
    metadata = [*all_files[0][:2], replace(all_files[0][2], int8_levels=levels)]
    card = model_card(metadata, all_files[1])
    assert f"from -{levels} to {levels}" in card and said in card and unsaid not in card
    assert "The int8 file" not in model_card(all_files[0][:2], all_files[1][:2])


def test_a_file_that_failed_is_marked(all_files: tuple[list[Metadata], list[Report]]) -> None:
    reports = [all_files[1][0], replace(all_files[1][1], failures=("a", "b")), all_files[1][2]]
    card = model_card(all_files[0], reports)
    assert "| `onnx/model_fp16.onnx` **failed its verification (2)** | fp16 |" in card
    assert "failed" not in model_card(*all_files)


def test_reports_must_be_those_of_the_files(all_files: tuple[list[Metadata], list[Report]]) -> None:
    metadata, reports = all_files
    for wrong in ([], reports[:2], reports[::-1]):
        with pytest.raises(FlashElmoError, match="model card: expected a report of each of 3 files"):
            model_card(metadata, wrong)
