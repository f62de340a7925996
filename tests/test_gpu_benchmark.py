"""The suite of the engine on a GPU, whole: by a stand-in for the engine, and by itself in Triton's interpreter."""

import io
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gpu_run import CONFIG, LITTLE, SETTINGS, FakeTimes, StandIn, bound, find, start, tiny_model
from rich.console import Console

from flashelmo.benchmarks import machine, report
from flashelmo.benchmarks.__main__ import find as suite_named
from flashelmo.benchmarks.__main__ import parse
from flashelmo.benchmarks.gpu import accuracy, rivals, sanitizer, speed, suite
from flashelmo.benchmarks.gpu.accuracy import Truth
from flashelmo.benchmarks.gpu.rivals import Eager
from flashelmo.benchmarks.gpu.speed import NOT_TIMED, Speed
from flashelmo.benchmarks.gpu.subject import Subject
from flashelmo.benchmarks.gpu.workloads import bulk
from flashelmo.benchmarks.kernels.card import Device, card_named
from flashelmo.benchmarks.results import Results
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.timing import Deadline
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.settings import CudaSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a card"),
]
Whole = tuple[int, Results, str, Path]
BATCH, LARGER, ONE = "2 sentences of 4", "3 sentences of 4", "a sentence of 4"


def text_file(folder: Path, lines: str = "") -> Path:
    """Short ragged sentences."""
    path = folder / "input.txt"
    path.write_text(lines or "a cat sat\non\nthe mat and the other mat\nit sat there\n" * 6, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: module)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """One run of everything with the stand-in."""
    out = tmp_path_factory.mktemp("gpu")
    StandIn.made.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda module, dynamic: module)
        return (*start(out, replace(SETTINGS, text=text_file(out), golden=out / "nothing")), out)


# ------------------------------------------------------------------------------------------------------------ all of it


def test_correctness_comes_first_and_the_slowest_last(whole: Whole) -> None:
    status, results, said, _ = whole
    assert status == 0, said
    order = list(dict.fromkeys(row.section for row in results.rows))
    speeds = ["bulk", "single", "batch", "ragged"]
    assert order == ["error", "ceiling", *speeds, "stages", "switch", "compiled", "onnx", "target"]
    assert "text: input.txt" in said and "failures: 0; " in said


def test_every_precision_and_way_is_compared_with_the_reference(whole: Whole) -> None:
    results = whole[1]
    thorough = ["batch", "repeated", "one by one", "bulk", "pooled", "boundaries", "stateful"]
    expected = {f"{way} {precision}" for precision in ("bf16", "fp32") for way in thorough}
    expected |= {"batch int8", "repeated int8"}
    for model in ("tiny", "other"):
        rows = results.section("error", model)
        assert {row.name for row in rows} == expected
        assert all(row.median is not None and not row.note for row in rows)
        for row in rows:
            precision = row.name.rpartition(" ")[2]
            if row.unit == "relative error" and precision != "fp32" and row.detail != "two calls":
                assert row.median == pytest.approx(bound(precision) / 10, rel=0.01)  # as far off as the stand-in is
        exact = [row.median for row in rows if row.name.endswith("fp32") and row.detail != "two calls"]
        assert 0 < max(x for x in exact if x is not None) < 1e-6
    details = {row.detail for row in results.section("error", "tiny") if row.name == "pooled bf16"}
    assert details == {"mean of the average", "mean of layer 1", "top layer", "means of a file"}


def test_embedders_are_made_as_users_make_them(whole: Whole) -> None:
    bf16 = {"device": "stand-in", "precision": "bf16"}
    for more in (
        {},
        {"cache_bytes": 0},
        {"keep_sentence_boundaries": True},
        {"stateful": True, "batch_size": SETTINGS.stateful_rows},
    ):
        assert bf16 | {"cuda": CudaSettings()} | more in StandIn.made
    for switch in suite.SWITCHES:
        opposite = replace(CudaSettings(), **{switch: not getattr(CudaSettings(), switch)})
        assert bf16 | {"cuda": opposite} in StandIn.made


def test_speeds_stand_beside_ceilings_and_rivals(whole: Whole) -> None:
    results = whole[1]
    ours = find(results, "batch", "flashelmo bf16", BATCH)
    assert (ours.unit, ours.median) == ("tokens/s", pytest.approx(8 / 11e-6, rel=1e-4))
    rivals_ = ("PyTorch eager fp32", "cuDNN LSTM fp32")
    assert ours.ratios == dict.fromkeys(rivals_, pytest.approx(201 / 11, rel=1e-3))
    known = find(results, "batch", "flashelmo bf16, words known", BATCH)
    assert ours.ceiling == known.ceiling == known.ceiling_both
    assert ours.ceiling is not None and ours.ceiling_both is not None and 0 < ours.ceiling_both < ours.ceiling
    eager = find(results, "batch", "PyTorch eager fp32", BATCH)
    assert (eager.median, eager.ceiling, eager.ratios) == (pytest.approx(8 / 201e-6, rel=1e-4), None, {})
    for section, detail, names in [
        ("single", ONE, {"flashelmo bf16", "flashelmo int8", "PyTorch eager fp32", "cuDNN LSTM fp32"}),
        ("batch", LARGER, {"flashelmo bf16", "flashelmo bf16, words known", "PyTorch eager fp32"}),
        ("ragged", "3 sentences", {"flashelmo bf16", "PyTorch eager fp32"}),
        ("bulk", "64 tokens", {"flashelmo int8", "flashelmo bf16, windows ready", "flashelmo bf16, text to means"}),
        ("bulk", "16 tokens", {"flashelmo bf16", "flashelmo fp32", "PyTorch eager fp32"}),
        ("compiled", BATCH, {"flashelmo bf16", "torch.compile fp32"}),
    ]:
        assert names <= {row.name for row in results.section(section, "tiny") if row.detail == detail and row.median}
    larger = {row.name for row in results.section("batch", "tiny") if row.detail == LARGER}
    assert "flashelmo int8" not in larger  # other precisions are timed in one size


def test_ceilings_are_those_that_were_measured(whole: Whole) -> None:
    results = whole[1]
    peak = find(results, "ceiling", "torch.mm bf16", "16 x 16 x 16", "card").median
    copy = find(results, "ceiling", "copy", "1 MiB", "card").median
    assert peak == pytest.approx(2e-12 * 16**3 / 201e-6, rel=1e-3)  # "torch" is a rival to the fake times
    assert copy == pytest.approx(2e-9 * (1 << 20) / 11e-6, rel=1e-3)
    row = find(results, "bulk", "flashelmo bf16", "64 tokens")  # at such a peak nothing else is a limit
    assert row.ceiling == pytest.approx((peak or 0) * 1e12 / CONFIG.lstm_flops_per_token, rel=0.01)


def test_each_switch_is_timed_against_its_opposite_and_what_needs_a_card_says_so(whole: Whole) -> None:
    results = whole[1]
    rows = results.section("switch", "tiny")
    assert {row.name for row in rows} == {f"{name} {state}" for name in suite.SWITCHES for state in ("on", "off")}
    assert {"graphs", "keep_weights", "batch_invariant"} == set(suite.SWITCHES)
    for detail in (ONE, "bulk, 16 tokens"):
        on, off = (find(results, "switch", f"graphs {state}", detail) for state in ("on", "off"))
        assert on.ratios == {"graphs off": 1.0} and on.median == off.median and not off.ratios
    stages = results.section("stages", "tiny")
    assert len(stages) == 2 and all(row.median is None and "CUDA" in row.note for row in stages)
    (onnx,) = results.section("onnx")
    assert onnx.note == "no exported model was given (--onnx)"
    assert find(results, "error", "published", "", "golden").note == "no golden data here"


def test_results_tables_and_plots_are_written(whole: Whole, tmp_path: Path) -> None:
    _, results, said, out = whole
    written = {"gpu-h200.json", "gpu-h200.md", "gpu-h200-tiny.svg", "gpu-h200-other.svg"}
    assert {path.name for path in out.glob("gpu-*")} == written
    assert (results.settings["text"], results.settings["golden"]) == ("input.txt", "nothing")
    targets = {row.name: row for row in results.section("target", "tiny")}
    assert targets["bulk text, bf16"].median == find(results, "bulk", "flashelmo bf16", "64 tokens").median
    assert targets["text to means, bf16"].median == 1.0
    peer = targets["2 sentences of 4, bf16, words known"]
    assert (peer.median, peer.note) == (pytest.approx(201 / 11, rel=1e-3), "wanted: at least 2")
    assert targets["32 sentences, bf16"].note == "wanted: at least 1M; not measured"
    tables = (out / "gpu-h200.md").read_text(encoding="utf-8")
    assert tables in said
    for line in (
        "| bulk text, bf16 | tokens/s | 5,818,200 | at least 2.5M, goal 4M |  |",
        "for LSTM and words): other model**",
        "| tiny: graphs on | 1 | 1 |",
        "Not measured: ONNX Runtime (onnx): no exported model was given (--onnx).",
    ):
        assert line in tables
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "gpu-h200.json").write_bytes((out / "gpu-h200.json").read_bytes())
    filled = report.fill(tmp_path / "x.md", "<!-- gpu:begin -->\nstale text\n<!-- gpu:end -->\n", tmp_path)
    assert "stale text" not in filled and tables.splitlines()[2] in filled and "NVIDIA H200, host " in filled


def test_published_vectors_are_reproduced(tmp_path: Path, golden: Path) -> None:
    settings = replace(LITTLE, sections=("correctness",), golden=golden, text=text_file(tmp_path), precisions=("fp32",))
    status, results, said = start(tmp_path, settings)
    assert status == 0, said
    for model, name, layers in [
        ("bilm_skip", "published fp32", 3),
        ("manylangs", "published fp32", 3),
        ("bilm_skip", "published, stateful fp32", 2),
        ("bilm_noskip", "published, stateful fp32", 1),
    ]:
        rows = [row for row in results.section("error", model) if row.name == name and row.unit == "max abs error"]
        assert len(rows) == layers
        assert all(row.median is not None and 0 < row.median < 1e-5 for row in rows)


# -------------------------------------------------------------------------------------------------- when it goes wrong


class Wrong(StandIn):
    """Its bf16 is off by more than it may be; its int8 is not a number; its fp32 forgets the state."""

    def __init__(self, *args: Any, **options: Any) -> None:
        if options["precision"] == "fp32":
            options.pop("stateful", None)
        super().__init__(*args, **options)

    def off(self, vectors: Any) -> Any:
        if self.precision == "bf16":
            return vectors * 1.04
        return vectors * float("nan") if self.precision == "int8" else vectors


def test_wrong_vectors_fail_the_run_and_are_not_timed(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS, models=("tiny",), text=text_file(tmp_path), sections=("correctness", "speed", "switches")
    )
    times = FakeTimes()
    status, results, said = start(tmp_path, replace(settings, golden=None), Wrong, times)
    assert status == 1 and not results.section("switch")
    by_name: dict[str, list[str]] = {}
    for row in results.section("error", "tiny"):
        by_name.setdefault(row.name, []).append(row.note)
    assert by_name["batch bf16"][1::2] == ["FAILED: relative error 0.04, expected less than 0.01"] * 3
    assert all(note.startswith("FAILED: ") and " nan, expected" in note for note in by_name["batch int8"][1::2])
    assert not any(by_name["batch fp32"]) and any(by_name["stateful fp32"])
    for precision in ("bf16", "fp32", "int8"):
        row = find(results, "batch", f"flashelmo {precision}", BATCH)
        assert (row.median, row.note) == (None, NOT_TIMED)
    assert find(results, "batch", "PyTorch eager fp32", BATCH).median
    assert not any(name.startswith("flashelmo") for name in times.ran)
    failures = sum(note.startswith("FAILED") for notes in by_name.values() for note in notes)
    assert f"failures: {failures}; " in said


class Restless(StandIn):
    """Its vectors change from call to call, by less than rounding."""

    calls = 0

    def off(self, vectors: Any) -> Any:
        Restless.calls += 1
        return vectors * (1 + 1e-6 * (Restless.calls % 7))


class Broken(StandIn):
    """Other shapes in bf16, none in fp32."""

    def off(self, vectors: Any) -> Any:
        if self.precision == "fp32":
            raise RuntimeError("an illegal instruction\nand a long story")
        return vectors[:, :-1]


def test_two_calls_must_give_the_same_bits_and_errors_are_a_line(tmp_path: Path) -> None:
    settings = replace(LITTLE, sections=("correctness",), text=text_file(tmp_path))
    status, results, _ = start(tmp_path, replace(settings, precisions=("fp32",)), Restless)
    failed = {(row.name, row.detail): row.note for row in results.rows if row.failed}
    assert status == 1 and failed.keys() == {("repeated fp32", "two calls")}
    assert failed["repeated fp32", "two calls"].endswith("expected the same bits")
    status, results, _ = start(tmp_path, settings, Broken)
    notes = {row.name: row.note for row in results.section("error", "tiny")}
    assert status == 1 and notes["batch fp32"] == "FAILED: RuntimeError: an illegal instruction"
    assert notes["batch bf16"] == "FAILED: sentence 1: expected shape [3, 1, 32], found [3, 0, 32]"


def test_absent_rivals_and_failing_contestants_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def fail(*given: Any) -> None:
        raise FlashElmoError("expected a shorter batch")

    monkeypatch.setattr(Eager, "vectors", refuse)
    monkeypatch.setattr(rivals, "compiled", fail)
    times = FakeTimes(failing=("flashelmo fp32", "cuDNN LSTM fp32"))
    status, results, _ = start(tmp_path, replace(LITTLE, text=text_file(tmp_path)), times=times)
    assert status == 1
    out_of_memory = "OutOfMemoryError: CUDA out of memory"
    assert find(results, "batch", "PyTorch eager fp32", BATCH).note == out_of_memory
    assert find(results, "batch", "cuDNN LSTM fp32", BATCH).note == out_of_memory
    assert find(results, "batch", "flashelmo fp32", BATCH).note == f"FAILED: {out_of_memory}"
    assert find(results, "compiled", "torch.compile fp32", BATCH).note == "expected a shorter batch"
    ours = find(results, "batch", "flashelmo bf16", BATCH)
    assert ours.median and ours.ratios == {}


def test_a_lost_device_ends_the_run_and_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = FakeTimes()
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # without which only the plots are missing
    monkeypatch.setattr(Device, "is_lost", lambda device: "flashelmo bf16" in times.ran)
    status, results, said = start(tmp_path, replace(LITTLE, text=text_file(tmp_path)), times=times)
    assert status == 1 and "failures: 1; " in said and "not drawn: " in said
    assert find(results, "bulk", "flashelmo bf16", "64 tokens").median
    assert find(results, "bulk", "all", "64 tokens").note == "FAILED: the device is lost after this"
    for section in ("single", "batch", "ragged", "compiled"):
        assert {row.note for row in results.section(section)} == {"skipped, as the device is lost"}

    monkeypatch.setattr(Device, "is_lost", lambda device: True)  # wrong vectors end the checks
    settings = replace(LITTLE, sections=("correctness",), text=text_file(tmp_path))
    status, results, _ = start(tmp_path, settings, Broken)
    assert status == 1 and {row.name for row in results.section("error")} == {"batch bf16", "all"}


def test_a_time_limit_leaves_the_rest_out_and_says_so(tmp_path: Path) -> None:
    times = FakeTimes()
    settings = replace(SETTINGS, models=("tiny",), text=text_file(tmp_path), limit_seconds=0.0)
    status, results, _ = start(tmp_path, settings, times=times)
    rows = [row for row in results.rows if row.section != "target"]
    assert status == 0 and times.ran == []
    assert {row.note for row in rows} == {"skipped, as the 0 seconds were over"}
    sections = {"error", "ceiling", "bulk", "single", "batch", "ragged", "switch", "stages", "compiled", "onnx"}
    assert {row.section for row in rows} == sections


def test_results_are_on_disk_as_soon_as_they_are_there(tmp_path: Path) -> None:
    class Interrupted(FakeTimes):
        def time(self, name: str, run: Any) -> Any:
            if "words known" in name:
                raise KeyboardInterrupt
            return super().time(name, run)

    class Warning_(StandIn):
        def embed(self, sentences: Any, **asked: Any) -> Iterator[Any]:
            logging.getLogger("flashelmo").warning("CUDA graphs are not used: %s", "not permitted")
            return super().embed(sentences, **asked)

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, replace(LITTLE, text=text_file(tmp_path)), Warning_, times=Interrupted())
    results = Results.read(tmp_path / "gpu-h200.json")
    assert {row.section for row in results.rows} == {"error", "ceiling", "bulk", "warning"}
    assert {row.note for row in results.section("warning")} == {"CUDA graphs are not used: not permitted"}


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
    assert sanitizer.judge(text, status) == expected


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
    rows = list(sanitizer.sanitize(tmp_path, Deadline(1000)))
    assert [row.median for row in rows] == [0, None, 0]
    assert rows[1].note == "not measured: no end within 150 seconds"
    assert commands[0][:3] == ["/bin/compute-sanitizer", "--tool", "memcheck"] and commands[2][2] == "racecheck"
    for command in commands:  # what it runs is understood
        module, name, *arguments = command[command.index("-m") + 1 :]
        settings = parse(name, suite_named(name), arguments)
        assert (module, settings.sections, settings.off) == ("flashelmo.benchmarks", ("correctness",), ("graphs",))
        assert settings.few and settings.out == tmp_path / "sanitizer"
    assert {row.note for row in sanitizer.sanitize(tmp_path, Deadline(0))} == {"skipped, as the 0 seconds were over"}

    monkeypatch.setattr("shutil.which", lambda name: None)
    settings = replace(LITTLE, precisions=("fp32",), sections=("correctness",), text=text_file(tmp_path), sanitize=True)
    status, results, _ = start(tmp_path, settings)
    assert status == 1  # it was asked for, and has not run
    (row,) = results.section("sanitizer")
    assert (row.name, row.note) == ("compute-sanitizer", "FAILED: compute-sanitizer is not installed")


# --------------------------------------------------------------------------------------------------------- on a card


def test_a_run_on_a_card_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command hands to a run, as far as a machine without a card can tell; older cards have fewer types."""
    made: list[Settings] = []

    def measure(run: Any, engine: Any) -> int:
        made.append(engine.settings)
        assert (engine.device, engine.card.name, engine.cuda.graphs) == (Device("cuda", "cuda:0"), "H200", False)
        assert run.path == tmp_path / "gpu-h200.json" and run.results.commit == {"id": "abc", "dirty": False}
        return 7

    found = {"name": "NVIDIA H200", "l2_bytes": 50e6, "multiprocessors": 132}
    monkeypatch.setattr(machine, "card", lambda: found)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 << 30, 9 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(suite, "measure", measure)
    arguments = ["--out", str(tmp_path), "--off", "graphs", "--commit", "abc", "--rounds", "3", "--few"]
    for capability, precisions in (((9, 0), ("bf16", "fp32", "fp16", "tf32", "int8")), ((7, 5), ("fp32",))):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert suite.command(parse("gpu", suite.SUITE, arguments), Console(file=io.StringIO())) == 7
        assert made[-1].precisions == precisions and made[-1].thorough == (precisions[0], "fp32")
    assert (made[0].copy_bytes, made[0].sentences, made[0].short_sentences, made[0].golden) == (1 << 30, 4, 0, None)
    with pytest.raises(FlashElmoError, match="precisions: expected one that the card has, found tf32"):
        suite.suited(replace(SETTINGS, precisions=("tf32",)), Device("cuda", "cuda:0"))
    for wrong in (["--off", "nothing"], ["--only", "all"]):
        with pytest.raises(FlashElmoError, match=f"^{wrong[0]}: expected some of "):
            parse("gpu", suite.SUITE, wrong)


def test_the_cuda_runtime_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter: the batch is checked, and text is embedded from lists, from windows and from a file."""
    monkeypatch.setattr(accuracy, "ODD_SENTENCES", [[], ["é"]])
    monkeypatch.setattr(accuracy, "PASSES", 2)
    place, text = Device("interpreter", "cpu"), text_file(tmp_path, "a cat\nthe mat\n")
    settings = replace(LITTLE, precisions=("bf16",), text=text, sections=(), sentences=1, short_sentences=0)
    status, results, said = start(tmp_path, settings, ElmoEmbedder, device=place)
    assert status == 0, said
    errors = {(row.name, row.detail, row.unit): row.median for row in results.section("error", "tiny")}
    for layer in range(3):
        error = errors["batch bf16", f"layer {layer}", "relative error"]
        assert error is not None and 1e-4 < error < bound("bf16")
    assert errors["repeated bf16", "two calls", "max abs error"] == 0

    sentences, times = [["a"], ["mat"]], FakeTimes()
    monkeypatch.setattr(speed, "take_turns", times.turns)
    monkeypatch.setattr(speed, "WARM_UPS", 0)
    subject = Subject("tiny", tiny_model(), place, ElmoEmbedder, CudaSettings())
    given = subject, Truth(subject, sentences, settings), settings, card_named("H200"), tmp_path
    rows = Speed(*given).rows(bulk(sentences, 2), ["bf16"])
    assert [row.name for row in rows] == [
        f"flashelmo bf16{which}" for which in ("", ", windows ready", ", text to means")
    ]
    assert all(row.median == pytest.approx(2 / 11e-6, rel=1e-4) and not row.note for row in rows)
