"""The suite of the GPU's kernels, whole, in Triton's interpreter: a tiny model, and invented times."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench_fakes import INTERPRETER, Bench, find, results_of

from flashelmo.benchmarks.__main__ import main
from flashelmo.benchmarks.kernels import graph_timing, problems, suite
from flashelmo.benchmarks.kernels.card import Device
from flashelmo.benchmarks.kernels.cases import KERNELS
from flashelmo.benchmarks.kernels.kernels import MOST_CHECKED, use_tile
from flashelmo.benchmarks.results import Row
from flashelmo.engine.precision import tolerance
from flashelmo.kernels import tuning
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.tuning import Tile, choose_tile

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter alone")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_every_kernel_is_checked_and_then_timed_beside_its_limit_and_peer(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    results = bench.run("kernels --precisions bf16,fp32", device=INTERPRETER)
    assert bench.status == 0 and "failures: 0; " in capsys.readouterr().out
    assert list(dict.fromkeys(row.section for row in results.rows))[:3] == ["ceiling", "error", "step"]
    names = {f"{kernel.name} {each}" for kernel in KERNELS if kernel.of for each in ("bf16", "fp32")}
    names |= {f"{way} step {each}" for way in ("fused", "hoisted") for each in ("bf16", "fp32")}
    rows = results.section("error", "tiny")
    few = {"token layers, one mix fp32", "token layers, maxima fp32", "hoisted step fp32"}
    assert {row.name for row in rows} == names - few | {"int8 step int8"}
    copies = "gather words", "token layers"  # of numbers that they need not change
    for row in rows:
        assert row.median is not None and row.median < tolerance(row.name.rpartition(" ")[2], "cuda"), row.label
        assert row.median > 0 or row.name.startswith(copies), row.label
    for section, detail, name, peer, calls in (
        ("gates", "3 rows", "fused bf16", "cuBLAS fused bf16", 2),
        ("gates", "3 rows", "fused fp32", "cuBLAS fused fp32", 2),
        ("projection", "1 rows", "bf16", "cuBLAS bf16", 2),
        ("step", "1 rows", "hoisted bf16", "cuBLAS hoisted bf16", 2),
        ("highway", "4 words", "bf16", "cuBLAS bf16", 1),
        ("final projection", "1 words", "bf16", "cuBLAS bf16", 1),
        ("input", "3 nodes", "fp32", "cuBLAS fp32", 1),
        ("step", "3 rows", "int8 int8", "", 2),
        ("characters", "4 words", "bf16", "", 1),
        ("token layers", "3 nodes", "bf16", "", 1),
    ):
        row = find(results, section, name, detail)
        assert (row.median, row.unit) == (11.0 / calls, "µs") and len(row.samples) == 3
        assert row.ceiling and row.ratios == ({peer: pytest.approx(201 / 11, rel=1e-3)} if peer else {})
        assert not peer or find(results, section, peer, detail).median == 201.0 / calls
    peak = find(results, "ceiling", "torch.mm bf16", "16 x 16 x 16", "card").median or 0
    assert peak == pytest.approx(2 * 16**3 / 201 / 1e6, rel=1e-4)
    copy = find(results, "ceiling", "copy", "1 MiB", "card").median
    assert copy == pytest.approx(2 * (1 << 20) / 11 / 1e3, rel=1e-4)
    highway = find(results, "highway", "bf16", "4 words")
    assert highway.ceiling == pytest.approx(2 * 4 * 8 * 16 / peak / 1e6, rel=1e-3)  # F = 8


def test_wrong_kernels_are_told_kept_and_not_timed(bench: Bench) -> None:
    real, characters = problems.highway_launch, problems.char_cnn_launches

    def off_by_a_little(x: torch.Tensor, *args: Any, **options: Any) -> Launch:
        return real(1.05 * x, *args, **options)

    def unwritten(*args: Any, **options: Any) -> list[Launch]:
        return [replace(launch, grid=(0,)) for launch in characters(*args, **options)]

    def broken(*args: Any, **options: Any) -> Launch:
        raise RuntimeError("no such instruction\nand a long story")

    bench.patch.setattr(problems, "highway_launch", off_by_a_little)
    bench.patch.setattr(problems, "char_cnn_launches", unwritten)
    bench.patch.setattr(problems, "linear_launch", broken)
    bench.times.failing = ("fused bf16", "cuBLAS hoisted bf16")
    results = bench.run("kernels --precisions bf16 --rows 1", device=INTERPRETER)
    notes = {row.label: row.note for row in results.section("error", "tiny")}
    assert bench.status == 1 and notes["highway bf16, 4 words"].startswith("FAILED: error 0.0")
    assert notes["characters bf16, 4 words"] == "FAILED: error nan, expected less than 0.01"
    assert notes["input bf16, 3 nodes"] == "FAILED: RuntimeError: no such instruction"
    assert not [row for name in ("highway", "characters", "input") for row in results.section(name)]
    assert find(results, "token layers, one mix", "bf16", "3 nodes").median == 11.0
    memory = "OutOfMemoryError: CUDA out of memory"
    assert find(results, "step", "fused bf16", "1 rows").note == f"FAILED: {memory}"
    assert find(results, "step", "cuBLAS hoisted bf16", "1 rows").note == memory  # no failure of ours
    assert find(results, "step", "hoisted bf16", "1 rows").ratios == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("kernels", "no CUDA device: this benchmark needs one"),
        ("gpu", "no CUDA device: this benchmark needs one"),
        ("gpu --check", "no CUDA device: this benchmark needs one"),
        ("kernels --tile gates", "--tile: expected one of gates, projection, "),
        ("kernels --card h100", "--card: expected one of h200, found 'h100'"),
    ],
)
def test_one_line_without_a_device_and_for_what_is_unknown(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments.split(), "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"flashelmo bench: {message}")
    assert list(tmp_path.iterdir()) == []


def test_what_a_card_allows_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "--card", "H200"]) == 0
    printed = capsys.readouterr().out.splitlines()
    hoisted = next(line for line in printed if "step, hoisted" in line and " 1 rows" in line)
    cells = [cell.strip() for cell in hoisted.split("│")[1:-1]]  # 41.9 MB of weights at the copy's 2.75 TB/s
    assert cells[-1] == "memory" and float(cells[2]) == pytest.approx(41.9e6 / 2.746e6, rel=0.02)


@pytest.mark.parametrize("is_hopper", [False, True])
def test_the_tile_that_is_timed_is_checked(monkeypatch: pytest.MonkeyPatch, is_hopper: bool) -> None:
    """Also where fewer rows are checked than timed."""
    monkeypatch.setattr(tuning, "is_hopper", lambda device: is_hopper)
    for operation, n in product(("highway", "characters", "linear"), (*suite.SUITE.defaults.words, 32_768)):
        timed, checked = (
            choose_tile(operation, torch.bfloat16, "ieee", rows, device=torch.device("cpu"))
            for rows in (n, min(n, MOST_CHECKED))
        )
        assert timed == checked


def test_a_tile_takes_the_tables_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TILES", "HOPPER_TILES", "TMA_TILES"):
        monkeypatch.setattr(tuning, name, dict(getattr(tuning, name)))
    use_tile("linear 16x16x32 4w 2s")
    for rows in (1, 100, 5000):
        assert choose_tile("linear", torch.bfloat16, "ieee", rows) == Tile(16, 16, 32, 4, 2)
    assert ("linear", "half") not in tuning.HOPPER_TILES and tuning.TMA_TILES["linear"] == (Tile(16, 16, 32, 4, 2),)
    assert choose_tile("linear", torch.float32, "ieee", 1) != Tile(16, 16, 32, 4, 2)


# ------------------------------------------------------------------------------------------------------------- timing


class Cuda:
    """Graphs of a card that is not there: a replay does again what was logged while it was captured."""

    log: list[str]
    fails = False

    def __init__(self) -> None:
        self.begin, self.held = len(self.log), list[str]()

    def capture_begin(self) -> None:
        self.begin = len(self.log)

    def capture_end(self) -> None:
        if self.fails:
            raise RuntimeError("capture was invalidated")
        self.held = self.log[self.begin :]
        del self.log[self.begin :]

    def replay(self) -> None:
        self.log.extend(self.held)

    def wait_stream(self, other: object) -> None:
        """Nothing runs elsewhere."""


def test_tasks_are_captured_in_graphs_and_times_are_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts what was done, a microsecond each."""
    log = Cuda.log = list[str]()
    for name in ("CUDAGraph", "Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Cuda)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *device: None)
    monkeypatch.setattr("flashelmo.benchmarks.contestant.time.perf_counter", lambda: 1e-6 * len(log))
    results, cost = results_of(suite.SUITE.defaults), graph_timing.Cost(operations=1)

    def fail() -> None:
        raise ValueError("no\nmore")

    tasks = [
        graph_timing.TimedTask(name, partial(log.append, name), calls, cost) for name, calls in (("a", 1), ("b", 4))
    ]
    tasks += [graph_timing.TimedTask("c", fail, 1, cost)]
    settings = replace(suite.SUITE.defaults, rounds=2, sample_seconds=0.0)
    card = graph_timing.Card.of(results)
    rows = graph_timing.time_tasks(Row("step", unit="µs"), tasks, settings, Device("cuda", "cuda:0"), card)
    assert [(row.name, row.samples) for row in rows] == [("a", [1.0, 1.0]), ("b", [0.25, 0.25]), ("c", [])]
    assert rows[2].note == "FAILED: ValueError: no" and "".join(log)[-200:] == ("a" * 50 + "b" * 50) * 2
    monkeypatch.setattr(Cuda, "fails", True)
    for run, message in ((fail, "no"), (lambda: None, "invalidated")):  # a failed capture tells its first error
        with pytest.raises((ValueError, RuntimeError), match=message):
            graph_timing.captured(run, 1)
