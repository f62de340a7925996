"""Parts of the benchmark of the engine on a GPU: clocks, workloads and their ceilings, rivals, stages, sanitizer."""

import ast
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import torch

pytest.importorskip("triton")

from gpu_run import CONFIG, tiny_model
from tiny_models import MODELS, SENTENCES

import flashelmo.kernels
from flashelmo.benchmarks import report
from flashelmo.benchmarks.gpu import __main__ as gpu
from flashelmo.benchmarks.gpu import sanitizer as gpu_sanitizer
from flashelmo.benchmarks.gpu import stages as gpu_stages
from flashelmo.benchmarks.gpu import tables as gpu_tables
from flashelmo.benchmarks.gpu import targets as gpu_targets
from flashelmo.benchmarks.gpu import workloads as gpu_workloads
from flashelmo.benchmarks.gpu.ceilings import with_ceiling
from flashelmo.benchmarks.gpu.rivals import Eager, Onnx, Stacks
from flashelmo.benchmarks.gpu.settings import EngineSettings
from flashelmo.benchmarks.gpu.stages import Busy, covered, others, shares, stage_of
from flashelmo.benchmarks.gpu.switches import default_settings, switches, turned_off
from flashelmo.benchmarks.gpu.wall_timing import WallTimer, at_most
from flashelmo.benchmarks.gpu.workloads import (
    Workload,
    batches,
    bulk,
    ceilings,
    equal_batch,
    load_text,
    lstm_step,
    ragged_batch,
    suited_tokens,
)
from flashelmo.benchmarks.kernels import model
from flashelmo.benchmarks.kernels.model import card_named
from flashelmo.benchmarks.kernels.timing import Deadline, Task, Timing
from flashelmo.benchmarks.results import Results, Row
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.export import onnx_elmo as runtime
from flashelmo.export.build import build_onnx

H200 = card_named("H200")

# ------------------------------------------------------------------------------------------------------------- clocks


class FakeClock:
    """A host and a device: a task queues work, which is done when somebody waits."""

    def __init__(self) -> None:
        self.now, self.queued = 0.0, 0.0
        self.log: list[str] = []

    def task(self, name: str, seconds: float, first: float = 0.0) -> Task:
        def run() -> None:
            self.queued += seconds if name in self.log else max(first, seconds)
            self.log.append(name)

        return Task(name, run)

    def synchronize(self) -> None:
        self.now += self.queued
        self.queued = 0.0

    def timer(self, rounds: int = 3, seconds: float = 0.045) -> WallTimer:
        return WallTimer(rounds, seconds, self.synchronize, lambda: self.now)


def test_calls_take_turns_and_are_waited_for() -> None:
    clock = FakeClock()
    fast, slow = clock.timer().time([clock.task("fast", 0.01, first=3.0), clock.task("slow", 1.0)])
    assert fast.samples == pytest.approx([1e4] * 3) and slow.samples == pytest.approx([1e6] * 3)
    warm = ["fast"] * 4 + ["slow"] * 2  # two calls of who is slow
    assert clock.log == warm + (["fast"] * 5 + ["slow"]) * 3


def test_a_task_that_fails_has_no_time_and_the_others_go_on() -> None:
    clock = FakeClock()
    calls: list[int] = []

    def late() -> None:
        calls.append(1)
        if len(calls) > 10:
            raise RuntimeError("an illegal memory access was encountered\nand more")

    def never() -> None:
        raise ValueError("no")

    tasks = [Task("never", never), Task("late", late), clock.task("fine", 0.05)]
    timings = clock.timer().time(tasks)
    assert timings[0] == Timing([], "ValueError: no")
    assert timings[1] == Timing([], "RuntimeError: an illegal memory access was encountered")
    assert timings[2].samples == pytest.approx([5e4] * 3)


def test_what_takes_too_long_is_stopped() -> None:
    with pytest.raises(TimeoutError, match="expected an end within 0 seconds"), at_most(0.02):
        time.sleep(30)
    with at_most(30):
        pass
    time.sleep(0.05)  # no alarm is left


# ---------------------------------------------------------------------------------------------------------- workloads


def test_workloads_are_cut_from_a_text() -> None:
    text = [["a", "b", "c"], ["d"], ["e", "f"]]
    assert equal_batch(text, 2, 3) == Workload("batch", "2 sentences of 3", [["a", "b", "c"], ["d", "e", "f"]])
    one = equal_batch(text, 1, 2, "single")
    assert (one.detail, one.waits, one.sentences) == ("a sentence of 2", True, [["a", "b"]])
    with pytest.raises(FlashElmoError, match="text: expected 8 tokens or more, found 6"):
        equal_batch(text, 2, 4)
    assert ragged_batch(text, 2) == Workload("ragged", "2 sentences", text[:2])
    assert bulk(text, 5) == Workload("bulk", "5 tokens", [["a", "b", "c"], ["d"], ["e"]])
    assert bulk(text, 6).tokens == 6
    assert list(batches(text, 2)) == [text[:2], text[2:]]


def test_a_short_text_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a b\n\nc\n", encoding="utf-8")
    assert load_text(3, path, 0) == ([["a", "b"], [], ["c"]], "text.txt")
    assert load_text(7, path, 0) == ([["a", "b"], [], ["c"]] * 3, "text.txt, 3 times over")
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(FlashElmoError, match="expected text, found none"):
        load_text(3, path, 0)
    monkeypatch.setattr(gpu_workloads, "REAL_TEXT", tmp_path / "nothing here")
    monkeypatch.setattr(gpu_workloads, "GENERATED", 100)
    sentences, source = load_text(250, None, 5)
    assert sum(map(len, sentences)) >= 250 and source == "generated text, seed 5, 2 times over"


def test_a_ceiling_is_the_sum_of_its_steps() -> None:
    config = preset_config("original")
    sentences = [["the"] * 3, ["the"] * 3, ["the"]]
    workload = Workload("ragged", "3 sentences", sentences)
    step = {rows: lstm_step(config, rows, "bf16").microseconds(H200, "bf16").microseconds for rows in (2, 3)}
    once = 1e6 * 2 * 512 * 4 * 4096 * 2 / H200.memory
    lstm = 2 * (step[3] + 2 * step[2] + once)
    assert ceilings(config, workload, H200, "bf16").lstm == pytest.approx(7 / lstm * 1e6)
    known = ceilings(config, workload, H200, "bf16", words_known=True)
    assert known.lstm == known.both > ceilings(config, workload, H200, "bf16").both


def test_few_rows_are_bound_by_weights_and_many_by_operations() -> None:
    config = preset_config("original")
    one, many = lstm_step(config, 1, "bf16"), lstm_step(config, 1024, "bf16")
    recurrent = 2 * (512 * 4 * 4096 + 4096 * 512) * 2
    assert one.weights == recurrent and one.launches == 0
    assert one.microseconds(H200, "bf16").microseconds == pytest.approx(1e6 * recurrent / H200.memory, rel=0.02)
    per_token = config.lstm_flops_per_token / config.n_layers
    assert many.operations == 1024 * per_token
    assert many.microseconds(H200, "bf16").bound == "matrix"
    text = [["word"] * 20] * 512
    found = ceilings(config, Workload("batch", "", text), H200, "bf16").lstm
    assert 0.9 * H200.half < found * config.lstm_flops_per_token < H200.half


def test_measured_ceilings_replace_the_tables() -> None:
    assert with_ceiling(H200, "bf16", 500.0).half == 500e12
    assert with_ceiling(H200, "fp32", 50.0).fp32 == 50e12
    assert with_ceiling(H200, "bytes", 4000.0).memory == 4000e9
    assert with_ceiling(H200, "L2 bytes", 1.0).l2 == H200.l2 and with_ceiling(H200, "L2 bytes", 9e3).l2 == 9e12
    assert with_ceiling(H200, "bf16", None) == H200


def test_slow_cards_get_less_text() -> None:
    config = preset_config("original")
    most = EngineSettings().bulk_tokens
    assert suited_tokens(config, H200, most, "bf16") == most
    assert suited_tokens(config, card_named("L4"), most, "bf16") == 1 << 18
    assert suited_tokens(config, replace(H200, half=1.0), most, "bf16") == most // 64


# ------------------------------------------------------------------------------------------------------------- rivals


def test_the_eager_reference_is_the_reference() -> None:
    tiny = tiny_model()
    sentences = [sentence for sentence in SENTENCES if sentence]
    eager = Eager(tiny, "cpu", torch.float32)
    expected = ReferenceRuntime(tiny).embed_batch(sentences)
    for found, other in zip(eager.vectors(sentences), expected, strict=True):
        np.testing.assert_allclose(found, other, atol=1e-6, rtol=0)
    with mock.patch.object(eager, "_layers", wraps=eager._layers) as layers:
        eager(sentences, batch_size=3)
    assert [call.args[0] for call in layers.call_args_list] == [sentences[:3], sentences[3:]]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_stacks_do_the_same_products() -> None:
    stacks = Stacks(CONFIG, 3, 5, "cpu", torch.float32, 1)
    weights = sum(
        parameter.numel()
        for stack in stacks._stacks
        for name, parameter in stack.named_parameters()
        if name.startswith("weight")
    )
    assert 2 * weights == CONFIG.lstm_flops_per_token
    assert stacks._x.shape == (5, 3, CONFIG.projection_size)
    stacks([])


def test_onnx_runtime_without_cuda_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_onnx(MODELS["skip"], tmp_path / "model.onnx")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(FlashElmoError, match="expected some of CPUExecutionProvider, found CUDAExecutionProvider"):
        Onnx(tmp_path / "model.onnx")


def test_onnx_runtime_leaves_its_outputs_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_onnx(MODELS["skip"], tmp_path / "model.onnx")
    monkeypatch.setattr(runtime, "OnnxElmo", lambda path, providers: Recorded(path) if providers == "cuda" else None)
    Onnx(tmp_path / "model.onnx")([["a", "b"], ["c"]])
    (outputs,) = Recorded.results
    assert {type(value).__name__ for value in outputs.values()} == {"OrtValue"}
    assert outputs["mask"].numpy().tolist() == [[True, True], [True, False]]


class Recorded(runtime.OnnxElmo):
    """An exported file on the CPU, which keeps what its runs gave."""

    results: ClassVar[list[dict[str, Any]]] = []

    def run(self, **given: Any) -> dict[str, Any]:
        self.results.append(super().run(**given))
        return self.results[-1]


# ------------------------------------------------------------------------------------------------- switches and stages


@dataclass(frozen=True)
class Settings:
    on: bool = True
    off: bool = False
    number: int = 1


def test_switches_are_the_fields_that_are_true_or_false() -> None:
    assert switches(Settings()) == ["on", "off"]
    assert turned_off(Settings(), ["on"]) == Settings(on=False)
    assert turned_off(Settings(), []) == Settings()
    with pytest.raises(FlashElmoError, match="switch: expected one of on, off, found 'number'"):
        turned_off(Settings(), ["number"])
    assert {"graphs", "persistent", "dependent", "keep_weights"} <= set(switches(default_settings()))


def test_every_kernel_belongs_to_a_stage() -> None:
    folder = Path(flashelmo.kernels.__file__).parent
    names = [
        node.name
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    ]
    assert len(names) >= 8
    assert {name: stage_of(name) for name in names if stage_of(name) == gpu_stages.OTHER} == {}
    stages = {stage_of(name) for name in names}
    assert stages == {"characters", "highway", "linear", "LSTM gates", "LSTM projection", "persistent steps", "tokens"}


def test_shares_of_the_time() -> None:
    events = [
        Busy("gates_kernel", 10, 20),
        Busy("projection_kernel", 15, 25),  # beside the one before
        Busy("gates_kernel", 30, 40),
        Busy("Memcpy DtoH (Device -> Pinned)", 45, 50),
        Busy("void at::native::index_kernel<...>", 50, 60),
    ]
    assert covered(events) == 40
    found = shares(events)
    assert found == pytest.approx(
        {"LSTM gates": 40, "LSTM projection": 20, "other": 20, "copies to the host": 10, "idle": 20}
    )
    assert next(iter(found)) == "LSTM gates" and list(found)[-1] == "idle"
    assert others(events) == "other: void at::native::index_kernel<...>"
    assert shares([]) == {} and others(events[:2]) == ""


def test_stages_of_a_card_that_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(name="CUDA")

    class Profile:
        def __init__(self, activities: Any) -> None:
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *given: object) -> None:
            pass

        def events(self) -> list[Any]:
            def event(name: str, device: Any, start: float, end: float) -> Any:
                return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end))

            return [event("linear_kernel", cuda, 0, 3), event("python", None, 0, 9), event("x", cuda, 3, 4)]

    ran: list[int] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.profiler, "profile", Profile)
    rows = gpu_stages.measure_stages("m", "bf16", lambda: ran.append(1), "cuda:0")
    assert ran == [1]
    assert [(row.detail, row.median, row.note) for row in rows] == [
        ("linear", 75.0, "other: x"),
        ("other", 25.0, "other: x"),
        ("idle", 0.0, "other: x"),
    ]
    monkeypatch.setattr(Profile, "events", lambda self: [])
    (row,) = gpu_stages.measure_stages("m", "bf16", lambda: None, "cuda:0")
    assert "may not be permitted" in row.note


# ---------------------------------------------------------------------------------------------------------- sanitizer


@pytest.mark.parametrize(
    ("text", "status", "expected"),
    [
        ("========= ERROR SUMMARY: 0 errors\n", 0, (0, "")),
        ("========= ERROR SUMMARY: 3 errors\n", 0, (3, "FAILED: 3 errors")),
        ("========= ERROR SUMMARY: 1 error\n", 1, (1, "FAILED: 1 errors")),
        ("========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)", 0, (2, "FAILED: 2 errors")),
        ("========= ERROR SUMMARY: 0 errors\n", 1, (0, "FAILED: the checks ended with exit status 1")),
        ("Killed", 137, (None, "FAILED: no summary, exit status 137")),
    ],
)
def test_a_sanitizers_log_is_judged(text: str, status: int, expected: tuple[float | None, str]) -> None:
    assert gpu_sanitizer.judge(text, status) == expected


def test_the_sanitizer_runs_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], *, stdout: Any, timeout: float, env: dict[str, str], **options: Any) -> Any:
        commands.append(command)
        assert env["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
        if len(commands) == 2:
            raise subprocess.TimeoutExpired(command, timeout)
        stdout.write("========= ERROR SUMMARY: 0 errors\n")
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{Path(name).name}")
    monkeypatch.setattr(subprocess, "run", run)
    rows = list(gpu_sanitizer.sanitize(tmp_path, Deadline(1000)))
    assert [row.median for row in rows] == [0, None, 0]
    assert rows[1].note == "not measured: no end within 150 seconds"
    assert commands[0][:3] == ["/bin/compute-sanitizer", "--tool", "memcheck"]
    assert commands[2][2] == "racecheck"
    for command in commands:  # what it runs is understood
        settings, _ = gpu.parse(command[command.index("--out") :])
        assert (settings.sections, settings.off, settings.short_sentences) == (("correctness",), ("graphs",), 0)
    over = list(gpu_sanitizer.sanitize(tmp_path, Deadline(0)))
    assert {row.note for row in over} == {"skipped, as the 0 seconds were over"}
    monkeypatch.setattr("shutil.which", lambda name: None)
    (row,) = gpu_sanitizer.sanitize(tmp_path, Deadline(1000))
    assert row.note == "FAILED: compute-sanitizer is not installed"


# ----------------------------------------------------------------------------------------- targets, tables, command


def results_of(*rows: Row) -> Results:
    found = gpu.new_results(EngineSettings(), {"name": "NVIDIA H200"}, "abc")
    return replace(found, rows=list(rows))


def test_targets_take_the_slowest_ratio_and_the_largest_text() -> None:
    def row(section: str, name: str, detail: str, median: float, **more: Any) -> Row:
        return Row(section, "original", name, "tokens/s", detail, median=median, samples=[median], **more)

    peers = {"cuDNN LSTM bf16": 3.0, "cuDNN LSTM bf16, two streams": 2.5, "PyTorch eager fp32": 20.0}
    found = gpu_targets.targets(
        results_of(
            row("bulk", "flashelmo bf16", "2,097,152 tokens", 3e6),
            row("bulk", "flashelmo bf16, text to means", "2,097,152 tokens", 2.4e6),
            row("bulk", "flashelmo bf16", "65,536 tokens", 2e6),
            row("single", "flashelmo bf16, words known", "a sentence of 20", 4e4),
            row("batch", "flashelmo bf16", "32 sentences of 20", 9e5, ratios=peers),
            row("batch", "flashelmo bf16, words known", "32 sentences of 20", 1.1e6, ratios=peers),
            row("batch", "flashelmo bf16, words known", "512 sentences of 20", 3e6, ratios=peers),
        ),
        "original",
    )
    values = [(row.name, row.unit, row.median) for row in found]
    assert values == [
        ("bulk text, bf16", "tokens/s", 3e6),
        ("32 sentences, bf16", "tokens/s", 9e5),
        ("32 sentences, bf16, words known", "tokens/s", 1.1e6),
        ("a sentence, bf16", "tokens/s", None),
        ("a sentence, bf16, words known", "tokens/s", 4e4),
        ("32 sentences, bf16", "x PyTorch eager fp32", 20.0),
        ("32 sentences of 20, bf16, words known", "x the fastest cuDNN LSTM", 2.5),
        ("text to means, bf16", "x bulk text on the device", 0.8),
    ]
    assert found[3].note == "wanted: at least 30k; not measured"


def test_readme_gets_its_tables_from_the_results(tmp_path: Path) -> None:
    row = Row("bulk", "small", "flashelmo bf16", "tokens/s", "9 tokens", median=5e6)
    names = ("precision", "gpu", "onnx", "figures")
    readme = "".join(f"<!-- {name}:begin -->\nold\n<!-- {name}:end -->\n" for name in names)
    empty = report.in_readme(readme, tmp_path)
    assert empty.count("None measured yet.") == 4 and "old" not in empty
    results_of(replace(row, samples=[5e6])).write(tmp_path / "gpu" / "gpu-h200.json")
    written = report.in_readme(empty, tmp_path)
    assert "\n|  | bulk: 9 tokens |\n| --- | ---: |\n| flashelmo bf16 | 5,000 |\n" in written
    assert "<!-- gpu:begin -->\n\nNVIDIA H200, host " in written
    assert report.in_readme(written, tmp_path) == written
    (tmp_path / "gpu" / "x.json").write_text("{}")
    with pytest.raises(FlashElmoError, match=r"x.json: expected results of the benchmark"):
        report.in_readme(written, tmp_path)


def test_lines_tell_a_check_at_once() -> None:
    rows = [
        Row("error", "m", "batch bf16", "max abs error", "layer 0", median=1e-3),
        Row("error", "m", "batch bf16", "relative error", "layer 0", median=0.02, note="FAILED: off"),
        Row("error", "m", "batch fp32", "max abs error", "layer 0", median=1e-6),
        Row("bulk", "m", "flashelmo bf16", "tokens/s", "9 tokens", median=5.0),
    ]
    found = gpu_tables.lines(rows)
    assert found[:2] == [
        "error, m: batch bf16; max abs error: layer 0 0.001; relative error: layer 0 0.02; FAILED: off",
        "error, m: batch fp32; max abs error: layer 0 1e-06",
    ]
    assert found[2].startswith("bulk, m") and found[2].endswith("5 tokens/s")


def test_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--out", "x", "--models", "small", "--only", "correctness,speed", "--precisions", "fp16", "--few"]
    settings, rest = gpu.parse([*given, "--onnx", "m.onnx", "--off", "graphs,dependent", "--limit-seconds", "60"])
    assert (settings.models, settings.sections, settings.precisions) == (
        ("small",),
        ("correctness", "speed"),
        ("fp16",),
    )
    assert (settings.off, settings.limit_seconds, rest.out) == (("graphs", "dependent"), 60.0, Path("x"))
    assert (settings.real_sentences, settings.short_sentences, settings.onnx) == (4, 0, Path("m.onnx"))
    for wrong, message in [
        (["--only", "all"], "--only: expected some of correctness,speed,stages,switches, found 'all'"),
        (["--models", "huge"], "--models: expected some of small,medium,original, found 'huge'"),
        (["--rounds", "0"], "--rounds: expected at least 1, found 0"),
        (["--seed", "-1"], "--seed: expected zero or more, found -1"),
    ]:
        with pytest.raises(SystemExit):
            gpu.parse(["--out", "x", *wrong])
        assert message in capsys.readouterr().err


def test_without_a_device_there_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "gpu: no CUDA device: this benchmark needs one\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (tmp_path / "file").touch()
    assert gpu.main(["--out", str(tmp_path / "file")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("gpu: --out: expected a folder") and error.count("\n") == 1
    assert gpu_tables.main([str(tmp_path / "none.json")]) == 1
    assert capsys.readouterr().err.startswith("gpu.tables: ")


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), ("bf16", "fp32", "fp16", "tf32")), ((7, 5), ("fp32",))])
def test_older_cards_have_fewer_precisions(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    said: list[str] = []
    device = torch.device("cuda", 0)
    assert gpu.suited(("bf16", "fp32", "fp16", "tf32"), device, said.append) == expected
    assert len(said) == 4 - len(expected)
    if capability < (8, 0):
        with pytest.raises(FlashElmoError, match="precisions: expected one that the card has, found tf32"):
            gpu.suited(("tf32",), device, said.append)


def test_a_run_on_a_card_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `main` hands to a run, as far as a machine without a card can tell."""
    made: list[tuple[Any, ...]] = []

    class FakeRun:
        def __init__(self, *given: Any, **named: Any) -> None:
            made.append((*given, named))

        def run(self) -> bool:
            return False

    properties = {"name": "NVIDIA H200", "l2_bytes": 50e6, "multiprocessors": 132}
    fakes: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "mem_get_info": lambda device: (8 << 30, 9 << 30),
        "get_device_capability": lambda device: (9, 0),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(gpu, "gpu", lambda device: properties)
    monkeypatch.setattr(gpu, "Run", FakeRun)
    assert gpu.main(["--out", str(tmp_path), "--off", "graphs", "--commit", "abc", "--rounds", "3"]) == 1
    settings, results, place, tools, named = made[0]
    assert settings.copy_bytes == 1 << 30 and settings.precisions[0] == "bf16"
    assert (results.commit["id"], place.torch, tools.cuda.graphs) == ("abc", "cuda:0", False)
    assert (named["card"].name, named["out"]) == ("H200", tmp_path)
    assert model.VALUE_BYTES.keys() >= set(settings.precisions)
    assert gpu.main(["--out", str(tmp_path), "--off", "nothing"]) == 1
