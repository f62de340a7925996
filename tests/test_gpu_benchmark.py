"""The suite of the engine on a GPU, whole, by a stand-in for the engine, and by itself in Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from bench_fakes import (
    CONFIG,
    H200,
    INTERPRETER,
    LITTLE,
    STAND_IN,
    Bench,
    FakeTimes,
    StandIn,
    find,
    results_of,
    text_file,
    tiny_model,
    without_card,
)
from bench_workers import Hanging, failing_share
from tiny_models import BILM, SENTENCES

from flashelmo.benchmarks import contestant, machine, report
from flashelmo.benchmarks.__main__ import find as suite_named
from flashelmo.benchmarks.__main__ import main, parse
from flashelmo.benchmarks.gpu import accuracy, processes, speed, suite
from flashelmo.benchmarks.gpu.processes import supervise
from flashelmo.benchmarks.gpu.speed import NOT_TIMED, Eager, lstm_stacks
from flashelmo.benchmarks.kernels import card
from flashelmo.benchmarks.kernels.card import Card, Cost, Device, ceilings, lstm_step, suited_tokens
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.text import Workload
from flashelmo.benchmarks.worker import Deadline, Worker
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.precision import tolerance
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.settings import CudaSettings
from flashelmo.kernels.launch import Launch

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # what nobody reads may be any number
    pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a card"),
]
BATCH, ONE = "2 sentences of 4", "a sentence of 4"
SETTINGS = replace(suite.SUITE.defaults, **LITTLE, precisions=("bf16",))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_a_whole_run(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    StandIn.made.clear()
    results = bench.run("gpu --precisions bf16,fp32,int8 --switch graphs", models=("tiny", "other"), batches=(2, 3))
    printed = capsys.readouterr().out
    assert bench.status == 0, printed
    order = list(dict.fromkeys(row.section for row in results.rows))
    assert order == ["error", "ceiling", "single", "batch", "ragged", "bulk", "stages"]
    assert "not compiled ahead: gates" in printed and "0 launches compiled ahead" in printed
    assert bench.compiled[0][0] is suite.compile_share and bench.compiled[0][2] == list(suite.WHOLE)
    assert os.environ["TRITON_DISABLE_LINE_INFO"] == "1" and "failures: 0; " in printed

    ways = list(accuracy.WAYS)
    expected = {*(f"{way} bf16" for way in ways), *(f"{way} {p}" for way in ways[:2] for p in ("fp32", "int8"))}
    for model in ("tiny", "other"):  # every precision and way is compared with the reference
        rows = [row for row in results.section("error", model) if row.unit == "relative error"]
        assert {row.name for row in rows} == expected and not any(row.note for row in rows)
        for row in (row for row in rows if row.detail != "two calls"):
            precision, low = row.name.rpartition(" ")[2], row.median or 0
            wanted = pytest.approx(tolerance(precision, "cuda") / 10, rel=0.01)  # as far off as the stand-in is
            assert 0 < low < 1e-6 if precision == "fp32" else low == wanted
    bf16 = {"device": "stand-in", "precision": "bf16", "cuda": CudaSettings(graphs=False)}  # made as users make them
    for more in ({"cache_bytes": 0}, {"keep_sentence_boundaries": True}, {"stateful": True, "batch_size": 2}):
        assert bf16 | more in StandIn.made

    ours, known = (find(results, "batch", f"flashelmo bf16{which}", BATCH) for which in ("", ", words known"))
    assert ours.median == pytest.approx(8 / 11e-6, rel=1e-4)
    assert ours.ratios == dict.fromkeys(("PyTorch eager fp32", "cuDNN LSTM fp32"), pytest.approx(201 / 11, rel=1e-3))
    assert ours.ceiling and ours.ceiling_both and 0 < ours.ceiling_both < ours.ceiling == known.ceiling_both
    eager = find(results, "batch", "PyTorch eager fp32", BATCH)
    assert (eager.median, eager.ceiling, eager.ratios) == (pytest.approx(8 / 201e-6, rel=1e-4), None, {})
    eager_bulk = [f"PyTorch eager fp32, {n} at once" for n in (2, 3)]
    assert [*find(results, "bulk", "flashelmo bf16", "16 tokens").ratios] == eager_bulk
    for section, detail, names in [
        ("single", ONE, {"flashelmo bf16", "flashelmo int8", "PyTorch eager fp32", "cuDNN LSTM fp32"}),
        ("ragged", "3 sentences", {"flashelmo bf16", "flashelmo bf16, words known", "PyTorch eager fp32"}),
        ("bulk", "64 tokens", {"flashelmo int8", "flashelmo bf16, text to means"}),
        ("bulk", "16 tokens", {"flashelmo bf16", "flashelmo fp32", *eager_bulk}),
    ]:
        assert names <= {row.name for row in results.section(section, "tiny") if row.detail == detail and row.median}
    peak = find(results, "ceiling", "torch.mm bf16", "16 x 16 x 16", "card").median or 0
    assert peak == pytest.approx(2e-12 * 16**3 / 201e-6, rel=1e-3)  # "torch" is a rival to the fake times
    row = find(results, "bulk", "flashelmo bf16", "64 tokens")  # at such a peak nothing else is a limit
    assert row.ceiling == pytest.approx(peak * 1e12 / CONFIG.lstm_flops_per_token, rel=0.01)
    assert all("the profiler saw no kernel" in row.note for row in results.section("stages"))
    assert len(list(bench.folder.glob("timeline-tiny-*.json"))) == 3

    tables = (bench.folder / "out.md").read_text(encoding="utf-8")
    assert tables in printed and "| bound | 0.01 | " in tables and "| flashelmo bf16, words known | 364 (" in tables
    (bench.folder / "gpu").mkdir()
    (bench.folder / "out.json").rename(bench.folder / "gpu" / "gpu-h200.json")
    filled = report.fill(bench.folder / "x.md", "<!-- gpu:begin -->\nstale\n<!-- gpu:end -->\n", bench.folder)
    assert "stale" not in filled and tables.splitlines()[2] in filled and "NVIDIA H200, host " in filled


def test_a_check_measures_its_sections_beside_what_was_committed(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [
        Row("step", "tiny", "fused bf16", "µs", "3 rows", median=25.0),
        Row("batch", "tiny", "flashelmo bf16", "tokens/s", BATCH, median=8 / 22e-6),
    ]
    results = results_of(SETTINGS)
    replace(results, rows=old).write(bench.folder / "committed" / "a.json")
    other = replace(results, rows=[replace(old[0], median=1.0)], machine={"gpu": {"name": "another"}})
    other.write(bench.folder / "committed" / "b.json")
    found = bench.run("gpu --check --precisions bf16,fp32,fp16,tf32,int8", rows=(1, 3))
    assert bench.status == 0 and bench.compiled[0][2] == list(suite.CHECK)
    order = list(dict.fromkeys(row.section for row in found.rows))
    assert order == ["error", "step", "gates", "projection", "ceiling", "single", "batch", "ragged", "bulk", "stages"]
    errors = {row.name for row in found.section("error")}
    assert {"batch bf16", "pooled bf16", "fused step bf16", "int8 step int8", "highway fp16"} <= errors
    steps = {row.name for row in found.section("step") if row.detail == "1 rows"}
    assert {"hoisted bf16", "fused bf16", "cuBLAS fused bf16", "cuBLAS hoisted bf16", "int8 int8"} <= steps
    assert find(found, "step", "fused bf16", "3 rows").ratios["committed"] == pytest.approx(50 / 11, rel=1e-3)
    assert find(found, "batch", "flashelmo bf16", BATCH).ratios == {"committed": 2.0}
    assert not [row for row in found.rows if row.name.startswith(("PyTorch", "cuDNN"))]
    assert "x committed" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- when it goes wrong


class Wrong(StandIn):
    """Its bf16 is off by more than it may be; its int8 is not a number; its fp32 changes by less than rounding."""

    calls = 0

    def off(self, vectors: Any) -> Any:
        Wrong.calls += 1
        factor = {"bf16": 1.04, "int8": float("nan")}.get(self.precision, 1 + 1e-6 * (Wrong.calls % 7))
        return vectors * factor


class Broken(StandIn):
    """Other shapes in bf16, none in fp32."""

    def off(self, vectors: Any) -> Any:
        if self.precision == "fp32":
            raise RuntimeError("an illegal instruction\nand a long story")
        return vectors[:, :-1]


def test_wrong_vectors_fail_the_run_and_are_not_timed(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    results = bench.run("gpu --precisions bf16,fp32,int8 --only correctness,batches", Wrong)
    notes = {(row.name, row.detail, row.unit): row.note for row in results.section("error", "tiny")}
    message = "FAILED: relative error 0.04, expected less than 0.01"
    assert bench.status == 1 and notes["batch bf16", "layer 0", "relative error"] == message
    assert " nan, expected" in notes["batch int8", "layer 0", "relative error"]
    assert notes["repeated fp32", "two calls", "max abs error"].endswith("expected the same bits")
    for precision in ("bf16", "fp32", "int8"):
        row = find(results, "batch", f"flashelmo {precision}", BATCH)
        assert (row.median, row.note) == (None, NOT_TIMED)
    assert find(results, "batch", "PyTorch eager fp32", BATCH).median
    assert not any(name.startswith("flashelmo") for name in bench.times.ran)
    assert f"failures: {sum(row.failed for row in results.rows)}; " in capsys.readouterr().out
    results = bench.run("gpu --precisions bf16,fp32 --only correctness", Broken)
    found = {row.name: row.note for row in results.section("error", "tiny")}
    assert bench.status == 1 and found["batch fp32"] == "FAILED: RuntimeError: an illegal instruction"
    assert found["batch bf16"] == "FAILED: sentence 1: expected shape [3, 1, 32], found [3, 0, 32]"


def test_absent_rivals_and_failing_contestants_leave_the_others(bench: Bench) -> None:
    bench.times.failing = ("flashelmo fp32", "cuDNN LSTM fp32")
    with mock.patch.object(Eager, "vectors", side_effect=torch.cuda.OutOfMemoryError("CUDA out of memory")):
        results = bench.run("gpu --precisions bf16,fp32 --only batches")
    found = {row.name: row for row in results.section("batch")}
    for name in ("PyTorch eager fp32", "cuDNN LSTM fp32"):
        assert found[name].note == "OutOfMemoryError: CUDA out of memory"
    assert bench.status == 1 and found["flashelmo fp32"].note == "FAILED: OutOfMemoryError: CUDA out of memory"
    assert found["flashelmo bf16"].median and found["flashelmo bf16"].ratios == {}


def test_a_lost_device_and_a_time_limit(bench: Bench) -> None:
    results = bench.run("gpu --precisions bf16 --only sentence,bulk", limit_seconds=0.0)
    assert bench.status == 0 and not bench.times.ran and len(results.rows) == 2
    assert {row.note for row in results.rows} == {"skipped, as the 0 seconds were over"}
    lost = iter([False, False, True, *[False] * 99])
    bench.patch.setattr(Device, "is_lost", lambda device: next(lost))
    results = bench.run("gpu --precisions bf16 --only sentence,bulk")  # another process goes on without checking again
    assert [row.name for row in results.rows].count("batch bf16") == 6
    assert find(results, "bulk", "flashelmo bf16", "64 tokens").median


def test_jobs_that_hang_or_end_their_process_are_a_line_and_the_others_go_on() -> None:
    made: list[Any] = []

    def make(rows: Sequence[Row]) -> Worker:
        made.append((Worker(Hanging), len(rows)))
        return made[-1][0]

    sections, settings = ["correctness", "steps", "sentence", "bulk"], replace(SETTINGS, part_seconds=300.0)
    rows = [row for rows in supervise(sections, settings, Deadline(600.0), make, patience=2.0) for row in rows]
    done = [
        *((part, job) for part in sections[::2] for job in ("first", "second")),
        *(("steps", "first"), ("bulk", "second")),
    ]
    assert sorted((row.section, row.name) for row in rows if not row.failed) == sorted(done)
    hung, ended = [row for row in rows if row.failed]
    assert (hung.section, hung.name, hung.note) == ("steps", "second", "FAILED: no end within 2 seconds")
    assert (ended.section, ended.name, ended.note) == ("bulk", "first", "FAILED: a worker ended with exit code 7")
    assert [n for _, n in made] == [0, 4, 5, 7]  # after the one that hung, that lost the device, and that ended
    assert not any(worker.process.is_alive() for worker, _ in made)
    absent = mock.Mock(side_effect=FlashElmoError("no CUDA device"))
    notes = [rows[0].note for rows in supervise(["steps", "bulk"], settings, Deadline(600.0), absent)]
    assert notes == ["FAILED: no CUDA device"] * 2


# ------------------------------------------------------------------------------------------------------------ its parts


def test_the_device_decides_and_what_may_be_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "card", lambda: H200)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 << 30, 9 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    gpu = suite_named("gpu")
    for capability, precisions in (((9, 0), ("bf16", "fp32", "fp16", "tf32", "int8")), ((7, 5), ("fp32",))):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        settings, device, results = card.begin(parse("gpu", gpu, ["--few"]))
        settings = suite.suited(settings, device)
        assert (settings.precisions, settings.thorough) == (precisions, (precisions[0], "fp32"))
        assert (settings.copy_bytes, settings.sentences, settings.short_sentences) == (1 << 30, 4, 0)
        assert device == Device("cuda", "cuda:0") and results.versions["triton"]
    with pytest.raises(FlashElmoError, match="precisions: expected one that the card has, found tf32"):
        suite.suited(replace(SETTINGS, precisions=("tf32",)), Device("cuda", "cuda:0"))
    for wrong in ("--switch nothing", "--only all"):
        assert main(["gpu", *wrong.split()]) == 1
        assert f"{wrong.split()[0]}: expected some of " in capsys.readouterr().err


def test_the_cuda_runtime_takes_part(bench: Bench) -> None:
    """In Triton's interpreter: the batch is checked, and text is embedded from lists and from a file."""
    bench.patch.setattr(accuracy, "ODD_SENTENCES", [[], ["é"]])
    bench.patch.setattr(accuracy, "PASSES", 2)
    few = dict[str, Any](
        sentences=1, short_sentences=0, bulk_tokens=2, text=text_file(bench.folder, "a cat\nthe mat\n")
    )
    results = bench.run("gpu --check --only bulk --precisions bf16", ElmoEmbedder, INTERPRETER, **few)
    assert bench.status == 0
    errors = {(row.name, row.detail, row.unit): row.median for row in results.section("error", "tiny")}
    for layer in range(3):
        error = errors["batch bf16", f"layer {layer}", "relative error"]
        assert error is not None and 1e-4 < error < tolerance("bf16", "cuda")
    assert errors["repeated bf16", "two calls", "max abs error"] == 0
    names = [row.name for row in results.section("bulk") if row.median]
    assert names == ["flashelmo bf16", "flashelmo bf16, text to means"]


def test_rivals_do_the_same_work() -> None:
    tiny, sentences, cpu = tiny_model(), [sentence for sentence in SENTENCES if sentence], STAND_IN
    eager = Eager(tiny, cpu, "fp32")
    for found, other in zip(eager.vectors(sentences), ReferenceRuntime(tiny).embed_batch(sentences), strict=True):
        np.testing.assert_allclose(found, other, atol=1e-6, rtol=0)
    with mock.patch.object(eager, "activations", wraps=eager.activations) as computed:
        eager.way(batch_size=3).run(sentences)
    by_length = sorted(sentences, key=len)
    assert sentences != by_length
    assert [call.args[0] for call in computed.call_args_list] == [by_length[:3], by_length[3:]]
    with pytest.raises(FlashElmoError, match=r"not the reference's vectors: layer 0: relative error 0\.5, "):
        eager.check(sentences, [2 * x for x in eager.vectors(sentences)])
    named = [each for stack in lstm_stacks(CONFIG) for each in stack.named_parameters()]
    weights = sum(parameter.numel() for name, parameter in named if name.startswith("weight"))
    assert 2 * weights == CONFIG.lstm_flops_per_token
    way = speed.stacks(CONFIG, 3, 5, cpu, "fp32")
    with mock.patch.object(torch.nn.LSTM, "forward") as forward:
        way.run([])
    assert [call.args[0].shape for call in forward.call_args_list] == [(5, 3, CONFIG.projection_size)] * 2


def test_a_trace_has_shares_of_kernels_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def event(name: str, kind: str, start: float, end: float) -> Any:
        span = SimpleNamespace(start=start, end=end)
        return SimpleNamespace(name=name, device_type=SimpleNamespace(name=kind), time_range=span)

    profiler, now = mock.MagicMock(), iter([1.0, 1.0 + 100e-6])
    events = [event("gates", "CUDA", 0, 20), event("copy", "CUDA", 20, 25), event("gates", "CUDA", 30, 50)]
    profiler.return_value.__enter__.return_value.events = lambda: [*events, event("aten::mm", "CPU", 0, 99)]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.profiler, "profile", profiler)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    rows = speed.trace(Row("stages"), lambda: None, "cuda:0", tmp_path / "t.json")
    assert {row.detail: row.median for row in rows} == {"device busy": 45.0, "gates": 40.0, "copy": 5.0}
    profiler.return_value.__enter__.return_value.export_chrome_trace.assert_called_once_with(str(tmp_path / "t.json"))


# ------------------------------------------------------------------------------------------------------- compiled ahead


def kernel_name(launch: Launch) -> str:
    return str(launch.kernel.fn.__name__).removesuffix("_kernel")


def test_what_is_compiled_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each launch once, whoever meets it; nothing runs meanwhile."""
    monkeypatch.setattr(Launch, "signature", lambda self: [self.kernel, sorted(self.options.items())])
    monkeypatch.setattr(suite, "suited", lambda settings, device: replace(settings, thorough=("bf16",)))
    compiled: list[Launch] = []
    monkeypatch.setattr(suite, "compiling", lambda claims: processes.compiling(claims, compiled.append))
    few = replace(SETTINGS, sentences=1, short_sentences=0, check=True, rows=(1,), text=text_file(tmp_path))
    without_card(monkeypatch, ElmoEmbedder, INTERPRETER)
    claims = tmp_path / "claims"
    claims.mkdir()
    names: dict[str, set[str]] = {}
    for section in ("correctness", "steps", "batches"):
        assert not [line for k in (0, 1) for line in suite.compile_share(k, 2, few, [section], claims)]
        names[section] = set(map(kernel_name, compiled))
        assert len(compiled) == len(list(claims.iterdir()))
    others = {"char_cnn_embed", "char_cnn", "highway", "gather_words", "tokens", "sentences", "maxima", "carry"}
    steps = {"roots", "gates", "projection", "linear", "int8_rows", "int8_gates"}
    assert names["correctness"] == names["batches"] - {"int8_rows", "int8_gates"} and names["batches"] == steps | others
    assert suite.compile_share(0, 1, replace(few, rows=(1,)), ["steps"], claims) == []

    ran: list[Launch] = []
    run = Launch.run

    def seen(launch: Launch) -> None:
        ran.append(launch)
        run(launch)

    monkeypatch.setattr(Launch, "run", seen)
    monkeypatch.setattr(contestant, "take_turns", FakeTimes().turns)
    monkeypatch.setattr(speed, "WARM_UPS", 1)
    right = [Row("error", "tiny", f"{way} bf16", median=0.0) for way in accuracy.ALWAYS]  # not checked again
    engine = suite.Engine(few, tmp_path, right)
    for name in engine.names("sentence"):
        assert not [row.note for row in engine.do("sentence", name)[0] if row.failed]
    assert "tokens" in set(map(kernel_name, ran)) <= names["batches"]


def test_a_launch_is_compiled_without_running(tmp_path: Path) -> None:
    """In a process that does not interpret; launches that differ in what nothing is compiled for are one."""
    code = (
        "import sys, torch, triton; from pathlib import Path; from dataclasses import replace\n"
        "from flashelmo.benchmarks.gpu import processes\n"
        "from flashelmo.benchmarks.kernels.resources import AbsentCard\n"
        "from flashelmo.benchmarks.kernels.problems import Maker, gather_words\n"
        "from flashelmo.engine.model.initialize import preset_config\n"
        "triton.runtime.driver.set_active(AbsentCard(90)); claims = Path(sys.argv[1])\n"
        "with processes.compiling(claims):\n"
        "    for n in (320, 640):\n"
        "        gather_words(preset_config('small'), n, Maker.of('meta', 'bf16')).run()\n"
        "print(len(list(claims.iterdir())))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_DISABLE_LINE_INFO": "1"}
    (tmp_path / "claims").mkdir()
    command = [sys.executable, "-c", code, str(tmp_path / "claims")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.split() == ["1"], done.stdout + done.stderr
    assert list((tmp_path / "cache").rglob("gather_words_kernel.cubin"))


def test_a_share_that_fails_is_a_line() -> None:
    lines = sorted(processes.Ahead(failing_share, 2).finish(60.0))
    wrong = "not compiled ahead: "
    assert lines == [f"{wrong}RuntimeError: no share 1", f"{wrong}bulk: no such kernel"]


# --------------------------------------------------------------------------------------------------------------- limits

ORIGINAL = preset_config("original")
CARD = Card(790e12, 494e12, 67e12, 4.3e12, 5.5e12, 50e6)
# An operation or a byte of memory takes a microsecond, a byte of the cache a tenth; half of the cache is 100 bytes.
PLAIN = Card(1e6, 1e6, 1e6, 1e6, 10e6, 200)
TINY = replace(
    BILM, cell_size=5, projection_size=3, filters=((1, 2), (3, 4)), n_highway=1, character_size=7, max_characters=10
)
# D 2, C 5, P 3; two rows, four words. A filter of width 3 has 8 windows in 10 positions.
STATES = 2 * 2 * (3 * 2 + 5 * 4 + 5 * 4 + 5 * 2)
WINDOWS = 1 * 2 * (3 + 10) + 3 * 4 * (3 + 8)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (card.gates(TINY, 2, "bf16", "fused"), Cost(2 * 2 * 2 * 6 * 20, 2 * 2 * 3 * 2, 2 * 6 * 20 * 2, STATES)),
        (card.gates(TINY, 2, "int8", "fused"), Cost(2 * 2 * 2 * 6 * 20, 12, 2 * 6 * 20, STATES - 12)),
        (card.projection(TINY, 2, "fp32"), Cost(2 * 2 * 2 * 5 * 3, 0, 2 * 5 * 3 * 4, 2 * 2 * (5 + 3) * 4)),
        (card.characters(TINY, [3, 10], "fp32"), Cost(14 * WINDOWS, 2 * (40 + 6 * 4), (14 + 262) * 7 * 4, 0)),
        (card.highway(TINY, 4, "bf16"), Cost(2 * 4 * 6 * 12, 2 * 4 * 6 * 2, (6 * 2 + 4) * 12, 0)),
        (Cost(1, 2, 3, 4) + Cost(10, 20, 30, 40), Cost(11, 22, 33, 44)),
        *(
            (max((took, part) for part, took in cost.parts(PLAIN, "bf16").items()), expected)
            for cost, expected in (
                (Cost(operations=7, streamed=5), (7.0, "matrix")),
                (Cost(operations=7, streamed=9), (9.0, "memory")),
                (Cost(states=50, operations=3), (5.0, "L2")),
                (Cost(weights=100), (10.0, "L2")),  # which stay in a cache of twice their size
                (Cost(weights=101), (101.0, "memory")),
            )
        ),
    ],
)
def test_costs_small_enough_to_count(found: object, expected: object) -> None:
    assert found == expected


def test_a_ceiling_is_the_sum_of_its_steps() -> None:
    workload = Workload("ragged", "3 sentences", [["the"] * 3, ["the"] * 3, ["the"]])
    recurrent = 2 * (512 * 4 * 4096 + 4096 * 512) * 2  # few rows' are read once a layer, as the input's
    steps = {rows: replace(lstm_step(ORIGINAL, rows, "bf16"), weights=0) for rows in (2, 3)}
    step = {rows: cost.microseconds(CARD, "bf16") for rows, cost in steps.items()}
    lstm = 2 * (step[3] + 2 * step[2] + 1e6 * (2 * 512 * 4 * 4096 * 2 + recurrent) / CARD.memory)
    both = ceilings(ORIGINAL, workload, CARD, "bf16")
    known = ceilings(ORIGINAL, workload, CARD, "bf16", words_known=True)
    assert both[0] == known[0] == known[1] == pytest.approx(7 / lstm * 1e6) and (known[1] or 0) > (both[1] or 0)
    assert ceilings(ORIGINAL, workload, Card(), "bf16") == (None, None)  # nothing was measured
    # A step that reads its weights is bound by them where rows are few, and by operations where they are many.
    assert lstm_step(ORIGINAL, 1, "bf16").weights == recurrent
    assert lstm_step(ORIGINAL, 1, "bf16").microseconds(CARD, "bf16") == pytest.approx(
        1e6 * recurrent / CARD.memory, 0.02
    )
    found = ceilings(ORIGINAL, Workload("batch", "", [["word"] * 20] * 512), CARD, "bf16")[0] or 0
    assert 0.9 * CARD.half < found * ORIGINAL.lstm_flops_per_token < CARD.half
    most = 1 << 21  # slow cards get less text
    slow = [suited_tokens(ORIGINAL, replace(CARD, half=half), most, "bf16") for half in (CARD.half, 121e12, 1.0)]
    assert slow == [most, 1 << 18, most // 64] and suited_tokens(ORIGINAL, Card(), most, "bf16") == most
