"""The sweep over tiles, in the interpreter, with a timer that knows which tile is fastest."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

import torch
from tiny_models import BILM

from flashelmo.benchmarks.kernels import checks as gpu_checks
from flashelmo.benchmarks.kernels.contestants import Chain, Contestant, Layer
from flashelmo.benchmarks.kernels.measure import NO_DEVICE, GpuSettings, new_results
from flashelmo.benchmarks.kernels.model import card_named
from flashelmo.benchmarks.kernels.tiles import CANDIDATES, ROWS, Sweep, main, only
from flashelmo.benchmarks.kernels.timing import Deadline, Task, Timing
from flashelmo.benchmarks.results import Results
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.tuning import HOPPER_TILES, TILES, Tile, choose_tile

SMALL, SMALLER = Tile(16, 16, 32, 4, 2), Tile(16, 16, 16, 4, 2)


class LastIsFastest:
    """Runs every task; each takes less than the one before; the first does not fit the card."""

    def time(self, tasks: Sequence[Task]) -> list[Timing]:
        for task in tasks:
            task.run()
        times = [Timing([10.0 - k] * 3) for k in range(len(tasks))]
        return [Timing([], "OutOfResources: shared memory"), *times[1:]]


def sweep(out: Path, deadline: float = 60.0, well: bool = True) -> tuple[Results, list[str]]:
    said: list[str] = []
    found = {"name": "NVIDIA H200", "l2_bytes": 50e6, "multiprocessors": 132}
    path = out / "tiles.json"
    config = replace(BILM, filters=((1, 2), (2, 3)), max_characters=50)
    run = Sweep(
        config,
        new_results(GpuSettings(), found, "abc"),
        card_named("H200"),
        device="cpu",
        timer=LastIsFastest(),
        seed=0,
        deadline=Deadline(deadline),
        path=path,
        say=said.append,
        chain=Chain(2, 1, 2),
    )
    rows = dict.fromkeys(CANDIDATES, (3,))
    assert run.run({operation: (SMALL, SMALLER) for operation in CANDIDATES}, rows) == well
    return Results.read(path), said


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter alone")
def test_candidates_are_timed_and_sorted(tmp_path: Path) -> None:
    results, said = sweep(tmp_path)
    assert len(said) == 2 * len(CANDIDATES)
    for operation in CANDIDATES:
        best, worst = results.section(operation)
        assert (best.name, worst.name) == (SMALLER.label, SMALL.label)
        assert best.median == 9.0 and best.ceiling and best.detail.startswith("3 ")
        assert worst.median is None and worst.note == "OutOfResources: shared memory"


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter alone")
def test_what_the_time_limit_leaves_out_is_said(tmp_path: Path) -> None:
    results, _ = sweep(tmp_path, deadline=0.0)
    assert {row.note for row in results.rows} == {"skipped, as the 0 seconds were over"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter alone")
def test_wrong_candidates_and_those_that_cannot_be_built_are_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(x: torch.Tensor, *args: Any, **options: Any) -> Launch:
        wrong = choose_tile("highway", torch.bfloat16, "ieee", 3) == SMALLER
        return launch(1.5 * x if wrong else x, *args, **options)

    def too_large(self: Layer, rows: int, kind: str) -> dict[str, Contestant]:
        if choose_tile("gates", torch.bfloat16, "ieee", rows) == SMALL:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return ours(self, rows, kind)

    launch, ours = gpu_checks.highway_launch, Layer.ours
    monkeypatch.setattr(gpu_checks, "highway_launch", off)
    monkeypatch.setattr(Layer, "ours", too_large)
    results, _ = sweep(tmp_path)
    notes = {row.name: row.note for row in results.section("highway")}
    assert notes[SMALLER.label].startswith("FAILED: error 0.") and "OutOfResources" in notes[SMALL.label]
    assert all(row.median is None for row in results.section("highway"))
    notes = {row.name: row.note for row in results.section("gates")}
    assert notes[SMALL.label] == "OutOfMemoryError: CUDA out of memory"
    assert notes[SMALLER.label] == "OutOfResources: shared memory"  # the only one that is timed
    assert results.section("linear")[0].median == 9.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter alone")
def test_a_lost_device_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Launch:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(gpu_checks, "_is_alive", lambda device: False)
    monkeypatch.setattr(gpu_checks, "lstm_launches", broken)
    results, said = sweep(tmp_path, well=False)
    (row,) = results.rows
    assert (row.section, row.median) == ("gates", None)
    assert row.note.startswith("FAILED: RuntimeError: CUDA error; the device is lost after ")
    assert said[-1].startswith("the device is lost after ")


def test_the_table_holds_one_candidate_for_a_while() -> None:
    tiles, hopper = dict(TILES), dict(HOPPER_TILES)
    for operation in CANDIDATES:
        with only(operation, SMALLER):
            for rows in (1, 100, 5000):
                assert choose_tile(operation, torch.bfloat16, "ieee", rows) == SMALLER
            assert (operation, "half") not in HOPPER_TILES
            assert choose_tile(operation, torch.float32, "ieee", 1) != SMALLER
        assert (tiles, hopper) == (TILES, HOPPER_TILES)


def test_the_tiles_in_use_are_candidates() -> None:
    for operation, candidates in CANDIDATES.items():
        assert ROWS[operation]
        in_use = [tile for _, tile in TILES[operation, "half"]]
        in_use += [tile for key, (_, tile) in HOPPER_TILES.items() if key == (operation, "half")]
        assert {tile._replace(splits=1) for tile in in_use} <= {tile._replace(splits=1) for tile in candidates}


def test_without_a_card_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"kernels.tiles: {NO_DEVICE}\n"
