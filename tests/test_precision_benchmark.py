"""Errors of the CUDA runtime's precisions in Triton's interpreter."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_run import tiny_model

pytest.importorskip("triton")

from flashelmo.benchmarks import precision
from flashelmo.benchmarks.precision import PrecisionSettings, measure
from flashelmo.benchmarks.results import Results
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError

LITTLE = PrecisionSettings(models=("tiny",), precisions=("fp32", "bf16"), sentences=1, tokens=2)


def test_errors_are_those_of_the_runtime(tmp_path: Path) -> None:
    rows = list(measure(LITTLE, ElmoEmbedder, tiny_model))
    errors = {(row.name, row.unit, row.detail): row.median for row in rows}
    assert len(rows) == len(errors) == 2 * 2 * 3
    for layer in range(3):
        absolute, relative = (errors["fp32", unit, f"layer {layer}"] for unit in ("max abs error", "relative error"))
        assert absolute is not None and relative is not None and 0 < relative < 1e-5 > absolute > 0
        rounded = errors["bf16", "relative error", f"layer {layer}"]
        assert rounded is not None and 1e-4 < rounded < 0.03
    assert all(
        "on a card they are its approximation" in row.note and "1 sentences, 2 tokens of" in row.note for row in rows
    )


class Off:
    """Vectors that are off by a thousandth, but for the exact ones."""

    def __init__(self, model: Any, *, device: str, precision: str, runtime: str = "cuda") -> None:
        assert (device, runtime) == (("cpu", "reference") if precision == "fp64" else ("interpreter", "cuda"))
        self._factor = 1.0 if precision == "fp64" else np.nan if precision == "fp16" else 1.001

    def embed(self, sentences: Any) -> Iterator[Any]:
        for sentence in sentences:
            yield np.full((3, len(sentence), 4), 2.0 * self._factor)


def test_errors_are_what_they_are_called() -> None:
    rows = list(measure(LITTLE, Off, tiny_model))
    assert {(row.unit, row.median) for row in rows} == {("max abs error", 0.002), ("relative error", 0.001)}
    with pytest.raises(FlashElmoError, match="tiny, fp16: expected finite vectors, found others"):
        list(measure(PrecisionSettings(("tiny",), ("fp16",), 1, 2), Off, tiny_model))


def test_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "interpret", lambda: None)
    monkeypatch.setattr(precision, "random_model", tiny_model)
    monkeypatch.setattr("flashelmo.engine.embedder.ElmoEmbedder", Off)
    out = tmp_path / "precision" / "here.json"
    given = ["--out", str(out), "--sentences", "1", "--tokens", "2"]
    assert precision.main([*given, "--precisions", "fp32,fp16"]) == 1
    assert "precision: small, fp16: expected finite vectors" in capsys.readouterr().err
    results = Results.read(out)
    assert [row.name for row in results.rows] == ["fp32"] * 6
    assert (results.settings["models"], results.settings["precisions"]) == (["small"], ["fp32", "fp16"])
    with pytest.raises(SystemExit):
        precision.main([*given, "--precisions", "tf32"])
    assert "--precisions: expected some of fp32,fp16,bf16,int8, found 'tf32'" in capsys.readouterr().err


def test_outside_the_checkout_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "REPAIR", tmp_path / "interpreter.py")
    assert precision.main(["--out", str(tmp_path / "x.json")]) == 1
    error = "precision: expected a checkout with interpreter.py, found none: run it from there\n"
    assert capsys.readouterr().err.endswith(error)
    assert list(tmp_path.iterdir()) == []


def test_kernels_that_were_imported_for_a_card_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if not precision.REPAIR.is_file():
        pytest.skip("no checkout")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setitem(sys.modules, "flashelmo.kernels.launch", sys.modules[__name__])
    with pytest.raises(FlashElmoError, match="found kernels that were imported for a card"):
        precision.interpret()
