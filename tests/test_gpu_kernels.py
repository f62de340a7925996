"""The benchmark of the GPU's kernels, whole, in Triton's interpreter: a tiny model, and a timer that invents times."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from flashelmo.benchmarks.kernels import checks as gpu_checks
from flashelmo.benchmarks.kernels import contestants as gpu_contestants
from flashelmo.benchmarks.kernels import measure as gpu_kernels
from flashelmo.benchmarks.kernels import report as gpu_report
from flashelmo.benchmarks.kernels import tiles as gpu_tiles
from flashelmo.benchmarks.kernels import timing as gpu_timing
from flashelmo.benchmarks.kernels.checks import Check, Checked, Sizes, random_words, relative_error, run_checks, spell
from flashelmo.benchmarks.kernels.contestants import Chain, Layer, both_directions, ways
from flashelmo.benchmarks.kernels.measure import ODD, GpuSettings, Run
from flashelmo.benchmarks.kernels.model import card_named
from flashelmo.benchmarks.kernels.timing import Deadline, GraphTimer, Task, Timing
from flashelmo.benchmarks.results import Results, Row
from flashelmo.engine.model.initialize import preset_config
from flashelmo.kernels import tuning
from flashelmo.kernels.launch import Barrier, Launch

CONFIG = replace(ODD, filters=((1, 2), (2, 3)), n_highway=2, activation="relu")
SETTINGS = GpuSettings(
    model="tiny",
    rows=(1, 3),
    words=(1, 4),
    tokens=5,
    input_nodes=3,
    other_rows=(3,),
    compiled_rows=(),
    kinds=("bf16", "fp32"),
    sizes=Sizes((1, 3), (1, 2), (3,), (1, 3)),
    odd_sizes=Sizes((1, 2), (2,), (2,), (1, 2)),
    chain=Chain(2, 1, 2),
    peak_size=16,
    copy_bytes=1 << 20,
)
LITTLE = replace(
    SETTINGS, rows=(1,), words=(2,), kinds=("bf16",), sizes=Sizes((1,), (1,), (1,), (1, 2)), odd_sizes=None
)


@dataclass
class FakeTimer:
    """Runs each task once and says that it took 10 µs, and a library twice as long; some may fail."""

    failing: tuple[str, ...] = ()
    ran: list[str] = field(default_factory=list)

    def time(self, tasks: Sequence[Task]) -> list[Timing]:
        timings = []
        for task in tasks:
            task.run()
            self.ran.append(task.name)
            once = 20.0 if task.name.startswith(("cuBLAS", "torch")) else 10.0
            failed = task.name in self.failing
            timings.append(
                Timing([], "OutOfResources: shared memory") if failed else Timing([once, once + 1, once + 2])
            )
        return timings


def start(
    out: Path, settings: GpuSettings = SETTINGS, timer: FakeTimer | None = None, card: str = "NVIDIA H200"
) -> tuple[bool, Results, list[str]]:
    """Runs the benchmark; whether all went well, the results that were written, and what was said."""
    said: list[str] = []
    results = gpu_kernels.new_results(settings, {"name": card, "l2_bytes": 50e6, "multiprocessors": 132}, "abc")
    run = Run(
        settings,
        CONFIG,
        results,
        device="cpu",
        timer=timer or FakeTimer(),
        card=card_named(card),
        out=out,
        say=said.append,
    )
    well = run.run()
    return well, Results.read(run.path), said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bool, Results, list[str], Path]]:
    """One run of everything."""
    if torch.cuda.is_available():
        pytest.skip("in the interpreter alone")
    out = tmp_path_factory.mktemp("gpu")
    yield (*start(out), out)


def find(results: Results, section: str, detail: str, name: str) -> Row:
    rows = [row for row in results.section(section) if (row.detail, row.name) == (detail, name)]
    assert len(rows) == 1, (section, detail, name)
    return rows[0]


def last(said: Sequence[str]) -> str:
    """The line that says how it went; only plots follow."""
    (found,) = (line for line in said if line.startswith("failures: "))
    rest = said[said.index(found) + 1 :]
    assert all(line.startswith(("drawn: ", "not drawn")) for line in rest)
    return found


Whole = tuple[bool, Results, list[str], Path]


# ------------------------------------------------------------------------------------------------------------ all of it


def test_every_kernel_is_checked_before_anything_is_timed(whole: Whole) -> None:
    well, results, _, _ = whole
    assert well
    sections = list(dict.fromkeys(row.section for row in results.rows))
    assert sections[:2] == ["error", "ceiling"]
    errors = results.section("error")
    kernels = {"highway", "characters", "final projection", "input", "token layers"}
    steps = {"fused step", "hoisted step", "persistent step"}
    expected = {f"{name} {kind}" for name in kernels | steps for kind in ("bf16", "fp32")}
    expected |= {"hoisted step int8", "persistent step int8"}
    expected |= {f"dependent {name}" for name in ("fused step bf16", "hoisted step bf16", "hoisted step int8")}
    for sizes in ("tiny", "odd sizes"):
        assert {row.name for row in errors if row.model == sizes} == expected
    for row in errors:
        assert row.median is not None and 0 < row.median < gpu_checks.BOUNDS[row.name.rpartition(" ")[2]], row.label


def test_every_time_has_its_model_roofline_and_peer(whole: Whole) -> None:
    results = whole[1]
    for section, detail, name, peer in [
        ("gates", "3 rows", "fused bf16", "cuBLAS fused bf16"),
        ("gates", "3 rows", "hoisted fp32", "cuBLAS hoisted fp32"),
        ("projection", "1 rows", "bf16", "cuBLAS bf16"),
        ("step", "1 rows", "hoisted bf16", "cuBLAS hoisted bf16"),
        ("highway", "4 words", "bf16", "cuBLAS bf16"),
        ("final projection", "1 words", "bf16", "cuBLAS bf16"),
        ("input", "3 nodes", "fp32", "cuBLAS fp32"),
        ("step", "3 rows", "persistent int8", ""),
        ("characters", "4 words", "bf16", ""),
        ("characters and highways", "4 words", "bf16", ""),
        ("token layers", "5 tokens", "all layers bf16", ""),
    ]:
        row = find(results, section, detail, name)
        assert (row.median, row.p25, row.samples, row.unit) == (11.0, 10.5, [10.0, 11.0, 12.0], "µs")
        assert row.ceiling is not None and row.ceiling > 0
        assert row.ratios == ({peer: pytest.approx(21 / 11, rel=1e-3)} if peer else {})
        if peer:
            assert find(results, section, detail, peer).median == 21.0
        predicted = find(results, section, detail, f"model of {name}")
        assert predicted.median is not None and predicted.median >= row.ceiling
        assert predicted.note.startswith("bound by ")


def test_dependent_launches_stand_beside_plain_ones(whole: Whole) -> None:
    results = whole[1]
    for detail, names in (("1 rows", ("hoisted bf16", "hoisted int8")), ("3 rows", ("hoisted int8",))):
        for name in names:
            row = find(results, "step, dependent launches", detail, name)
            assert (row.median, row.ratios) == (11.0, {f"plain {name}": 1.0})
            assert find(results, "step, dependent launches", detail, f"plain {name}").median == 11.0


def test_cards_without_dependent_launches_leave_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gpu_checks, gpu_contestants):
        monkeypatch.setattr(module, "has_dependent", lambda device: False)
    names = {check.name for check in gpu_checks.checks(CONFIG, LITTLE.sizes, "cpu", 0, ("bf16",))}
    assert "hoisted step" in names and not any("dependent" in name for name in names)
    sections = [group.section for group in Layer(CONFIG, "cpu", Chain(2, 1, 2), 0).groups(1, ["bf16"])]
    assert sections == ["gates", "projection", "step"]


@pytest.mark.parametrize(("capability", "has"), [((8, 0), False), ((9, 0), True), ((12, 0), True)])
def test_which_cards_have_dependent_launches(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert gpu_checks.has_dependent("cuda:0") is has and gpu_checks.has_dependent("cpu")


def test_ceilings_are_measured_and_used(whole: Whole) -> None:
    results = whole[1]
    peak = find(results, "ceiling", "16 x 16 x 16", "torch.mm bf16")
    assert peak.median is not None and peak.median == pytest.approx(2 * 16**3 / 21 / 1e6, rel=1e-4)
    copy = find(results, "ceiling", "1 MiB", "copy")
    assert copy.median == pytest.approx(2 * (1 << 20) / 11 / 1e3, rel=1e-4)
    highway = find(results, "highway", "4 words", "bf16")
    assert highway.ceiling == pytest.approx(2 * 4 * 5 * 10 / peak.median / 1e6, rel=1e-3)  # F = 5


def test_a_run_is_written_with_what_it_ran_on(whole: Whole) -> None:
    _, results, said, out = whole
    assert results.machine["gpu"]["name"] == "NVIDIA H200"
    assert results.commit == {"id": "abc", "dirty": False}
    assert {"torch", "triton", "cuda"} <= results.versions.keys()
    assert results.settings["rows"] == [1, 3]
    names = {path.name for path in out.iterdir()}
    assert names == {"gpu-kernels-h200.json", "gpu-kernels-h200-steps.svg", "gpu-kernels-h200-words.svg"}
    for path in out.glob("*.svg"):
        assert "<svg" in path.read_text(encoding="utf-8")
    assert said[0].startswith("NVIDIA H200\npython ") and "commit abc" in said[0]


def test_the_end_has_a_short_table_and_the_targets(whole: Whole) -> None:
    said = whole[2]
    headings = [line for line in said if "µs (model)" in line]
    assert [line.partition(",")[0] for line in headings] == [*gpu_report.STEP_SECTIONS, *gpu_report.WORD_SECTIONS]
    assert any(line.startswith(" " * 28 + "1 rows") and " 11 (" in line and " 21" in line for line in said)
    targets = [line for line in said if line.startswith("target")]
    assert len(targets) == 4 and "wanted: less than 1e-05" in targets[-1]
    assert [("not measured" in line) for line in targets] == [True, True, True, False]
    assert last(said).startswith("failures: 0; ")


def test_targets_are_shares_of_the_measured_peak() -> None:
    from flashelmo.benchmarks.kernels.model import Cost

    rows = [
        Row("step", "m", "fused bf16", "µs", "512 rows", median=100.0),
        Row("step", "m", "fused bf16", "µs", "32 rows", median=22.0),
        Row("step", "m", "hoisted bf16", "µs", "32 rows", median=15.0),
        Row("step", "m", "persistent bf16", "µs", "32 rows", median=18.0),
        Row("characters and highways", "m", "bf16", "µs", "4096 words", median=200.0),
        Row("error", "m", "highway fp32", "relative error", median=1e-7),
        Row("error", "m", "input fp32", "relative error", median=3e-7),
        Row("error", "m", "input bf16", "relative error", median=3e-3),
    ]
    results = replace(gpu_kernels.new_results(SETTINGS, {"name": "x"}, "c"), rows=rows)
    costs = {
        ("step", "512 rows", "fused bf16"): Cost(operations=50e9),
        ("characters and highways", "4096 words", "bf16"): Cost(operations=40e9),
    }
    card = replace(card_named("H200"), half=1000e12)
    found = gpu_report.targets(results, costs, card, "m")
    assert [row.median for row in found] == [50.0, 15.0, 20.0, 3e-7]
    assert found[1].name == "step, 32 rows, bf16 hoisted"


def test_without_matplotlib_only_the_plots_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    well, _, said = start(tmp_path, replace(LITTLE, limit_seconds=0.0))
    assert well and "not drawn, as matplotlib is not installed" in said
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


# -------------------------------------------------------------------------------------------------- when it goes wrong


def unwritten(launch: Callable[..., Launch]) -> Callable[..., Launch]:
    """A launcher of a kernel that writes nothing."""
    return lambda *args, **options: launch(*args, **options)._replace(grid=(0,))


def test_wrong_kernels_are_told_kept_and_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_a_little(x: torch.Tensor, *args: Any, **options: Any) -> Launch:
        return real(1.05 * x, *args, **options)

    def broken(*args: Any, **options: Any) -> Launch:
        raise RuntimeError("no such instruction\nand a long story")

    real = gpu_checks.highway_launch
    monkeypatch.setattr(gpu_checks, "highway_launch", off_by_a_little)
    monkeypatch.setattr(gpu_checks, "char_cnn_launch", unwritten(gpu_checks.char_cnn_launch))
    monkeypatch.setattr(gpu_checks, "token_layers_launch", broken)
    timer = FakeTimer(failing=("persistent bf16", "cuBLAS hoisted bf16"))
    well, results, said = start(tmp_path, LITTLE, timer)
    assert not well

    highway, characters, tokens = (
        [row for row in results.section("error") if row.name == f"{name} bf16"]
        for name in ("highway", "characters", "token layers")
    )
    assert all(row.note.startswith("FAILED: error 0.0") and row.median for row in highway)
    assert all(row.note == "FAILED: error nan, expected less than 0.01" and row.median is None for row in characters)
    assert {row.note for row in tokens} == {"FAILED: RuntimeError: no such instruction"}
    assert any(line.startswith("highway bf16, 2 words: FAILED: error 0.0") for line in said)

    reason = "not timed, as its check did not pass: "
    assert find(results, "highway", "2 words", "bf16") == Row(
        "highway", "tiny", "bf16", "µs", "2 words", note=f"{reason}highway"
    )
    both = find(results, "characters and highways", "2 words", "bf16")
    assert (both.median, both.note) == (None, f"{reason}characters, highway")
    assert find(results, "final projection", "2 words", "bf16").median == 11.0
    assert find(results, "token layers", "5 tokens", "one mix bf16").note == f"{reason}token layers"

    assert find(results, "step", "1 rows", "persistent bf16").note == "FAILED: OutOfResources: shared memory"
    peer = find(results, "step", "1 rows", "cuBLAS hoisted bf16")
    assert (peer.median, peer.note) == (None, "OutOfResources: shared memory")  # a peer's failure is no failure of ours
    assert find(results, "step", "1 rows", "hoisted bf16").ratios == {}
    failures = len(highway) + len(characters) + len(tokens) + 1
    assert last(said).startswith(f"failures: {failures}; ")


def test_what_cannot_be_built_takes_nothing_else_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*args: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_kernels, "input_group", too_large)
    monkeypatch.setattr(gpu_kernels, "run_checks", lambda *args: Checked([], set()))
    well, results, _ = start(tmp_path, LITTLE)
    assert not well
    assert find(results, "input", "3 nodes", "all").note == "FAILED: OutOfMemoryError: CUDA out of memory"
    assert find(results, "token layers", "5 tokens", "one mix bf16").median == 11.0


def test_ceilings_that_cannot_be_measured_are_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*args: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_kernels, "ceiling_groups", too_large)
    monkeypatch.setattr(gpu_kernels, "run_checks", lambda *args: Checked([], set()))
    well, results, said = start(tmp_path, LITTLE)
    assert not well and last(said).startswith("failures: 1; ")
    assert [row.note for row in results.section("ceiling")] == ["FAILED: OutOfMemoryError: CUDA out of memory"]
    assert find(results, "step", "1 rows", "hoisted bf16").median == 11.0
    assert len(results.section("target")) == 4


def test_no_failure_in_drawing_costs_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ValueError("no such colour\nand more")

    monkeypatch.setattr(gpu_report, "draw", broken)
    well, results, said = start(tmp_path, replace(LITTLE, limit_seconds=0.0))
    assert well and len(results.section("target")) == 4
    assert last(said) and said[-1] == "not drawn: ValueError: no such colour"


def test_a_lost_device_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> Launch:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(gpu_checks, "_is_alive", lambda device: False)
    monkeypatch.setattr(gpu_checks, "highway_launch", broken)
    timer = FakeTimer()
    well, results, said = start(tmp_path, replace(LITTLE, odd_sizes=LITTLE.sizes), timer)
    assert not well and timer.ran == []
    line = "the device is lost after highway bf16, 1 words: the rest is not checked"
    assert said.count(line) == 1
    assert results.section("error")[-1].note == f"FAILED: RuntimeError: CUDA error; {line}"
    assert {row.section for row in results.rows} == {"error", "target"}
    assert last(said).startswith("failures: 1; ")


def test_a_device_is_lost_where_it_cannot_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(device: str) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    wrong = Check("highway", "bf16", "1 words", lambda: 1.0)
    for synchronize, reached in ((dead, 1), (lambda device: None, 2)):
        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        rows, failed, lost = run_checks(iter([wrong, wrong]), "m", Deadline(60), lambda line: None, "cuda:0")
        assert (len(rows), bool(lost), failed) == (reached, reached == 1, {("highway", "bf16")})
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    assert not run_checks(iter([wrong]), "m", Deadline(60), lambda line: None, "cpu").lost


def test_a_barrier_that_gave_up_while_timed_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gave_up(barrier: Barrier) -> None:
        raise RuntimeError("barrier: some are missing")

    monkeypatch.setattr(Barrier, "check", gave_up)
    monkeypatch.setattr(gpu_kernels, "run_checks", lambda *args: Checked([], set()))
    well, results, _ = start(tmp_path, LITTLE)
    assert not well
    row = find(results, "step", "1 rows", "persistent bf16")
    assert (row.median, row.note) == (None, "FAILED: RuntimeError: barrier: some are missing")
    assert find(results, "step", "1 rows", "hoisted bf16").median == 11.0


def test_a_time_limit_leaves_the_rest_out_and_says_so(tmp_path: Path) -> None:
    timer = FakeTimer()
    well, results, _ = start(tmp_path, replace(LITTLE, compiled_rows=(1,), limit_seconds=0.0), timer)
    assert well
    note = "skipped, as the 0 seconds were over"
    rows = [row for row in results.rows if row.section != "target"]
    assert all((row.median, row.note) == (None, note) for row in rows)
    sections = {"error", "ceiling", "step", "characters", "input", "token layers", "compiled step"}
    assert {row.section for row in rows} == sections
    assert timer.ran == []


def test_errors_are_relative_and_see_nan() -> None:
    expected = torch.tensor([3.0, 4.0])
    assert relative_error(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    rows, failed, lost = run_checks(
        iter(
            [
                Check("fine", "fp32", "1 row", lambda: 9e-6),
                Check("wrong", "fp32", "1 row", lambda: 1.1e-5),
                Check("rounded", "bf16", "1 row", lambda: 9e-3),
                Check("nan", "int8", "1 row", lambda: relative_error(torch.tensor([3.0, torch.nan]), expected)),
            ]
        ),
        "m",
        Deadline(60),
        lambda line: None,
        "cpu",
    )
    assert failed == {("wrong", "fp32"), ("nan", "int8")}
    assert [bool(row.note) for row in rows] == [False, True, False, True]
    assert not lost


def test_without_a_device_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_kernels.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "kernels.measure: no CUDA device: this benchmark needs one\n"
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------ its parts


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    settings, given = gpu_kernels.parse(["--out", "x", "--model", "small", "--rows", "1,512", "--limit-seconds", "60"])
    assert (settings.model, settings.rows, settings.limit_seconds) == ("small", (1, 512), 60.0)
    assert given.out == Path("x")
    json.dumps(gpu_kernels.asdict(settings))
    for rows in ("0", "1,x"):
        with pytest.raises(SystemExit):
            gpu_kernels.parse(["--out", "x", "--rows", rows])
        assert f"--rows: expected positive whole numbers with commas, found '{rows}'" in capsys.readouterr().err


def test_rounds_and_folders_are_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpu_kernels.parse(["--out", "x", "--rounds", "0"])
    assert "--rounds: expected at least 1, found 0" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    file = tmp_path / "file"
    file.touch()
    for name, main in (("kernels.measure", gpu_kernels.main), ("kernels.tiles", gpu_tiles.main)):
        for out in (file, file / "folder"):
            assert main(["--out", str(out)]) == 1
            expected = f"{name}: --out: expected a folder or a path where one can be made, found {out} ("
            error = capsys.readouterr().err
            assert error.startswith(expected) and error.count("\n") == 1
    assert gpu_kernels.why_no_folder(tmp_path / "new" / "folder") == ""


def test_a_card_that_is_not_in_the_table_takes_what_the_device_says() -> None:
    said: list[str] = []
    found = {"name": "NVIDIA L40S", "l2_bytes": 96e6, "multiprocessors": 142}
    card = gpu_kernels.card_of(found, said.append)
    assert (card.name, card.l2_bytes, card.multiprocessors) == ("NVIDIA L40S", 96e6, 142)
    assert card.launch == card_named("A100").launch
    assert said == [
        "NVIDIA L40S is not in the table of cards: launch, barrier and L2 bandwidth are taken from the A100"
    ]
    assert gpu_kernels.card_of({**found, "name": "NVIDIA H200"}, said.append).half == card_named("H200").half


def test_which_ways_are_timed() -> None:
    config = preset_config("original")
    few = [("bf16", "fused"), ("bf16", "hoisted"), ("bf16", "persistent"), ("int8", "hoisted"), ("int8", "persistent")]
    assert list(ways(config, 64, ["bf16"])) == few
    assert list(ways(config, 65, ["bf16"])) == few[:2]
    assert list(ways(config, 512, ["fp16", "fp32", "tf32"])) == [
        ("fp16", "fused"),
        ("fp32", "fused"),
        ("tf32", "fused"),
    ]
    assert list(ways(config, 32, ["fp32"])) == [("fp32", "hoisted")]


@pytest.mark.parametrize("is_hopper", [False, True])
def test_every_tile_that_is_timed_is_checked(monkeypatch: pytest.MonkeyPatch, is_hopper: bool) -> None:
    monkeypatch.setattr(tuning, "_is_hopper", lambda device: is_hopper)
    sizes, settings, device = Sizes(), GpuSettings(), torch.device("cpu")

    def tiles(operation: str, kind: str, rows: Sequence[int]) -> set[tuning.Tile]:
        dtype, precision = gpu_checks.DTYPES[kind], gpu_checks.precision_of(kind)
        return {tuning.choose_tile(operation, dtype, precision, n, device=device, int8=kind == "int8") for n in rows}

    small = [n for n in sizes.steps if n <= 64]
    at_small = [n for n in settings.rows if n <= 64]
    for operation in ("gates", "projection"):
        assert tiles(operation, "bf16", settings.rows) <= tiles(operation, "bf16", sizes.steps)
        assert tiles(operation, "int8", at_small) <= tiles(operation, "int8", small)
        for kind in ("fp16", "fp32", "tf32"):
            assert tiles(operation, kind, settings.other_rows) <= tiles(operation, kind, (*sizes.few, *sizes.many))
        for kind in ("bf16", "int8"):
            operations = f"persistent {operation}"
            assert tiles(operations, kind, at_small) <= tiles(operations, kind, (max(small), max(small[:2])))
    for operation in ("highway", "characters", "linear"):
        assert tiles(operation, "bf16", settings.words) <= tiles(operation, "bf16", sizes.rows)
    for kind in settings.kinds:
        assert tiles("linear", kind, [settings.input_nodes]) == tiles("linear", kind, sizes.rows[-1:])


def test_chains_are_as_long_as_slabs() -> None:
    assert [Chain().depths(rows) for rows in (1, 32, 64, 128, 512, 1024)] == [64, 64, 32, 16, 4, 4]


def test_words_are_distinct_and_spelled() -> None:
    words = gpu_kernels.text_words(50)
    assert len(set(words)) == 50
    ids = spell(["a", "b" * 99], CONFIG)
    assert ids[0].tolist() == [259, 98, 260] + [261] * 9
    assert ids[1].tolist() == [259] + [99] * 10 + [260]
    lengths = [len(word) for word in random_words(CONFIG, 40, torch.Generator().manual_seed(0))]
    assert lengths[:2] == [1, 10] and min(lengths) == 1 and max(lengths) == 10


def test_the_compiled_peer_takes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        compiled.append((function, dynamic))
        return function

    monkeypatch.setattr(torch, "compile", compile)
    group = Layer(CONFIG, "cpu", Chain(2, 1, 2), 0).compiled(1)
    assert compiled == [(both_directions, False)]
    ours, peer = group.contestants
    assert (ours.task.name, ours.peer, peer.task.name) == ("hoisted bf16", "torch.compile bf16", "torch.compile bf16")
    peer.task.run()


class FakeClock:
    """Runs take a microsecond for each call of a task, a graph's replay the number of calls that it holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...] = ()) -> None:
        self.log: list[str] = []
        self._broken = broken
        monkeypatch.setattr(gpu_timing, "_graph", self._graph)
        monkeypatch.setattr(gpu_timing, "_microseconds", self._microseconds)
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
    first, second = GraphTimer(rounds=3).time([clock.task("a"), clock.task("b", calls=4)])
    assert (first, second) == (Timing([1.0] * 3), Timing([0.25] * 3))
    replays = "".join(clock.log)[-3000:]
    assert replays == ("a" * 500 + "b" * 500) * 3


def test_what_no_graph_holds_is_timed_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch, broken=("b",))
    first, second = GraphTimer(rounds=2).time([clock.task("a"), clock.task("b")])
    assert first == Timing([1.0, 1.0])
    assert second.samples == [1.0, 1.0]
    assert second.note.startswith("timed in a loop, launches included, as no graph could be captured: RuntimeError: op")


def test_a_task_that_fails_has_no_time_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock(monkeypatch)

    def fail() -> None:
        raise ValueError("no\nmore")

    timings = GraphTimer(rounds=2).time([Task("x", fail), clock.task("late"), clock.task("a")])
    assert timings[0] == Timing([], "ValueError: no")
    assert timings[1] == Timing([], "RuntimeError: an illegal memory access was encountered")
    assert timings[2] == Timing([1.0, 1.0])


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

    for name, value in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with pytest.raises(ValueError, match="the first"):
        gpu_timing._graph(fail)
    with pytest.raises(RuntimeError, match="invalidated"):
        gpu_timing._graph(lambda: None)
