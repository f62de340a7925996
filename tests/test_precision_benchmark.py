"""Errors of the CUDA runtime's precisions in Triton's interpreter."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_run import tiny_model

pytest.importorskip("triton")

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks import precision
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError

LITTLE = Settings(models=("tiny",), precisions=("fp32", "bf16"), sentences=1, tokens=2)


def measure(make: Any) -> list[Row]:
    """All rows."""
    jobs = precision.jobs(LITTLE, make, tiny_model)
    return [row for job in jobs for rows in job.rows() for row in rows]


def test_errors_are_those_of_the_runtime() -> None:
    rows = measure(ElmoEmbedder)
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
    assert {(row.unit, row.median) for row in measure(Off)} == {("max abs error", 0.002), ("relative error", 0.001)}


def test_results_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "interpret", lambda: None)
    monkeypatch.setattr(precision, "load", tiny_model)
    monkeypatch.setattr(precision, "ElmoEmbedder", Off)
    out = tmp_path / "precision" / "here.json"
    given = ["precision", "--out", str(out), "--sentences", "1", "--tokens", "2"]
    assert command.main([*given, "--precisions", "fp32,fp16"]) == 1
    assert "FAILED: small, fp16: expected finite vectors, found others" in capsys.readouterr().out
    results = Results.read(out)
    assert [row.name for row in results.rows] == ["fp32"] * 6 + ["all"]
    assert (results.settings["models"], results.settings["precisions"]) == (["small"], ["fp32", "fp16"])
    assert command.main([*given, "--precisions", "tf32"]) == 1
    assert "--precisions: expected some of fp32, fp16, bf16, int8, found 'tf32'" in capsys.readouterr().err


def test_outside_the_checkout_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(precision, "REPAIR", tmp_path / "interpreter.py")
    assert command.main(["precision", "--out", str(tmp_path / "x.json")]) == 1
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
