"""The benchmark of exported files: every section on a tiny model."""

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_models import GENTLE

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks import onnx as suite
from flashelmo.benchmarks import roofline
from flashelmo.benchmarks.contestant import Subject, Way, engine
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import generate, write_sentences
from flashelmo.benchmarks.worker import Here, Pool
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.precision import PrecisionName

CONTESTANTS = ("engine int8", "onnx fp32", "onnx int8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, "tiny", and a text, "text.txt"."""
    path = tmp_path_factory.mktemp("benchmark")
    write_native(GENTLE, path / "tiny")
    write_sentences(path / "text.txt", generate(5000))
    return path


@pytest.fixture(scope="module")
def exported(folder: Path) -> Subject:
    (folder / "exported").mkdir()
    return suite.export(str(folder / "tiny"), 0, folder / "exported", Pool())


@pytest.fixture
def settings(folder: Path) -> Settings:
    few = Settings(contestants=CONTESTANTS, threads=1, rounds=2, batches=(1, 40), passages=2, text_tokens=2500)
    return replace(few, text=folder / "text.txt", sample_seconds=0.001, peak_seconds=0.001, sentences=4)


class InProcess(Here):
    """A worker without a process, made of what one would be made of there."""

    process = SimpleNamespace(is_alive=lambda: True)

    def __init__(self, *making: Any) -> None:
        super().__init__(*pickle.loads(pickle.dumps(making)))


@pytest.fixture
def _in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No processes, no pauses, small peaks."""
    threads = torch.get_num_threads()
    monkeypatch.setattr("flashelmo.benchmarks.worker.Worker", InProcess)
    monkeypatch.setattr("flashelmo.benchmarks.worker.PAUSE", 0)
    monkeypatch.setattr(roofline, "SHAPES", ((32, 64, 64),))
    yield
    torch.set_num_threads(threads)


def on_processor(folder: Path, precision: PrecisionName) -> Way:
    return engine(folder, {"precision": precision, "runtime": "ort"})


def by_name(rows: list[Row], section: str, detail: str | None = None) -> dict[str, Row]:
    return {row.name: row for row in rows if row.section == section and detail in (None, row.detail)}


@pytest.mark.usefixtures("_in_process")
def test_speed_of_ragged_and_of_equal_batches(exported: Subject, settings: Settings) -> None:
    few, many, _ = suite.draw_batches(settings)
    assert [len(batch) for batch in few.batches] == [1, 1] and [len(batch) for batch in many.batches] == [40]
    assert many.batches[0][0] == few.batches[0][0] and many.batches[0][32] == few.batches[1][0]
    rows = suite.measure_speed(exported, settings)
    for detail, note in (
        ("1 sentence", "2 batches, "),
        ("40 sentences", f"1 batch, {many.tokens} tokens in {40 * max(map(len, many.batches[0]))} positions"),
        ("32 sentences of 16", "1 batch, 512 tokens in 512 positions"),
    ):
        found = by_name(rows, "speed", detail)
        assert list(found) == ["reference", *CONTESTANTS]
        for name, row in found.items():
            assert len(row.samples) == 2 and row.note.startswith(f"{detail}: {note}")
            assert (row.ratios.keys() == {"reference"}) is (name != "reference")
            assert row.ceiling is not None and row.ceiling_both is not None and 0 < (row.utilisation or 0) < 2
            assert (row.ceiling_both > (1 - 1e-4) * row.ceiling) is name.startswith("engine")  # which knows the words
    highest = next(row.high for row in rows if row.name == "fp32 matrix peak")
    expected = 1e9 * (highest or 0) / GENTLE.config.lstm_flops_per_token
    assert by_name(rows, "speed")["onnx fp32"].ceiling == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("_in_process")
def test_errors_of_every_precision_and_layer(exported: Subject, settings: Settings) -> None:
    rows = suite.measure_errors(exported, settings)
    assert len(rows) == 3 * 2 * 3  # precisions, units, layers
    bounds = {"onnx fp32": (0, 1e-5), "onnx fp16": (1e-4, 2e-3), "onnx int8": (1e-3, 0.05)}
    for row in rows:
        low, high = bounds[row.name] if (row.name, row.detail) != ("onnx int8", "layer 0") else (0, 1e-5)
        assert row.median is not None and low < row.median < high * (10 if row.unit == "max abs error" else 1), row


@pytest.mark.usefixtures("_in_process")
def test_the_section_of_a_card(exported: Subject, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the processor in the card's place, whose engine has no float16."""
    if suite.PROVIDER not in suite.onnxruntime.get_available_providers():
        (row,) = suite.measure_cuda(exported, settings)
        assert (row.name, row.note) == ("onnx on a card", "this ONNX Runtime has no CUDA provider")

    monkeypatch.setattr(suite, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(suite, "native_on_card", on_processor)
    rows = suite.measure_cuda(exported, settings)
    for size in ("1 sentence", "40 sentences"):
        found = by_name(rows, "cuda", size)
        names = ["onnx fp32", "onnx unrolled fp32", "engine fp32", "onnx fp16", "onnx unrolled fp16"]
        assert list(found) == names and all(row.median for row in found.values())
        assert found["engine fp32"].ratios.keys() == found["onnx unrolled fp32"].ratios.keys() == {"onnx fp32"}
    absent = {row.name: row.note for row in rows if row.median is None}
    assert absent.keys() == {"engine fp16", "PyTorch eager fp32"} and "fp16" in absent["engine fp16"]
    longest = max(map(len, suite.draw_batches(settings)[1].batches[0]))
    files = {path.name for path in suite.file_of(exported, "fp16").with_name("cuda fp16").glob("*.onnx")}
    steps = next(size for size in (16, 32, 64, 96, 128) if size >= longest)  # of the 40 sentences, in one file
    assert {f"batch40_steps{steps}.onnx", "batch32_steps16.onnx"} < files


@pytest.mark.usefixtures("_in_process")
def test_a_run_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "onnx" / "tiny.json"
    given = f"onnx --quick --threads 1 --models {folder / 'tiny'} --only speed,load,cuda --out {out}"
    assert command.main([*given.split(), "--text", str(folder / "text.txt"), "--contestants", "onnx int8"]) == 0
    found = Results.read(out)
    assert {row.section for row in found.rows} == {"limits", "speed", "load", "cuda"}
    assert list(by_name(found.rows, "speed")) == ["reference", "onnx int8"]
    assert by_name(found.rows, "load").keys() == {"native fp32", "onnx fp32", "onnx fp16", "onnx int8"}
    assert all(0 < (row.median or 0) < 30 for row in found.section("load"))
    assert found.settings["models"] == ["tiny"] and str(tmp_path) not in out.read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "tiny: ragged batches, tokens/s" in printed and "Provider" not in printed
