"""The suite of the engine on a GPU, whole: by a stand-in for the engine, and by itself in Triton's interpreter."""

import io
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
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
    SETTINGS,
    STAND_IN,
    FakeTimes,
    StandIn,
    find,
    said,
    started,
    text_file,
    tiny_model,
)
from rich.console import Console
from tiny_models import SENTENCES

from flashelmo.benchmarks import contestant, machine, report
from flashelmo.benchmarks.__main__ import parse
from flashelmo.benchmarks.gpu import accuracy, rivals, speed, suite
from flashelmo.benchmarks.gpu.accuracy import Subject, Truth
from flashelmo.benchmarks.gpu.engine import Engine, Tools
from flashelmo.benchmarks.gpu.rivals import Eager, lstm_stacks
from flashelmo.benchmarks.gpu.speed import NOT_TIMED, Speed
from flashelmo.benchmarks.kernels.card import Device, card_named
from flashelmo.benchmarks.results import Results
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import bulk
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import tolerance
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.settings import CudaSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a card"),
]
BATCH, ONE = "2 sentences of 4", "a sentence of 4"


def start(
    out: Path,
    settings: Settings,
    make: Callable[..., Any] = StandIn,
    times: FakeTimes | None = None,
    device: Device = STAND_IN,
) -> tuple[int, Results, str]:
    """Runs the suite; its exit status, the results that were written, and what was printed."""
    times = times or FakeTimes()
    run, _, card = started(replace(settings, out=out / "a.json"), "gpu", device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contestant, "take_turns", times.turns)
        patch.setattr(speed, "WARM_UPS", 1)
        patch.setattr(torch, "compile", lambda module, dynamic: module)
        tools = Tools(make=make, load=tiny_model, timer=times.tasks)
        status = suite.measure(run, Engine(run.settings, device, card, run, tools))
    return status, Results.read(out / "a.json"), said(run)


def test_a_whole_run(tmp_path: Path) -> None:
    StandIn.made.clear()
    settings = replace(SETTINGS, models=("tiny", "other"), precisions=("bf16", "fp32", "int8"), batches=(2, 3))
    status, results, printed = start(tmp_path, replace(settings, text=text_file(tmp_path)))
    assert status == 0, printed
    order = list(dict.fromkeys(row.section for row in results.rows))
    assert order == ["error", "ceiling", "bulk", "single", "batch", "ragged", "stages", "switch", "compiled", "target"]
    assert "text: input.txt" in printed and "failures: 0; " in printed

    thorough = ["batch", "repeated", "one by one", "bulk", "pooled", "boundaries", "stateful"]
    expected = {*(f"{way} bf16" for way in thorough), *(f"{way} {p}" for way in thorough[:2] for p in ("fp32", "int8"))}
    for model in ("tiny", "other"):  # every precision and way is compared with the reference
        rows = [row for row in results.section("error", model) if row.unit == "relative error"]
        assert {row.name for row in rows} == expected and not any(row.note for row in rows)
        for row in (row for row in rows if row.detail != "two calls"):
            precision, low = row.name.rpartition(" ")[2], row.median or 0
            wanted = pytest.approx(tolerance(precision, "cuda") / 10, rel=0.01)  # as far off as the stand-in is
            assert 0 < low < 1e-6 if precision == "fp32" else low == wanted
    details = {row.detail for row in results.section("error", "tiny") if row.name == "pooled bf16"}
    assert details == {"mean of the average", "mean of layer 1", "top layer", "means of a file"}

    bf16 = {"device": "stand-in", "precision": "bf16"}  # embedders are made as users make them
    for more in ({"cache_bytes": 0}, {"keep_sentence_boundaries": True}, {"stateful": True, "batch_size": 2}):
        assert bf16 | {"cuda": CudaSettings()} | more in StandIn.made
    for switch in suite.SWITCHES:
        assert bf16 | {"cuda": replace(CudaSettings(), **{switch: not getattr(CudaSettings(), switch)})} in StandIn.made

    ours, known = (find(results, "batch", f"flashelmo bf16{which}", BATCH) for which in ("", ", words known"))
    assert ours.median == pytest.approx(8 / 11e-6, rel=1e-4)
    assert ours.ratios == dict.fromkeys(("PyTorch eager fp32", "cuDNN LSTM fp32"), pytest.approx(201 / 11, rel=1e-3))
    assert ours.ceiling == known.ceiling == known.ceiling_both
    assert ours.ceiling and ours.ceiling_both and 0 < ours.ceiling_both < ours.ceiling
    eager = find(results, "batch", "PyTorch eager fp32", BATCH)
    assert (eager.median, eager.ceiling, eager.ratios) == (pytest.approx(8 / 201e-6, rel=1e-4), None, {})
    for section, detail, names in [
        ("single", ONE, {"flashelmo bf16", "flashelmo int8", "PyTorch eager fp32", "cuDNN LSTM fp32"}),
        ("ragged", "3 sentences", {"flashelmo bf16", "flashelmo bf16, words known", "PyTorch eager fp32"}),
        ("bulk", "64 tokens", {"flashelmo int8", "flashelmo bf16, windows ready", "flashelmo bf16, text to means"}),
        ("bulk", "16 tokens", {"flashelmo bf16", "flashelmo fp32", "PyTorch eager fp32"}),
        ("compiled", BATCH, {"flashelmo bf16", "torch.compile fp32"}),
    ]:
        assert names <= {row.name for row in results.section(section, "tiny") if row.detail == detail and row.median}

    peak = find(results, "ceiling", "torch.mm bf16", "16 x 16 x 16", "card").median or 0
    assert peak == pytest.approx(2e-12 * 16**3 / 201e-6, rel=1e-3)  # "torch" is a rival to the fake times
    row = find(results, "bulk", "flashelmo bf16", "64 tokens")  # at such a peak nothing else is a limit
    assert row.ceiling == pytest.approx(peak * 1e12 / CONFIG.lstm_flops_per_token, rel=0.01)
    on, off = (find(results, "switch", f"graphs {state}", "bulk, 16 tokens") for state in ("on", "off"))
    assert on.ratios == {"graphs off": 1.0} and on.median == off.median and not off.ratios
    assert all("the profiler saw no kernel" in row.note for row in results.section("stages"))

    targets = {row.name: row for row in results.section("target", "tiny")}
    assert targets["bulk text, bf16"].median == row.median and targets["text to means, bf16"].median == 1.0
    peer = targets["2 sentences of 4, bf16, words known"]
    assert (peer.median, peer.note) == (pytest.approx(201 / 11, rel=1e-3), "wanted: at least 2")
    assert targets["32 sentences, bf16"].note == "wanted: at least 1M; not measured"
    tables = (tmp_path / "a.md").read_text(encoding="utf-8")
    assert tables in printed and "| tiny: graphs on | 1 | 1 |" in tables
    assert "| bulk text, bf16 | tokens/s | 5,818,200 | at least 2.5M, goal 4M |  |" in tables
    (tmp_path / "gpu").mkdir()
    (tmp_path / "a.json").rename(tmp_path / "gpu" / "gpu-h200.json")
    filled = report.fill(tmp_path / "x.md", "<!-- gpu:begin -->\nstale\n<!-- gpu:end -->\n", tmp_path)
    assert "stale" not in filled and tables.splitlines()[2] in filled and "NVIDIA H200, host " in filled


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


def test_wrong_vectors_fail_the_run_and_are_not_timed(tmp_path: Path) -> None:
    settings, times = replace(SETTINGS, text=text_file(tmp_path), precisions=("bf16", "fp32", "int8")), FakeTimes()
    status, results, printed = start(tmp_path, settings, Wrong, times)
    assert status == 1 and not results.section("switch")
    notes = {(row.name, row.detail, row.unit): row.note for row in results.section("error", "tiny")}
    message = "FAILED: relative error 0.04, expected less than 0.01"
    assert notes["batch bf16", "layer 0", "relative error"] == message
    assert " nan, expected" in notes["batch int8", "layer 0", "relative error"]
    assert notes["repeated fp32", "two calls", "max abs error"].endswith("expected the same bits")
    for precision in ("bf16", "fp32", "int8"):
        row = find(results, "batch", f"flashelmo {precision}", BATCH)
        assert (row.median, row.note) == (None, NOT_TIMED)
    assert find(results, "batch", "PyTorch eager fp32", BATCH).median
    assert not any(name.startswith("flashelmo") for name in times.ran)
    assert f"failures: {sum(row.failed for row in results.rows)}; " in printed
    status, results, _ = start(tmp_path, replace(settings, sections=("correctness",)), Broken)
    found = {row.name: row.note for row in results.section("error", "tiny")}
    assert status == 1 and found["batch fp32"] == "FAILED: RuntimeError: an illegal instruction"
    assert found["batch bf16"] == "FAILED: sentence 1: expected shape [3, 1, 32], found [3, 0, 32]"


def test_absent_rivals_and_failing_contestants_leave_the_others(tmp_path: Path) -> None:
    error = torch.cuda.OutOfMemoryError("CUDA out of memory")
    times = FakeTimes(failing=("flashelmo fp32", "cuDNN LSTM fp32"))
    with mock.patch.object(Eager, "vectors", side_effect=error):
        settings = replace(SETTINGS, sections=("speed",), text=text_file(tmp_path))
        status, results, _ = start(tmp_path, settings, times=times)
    assert status == 1
    found = {row.name: row for row in results.section("batch") + results.section("compiled")}
    for name in ("PyTorch eager fp32", "cuDNN LSTM fp32", "torch.compile fp32"):
        assert found[name].note == "OutOfMemoryError: CUDA out of memory"
    assert found["flashelmo fp32"].note == "FAILED: OutOfMemoryError: CUDA out of memory"
    assert found["flashelmo bf16"].median and found["flashelmo bf16"].ratios == {}


def test_a_lost_device_and_a_time_limit_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = FakeTimes()
    settings = replace(SETTINGS, sections=("speed",), text=text_file(tmp_path))
    status, results, _ = start(tmp_path, replace(settings, limit_seconds=0.0), times=times)
    rows = [row for row in results.rows if row.section != "target"]
    assert status == 0 and not times.ran and {row.note for row in rows} == {"skipped, as the 0 seconds were over"}
    monkeypatch.setattr(Device, "is_lost", lambda device: "flashelmo bf16" in times.ran)
    status, results, printed = start(tmp_path, settings, times=times)
    assert status == 1 and "failures: 1; " in printed
    assert find(results, "bulk", "flashelmo bf16", "64 tokens").median
    assert find(results, "bulk", "all", "64 tokens").note == "FAILED: the device is lost after this"
    assert {row.note for row in results.section("batch")} == {"skipped, as the device is lost"}


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

    settings = replace(SETTINGS, sections=("speed",), text=text_file(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, settings, Warning_, times=Interrupted())
    results = Results.read(tmp_path / "a.json")
    assert {row.section for row in results.rows} == {"error", "ceiling", "bulk", "warning"}
    assert {row.note for row in results.section("warning")} == {"CUDA graphs are not used: not permitted"}


# ----------------------------------------------------------------------------------------------------------- its parts


def test_a_run_on_a_card_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command hands to a run, as far as a machine without a card can tell; older cards have fewer types."""
    made: list[Settings] = []

    def measure(run: Any, engine: Any) -> int:
        made.append(engine.settings)
        assert (engine.device, engine.card.name, engine.cuda.graphs) == (Device("cuda", "cuda:0"), "H200", False)
        assert run.path == tmp_path / "gpu-h200.json" and run.results.commit == {"id": "abc", "dirty": False}
        return 7

    monkeypatch.setattr(machine, "card", lambda: H200)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 << 30, 9 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    monkeypatch.setattr(suite, "measure", measure)
    arguments = ["--out", str(tmp_path), "--off", "graphs", "--commit", "abc", "--rounds", "3", "--few", "--trace"]
    for capability, precisions in (((9, 0), ("bf16", "fp32", "fp16", "tf32", "int8")), ((7, 5), ("fp32",))):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, capability=capability: capability)
        assert suite.command(parse("gpu", suite.SUITE, arguments), Console(file=io.StringIO())) == 7
        assert made[-1].precisions == precisions and made[-1].thorough == (precisions[0], "fp32")
    assert (made[0].copy_bytes, made[0].sentences, made[0].short_sentences) == (1 << 30, 4, 0)
    with pytest.raises(FlashElmoError, match="precisions: expected one that the card has, found tf32"):
        suite.suited(replace(SETTINGS, precisions=("tf32",)), Device("cuda", "cuda:0"))
    for wrong in (["--off", "nothing"], ["--only", "all"]):
        with pytest.raises(FlashElmoError, match=f"^{wrong[0]}: expected some of "):
            parse("gpu", suite.SUITE, wrong)


def test_the_cuda_runtime_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter: the batch is checked, and text is embedded from lists, from windows and from a file."""
    monkeypatch.setattr(accuracy, "ODD_SENTENCES", [[], ["é"]])
    monkeypatch.setattr(accuracy, "PASSES", 2)
    text, few = text_file(tmp_path, "a cat\nthe mat\n"), dict[str, Any](sentences=1, short_sentences=0)
    settings = replace(SETTINGS, precisions=("bf16",), text=text, sections=(), **few)
    status, results, printed = start(tmp_path, settings, ElmoEmbedder, device=INTERPRETER)
    assert status == 0, printed
    errors = {(row.name, row.detail, row.unit): row.median for row in results.section("error", "tiny")}
    for layer in range(3):
        error = errors["batch bf16", f"layer {layer}", "relative error"]
        assert error is not None and 1e-4 < error < tolerance("bf16", "cuda")
    assert errors["repeated bf16", "two calls", "max abs error"] == 0

    sentences, times = [["a"], ["mat"]], FakeTimes()
    monkeypatch.setattr(contestant, "take_turns", times.turns)
    subject = Subject("tiny", tiny_model(), INTERPRETER, ElmoEmbedder, CudaSettings())
    given = subject, Truth(subject, sentences, settings), settings, card_named("H200"), tmp_path
    rows = Speed(*given).rows(bulk(sentences, 2), ["bf16"])
    assert [row.name for row in rows] == [
        f"flashelmo bf16{which}" for which in ("", ", windows ready", ", text to means")
    ]
    assert all(row.median == pytest.approx(2 / 11e-6, rel=1e-4) and not row.note for row in rows)


def test_rivals_do_the_same_work() -> None:
    tiny, sentences, cpu = tiny_model(), [sentence for sentence in SENTENCES if sentence], STAND_IN
    eager = Eager(tiny, cpu, "fp32")
    for found, other in zip(eager.vectors(sentences), ReferenceRuntime(tiny).embed_batch(sentences), strict=True):
        np.testing.assert_allclose(found, other, atol=1e-6, rtol=0)
    with mock.patch.object(eager, "layers", wraps=eager.layers) as layers:
        eager.way(batch_size=3).run(sentences)
    assert [call.args[0] for call in layers.call_args_list] == [sentences[:3], sentences[3:]]
    with pytest.raises(FlashElmoError, match=r"expected vectors within 0\.1 of the reference's, found "):
        eager.check(sentences, [2 * x for x in eager.vectors(sentences)])
    named = [each for stack in lstm_stacks(CONFIG) for each in stack.named_parameters()]
    weights = sum(parameter.numel() for name, parameter in named if name.startswith("weight"))
    assert 2 * weights == CONFIG.lstm_flops_per_token
    way = rivals.stacks(CONFIG, 3, 5, cpu, "fp32")
    with mock.patch.object(torch.nn.LSTM, "forward") as forward:
        way.run([])
    assert [call.args[0].shape for call in forward.call_args_list] == [(5, 3, CONFIG.projection_size)] * 2
    with pytest.raises(FlashElmoError, match="a peer in speed alone"):
        way.vectors([])
