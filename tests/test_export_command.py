"""`flashelmo export`: the folder it writes, what it refuses, and a gate that lets nothing broken through."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_models import GENTLE, MODELS

from flashelmo.cli import main
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.precision import tolerance
from flashelmo.export import OnnxElmo, export_onnx
from flashelmo.export.verification.report import short

Run = Callable[..., str]
SENTENCES = [["the", "cat", "sat"], [], ["é"]]
TEXT = "the cat sat\n\nthe cat sat on a mat\n"

EXACT = tolerance("fp32", "onnx")
FEW = ("--text", "text.txt")  # sentences to verify with, where that is not the point


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_native(GENTLE, folder)
    return folder


@pytest.fixture
def here(here: Path, text_file: Path) -> Path:
    """It has text.txt."""
    return here


@pytest.fixture
def fail(capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must fail; its one line."""

    def run(*arguments: object) -> str:
        status = main([str(argument) for argument in arguments])
        lines = capfd.readouterr().err.splitlines()
        assert status == 1
        return lines[-1].removeprefix("flashelmo: ")

    return run


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def write_as_on_windows(path: Path, text: str, encoding: str, newline: str = "\r\n") -> None:
    path.write_bytes(text.replace("\n", newline).encode(encoding))


def test_one_file_its_report_and_a_card(here: Path, model: Path, succeed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_text", write_as_on_windows)
    said = succeed("export", model, "out", "--text", "text.txt").splitlines()
    assert files(here / "out") == {"README.md", "onnx/model.onnx", "onnx/model.report.json", "onnx/model.report.md"}
    assert said[:2] == ["fp32: writing", "fp32: verifying"]
    assert said[2].startswith("out/onnx/model.onnx: ") and "tokens verified, relative error at most" in said[2]
    report = (here / "out" / "onnx" / "model.report.json").read_bytes()
    values = json.loads(report)
    assert values["passed"] is True and values["tokens"] > 0
    elmo = OnnxElmo("out")
    assert elmo.metadata.report_sha256 == hashlib.sha256(report).hexdigest(), "of other line ends"
    for found, expected in zip(elmo.embed(SENTENCES), ElmoEmbedder.load(model).embed(SENTENCES), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


def test_every_option(here: Path, model: Path, succeed: Run) -> None:
    options = ["--layers", "0,2", "--mix", "0,0.5,1.5", "--characters", "dynamic", "--license", "cc0-1.0"]
    succeed("export", model, "out", *FEW, "--all", *options, "--reduce-range", "--external-data", "--triton", "-q")
    names = {"model", "model_fp16", "model_int8"}
    expected = {f"onnx/{name}{end}" for name in names for end in (".onnx", ".onnx_data", ".report.json", ".report.md")}
    found = files(here / "out")
    assert {name for name in found if not name.startswith("triton/")} == {"README.md", *expected}
    assert {"triton/README.md", "triton/elmo_fp32/config.pbtxt", "triton/elmo_int8/1/model.onnx"} <= found
    for name in names:
        metadata = OnnxElmo(here / "out" / "onnx" / f"{name}.onnx").metadata
        assert (metadata.layers, metadata.mix, metadata.license) == ((0, 2), (0.0, 0.5, 1.5), "cc0-1.0")
        assert metadata.characters is None and metadata.report_sha256
        assert metadata.int8_levels == (63 if name == "model_int8" else None)
    assert "license: cc0-1.0" in (here / "out" / "README.md").read_text(encoding="utf-8")


def test_stateful_files(here: Path, model: Path, succeed: Run) -> None:
    succeed("export", model, "out", *FEW, "--stateful", "--precision", "fp32,int8", "-q")
    elmo = OnnxElmo("out")
    reference = ElmoEmbedder.load(model, stateful=True, batch_size=2)
    sentences = [["the", "cat"], ["sat"], ["cat", "cat", "the"], ["the"]]
    for found, expected in zip(elmo.embed(sentences, batch_size=2), reference.embed(sentences), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT)


def test_nothing_is_replaced_unless_told(here: Path, model: Path, succeed: Run, fail: Run) -> None:
    (here / "out").mkdir()
    succeed("export", model, "out", *FEW, "-q")
    before = (here / "out" / "onnx" / "model.onnx").read_bytes()
    message = "out: exists already; pass --overwrite to replace it"
    assert fail("export", model, "out", *FEW) == message
    assert (here / "out" / "onnx" / "model.onnx").read_bytes() == before
    succeed("export", model, "out", *FEW, "--overwrite", "--precision", "int8", "-q")
    assert files(here / "out") == {
        "README.md", "onnx/model_int8.onnx", "onnx/model_int8.report.json", "onnx/model_int8.report.md"
    }  # fmt: skip


def test_what_was_not_written_here_is_never_replaced(here: Path, model: Path, succeed: Run, fail: Run) -> None:
    succeed("export", model, "out", *FEW, "--triton", "--external-data", "-q")
    succeed("export", model, "out", *FEW, "--triton", "--overwrite", "-q")
    for name in ("onnx/mine.txt", "triton/mine/config.pbtxt", "triton/elmo_fp32/2/model.onnx"):
        mine = here / "out" / name
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("mine")
        message = fail("export", model, "out", *FEW, "--overwrite")
        assert message == f"out: expected a model's folder to replace, found other files in it: {name}"
        assert mine.read_text() == "mine"
        mine.unlink()


def test_a_broken_bound_leaves_nothing(
    here: Path, model: Path, fail: Run, succeed: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The states after the boundaries are taken for zeros: every vector is a little wrong."""
    from flashelmo.export import build

    right = build.boundary_states
    monkeypatch.setattr(build, "boundary_states", lambda *given: {k: 0 * v for k, v in right(*given).items()})
    message = fail("export", model, "out", *FEW)
    assert message.startswith("out: not written: onnx/model.onnx: hidden_states.1: max abs error ")
    assert f"expected < {short(EXACT)}" in message and message.endswith(" more)")
    assert files(here) == {"text.txt"} and [path.name for path in here.iterdir()] == ["text.txt"]


def test_verifying_again(here: Path, model: Path, succeed: Run, fail: Run) -> None:
    succeed("export", model, "out", *FEW, "-q")
    before = files(here / "out")
    assert "| `hidden_states.2` |" in succeed("export", model, "out", *FEW, "--verify-only")
    path = here / "out" / "onnx" / "model.onnx"
    proto = onnx.load(path)
    weight = next(tensor for tensor in proto.graph.initializer if tensor.name == "lstm.1.forward.projection")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 0.05
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save_model(proto, path)
    line = "onnx/model.onnx: weights: lstm.1.forward.projection: differs from the model's"
    assert fail("export", model, "out", *FEW, "--verify-only").startswith(line)
    assert files(here / "out") == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.onnx"], "out.onnx: expected a folder to write, found a file"),
        (["out", "--precision", "fp8"], "precision: expected fp32, fp16, int8, found 'fp8'"),
        (["out", "--precision", "fp32,fp8"], "precision: expected fp32, fp16, int8, found 'fp8'"),
        (["out", "--precision", "int8,int8"], "one or more of fp32, fp16, int8, each once, found int8, int8"),
        (["out", "--layers", "top"], "--layers: expected whole numbers separated by commas, found 'top'"),
        (["out", "--layers", "3"], "layers: expected different numbers from 0 to 2, found [3]"),
        (["out", "--mix", "1e39,1,1"], "mix: expected numbers that float32 can hold, found 1e+39"),
        (["out", "--mix", "a,b"], "--mix: expected one number per layer, separated by commas, found 'a,b'"),
        (["out", "--mix", "1,2"], "mix: expected 3 finite coefficients, not all 0, found [1.0, 2.0]"),
        (["out", "--characters", "50"], "characters: expected 12 or 'dynamic', found '50'"),
        (["out", "--provider", "cuda"], "CUDAExecutionProvider"),
        (["out", "--text", "none.txt"], "none.txt: No such file or directory"),
        (["out", "--verify-only"], "out: expected an exported folder with onnx/model.onnx, found none"),
    ],
)
def test_bad_arguments(
    here: Path, model: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["export", str(model), *arguments]) == 1
    said = capfd.readouterr().err
    assert message in said and "writing" not in said
    assert files(here) == {"text.txt"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"layers": [3]}, ""),
        ({"mix": [1e39, 1, 1]}, ""),
        ({"characters": 50}, ""),
        ({"license": 1}, ""),
        ({"stateful": 1}, ""),
        ({"reduce_range": 1}, ""),
        ({"external_data": 1}, ""),
        ({"providers": "gpu"}, "some of .*, found gpu$"),
        ({"precisions": []}, "one or more of fp32, fp16, int8, each once, found none$"),
    ],
)
def test_options_are_looked_at_before_anything_is_written(
    options: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    said: list[str] = []
    with pytest.raises(FlashElmoError, match=f"^{next(iter(options))}: expected {expected}"):
        export_onnx(MODELS["skip"], tmp_path / "out", on_progress=said.append, **options)
    assert not said and not list(tmp_path.iterdir())


def test_what_completion_offers_is_taken(here: Path, model: Path, succeed: Run) -> None:
    from flashelmo.cli.arguments import complete_numbers

    (here / "out").mkdir()  # an empty folder is as good as none
    for layers in complete_numbers():
        succeed("export", model, "out", *FEW, "--layers", layers, "--overwrite", "-q")


def test_a_full_disk_is_told_of_where_the_file_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("onnx.save_model", fail)
    with pytest.raises(FlashElmoError) as error:
        export_onnx(MODELS["skip"], tmp_path / "out")
    assert str(error.value) == f"{tmp_path / 'out' / 'onnx' / 'model.onnx'}: cannot be written: No space left on device"
    assert not list(tmp_path.iterdir())


def test_a_text_without_tokens(here: Path, model: Path, fail: Run) -> None:
    (here / "empty.txt").write_text("\n\n")
    message = fail("export", model, "out", "--text", "empty.txt")
    assert message == "sentences: expected some with tokens, found 2 without"
    assert files(here) == {"text.txt", "empty.txt"}
