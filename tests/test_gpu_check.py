"""The check of a card, without one: by a stand-in for the engine and invented times; and what is compiled ahead."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gpu_run import H200, LITTLE, STAND_IN, FakeTimes, StandIn, find, tiny_model
from hanging import Hanging, failing_record
from rich.console import Console
from triton.tools.tensor_descriptor import TensorDescriptor

from flashelmo.benchmarks.__main__ import find as suite_named
from flashelmo.benchmarks.__main__ import parse
from flashelmo.benchmarks.gpu import ahead, check, speed, suite, timeline
from flashelmo.benchmarks.gpu.engine import Tools
from flashelmo.benchmarks.gpu.timeline import Span, Trace
from flashelmo.benchmarks.kernels import suite as kernels
from flashelmo.benchmarks.kernels.card import Device, card_named, results_on
from flashelmo.benchmarks.kernels.checks import Sizes
from flashelmo.benchmarks.kernels.graph_timing import Timer
from flashelmo.benchmarks.kernels.groups import Chain
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.run import Run
from flashelmo.benchmarks.timing import Deadline
from flashelmo.benchmarks.worker import Here, Worker
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.kernels.highway import highway_kernel
from flashelmo.kernels.launch import Launch

pytestmark = [pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a card")]
SIZES = (Sizes((1, 3), (1,), (3,), (2,)), Sizes((1,), (1,), (2,), (2,)))
SMALL = replace(LITTLE, check=True, rows=(1, 3), part_seconds=300.0, sections=check.PARTS, thorough=("bf16",))
BATCH = "2 sentences of 4"
INTERPRETER = Device("interpreter", "cpu")


def settings_of(folder: Path, **options: Any) -> Any:
    text = folder / "input.txt"
    text.write_text("a cat sat\non\nthe mat and the other mat\nit sat there\n" * 6, encoding="utf-8")
    return replace(SMALL, out=folder / check.FILE, text=text, **options)


def parts_of(
    settings: Any, make: Callable[..., Any] = StandIn, device: Device = STAND_IN, timer: Timer | None = None
) -> check.Parts:
    def started(given: Any) -> tuple[Run, Device, Any]:
        before = check._read(given.out)
        run = Run(given, Console(file=io.StringIO(), width=300), results_on(H200, given, "check"), check.FILE)
        run.results.rows.extend(before.rows if before else ())
        return run, device, card_named("H200")

    tools = Tools(make=make, load=tiny_model, timer=timer or FakeTimes().tasks)
    return check.Parts(settings, settings.out.parent, started, tools, sizes=SIZES)


@pytest.fixture
def _invented_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "take_turns", FakeTimes().turns)
    monkeypatch.setattr(speed, "WARM_UPS", 1)
    monkeypatch.setattr(kernels, "TURNS", Chain(2, 1, 1))


def run_parts(settings: Any, **options: Any) -> list[Row]:
    make = partial(Here, partial(parts_of, **options), settings)
    return list(check.supervise(check.chosen(settings), settings, settings.out.parent, Deadline(600.0), make))


# ------------------------------------------------------------------------------------------------------------ all of it


@pytest.mark.usefixtures("_invented_times")
def test_all_parts_are_measured_beside_what_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path)
    old = [
        Row("step", "tiny", "fused bf16", "µs", "3 rows", median=25.0),
        Row("batch", "tiny", "flashelmo bf16", "tokens/s", BATCH, median=8 / 22e-6),
    ]
    results = results_on(H200, settings, "gpu")
    replace(results, rows=old).write(tmp_path / "committed" / "a.json")
    other = replace(results, rows=[replace(old[0], median=1.0)], machine={"gpu": {"name": "another"}})
    other.write(tmp_path / "committed" / "b.json")
    monkeypatch.setattr(check.committed, "__defaults__", (tmp_path / "committed",))
    assert run_parts(settings) == []
    found = Results.read(tmp_path / check.FILE)
    assert not [row.note for row in found.rows if row.failed]
    order = list(dict.fromkeys(row.section for row in found.rows))
    assert order == ["error", "step", "single", "batch", "ragged", "bulk", "timeline"]
    errors = {row.name for row in found.section("error")}
    assert {"batch bf16", "pooled bf16", "fused step bf16", "int8 step int8", "fused step fp16"} <= errors
    steps = {row.name for row in found.section("step") if row.detail == "1 rows"}
    assert {"hoisted bf16", "fused bf16", "cuBLAS fused bf16", "cuBLAS hoisted bf16"} <= steps
    assert find(found, "step", "fused bf16", "3 rows").ratios["committed"] == pytest.approx(25 / 11, rel=1e-3)
    assert find(found, "batch", "flashelmo bf16", BATCH).ratios == {"committed": 2.0}
    assert not [row for row in found.rows if row.name.startswith(("PyTorch", "cuDNN"))]
    assert (tmp_path / "timeline-tiny.svg").read_text(encoding="utf-8").count("<rect") > 5
    said: list[str] = []
    assert check.conclude(tmp_path / check.FILE, [], said.append) == 0
    (text,) = said
    for line in ("| bound ", "| committed, the best | ", "flashelmo bf16, words known", "failures: 0"):
        assert line in text
    assert "driver unknown" in text and len(text) < 12_000


@pytest.mark.usefixtures("_invented_times")
def test_the_command_compiles_ahead_and_says_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[Any] = []

    class Compiling:
        n_launches = 7

        def __init__(self, processes: int, record: Any, parts: Any) -> None:
            pieces.extend((record, *each[1:]) for each in parts)

        def finish(self, seconds: float) -> list[str]:
            return ["not compiled ahead: gates"]

    class InThisProcess(Here):
        def close(self) -> None:
            pieces.append("closed")

    def started(settings: Any) -> Any:
        run = Run(settings, Console(file=io.StringIO()), results_on(H200, settings, "check"), check.FILE)
        return run, STAND_IN, card_named("H200")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check.ahead, "Ahead", Compiling)
    monkeypatch.setattr(check, "Worker", InThisProcess)
    monkeypatch.setattr(check, "_started", started)
    tools = Tools(make=StandIn, load=tiny_model, timer=FakeTimes().tasks)
    monkeypatch.setattr(check, "Tools", lambda: tools)
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "0")
    text = str(settings_of(tmp_path).text)
    given = ["--check", "--only", "sentence,correctness", "--models", "original", "--seconds", "300", "--text", text]
    said = io.StringIO()
    settings = replace(parse("gpu", suite.SUITE, [*given, "--out", str(tmp_path)]), golden=None, precisions=("bf16",))
    monkeypatch.setattr(check, "LONGER", 0.0)  # no time for the correctness
    assert suite.command(settings, Console(file=said, width=200)) == 0
    assert pieces == [
        (check.record, "sentence", None),
        *((check.record, "correctness", k) for k in range(check.PIECES)),
        "closed",
    ]
    assert os.environ["TRITON_DISABLE_LINE_INFO"] == "1"
    for line in ("not compiled ahead: gates", "7 launches compiled ahead", "single: a sentence of 20", "failures: 0"):
        assert line in said.getvalue()
    assert {row.section for row in Results.read(tmp_path / check.FILE).rows} == {"error", "single", "correctness"}


@pytest.mark.usefixtures("_invented_times")
def test_a_part_by_itself_is_checked_first_and_what_is_wrong_is_not_timed(tmp_path: Path) -> None:
    class Wrong(StandIn):
        def off(self, vectors: Any) -> Any:
            return vectors * 1.04

    settings = settings_of(tmp_path, sections=("sentence", "steps"))
    assert check.chosen(settings) == ["steps", "sentence"]
    assert run_parts(settings, make=Wrong) == []
    found = Results.read(tmp_path / check.FILE)
    assert {row.name.split()[-2] for row in found.section("error")} == {"step", "batch", "repeated"}
    (ours, known) = found.section("single")
    assert ours.note == known.note == speed.NOT_TIMED
    assert all(row.median for row in found.section("step"))
    said: list[str] = []
    assert check.conclude(tmp_path / check.FILE, [], said.append) == 1
    assert "expected less than 0.01" in said[0]


def test_what_may_be_asked_for(tmp_path: Path) -> None:
    gpu = suite_named("gpu")
    assert check.chosen(parse("gpu", gpu, ["--check", "--seconds", "9"])) == list(check.PARTS)
    assert check.chosen(parse("gpu", gpu, ["--check", "--only", "bulk,correctness"])) == ["correctness", "bulk"]
    with pytest.raises(FlashElmoError, match=r"--only: expected some of correctness, steps, .* found 'speed'"):
        check.chosen(parse("gpu", gpu, ["--check", "--only", "speed"]))
    with pytest.raises(FlashElmoError, match="no CUDA device"):
        suite.command(parse("gpu", gpu, ["--check", "--out", str(tmp_path)]), Console())


def test_jobs_that_hang_or_end_their_process_are_a_line_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "HANG_SECONDS", 1.0)
    settings, made = settings_of(tmp_path, part_seconds=100.0), []

    def make() -> Worker:
        made.append(Worker(Hanging, tmp_path))
        return made[-1]

    parts = ["correctness", "steps", "sentence", "batches", "bulk"]
    rows = list(check.supervise(parts, settings, tmp_path, Deadline(600.0), make))
    assert [(row.section, row.model, row.name) for row in rows] == [("steps", "m", "second"), ("bulk", "m", "first")]
    assert rows[0].note.startswith("FAILED: no sign of life in 1")
    assert rows[1].note == "FAILED: a worker ended with exit code 7"
    assert len(made) == 4  # more after the one that hung, the one that lost the device, and the one that ended
    assert not any(each.process.is_alive() for each in made)
    done = [(part, job) for part, _, job in check.begun(tmp_path)]
    assert done == [(part, job) for part in parts for job in ("first", "second", "third")]
    over = list(check.supervise(["bulk"], settings, tmp_path, Deadline(0.0), make))
    assert [row.note for row in over] == ["skipped, as the 0 seconds were over"] and not over[0].failed


def test_a_part_that_is_late_is_left_and_one_that_never_begins_is_tried_once(tmp_path: Path) -> None:
    assert check._Patience(Deadline(-check.GRACE - 1), None)().startswith("no end within ")
    assert check._Patience(Deadline(5.0), None)() == ""

    def make() -> Worker:
        raise FlashElmoError("no CUDA device")

    rows = list(check.supervise(["steps", "bulk"], settings_of(tmp_path), tmp_path, Deadline(600.0), make))
    assert [(row.section, row.note) for row in rows] == [(part, "FAILED: no CUDA device") for part in ("steps", "bulk")]


def test_a_process_goes_on_where_the_one_before_it_ended(tmp_path: Path) -> None:
    """It knows what was begun, and what was right."""
    settings = settings_of(tmp_path, sections=("steps",), rows=(1,))
    parts = parts_of(settings)
    names = [job.detail for job in parts.jobs("steps")]
    assert names == ["fused step", "hoisted step", "int8 step", "1 rows"]
    parts._begin(next(parts.jobs("steps")))
    results = results_on(H200, settings, "check")
    row = Row("error", "tiny", "fused step bf16", "relative error", median=0.001)
    replace(results, rows=[row, replace(row, name="hoisted step bf16", note="FAILED: error 1")]).write(settings.out)
    after = parts_of(settings)
    assert after._begun == {("error", "tiny", "fused step")}
    assert after._kernels.passed == {("fused step", "bf16"): True, ("hoisted step", "bf16"): False}
    assert after.measure("steps", 100.0) is False
    found = {row.name: row for row in Results.read(settings.out).section("step")}
    assert found["fused bf16"].median and found["hoisted bf16"].median is None


# ------------------------------------------------------------------------------------------------------- compiled ahead


def recorded(settings: Any, part: str) -> list[Launch]:
    with ahead.recording() as launches:
        parts = parts_of(settings, make=ElmoEmbedder, device=INTERPRETER, timer=ahead.run_once)
        for job in parts.jobs(part):
            for _ in job.rows():
                pass
    return [ahead.unpack(packed) for packed in launches]


def names_of(launches: Iterable[Launch]) -> set[str]:
    return {launch.kernel.fn.__name__.removesuffix("_kernel") for launch in launches}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what nobody reads may be any number
def test_what_is_recorded_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(tmp_path, batches=(2,), sentences=1, short_sentences=0)
    names: dict[str, set[str]] = {}
    for part in ("correctness", "steps", "batches"):
        launches = recorded(settings, part)
        names[part] = names_of(launches)
        assert all(tensor.device.type == "meta" for launch in launches for tensor in launch.tensors.values())
    steps = {"roots", "gates", "projection", "linear", "int8_rows", "int8_gates"}
    words = {"char_cnn_embed", "char_cnn", "highway"}
    assert names["correctness"] == steps | words | {"gather_words", "tokens", "sentences"}
    assert names["steps"] == steps
    ran: list[Launch] = []
    run = Launch.run

    def seen(launch: Launch) -> None:
        ran.append(launch)
        run(launch)

    monkeypatch.setattr(Launch, "run", seen)
    monkeypatch.setattr(speed, "take_turns", FakeTimes().turns)
    parts = parts_of(settings, make=ElmoEmbedder, device=INTERPRETER)
    parts.run.keep([Row("error", "tiny", "batch bf16", median=0.0)])  # not checked again
    for job in parts.jobs("batches"):
        assert not [row.note for rows in job.rows() for row in rows if row.failed]
    assert names_of(ran) == names["batches"] and "tokens" in names["batches"]


def test_packed_launches_are_compiled_elsewhere(tmp_path: Path) -> None:
    """By a process that does not interpret; launches that differ in what nothing is compiled for are one."""
    launches = recorded(settings_of(tmp_path), "correctness")
    launch = next(each for each in launches if each.kernel.fn.__name__ == "highway_kernel")
    (tmp_path / "packed").write_bytes(ahead.pack(launch))
    code = (
        "import sys; from pathlib import Path; from flashelmo.benchmarks.gpu.ahead import *\n"
        "from dataclasses import replace; packed = Path(sys.argv[1]).read_bytes(); launch = unpack(packed)\n"
        "few, many = (pack(replace(launch, arguments=launch.arguments | dict(n=n))) for n in (35, 4096))\n"
        "print(compile_packed(packed, 90) or 'compiled', few == many)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_DISABLE_LINE_INFO": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "packed")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["compiled", "True"], done.stdout + done.stderr
    assert list((tmp_path / "cache").rglob("highway_kernel.cubin"))


def test_addresses_and_descriptors_are_packed_as_they_are_compiled() -> None:
    values: dict[str, Any] = {"x_ptr": torch.zeros(40, dtype=torch.int32), "K": 40}
    larger = values | {"x_ptr": torch.ones(80, dtype=torch.int32)}
    launch = Launch(highway_kernel, (3, 1), values, {"num_warps": 4})
    packed = ahead.pack(launch)
    assert ahead.pack(replace(launch, grid=(7, 1), arguments=larger)) == packed
    assert ahead.pack(replace(launch, options={"num_warps": 8})) != packed
    assert ahead.pack(replace(launch, arguments=values | {"K": 41})) != packed
    other = ahead.pack(replace(launch, arguments=values | {"x_ptr": values["x_ptr"][1:]}))
    assert other != packed and ahead.unpack(other).arguments["x_ptr"].data_ptr() % 16
    found = []
    for rows in (32, 48):
        descriptor = TensorDescriptor.from_tensor(torch.zeros(rows, 64, dtype=torch.bfloat16), [16, 64])
        found.append(ahead.pack(replace(launch, arguments={"x": descriptor})))
    assert found[0] == found[1]
    assert ahead.unpack(found[0]).arguments["x"].block_shape == [16, 64]


def test_what_is_compiled_ahead_of_a_part_that_fails_is_a_line() -> None:
    compiling = ahead.Ahead(1, failing_record, [("steps",), ("bulk",)])
    lines = sorted(compiling.finish(60.0))
    assert lines == ["not compiled ahead: RuntimeError: no steps", "not compiled ahead: RuntimeError: no bulk"][::-1]
    assert compiling.n_launches == 0


# ------------------------------------------------------------------------------------------------------------- timeline


def test_a_timeline_has_a_bar_for_what_can_be_seen(tmp_path: Path) -> None:
    spans = [Span("kernels", "LSTM gates", float(k), k + 0.9) for k in range(1000)]  # too near to tell apart
    spans += [Span("kernels", "tokens", 1500.0, 1600.0), Span("kernels", "tokens", 1900.0, 2000.0)]
    spans.append(Span("host: <main>", "schedule", 0.0, 500.0))
    timeline.draw([Trace("bulk & all", spans, 1100.0, 2000.0)], tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert text.count("<rect") == 1 + 3 + 4  # background, legend, bars
    assert "bulk &amp; all: 2.00 ms, device busy 55%" in text and "host: &lt;main&gt;" in text


def test_calls_of_the_host_are_seen_and_then_left_alone(tmp_path: Path) -> None:
    plan = timeline.pipeline.Planner.plan
    spans: list[Span] = []
    with timeline._timed_functions(spans):
        path = settings_of(tmp_path).text
        assert list(timeline.accuracy.read_windows(path, max_sentences=2, max_tokens=99))
    assert {span.name for span in spans} == {"read text"} and len(spans) >= 2
    assert timeline.pipeline.Planner.plan is plan
