"""The suites of the GPU's kernels, whole, in Triton's interpreter: a tiny model, and a timer that invents times."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from bench_fakes import INTERPRETER, FakeTimes, find, said, started

from flashelmo.benchmarks.__main__ import main
from flashelmo.benchmarks.kernels import checks, graph_timing, groups, problems, suite, tiles
from flashelmo.benchmarks.kernels.card import Device
from flashelmo.benchmarks.kernels.checks import ODD, Check, Sizes, check_row
from flashelmo.benchmarks.kernels.graph_timing import Task, time_graphs
from flashelmo.benchmarks.kernels.groups import Chain, step_groups, ways
from flashelmo.benchmarks.kernels.lstm import LstmLayer
from flashelmo.benchmarks.kernels.problems import relative_error
from flashelmo.benchmarks.kernels.suite import Kernels
from flashelmo.benchmarks.results import Results
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.timing import Timing
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.precision import PRECISIONS, tolerance
from flashelmo.kernels import tuning
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.tuning import Tile, choose_tile

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter alone")
CONFIG = replace(ODD, filters=((1, 2), (2, 3)), n_highway=2, activation="relu")
DEVICE = INTERPRETER
SETTINGS = replace(
    suite.SUITE.defaults,
    models=("tiny",),
    rows=(1, 3),
    words=(1, 4),
    layer_tokens=5,
    input_nodes=3,
    other_rows=(3,),
    precisions=("bf16", "fp32"),
    peak_size=16,
    copy_bytes=1 << 20,
    commit="abc",
)
SIZES = Sizes((1, 3), (1, 2), (3,), (1, 7)), Sizes((1, 2), (2,), (2,), (1, 7))
LITTLE = replace(SETTINGS, rows=(1,), words=(2,), precisions=("bf16",))
LITTLE_SIZES = Sizes((1,), (1,), (1,), (1, 2)), Sizes((1,), (1,), (1,), (1,))


def start(
    out: Path, settings: Settings = SETTINGS, times: FakeTimes | None = None, sizes: tuple[Sizes, Sizes] = SIZES
) -> tuple[int, Results, str]:
    """Runs the suite; its exit status, the results that were written, and what was printed."""
    run, _, card = started(replace(settings, out=out / "a.json"), "kernels", DEVICE)
    kernels = Kernels(run.settings, CONFIG, DEVICE, card, (times or FakeTimes(rival=20.0)).tasks, sizes, Chain(2, 1, 2))
    return suite.measure(run, kernels), Results.read(out / "a.json"), said(run)


def test_every_kernel_is_checked_and_then_timed_beside_its_model_and_peer(tmp_path: Path) -> None:
    status, results, printed = start(tmp_path)
    assert status == 0 and "failures: 0; " in printed
    assert list(dict.fromkeys(row.section for row in results.rows))[:2] == ["error", "ceiling"]
    kernels = {*problems.BUILDS, "fused step", "hoisted step"}
    for model in ("tiny", "odd sizes"):
        rows = results.section("error", model)
        names = {f"{name} {precision}" for name in kernels for precision in ("bf16", "fp32")}
        assert {row.name for row in rows} == names | {"int8 step int8"}
        for row in rows:
            assert row.median is not None and row.median < tolerance(row.name.rpartition(" ")[2], "cuda"), row.label
            assert (row.median == 0) == row.name.startswith("gather"), row.label
    for section, detail, name, peer in (
        ("gates", "3 rows", "fused bf16", "cuBLAS fused bf16"),
        ("gates", "3 rows", "fused fp32", "cuBLAS fused fp32"),
        ("projection", "1 rows", "bf16", "cuBLAS bf16"),
        ("step", "1 rows", "hoisted bf16", "cuBLAS hoisted bf16"),
        ("highway", "4 words", "bf16", "cuBLAS bf16"),
        ("final projection", "1 words", "bf16", "cuBLAS bf16"),
        ("input", "3 nodes", "fp32", "cuBLAS fp32"),
        ("step", "3 rows", "int8 int8", ""),
        ("characters", "4 words", "bf16", ""),
        ("token layers", "5 tokens", "all layers bf16", ""),
    ):
        row = find(results, section, name, detail)
        assert (row.median, row.p25, row.samples, row.unit) == (11.0, 10.5, [10.0, 11.0, 12.0], "µs")
        assert row.ceiling and row.ratios == ({peer: pytest.approx(21 / 11, rel=1e-3)} if peer else {})
        assert not peer or find(results, section, peer, detail).median == 21.0
    peak = find(results, "ceiling", "torch.mm bf16", "16 x 16 x 16", "card").median or 0
    assert peak == pytest.approx(2 * 16**3 / 21 / 1e6, rel=1e-4)
    copy = find(results, "ceiling", "copy", "1 MiB", "card").median
    assert copy == pytest.approx(2 * (1 << 20) / 11 / 1e3, rel=1e-4)
    highway = find(results, "highway", "bf16", "4 words")
    assert highway.ceiling == pytest.approx(2 * 4 * 5 * 10 / peak / 1e6 + 1.3, rel=1e-3)  # F = 5, and a launch


def test_wrong_kernels_are_told_kept_and_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, characters = problems.highway_launch, problems.char_cnn_launches

    def off_by_a_little(x: torch.Tensor, *args: Any, **options: Any) -> Launch:
        return real(1.05 * x, *args, **options)

    def unwritten(*args: Any, **options: Any) -> list[Launch]:
        return [replace(launch, grid=(0,)) for launch in characters(*args, **options)]

    def broken(*args: Any, **options: Any) -> Launch:
        raise RuntimeError("no such instruction\nand a long story")

    monkeypatch.setattr(problems, "highway_launch", off_by_a_little)
    monkeypatch.setattr(problems, "char_cnn_launches", unwritten)
    monkeypatch.setattr(problems, "linear_launch", broken)
    times = FakeTimes(failing=("fused bf16", "cuBLAS hoisted bf16"))
    status, results, printed = start(tmp_path, LITTLE, times, LITTLE_SIZES)
    notes = {row.label: row.note for row in results.section("error")}
    assert status == 1 and notes["highway bf16, 2 words"].startswith("FAILED: error 0.0")
    assert notes["characters bf16, 2 words"] == "FAILED: error nan, expected less than 0.01"
    assert notes["input bf16, 2 rows"] == "FAILED: RuntimeError: no such instruction"
    words = find(results, "characters", "all", "2 words")  # what cannot be built takes nothing else with it
    assert words.note == "FAILED: RuntimeError: no such instruction"
    note = "not timed, as its check did not pass: characters"
    assert find(results, "characters", "bf16", "2 words").note == note
    assert find(results, "token layers", "one mix bf16", "5 tokens").median == 11.0
    memory = "OutOfMemoryError: CUDA out of memory"
    assert find(results, "step", "fused bf16", "1 rows").note == f"FAILED: {memory}"
    assert find(results, "step", "cuBLAS hoisted bf16", "1 rows").note == memory  # no failure of ours
    assert find(results, "step", "hoisted bf16", "1 rows").ratios == {}
    assert f"failures: {sum(row.failed for row in results.rows)}; " in printed
    status, results, _ = start(tmp_path, replace(LITTLE, limit_seconds=0.0), times, LITTLE_SIZES)
    assert status == 0 and {row.note for row in results.rows} == {"skipped, as the 0 seconds were over"}
    sections = {"error", "ceiling", "step", "characters", "input", "token layers"}
    assert {row.section for row in results.rows} == sections


def test_checks_see_nan() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    for precision, error, failed in (
        *(("fp32", 9e-6, False), ("bf16", 9e-3, False), ("fp32", 1.1e-5, True)),
        ("int8", relative_error(torch.tensor([3.0, torch.nan]), expected), True),
    ):
        assert check_row(Check("x", precision, "1 row", lambda error=error: error), "m").failed is failed  # type: ignore[misc]


@pytest.mark.parametrize("name", ["kernels", "tiles", "gpu"])
def test_without_a_device_there_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "flashelmo bench: no CUDA device: this benchmark needs one\n"
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ its parts


def test_steps_of_two_layers_take_turns_in_the_variants_that_serve_them() -> None:
    layers = [LstmLayer(CONFIG, "cpu", seed) for seed in (0, 1)]
    (group,) = step_groups(layers, 1, ["bf16"], Chain(2, 2, 2), served=True)
    assert (group.section, group.detail) == ("step", "1 rows")
    names = [member.name for member in group.members]
    assert names == ["hoisted bf16", "cuBLAS hoisted bf16", "fused bf16", "cuBLAS fused bf16"]
    assert [member.calls for member in group.members] == [4, 2, 4, 2]
    (many,) = step_groups(layers, 40, ["bf16"], Chain(2, 2, 2), served=True)
    assert {member.name for member in many.members} == {"fused bf16", "cuBLAS fused bf16"}


def test_which_ways_are_timed() -> None:
    layer = LstmLayer(preset_config("original"), "meta")
    both = [("bf16", "fused"), ("bf16", "hoisted"), ("int8", "int8")]
    assert list(ways(layer, 64, ["bf16"])) == list(ways(layer, 65, ["bf16"])) == both
    others = ["fp16", "fp32", "tf32"]
    assert list(ways(layer, 512, others)) == [(precision, "fused") for precision in others]
    assert list(ways(layer, 32, ["fp32"])) == [("fp32", "hoisted")]
    assert [Chain().depths(rows) for rows in (1, 32, 64, 128, 512, 1024)] == [64, 64, 32, 16, 4, 4]


@pytest.mark.parametrize("is_hopper", [False, True])
def test_every_tile_that_is_timed_is_checked(monkeypatch: pytest.MonkeyPatch, is_hopper: bool) -> None:
    monkeypatch.setattr(tuning, "is_hopper", lambda device: is_hopper)
    sizes, settings, device = Sizes(), suite.SUITE.defaults, torch.device("cpu")

    def chosen(operation: str, precision: str, rows: Sequence[int]) -> set[Tile]:
        arithmetic, dtype = PRECISIONS[precision].on("cuda"), problems.dtype_of(precision)
        int8 = precision == "int8" and operation == "gates"
        return {choose_tile(operation, dtype, arithmetic.products, n, device=device, int8=int8) for n in rows}

    for operation in ("gates", "projection"):
        assert chosen(operation, "bf16", settings.rows) <= chosen(operation, "bf16", sizes.steps)
        assert chosen(operation, "int8", settings.rows) <= chosen(operation, "int8", sizes.steps)
        for precision in ("fp16", "fp32", "tf32"):
            checked = chosen(operation, precision, (*sizes.few, *sizes.many))
            assert chosen(operation, precision, settings.other_rows) <= checked
    for operation in ("highway", "characters", "linear"):
        assert chosen(operation, "bf16", settings.words) <= chosen(operation, "bf16", sizes.rows)
    for precision in settings.precisions:
        assert chosen("linear", precision, [settings.input_nodes]) == chosen("linear", precision, sizes.rows[-1:])


# ------------------------------------------------------------------------------------------------------------- timing


def test_tasks_take_turns_in_graphs_and_times_are_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes a microsecond for each call of a task, a graph's replay the number of calls that it holds."""
    log: list[str] = []

    def graph(run: Callable[[], object]) -> Any:
        begin = len(log)
        run()
        held = log[begin:]
        del log[begin:]
        if held[0] == "loop":
            raise RuntimeError("operation not permitted when stream is capturing")

        class Graph:
            replay = staticmethod(lambda: log.extend(held))

        return Graph

    def microseconds(run: Callable[[], object]) -> float:
        begin = len(log)
        run()
        if log[begin] == "late":
            raise RuntimeError("an illegal memory access was encountered")
        return float(len(log) - begin)

    def fail() -> None:
        raise ValueError("no\nmore")

    monkeypatch.setattr(graph_timing, "_graph", graph)
    monkeypatch.setattr(graph_timing, "_microseconds", microseconds)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    tasks = {name: Task(name, lambda name=name: log.append(name)) for name in ("a", "b", "loop", "late")}  # type: ignore[misc]
    found = time_graphs(3, [tasks["a"], tasks["b"]._replace(calls=4)])
    assert found == [Timing([1.0] * 3), Timing([0.25] * 3)]
    assert "".join(log)[-3000:] == ("a" * 500 + "b" * 500) * 3
    failed, late, fine, loop = time_graphs(2, [Task("x", fail), tasks["late"], tasks["a"], tasks["loop"]])
    assert failed == Timing([], "ValueError: no") and late.note.startswith("RuntimeError: an illegal memory access")
    assert fine == Timing([1.0, 1.0]) and loop.samples == [1.0, 1.0]
    assert loop.note.startswith("timed in a loop, launches included, as no graph could be captured: RuntimeError: op")


def test_a_failed_capture_tells_its_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def capture_begin(self) -> None:
            pass

        def capture_end(self) -> None:
            raise RuntimeError("capture was invalidated")

        def wait_stream(self, other: object) -> None:
            pass

    def fail() -> None:
        raise ValueError("the first")

    for name, value in {"CUDAGraph": Fake, "Stream": Fake, "current_stream": Fake, "stream": nullcontext}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    for run, message in ((fail, "the first"), (lambda: None, "invalidated")):
        with pytest.raises((ValueError, RuntimeError), match=message):
            graph_timing._graph(run)


# -------------------------------------------------------------------------------------------------------------- tiles

SMALL, SMALLER = Tile(16, 16, 32, 4, 2), Tile(16, 16, 16, 4, 2)
ALL = dict.fromkeys(tiles.CANDIDATES, (SMALL, SMALLER))


def last_is_fastest(rounds: int, tasks: Sequence[Task]) -> list[Timing]:
    """Runs every task; each takes less than the one before; the first does not fit the card."""
    for task in tasks:
        task.run()
    return [Timing([], "OutOfResources: shared memory"), *(Timing([10.0 - k] * 3) for k in range(1, len(tasks)))]


def sweep(out: Path, **settings: Any) -> Results:
    """All operations' tiles at three rows."""
    run, _, card = started(replace(SETTINGS, out=out / "tiles.json", **settings), "tiles", DEVICE)
    config = replace(CONFIG, max_characters=50)
    kernels = Kernels(run.settings, config, DEVICE, card, last_is_fastest, chain=Chain(2, 1, 2))
    run.do(tiles.jobs(kernels, ALL, dict.fromkeys(ALL, (3,))))
    return run.results


def test_candidates_are_timed_and_sorted(tmp_path: Path) -> None:
    results = sweep(tmp_path)
    for operation in ALL:
        best, worst = results.section(operation)
        assert (best.name, best.median, worst.name) == (SMALLER.label, 9.0, SMALL.label)
        assert best.ceiling and best.detail.startswith("3 ")
        assert (worst.median, worst.note) == (None, "OutOfResources: shared memory")
    skipped = sweep(tmp_path, limit_seconds=0.0).rows
    assert {row.note for row in skipped} == {"skipped, as the 0 seconds were over"} and len(skipped) == len(ALL)


def test_wrong_candidates_and_those_that_cannot_be_built_are_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(x: torch.Tensor, *args: Any, **options: Any) -> Launch:
        wrong = choose_tile("highway", torch.bfloat16, "ieee", 3) == SMALLER
        return launch(1.5 * x if wrong else x, *args, **options)

    def too_large(layer: LstmLayer, rows: int, *args: Any) -> Any:
        if choose_tile("gates", torch.bfloat16, "ieee", rows) == SMALL:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return ours(layer, rows, *args)

    launch, ours = problems.highway_launch, groups.ours
    monkeypatch.setattr(problems, "highway_launch", off)
    monkeypatch.setattr(tiles, "ours", too_large)
    results = sweep(tmp_path)
    notes = {row.name: row.note for row in results.section("highway")}
    assert notes[SMALLER.label].startswith("FAILED: error 0.") and "OutOfResources" in notes[SMALL.label]
    assert all(row.median is None for row in results.section("highway"))
    notes = {row.name: row.note for row in results.section("gates")}
    assert notes[SMALL.label] == "OutOfMemoryError: CUDA out of memory"
    assert notes[SMALLER.label] == "OutOfResources: shared memory"  # the only one that is timed
    assert results.section("linear")[0].median == 9.0


def test_a_lost_device_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "is_lost", lambda device: True)
    monkeypatch.setattr(checks.LstmProblem, "error", None)
    first, second, *rest = sweep(tmp_path).rows
    assert first.note.startswith("FAILED: TypeError: ") and (first.section, first.name) == ("gates", SMALL.label)
    assert second.note == "FAILED: the device is lost after this"
    assert {row.note for row in rest} == {"skipped, as the device is lost"} and len(rest) == len(ALL) - 1


def test_the_table_holds_one_candidate_for_a_while() -> None:
    before = dict(tuning.TILES), dict(tuning.HOPPER_TILES)
    for operation, candidates in tiles.CANDIDATES.items():
        with tiles.only(operation, SMALLER):
            for rows in (1, 100, 5000):
                assert choose_tile(operation, torch.bfloat16, "ieee", rows) == SMALLER
            assert (operation, "half") not in tuning.HOPPER_TILES
            assert choose_tile(operation, torch.float32, "ieee", 1) != SMALLER
        assert before == (tuning.TILES, tuning.HOPPER_TILES)
        in_use = [tile for _, tile in tuning.TILES[operation, "half"]]  # which are candidates too
        in_use += [tile for key, (_, tile) in tuning.HOPPER_TILES.items() if key == (operation, "half")]
        assert {tile._replace(splits=1) for tile in in_use} <= {tile._replace(splits=1) for tile in candidates}
