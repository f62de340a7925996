"""Errors of the CUDA runtime's precisions in Triton's interpreter."""

from pathlib import Path

import pytest

pytest.importorskip("triton")

from bench_workers import nan_in_fp16
from tiny_models import MODELS

from flashelmo.benchmarks import __main__ as command
from flashelmo.benchmarks import precision
from flashelmo.benchmarks.results import Results, Row
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.precision import tolerance

ARGUMENTS = "precision --sentences 1 --tokens 2 --precisions"


def measure(folder: Path, precisions: str, status: int = 0) -> list[Row]:
    """Rows that the command writes of a tiny model."""
    write_native(MODELS["skip"], folder / "tiny")
    given = [*ARGUMENTS.split(), precisions, "--models", str(folder / "tiny"), "--out", str(folder / "deep")]
    assert command.main(given) == status
    return Results.read(folder / "deep" / "precision.json").rows


def test_errors_are_those_of_the_runtime(tmp_path: Path) -> None:
    if not precision.REPAIR.is_file():
        pytest.skip("no checkout")
    rows = measure(tmp_path, "fp32,bf16")
    assert len(rows) == 2 * 2 * 3 and all(row.note.startswith("1 sentences, 2 tokens of") for row in rows)
    for row in rows:
        low, high = {"fp32": (0.0, tolerance("fp32", "cuda")), "bf16": (1e-4, tolerance("bf16", "cuda"))}[row.name]
        assert row.median is not None and (low < row.median < high or row.unit == "max abs error")


def test_what_is_not_finite_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "REPAIR", Path(__file__))
    monkeypatch.setattr(precision, "interpreted", nan_in_fp16)
    rows = measure(tmp_path, "fp32,fp16", status=1)
    assert [row.name for row in rows if row.median] == ["fp32"] * 6
    assert {(row.name, " nan, expected" in row.note) for row in rows if row.failed} == {("fp16", True)}


def test_wrong_use_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*ARGUMENTS.split(), "tf32"]) == 1
    assert "--precisions: expected some of fp32, fp16, bf16, int8, found 'tf32'" in capsys.readouterr().err
    monkeypatch.setattr(precision, "REPAIR", tmp_path / "interpreter.py")
    assert command.main(["precision", "--out", str(tmp_path / "x.json")]) == 1
    assert capsys.readouterr().err.endswith("expected a checkout with interpreter.py, found none: run it from there\n")
    assert list(tmp_path.iterdir()) == []
