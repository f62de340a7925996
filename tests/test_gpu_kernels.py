"""The suites of the GPU's kernels, whole, in Triton's interpreter: a tiny model, and a timer that invents times."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

pytest.importorskip("triton")

from gpu_run import H200, FakeTimes

from flashelmo.benchmarks.__main__ import main
from flashelmo.benchmarks.kernels import checks, graph_timing, groups, problems, suite, tables, tiles
from flashelmo.benchmarks.kernels.card import Device, card_named, card_of, results_on
from flashelmo.benchmarks.kernels.checks import ODD, Check, Sizes, run_checks
from flashelmo.benchmarks.kernels.graph_timing import Task, time_graphs
from flashelmo.benchmarks.kernels.groups import Chain, step_groups, ways
from flashelmo.benchmarks.kernels.lstm import LstmLayer
from flashelmo.benchmarks.kernels.model import Cost
from flashelmo.benchmarks.kernels.problems import random_words, relative_error, spell
from flashelmo.benchmarks.kernels.suite import Kernels
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.run import Run
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.timing import Deadline, Timing
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.precision import PRECISIONS
from flashelmo.kernels import tuning
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.tuning import Tile, choose_tile

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter alone")
CONFIG = replace(ODD, filters=((1, 2), (2, 3)), n_highway=2, activation="relu")
DEVICE = Device("interpreter", "cpu")
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
    said = io.StringIO()
    settings = replace(settings, out=out)
    run = Run(
        settings, Console(file=said, width=200), results_on(H200, settings, "kernels"), "found.json", DEVICE.is_lost
    )
    timer = (times or FakeTimes(rival=20.0)).tasks
    kernels = Kernels(settings, CONFIG, DEVICE, card_named("H200"), timer, sizes, Chain(2, 1, 2))
    status = suite.measure(run, kernels)
    return status, Results.read(out / "found.json"), said.getvalue()


def find(results: Results, section: str, detail: str, name: str) -> Row:
    rows = [row for row in results.section(section) if (row.detail, row.name) == (detail, name)]
    assert len(rows) == 1, (section, detail, name)
    return rows[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Results, str]:
    """One run of everything."""
    return start(tmp_path_factory.mktemp("kernels"))


# ------------------------------------------------------------------------------------------------------------ all of it


def test_every_kernel_is_checked_before_anything_is_timed(whole: tuple[int, Results, str]) -> None:
    status, results, _ = whole
    assert status == 0
    assert list(dict.fromkeys(row.section for row in results.rows))[:2] == ["error", "ceiling"]
    kernels: tuple[str, ...] = (
        "highway",
        "characters",
        "final projection",
        "input",
        "token layers",
        "token layers, means",
    )
    kernels += ("token layers", "token layers, means", "gather words")  # the last an exact copy
    steps = ("fused step", "hoisted step")
    expected = {f"{name} {precision}" for name in kernels + steps for precision in ("bf16", "fp32")}
    expected.add("int8 step int8")
    for model in ("tiny", "odd sizes"):
        rows = [row for row in results.section("error") if row.model == model]
        assert {row.name for row in rows} == expected
        for row in rows:
            bound = PRECISIONS[row.name.rpartition(" ")[2]].bounds["cuda"].relative
            assert row.median is not None and bound is not None and row.median < bound, row.label
            assert (row.median == 0) == row.name.startswith("gather"), row.label


@pytest.mark.parametrize(
    ("section", "detail", "name", "peer"),
    [
        ("gates", "3 rows", "fused bf16", "cuBLAS fused bf16"),
        ("gates", "3 rows", "fused fp32", "cuBLAS fused fp32"),
        ("projection", "1 rows", "bf16", "cuBLAS bf16"),
        ("step", "1 rows", "hoisted bf16", "cuBLAS hoisted bf16"),
        ("highway", "4 words", "bf16", "cuBLAS bf16"),
        ("final projection", "1 words", "bf16", "cuBLAS bf16"),
        ("input", "3 nodes", "fp32", "cuBLAS fp32"),
        ("step", "3 rows", "int8 int8", ""),
        ("characters", "4 words", "bf16", ""),
        ("characters and highways", "4 words", "bf16", ""),
        ("token layers", "5 tokens", "all layers bf16", ""),
    ],
)
def test_every_time_has_its_model_roofline_and_peer(
    whole: tuple[int, Results, str], section: str, detail: str, name: str, peer: str
) -> None:
    results = whole[1]
    row = find(results, section, detail, name)
    assert (row.median, row.p25, row.samples, row.unit) == (11.0, 10.5, [10.0, 11.0, 12.0], "µs")
    assert row.ceiling is not None and row.ceiling > 0
    theirs = find(results, section, detail, peer).median if peer else None
    assert theirs == (None if not peer else 11.0 if peer.startswith("plain") else 21.0)
    assert row.ratios == ({peer: pytest.approx((theirs or 0) / 11, rel=1e-3)} if peer else {})
    predicted = find(results, section, detail, f"model of {name}")
    assert predicted.median is not None and predicted.median >= row.ceiling
    assert predicted.note.startswith(f"model of {name}: bound by ")


def test_ceilings_are_measured_and_used(whole: tuple[int, Results, str]) -> None:
    results = whole[1]
    peak = find(results, "ceiling", "16 x 16 x 16", "torch.mm bf16").median
    assert peak == pytest.approx(2 * 16**3 / 21 / 1e6, rel=1e-4)
    assert find(results, "ceiling", "1 MiB", "copy").median == pytest.approx(2 * (1 << 20) / 11 / 1e3, rel=1e-4)
    highway = find(results, "highway", "4 words", "bf16")
    assert highway.ceiling == pytest.approx(2 * 4 * 5 * 10 / (peak or 0) / 1e6, rel=1e-3)  # F = 5


def test_a_run_ends_with_its_tables(whole: tuple[int, Results, str]) -> None:
    _, results, said = whole
    assert (results.machine["gpu"], results.commit) == (H200, {"id": "abc", "dirty": False})
    assert {"torch", "triton", "cuda"} <= results.versions.keys() and results.settings["rows"] == [1, 3]
    assert "| hoisted bf16 | 11 | 11 |" in said and "| cuBLAS hoisted bf16 | 21 | 21 |" in said
    assert "| highway, bf16 | 4 words | 11 | " in said and " | 21 (cuBLAS bf16) |" in said
    assert "| largest error in float32 | relative error | " in said and "failures: 0; " in said


def test_targets_are_shares_of_the_measured_peak() -> None:
    rows = [
        Row("step", "m", "fused bf16", "µs", "512 rows", median=100.0),
        Row("step", "m", "fused bf16", "µs", "32 rows", median=22.0),
        Row("step", "m", "hoisted bf16", "µs", "32 rows", median=15.0),
        Row("characters and highways", "m", "bf16", "µs", "4096 words", median=200.0),
        Row("error", "m", "highway fp32", "relative error", median=1e-7),
        Row("error", "m", "input fp32", "relative error", median=3e-7),
        Row("error", "m", "input bf16", "relative error", median=3e-3),
    ]
    costs = {
        ("step", "512 rows", "fused bf16"): Cost(operations=50e9),
        ("characters and highways", "4096 words", "bf16"): Cost(operations=40e9),
    }
    results = replace(results_on(H200, SETTINGS, "kernels"), rows=rows)
    found = tables.targets(results, costs, replace(card_named("H200"), half=1000e12), "m")
    assert [row.median for row in found] == [50.0, 15.0, 20.0, 3e-7]
    assert found[1].name == "step, 32 rows, bf16 hoisted"
    table = tables.target_table(
        replace(results, rows=[*found, tables.target_row("m", "x", "y", None, "at most 1")]), "it"
    )
    verdicts = [line.split("|")[3:6] for line in table.splitlines()[4:]]
    assert [[cell.strip() for cell in verdict] for verdict in verdicts] == [
        ["50", "at least 60", "missed"],
        ["15", "at most 16", ""],
        ["20", "at least 50", "missed"],
        ["3e-07", "less than 1e-05", ""],
        ["not measured", "at most 1", ""],
    ]


# -------------------------------------------------------------------------------------------------- when it goes wrong


def test_wrong_kernels_are_told_kept_and_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_little(x: torch.Tensor, *args: Any, **options: Any) -> Launch:
        return real(1.05 * x, *args, **options)

    def unwritten(*args: Any, **options: Any) -> list[Launch]:
        return [replace(launch, grid=(0,)) for launch in characters(*args, **options)]

    def broken(*args: Any, **options: Any) -> Launch:
        raise RuntimeError("no such instruction\nand a long story")

    real, characters = problems.highway_launch, problems.char_cnn_launches
    monkeypatch.setattr(problems, "highway_launch", off_by_a_little)
    monkeypatch.setattr(problems, "char_cnn_launches", unwritten)
    monkeypatch.setattr(problems, "linear_launch", broken)
    times = FakeTimes(failing=("fused bf16", "cuBLAS hoisted bf16"))
    status, results, said = start(tmp_path, LITTLE, times, LITTLE_SIZES)
    assert status == 1
    notes = {row.label: row.note for row in results.section("error")}
    assert notes["highway bf16, 2 words"].startswith("FAILED: error 0.0")
    assert notes["characters bf16, 2 words"] == "FAILED: error nan, expected less than 0.01"
    assert notes["input bf16, 2 rows"] == "FAILED: RuntimeError: no such instruction"
    assert "error, highway bf16, 2 words, FAILED: error 0.0" in said

    reason = "not timed, as its check did not pass: "
    words = find(results, "characters", "2 words", "all")  # what cannot be built takes nothing else with it
    assert words.note == "FAILED: RuntimeError: no such instruction"
    assert find(results, "characters", "2 words", "bf16").note == f"{reason}characters"
    assert find(results, "highway", "2 words", "bf16").note == f"{reason}highway"
    both = find(results, "characters and highways", "2 words", "bf16")
    assert (both.median, both.note) == (None, f"{reason}characters, highway")
    assert find(results, "token layers", "5 tokens", "one mix bf16").median == 11.0
    assert find(results, "step", "1 rows", "fused bf16").note == "FAILED: OutOfMemoryError: CUDA out of memory"
    peer = find(results, "step", "1 rows", "cuBLAS hoisted bf16")
    assert (peer.median, peer.note) == (
        None,
        "OutOfMemoryError: CUDA out of memory",
    )  # a peer's failure is no failure of ours
    assert find(results, "step", "1 rows", "hoisted bf16").ratios == {}
    assert f"failures: {sum(row.failed for row in results.rows)}; " in said


def test_ceilings_may_be_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*args: Any) -> Iterator[Any]:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Kernels, "_why_not", lambda self, each: "")
    monkeypatch.setattr(checks, "run_checks", lambda *args: iter([]))
    monkeypatch.setattr(suite, "measure_ceilings", too_large)
    status, results, said = start(tmp_path, LITTLE, sizes=LITTLE_SIZES)
    assert status == 1 and "failures: 1; " in said
    assert find(results, "step", "1 rows", "hoisted bf16").median == 11.0
    assert [row.note for row in results.section("ceiling")] == ["FAILED: OutOfMemoryError: CUDA out of memory"]
    assert len(results.section("target")) == 4


def test_a_time_limit_leaves_the_rest_out_and_says_so(tmp_path: Path) -> None:
    times = FakeTimes()
    status, results, _ = start(tmp_path, replace(LITTLE, limit_seconds=0.0), times, LITTLE_SIZES)
    assert status == 0 and times.ran == []
    rows = [row for row in results.rows if row.section != "target"]
    assert {(row.median, row.note) for row in rows} == {(None, "skipped, as the 0 seconds were over")}
    assert {row.section for row in rows} == {"error", "ceiling", "step", "characters", "input", "token layers"}


def test_checks_see_nan_and_end_where_the_device_cannot_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(device: str) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    expected = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    found = [
        Check("fine", "fp32", "1 row", lambda: 9e-6),
        Check("rounded", "bf16", "1 row", lambda: 9e-3),
        Check("wrong", "fp32", "1 row", lambda: 1.1e-5),
        Check("nan", "int8", "1 row", lambda: relative_error(torch.tensor([3.0, torch.nan]), expected)),
    ]
    for synchronize, reached in ((lambda device: None, 4), (dead, 3)):
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        passed: dict[tuple[str, str], bool] = {}
        checked = run_checks(found, "m", Deadline(60), Device("cuda", "cuda:0"), passed)
        rows = [row for rows in checked for row in rows]
        assert (
            [row.failed for row in rows]
            == [False, False, True, True][:reached]
            == [not each for each in passed.values()]
        )
    assert not DEVICE.is_lost()


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
    names = [member.task.name for member in group.members]
    assert names == ["hoisted bf16", "cuBLAS hoisted bf16", "fused bf16", "cuBLAS fused bf16"]
    assert [member.task.calls for member in group.members] == [4, 2, 4, 2]
    (many,) = step_groups(layers, 40, ["bf16"], Chain(2, 2, 2), served=True)
    assert {member.task.name for member in many.members} == {"fused bf16", "cuBLAS fused bf16"}


def test_a_card_that_is_not_in_the_table_takes_what_the_device_says() -> None:
    said: list[str] = []
    card = card_of({"name": "NVIDIA L40S", "l2_bytes": 96e6, "multiprocessors": 142}, said.append)
    assert (card.name, card.l2_bytes, card.multiprocessors) == ("NVIDIA L40S", 96e6, 142)
    assert card.launch == card_named("A100").launch
    assert said == ["NVIDIA L40S is not in the table of cards: launch and L2 bandwidth are taken from the A100"]
    assert card_of(H200, said.append).half == card_named("H200").half
    h200 = card_named("H200")
    assert h200.with_limit("half", 5e14).half == 5e14 and h200.with_limit("memory", 4e12).memory == 4e12
    assert h200.with_limit("l2", 1.0).l2 == h200.l2 and h200.with_limit("l2", 9e12).l2 == 9e12
    assert h200.with_limit("half", None) == h200


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


def test_words_are_distinct_and_spelled() -> None:
    words = suite.text_words(50)
    assert len(set(words)) == 50
    ids = spell(["a", "b" * 99], CONFIG)
    assert ids[0].tolist() == [259, 98, 260] + [261] * 9
    assert ids[1].tolist() == [259] + [99] * 10 + [260]
    lengths = [len(word) for word in random_words(CONFIG, 40)]
    assert lengths[:2] == [1, 10] and min(lengths) == 1 and max(lengths) == 10


# ------------------------------------------------------------------------------------------------------------- timing


class FakeClock:
    """Runs take a microsecond for each call of a task, a graph's replay the number of calls that it holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...] = ()) -> None:
        self.log: list[str] = []
        self._broken = broken
        monkeypatch.setattr(graph_timing, "_graph", self._graph)
        monkeypatch.setattr(graph_timing, "_microseconds", self._microseconds)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def _graph(self, run: Callable[[], object]) -> Any:
        start = len(self.log)
        run()
        held = self.log[start:]
        del self.log[start:]
        if held[0] in self._broken:
            raise RuntimeError("operation not permitted when stream is capturing")

        class Graph:
            replay = staticmethod(lambda: self.log.extend(held))

        return Graph

    def task(self, name: str, calls: int = 1) -> Task:
        return Task(name, lambda: self.log.append(name), calls)

    def _microseconds(self, run: Callable[[], object]) -> float:
        start = len(self.log)
        run()
        if self.log[start] == "late":
            raise RuntimeError("an illegal memory access was encountered")
        return float(len(self.log) - start)


def test_tasks_take_turns_and_times_are_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)
    assert time_graphs(3, [clock.task("a"), clock.task("b", calls=4)]) == [Timing([1.0] * 3), Timing([0.25] * 3)]
    assert "".join(clock.log)[-3000:] == ("a" * 500 + "b" * 500) * 3


def test_what_fails_has_no_time_and_what_no_graph_holds_is_timed_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, broken=("b",))

    def fail() -> None:
        raise ValueError("no\nmore")

    timings = time_graphs(2, [Task("x", fail), clock.task("late"), clock.task("a"), clock.task("b")])
    assert timings[:2] == [
        Timing([], "ValueError: no"),
        Timing([], "RuntimeError: an illegal memory access was encountered"),
    ]
    assert timings[2] == Timing([1.0, 1.0]) and timings[3].samples == [1.0, 1.0]
    assert timings[3].note.startswith(
        "timed in a loop, launches included, as no graph could be captured: RuntimeError: op"
    )


def test_a_failed_capture_tells_its_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        def capture_begin(self) -> None:
            pass

        def capture_end(self) -> None:
            raise RuntimeError("capture was invalidated")

    class Stream:
        def wait_stream(self, other: object) -> None:
            pass

    def fail() -> None:
        raise ValueError("the first")

    fakes = {"CUDAGraph": Graph, "Stream": Stream, "current_stream": Stream, "stream": nullcontext}
    for name, value in fakes.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with pytest.raises(ValueError, match="the first"):
        graph_timing._graph(fail)
    with pytest.raises(RuntimeError, match="invalidated"):
        graph_timing._graph(lambda: None)


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
    given = replace(SETTINGS, out=out, **settings)
    run = Run(given, Console(file=io.StringIO()), results_on(H200, given, "tiles"), "tiles.json", DEVICE.is_lost)
    config = replace(CONFIG, max_characters=50)
    kernels = Kernels(given, config, DEVICE, card_named("H200"), last_is_fastest, chain=Chain(2, 1, 2))
    run.do(tiles.jobs(run, kernels, ALL, dict.fromkeys(ALL, (3,))))
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
