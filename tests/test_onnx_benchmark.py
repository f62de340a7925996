"""The benchmark of exported files: every section on a tiny model, and what README shows of it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from tiny_models import BILM, random_model

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks import roofline
from flashelmo.benchmarks.contestant import Way, engine
from flashelmo.benchmarks.onnx import contestants, speed
from flashelmo.benchmarks.onnx.contestants import FILE_PRECISIONS, Exported, export, onnx_file, session_options
from flashelmo.benchmarks.onnx.suite import measure_errors, measure_load, measure_size
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import generate, write_sentences
from flashelmo.benchmarks.worker import Here, Pool
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import ElmoWeights
from flashelmo.engine.precision import PrecisionName

CONFIG = replace(BILM, cell_size=32, projection_size=16, cell_clip=3.0, projection_clip=3.0)
SETTINGS = Settings(
    contestants=("engine int8", "onnx fp32", "onnx fp32 parallel", "onnx int8"),
    threads=1,
    rounds=2,
    batches=(1, 40),
    passages=2,
    text_tokens=2500,
    checked=3,
    sample_seconds=0.001,
    peak_rows=6,
    peak_steps=4,
    peak_seconds=0.001,
    load_repeats=1,
    sentences=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, "tiny", and a text, "text.txt"."""
    path = tmp_path_factory.mktemp("benchmark")
    model = random_model(CONFIG)  # whose weights saturate nothing, so that rounding stays small
    tensors = {name: np.float32(0.4) * tensor for name, tensor in model.weights.named_tensors()}
    write_native(replace(model, weights=ElmoWeights.from_named_tensors(tensors, CONFIG)), path / "tiny")
    write_sentences(path / "text.txt", generate(3000))
    return path


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exported:
    """The model's files."""
    (folder / "exported").mkdir()
    return export(str(folder / "tiny"), 0, folder / "exported", Pool())


@pytest.fixture
def settings(folder: Path) -> Settings:
    """With the text."""
    return replace(SETTINGS, text=folder / "text.txt")


class InProcess(Here):
    """A worker without a process of its own."""

    process = SimpleNamespace(is_alive=lambda: True)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No processes, no pauses, small peaks."""
    threads = torch.get_num_threads()
    monkeypatch.setattr("flashelmo.benchmarks.worker.Worker", InProcess)
    monkeypatch.setattr("flashelmo.benchmarks.timing.PAUSE", 0)
    monkeypatch.setattr(roofline, "SHAPES", ((32, 64, 64),))
    yield
    torch.set_num_threads(threads)


def by_name(rows: list[Row], section: str, detail: str | None = None) -> dict[str, Row]:
    """Rows of a section."""
    return {row.name: row for row in rows if row.section == section and detail in (None, row.detail)}


# ------------------------------------------------------------------------------------------------------------ sections


def test_speed_of_ragged_and_of_equal_batches(exported: Exported, settings: Settings, in_process: None) -> None:
    few, many = speed.draw_batches(settings)
    assert [len(batch) for batch in few.batches] == [1, 1] and [len(batch) for batch in many.batches] == [40]
    assert many.batches[0][0] == few.batches[0][0] and many.batches[0][32] == few.batches[1][0]
    rows = [*speed.measure_speed(exported, settings), *speed.measure_peak(exported, settings)]
    for section, detail, note in (
        ("speed", "1 sentence", "2 batches, "),
        ("speed", "40 sentences", f"1 batch, {many.tokens} tokens in {40 * max(map(len, many.batches[0]))} positions"),
        ("peak", "6 sentences of 4", "1 batch, 24 tokens in 24 positions"),
    ):
        found = by_name(rows, section, detail)
        assert list(found) == ["reference", *settings.contestants]
        for name, row in found.items():
            assert len(row.samples) == 2 and row.median is not None and row.median > 0
            assert row.note.startswith(f"{detail}: {note}") and row.note.endswith(" distinct words of text.txt")
            assert (row.ratios.keys() == {"reference"}) is (name != "reference")
            assert row.ceiling is not None and row.ceiling_both is not None and 0 < (row.utilisation or 0) < 2
            assert (row.ceiling_both > (1 - 1e-4) * row.ceiling) is name.startswith("engine")  # which knows the words
    highest = next(row.high for row in rows if row.name == "fp32 matrix peak")
    assert by_name(rows, "speed")["onnx fp32"].ceiling == pytest.approx(
        1e9 * (highest or 0) / CONFIG.lstm_flops_per_token, rel=1e-4
    )


def test_load_and_size(exported: Exported, settings: Settings, tmp_path: Path) -> None:
    rows = measure_load(replace(exported, files={"int8": exported.files["int8"]}), settings)
    assert [row.label for row in rows] == [
        f"{name}, {what}" for name in ("onnx int8", "native fp32") for what in ("load", "imports before it")
    ]
    assert all(row.unit == "s" and row.median is not None and 0 < row.median < 30 for row in rows)
    sizes = {row.name: row.median for row in measure_size(exported, settings)}
    paths = {f"onnx {each}": exported.files[each] for each in FILE_PRECISIONS}
    paths["native fp32"] = exported.subject.folder / "model.safetensors"
    assert sizes == {name: pytest.approx(path.stat().st_size / 1e6, rel=1e-4) for name, path in paths.items()}
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x" * 1000)
    (tmp_path / "model.onnx_data").write_bytes(b"x" * 500_000)
    row = measure_size(replace(exported, files={"fp32": path}), settings)[1]
    assert (row.median, row.note) == (0.501, "onnx fp32: 0.5 MB of it in a file of their own")


def test_errors_of_every_precision_and_layer(exported: Exported, settings: Settings, in_process: None) -> None:
    rows = measure_errors(exported, settings)
    assert len(rows) == 3 * 2 * 3  # precisions, units, layers
    bounds = {"onnx fp32": (0, 1e-5), "onnx fp16": (1e-4, 2e-3), "onnx int8": (1e-3, 0.05)}
    for row in rows:
        low, high = bounds[row.name] if (row.name, row.detail) != ("onnx int8", "layer 0") else (0, 1e-5)
        assert row.median is not None and low < row.median < high * (10 if row.unit == "max abs error" else 1), row
        assert row.note.startswith("4 sentences, ") and row.note.endswith(" of text.txt")


# ---------------------------------------------------------------------------------------------------------------- card


def test_the_section_of_a_card(
    exported: Exported, settings: Settings, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the processor in the card's place, whose engine has no float16; copies are counted where they run."""
    if speed.PROVIDER not in speed.onnxruntime.get_available_providers():
        (row,) = speed.measure_cuda(exported, settings)
        assert (row.name, row.note) == ("onnx on a card", "this ONNX Runtime has no CUDA provider")

    def native(folder: Path, precision: PrecisionName) -> Way:
        return engine(folder, {"precision": precision, "runtime": "ort"})

    for place in (contestants, speed):
        monkeypatch.setattr(place, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(contestants, "native_on_card", native)
    rows = speed.measure_cuda(exported, settings)
    for size in ("1 sentence", "40 sentences"):
        found = by_name(rows, "cuda", size)
        assert list(found) == ["onnx fp32", "engine fp32", "onnx fp16"]
        assert found["engine fp32"].ratios.keys() == {"onnx fp32"}
        assert all(row.median is not None and row.median > 0 for row in found.values())
    copies = {(row.name, row.detail): row.median for row in rows if row.unit == "Memcpy nodes"}
    details = ("copies a run", "copies a step")
    assert copies == {(f"onnx {precision}", detail): 0 for precision in ("fp32", "fp16") for detail in details}
    (absent,) = [row for row in rows if row.median is None]
    assert absent.name == "engine fp16" and "fp16" in absent.note
    inner = [helper.make_node(kind, ["a"], [kind]) for kind in ("MemcpyToHost", "MemcpyFromHost", "Tanh")]
    body = helper.make_graph(inner, "body", [], [])
    scan = helper.make_node("Scan", ["y"], ["z"], body=body, num_scan_inputs=1)
    graph = helper.make_graph([helper.make_node("MemcpyFromHost", ["x"], ["y"]), scan], "graph", [], [])
    onnx.save_model(helper.make_model(graph), exported.folder / "copies.onnx")
    rows = speed.copy_rows("tiny", "fp16", exported.folder / "copies.onnx")
    assert [(row.detail, row.median) for row in rows] == [("copies a run", 1), ("copies a step", 2)]


# -------------------------------------------------------------------------------------------------------- contestants


def test_openvino_gives_the_same_vectors(exported: Exported, settings: Settings) -> None:
    pytest.importorskip("openvino")
    batch = speed.draw_batches(settings)[1].batches[0][:5]
    expected = onnx_file(exported.files["fp32"], 1, parallel=True).vectors(batch)
    way = contestants.openvino_file(exported.files["fp32"], exported.metadata, "fp32", 1)
    for found, wanted, sentence in zip(way.vectors(batch), expected, batch, strict=True):
        assert found.shape == wanted.shape == (3, len(sentence), 32)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_parallel_sessions_have_half_of_the_threads() -> None:
    import onnxruntime

    plain, both, one = session_options(4, False), session_options(4, True), session_options(1, True)
    assert (plain.intra_op_num_threads, plain.execution_mode) == (4, onnxruntime.ExecutionMode.ORT_SEQUENTIAL)
    assert (both.intra_op_num_threads, both.inter_op_num_threads) == (2, 2)
    assert both.execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL
    assert (one.intra_op_num_threads, one.inter_op_num_threads) == (1, 1)


# -------------------------------------------------------------------------------------------------- command, documents


def test_a_run_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "onnx" / "tiny.json"
    short = write_sentences(tmp_path / "text.txt", generate(5000))
    arguments = f"onnx --quick --threads 1 --models {folder / 'tiny'} --only speed,size,cuda --text {short} --out {out}"
    assert command.main([*arguments.split(), "--contestants", "onnx int8"]) == 0
    found = Results.read(out)
    assert {row.section for row in found.rows} == {"limits", "speed", "size", "cuda"}
    assert list(by_name(found.rows, "speed")) == ["reference", "onnx int8"]
    assert all(np.isfinite(row.samples).all() for row in found.rows if row.section != "cuda" and row.median)
    assert found.settings["models"] == ["tiny"] and found.settings["text"] == "text.txt"
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "tiny: ragged batches, tokens/s" in printed and "native fp32" in printed and "Provider" not in printed
