"""The check of a card, without one: by a stand-in for the engine and invented times; and what is compiled ahead."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")

from bench_fakes import (
    H200,
    INTERPRETER,
    SETTINGS,
    STAND_IN,
    FakeTimes,
    Hanging,
    StandIn,
    failing_record,
    find,
    started,
    text_file,
    tiny_model,
)
from rich.console import Console
from triton.tools.tensor_descriptor import TensorDescriptor

from flashelmo.benchmarks import contestant
from flashelmo.benchmarks.__main__ import find as suite_named
from flashelmo.benchmarks.__main__ import parse
from flashelmo.benchmarks.gpu import ahead, check, profile, speed, suite, tables
from flashelmo.benchmarks.gpu.engine import Tools
from flashelmo.benchmarks.gpu.profile import DEVICE, Span, Trace, covered, shares, stage_of, stage_rows
from flashelmo.benchmarks.kernels import suite as kernels
from flashelmo.benchmarks.kernels.card import Device, results_on
from flashelmo.benchmarks.kernels.checks import Sizes
from flashelmo.benchmarks.kernels.graph_timing import Timer
from flashelmo.benchmarks.kernels.groups import Chain
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.timing import Deadline
from flashelmo.benchmarks.worker import Here, Worker
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.kernels.highway import highway_kernel
from flashelmo.kernels.launch import Launch

pytestmark = [pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a card")]
SIZES = (Sizes((1, 3), (1,), (3,), (2,)), Sizes((1,), (1,), (2,), (2,)))
SMALL = replace(SETTINGS, check=True, rows=(1, 3), part_seconds=300.0, sections=check.PARTS)
BATCH = "2 sentences of 4"


def settings_of(folder: Path, **options: Any) -> Any:
    return replace(SMALL, text=text_file(folder), **options)


def parts_of(
    settings: Any,
    folder: Path,
    before: Sequence[Row] = (),
    make: Callable[..., Any] = StandIn,
    device: Device = STAND_IN,
    timer: Timer | None = None,
) -> check.Parts:
    tools = Tools(make=make, load=tiny_model, timer=timer or FakeTimes().tasks)
    begin = partial(started, name="check", device=device)
    return check.Parts(replace(settings, out=None), folder, before, begin, tools, sizes=SIZES)


@pytest.fixture
def _invented_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestant, "take_turns", FakeTimes().turns)
    monkeypatch.setattr(speed, "WARM_UPS", 1)
    monkeypatch.setattr(kernels, "TURNS", Chain(2, 1, 1))


# ------------------------------------------------------------------------------------------------------------ all of it


@pytest.mark.usefixtures("_invented_times")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_command_measures_all_parts_beside_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[Any] = []

    def compiling(processes: int, record: Any, parts: Any) -> Any:
        pieces.extend((record, *each[1:]) for each in parts)
        return SimpleNamespace(n_launches=7, finish=lambda seconds: ["not compiled ahead: gates"])

    old = [
        Row("step", "tiny", "fused bf16", "µs", "3 rows", median=25.0),
        Row("batch", "tiny", "flashelmo bf16", "tokens/s", BATCH, median=8 / 22e-6),
    ]
    results, committed = results_on(H200, SMALL, "gpu"), tables.committed
    replace(results, rows=old).write(tmp_path / "committed" / "a.json")
    other = replace(results, rows=[replace(old[0], median=1.0)], machine={"gpu": {"name": "another"}})
    other.write(tmp_path / "committed" / "b.json")
    monkeypatch.setattr(check, "committed", lambda card: committed(card, tmp_path / "committed"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(check.ahead, "Ahead", compiling)
    monkeypatch.setattr(check, "Worker", lambda make, *given: Here(parts_of, *given))
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "0")
    printed = io.StringIO()
    assert suite.command(settings_of(tmp_path, out=tmp_path / "out"), Console(file=printed, width=200)) == 0
    timed = [(check.record, part, None) for part in check.PARTS[1:-1]]
    assert pieces == [*timed, *((check.record, "correctness", k) for k in range(check.PIECES))]
    assert os.environ["TRITON_DISABLE_LINE_INFO"] == "1"
    found = Results.read(tmp_path / "out" / check.FILE)
    order = list(dict.fromkeys(row.section for row in found.rows))
    assert order == ["error", "step", "single", "batch", "ragged", "bulk", "stages"]
    errors = {row.name for row in found.section("error")}
    assert {"batch bf16", "pooled bf16", "fused step bf16", "int8 step int8", "fused step fp16"} <= errors
    steps = {row.name for row in found.section("step") if row.detail == "1 rows"}
    assert {"hoisted bf16", "fused bf16", "cuBLAS fused bf16", "cuBLAS hoisted bf16"} <= steps
    assert find(found, "step", "fused bf16", "3 rows").ratios["committed"] == pytest.approx(25 / 11, rel=1e-3)
    assert find(found, "batch", "flashelmo bf16", BATCH).ratios == {"committed": 2.0}
    assert not [row for row in found.rows if row.name.startswith(("PyTorch", "cuDNN"))]
    events = json.loads((tmp_path / "out" / "timeline-tiny.json").read_text(encoding="utf-8"))["traceEvents"]
    assert {"read text", "schedule"} <= {event["name"] for event in events} and all(
        event["dur"] >= 0 for event in events
    )
    text = printed.getvalue()
    assert "not compiled ahead: gates" in text and "7 launches compiled ahead" in text
    summary = text[text.index("driver unknown") :]
    for line in ("| bound ", "| committed, the best | ", "| flashelmo bf16, words known | ", "failures: 0"):
        assert line in summary
    assert len(summary) < 12_000


@pytest.mark.usefixtures("_invented_times")
def test_a_part_by_itself_is_checked_first_and_what_is_wrong_is_not_timed(tmp_path: Path) -> None:
    class Wrong(StandIn):
        def off(self, vectors: Any) -> Any:
            return vectors * 1.04

    settings = settings_of(tmp_path, sections=("sentence", "steps"))
    assert check.chosen(settings) == ["steps", "sentence"]
    parts = partial(parts_of, settings, tmp_path, make=Wrong)
    make = partial(Here, parts)
    rows = [row for rows in check.supervise(["steps", "sentence"], settings, Deadline(600.0), make) for row in rows]
    assert {row.name.split()[-2] for row in rows if row.section == "error"} == {"step", "batch", "repeated"}
    (ours, known) = [row for row in rows if row.section == "single"]
    assert ours.note == known.note == speed.NOT_TIMED
    assert all(row.median for row in rows if row.section == "step")
    assert "expected less than 0.01" in tables.summary(replace(results_on(H200, settings, "check"), rows=rows), {})


def test_what_may_be_asked_for(tmp_path: Path) -> None:
    gpu = suite_named("gpu")
    assert check.chosen(parse("gpu", gpu, ["--check", "--seconds", "9"])) == list(check.PARTS)
    assert check.chosen(parse("gpu", gpu, ["--check", "--only", "bulk,correctness"])) == ["correctness", "bulk"]
    with pytest.raises(FlashElmoError, match=r"--only: expected some of correctness, steps, .* found 'speed'"):
        check.chosen(parse("gpu", gpu, ["--check", "--only", "speed"]))
    with pytest.raises(FlashElmoError, match="no CUDA device"):
        suite.command(parse("gpu", gpu, ["--check", "--out", str(tmp_path)]), Console())


def test_jobs_that_hang_or_end_their_process_are_a_line_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "HANG_SECONDS", 2.0)
    made: list[Any] = []

    def make(rows: Sequence[Row]) -> Worker:
        made.append((Worker(Hanging), len(rows)))
        return made[-1][0]

    parts = ["correctness", "steps", "sentence", "bulk"]
    found = list(check.supervise(parts, SMALL, Deadline(600.0), make))
    rows = [row for rows in found for row in rows]
    done = [
        *((part, job) for part in parts[::2] for job in ("first", "second")),
        ("steps", "first"),
        ("bulk", "second"),
    ]
    assert sorted((row.section, row.name) for row in rows if not row.failed) == sorted(done)
    hung, ended = [row for row in rows if row.failed]
    assert (hung.section, hung.name, hung.note) == ("steps", "second", "FAILED: no end within 2 seconds")
    assert (ended.section, ended.name, ended.note) == ("bulk", "first", "FAILED: a worker ended with exit code 7")
    assert [n for _, n in made] == [0, 4, 5, 7]  # after the one that hung, that lost the device, and that ended
    assert not any(worker.process.is_alive() for worker, _ in made)
    (over,) = check.supervise(["bulk"], SMALL, Deadline(0.0), make)
    assert [row.note for row in over] == ["skipped, as the 0 seconds were over"] and len(made) == 4
    absent = mock.Mock(side_effect=FlashElmoError("no CUDA device"))
    notes = [rows[0].note for rows in check.supervise(["steps", "bulk"], SMALL, Deadline(600.0), absent)]
    assert notes == ["FAILED: no CUDA device"] * 2


def test_a_process_goes_on_with_what_was_right_before_it(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, rows=(1,))
    row = Row("error", "tiny", "fused step bf16", "relative error", median=0.001)
    wrong = replace(row, name="hoisted step bf16", note="FAILED: error 1")
    names = [name[2] for name in parts_of(settings, tmp_path).names("steps")]
    each = [f"{way}, rows 1, 3" for way in ("hoisted step bf16", "fused step bf16", "int8 step int8")]
    assert names == [*each, "1 rows"]
    after = parts_of(settings, tmp_path, [row, wrong])
    assert after.names("steps") == [("step", "tiny", "1 rows")]
    assert after.do("steps", ("error", "tiny", each[1]), 100.0) == ([], False)
    found = {row.name: row for row in after.do("steps", ("step", "tiny", "1 rows"), 100.0)[0]}
    assert found["fused bf16"].median and found["hoisted bf16"].median is None


# ------------------------------------------------------------------------------------------------------- compiled ahead


def recorded(settings: Any, part: str, folder: Path) -> list[Launch]:
    with ahead.recording() as launches:
        parts = parts_of(settings, folder, make=ElmoEmbedder, device=INTERPRETER, timer=ahead.run_once)
        for job in parts.jobs(part):
            assert not [row.note for rows in job.rows() for row in rows if row.failed]
    return [ahead.unpack(packed) for packed in launches]


def names_of(launches: Iterable[Launch]) -> set[str]:
    return {launch.kernel.fn.__name__.removesuffix("_kernel") for launch in launches}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what nobody reads may be any number
def test_what_is_recorded_is_what_runs_and_is_compiled_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(tmp_path, sentences=1, short_sentences=0)
    launches = {part: recorded(settings, part, tmp_path) for part in ("correctness", "steps", "batches")}
    assert all(tensor.device.type == "meta" for each in launches["steps"] for tensor in each.tensors.values())
    names, steps = {part: names_of(each) for part, each in launches.items()}, {"roots", "gates", "projection", "linear"}
    assert names["steps"] == steps | {"int8_rows", "int8_gates"}
    others = {"carry", "char_cnn_embed", "char_cnn", "highway", "gather_words", "tokens", "sentences"}
    assert names["correctness"] == names["steps"] | others
    ran: list[Launch] = []
    run = Launch.run

    def seen(launch: Launch) -> None:
        ran.append(launch)
        run(launch)

    monkeypatch.setattr(Launch, "run", seen)
    monkeypatch.setattr(contestant, "take_turns", FakeTimes().turns)
    right = Row("error", "tiny", "batch bf16", median=0.0)  # not checked again
    for job in parts_of(settings, tmp_path, [right], make=ElmoEmbedder, device=INTERPRETER).jobs("batches"):
        assert not [row.note for rows in job.rows() for row in rows if row.failed]
    assert names_of(ran) == names["batches"] and "tokens" in names["batches"]

    launch = next(each for each in launches["correctness"] if each.kernel.fn.__name__ == "highway_kernel")
    (tmp_path / "packed").write_bytes(ahead.pack(launch))
    code = (  # in a process that does not interpret; launches that differ in what nothing is compiled for are one
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
    launch = Launch(highway_kernel, (3, 1), values, {"num_warps": 4})
    packed = ahead.pack(launch)
    larger = values | {"x_ptr": torch.ones(80, dtype=torch.int32)}
    assert ahead.pack(replace(launch, grid=(7, 1), arguments=larger)) == packed
    assert ahead.pack(replace(launch, options={"num_warps": 8})) != packed
    assert ahead.pack(replace(launch, arguments=values | {"K": 41})) != packed
    other = ahead.pack(replace(launch, arguments=values | {"x_ptr": values["x_ptr"][1:]}))
    assert other != packed and ahead.unpack(other).arguments["x_ptr"].data_ptr() % 16
    descriptors = [TensorDescriptor.from_tensor(torch.zeros(n, 64, dtype=torch.bfloat16), [16, 64]) for n in (32, 48)]
    found = [ahead.pack(replace(launch, arguments={"x": each})) for each in descriptors]
    assert found[0] == found[1] and ahead.unpack(found[0]).arguments["x"].block_shape == [16, 64]


def test_what_is_compiled_ahead_of_a_part_that_fails_is_a_line() -> None:
    compiling = ahead.Ahead(1, failing_record, [("steps",), ("bulk",)])
    lines = sorted(compiling.finish(60.0))
    assert lines == [f"not compiled ahead: RuntimeError: no {part}" for part in ("bulk", "steps")]
    assert compiling.n_launches == 0


# -------------------------------------------------------------------------------------------------------------- profile


def test_shares_of_the_time_by_stage() -> None:
    spans = [
        Span(DEVICE, "gates_kernel", 10, 20),
        Span(DEVICE, "projection_kernel", 15, 25),  # beside the one before
        Span(DEVICE, "gates_kernel", 30, 40),
        Span(DEVICE, "Memcpy DtoH (Device -> Pinned)", 45, 50),
        Span(DEVICE, "void at::native::index_kernel<...>", 50, 60),
    ]
    expected = {"LSTM gates": 40, "LSTM projection": 20, "other": 20, "copies to the host": 10, "idle": 20}
    assert covered(spans) == 40 and shares(spans) == pytest.approx(expected) and list(shares(spans))[-1] == "idle"
    rows = stage_rows("m", Trace("bulk", [*spans, Span("main", "schedule", 0, 99)], 80.0))
    assert {row.detail: row.median for row in rows} == expected | {"device busy": 50}
    assert {row.note for row in rows} == {"other: void at::native::index_kernel<...>"}
    names = {"char_cnn_kernel": "characters", "tokens_kernel": "tokens", "int8_gates_kernel": "LSTM gates"}
    assert {name: stage_of(name) for name in names} == names


def test_a_cards_trace_is_on_the_hosts_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose calls are seen, and then left alone."""

    def event(name: str, device: Any, start: float, end: float) -> Any:
        return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end))

    cuda, profiler = SimpleNamespace(name="CUDA"), mock.MagicMock()
    events = [event("both clocks", None, 5, 6), event("linear_kernel", cuda, 7, 10), event("python", None, 0, 9)]
    profiler.return_value.__enter__.return_value.events = lambda: events
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.profiler, "profile", profiler)
    read = profile.accuracy.read_windows
    path = text_file(tmp_path)
    found = profile.trace(
        "t", lambda: list(profile.accuracy.read_windows(path, max_sentences=2, max_tokens=99)), "cuda:0"
    )
    assert found.on_device == [Span(DEVICE, "linear_kernel", 2, 5)]
    host = [span for span in found.spans if span.row != DEVICE]
    assert {span.name for span in host} == {"read text"} and len(host) >= 2
    assert all(0 <= span.start <= span.end <= found.taken for span in host)
    assert profile.accuracy.read_windows is read
