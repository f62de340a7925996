"""The benchmark of the engine on a GPU, whole: by a stand-in for the engine, and by itself in Triton's interpreter."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import gpu_run
from gpu_run import LITTLE, SETTINGS, FakeTimer, StandIn, Switches, find, start, tiny_model

from flashelmo.benchmarks.gpu import accuracy as gpu_accuracy
from flashelmo.benchmarks.gpu import speed as gpu_speed
from flashelmo.benchmarks.gpu import tables as gpu_tables
from flashelmo.benchmarks.gpu.accuracy import ABSOLUTE, RELATIVE, Truth
from flashelmo.benchmarks.gpu.rivals import Eager
from flashelmo.benchmarks.gpu.speed import Speed
from flashelmo.benchmarks.gpu.subject import Place, Subject
from flashelmo.benchmarks.gpu.workloads import bulk
from flashelmo.benchmarks.kernels.model import card_named
from flashelmo.benchmarks.results import Results
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.settings import CudaSettings

pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a card"),
]
Whole = tuple[bool, Results, list[str], Path]
BATCH, LARGER, ONE = "2 sentences of 4", "3 sentences of 4", "a sentence of 4"


def text_file(folder: Path, lines: str = "") -> Path:
    """Short ragged sentences."""
    path = folder / "input.txt"
    path.write_text(lines or "a cat sat\non\nthe mat and the other mat\nit sat there\n" * 6, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """One run of everything with the stand-in."""
    out = tmp_path_factory.mktemp("gpu")
    StandIn.made.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda module, dynamic: module)
        yield (*start(out, replace(SETTINGS, text=text_file(out), golden=out / "nothing")), out)


# ------------------------------------------------------------------------------------------------------------ all of it


def test_correctness_comes_first_and_the_slowest_last(whole: Whole) -> None:
    well, results, said, _ = whole
    assert well
    order = list(dict.fromkeys(row.section for row in results.rows))
    speeds = ["bulk", "single", "batch", "ragged"]
    assert order == ["error", "ceiling", *speeds, "stages", "switch", "compiled", "onnx", "target"]
    assert said[-1].startswith("failures: 0; ")


def test_every_precision_and_way_is_compared_with_the_reference(whole: Whole) -> None:
    results = whole[1]
    thorough = ["batch", "repeated", "one by one", "bulk", "pooled", "boundaries", "stateful"]
    expected = {f"{way} {precision}" for precision in ("bf16", "fp32") for way in thorough}
    expected |= {"batch int8", "repeated int8"}
    for model in ("tiny", "other"):
        rows = results.section("error", model)
        assert {row.name for row in rows} == expected
        assert all(row.median is not None and not row.note for row in rows)
        for precision, bound in RELATIVE.items():
            for row in rows:
                if row.name == f"batch {precision}" and row.unit == "relative error" and precision != "fp32":
                    assert row.median == pytest.approx(bound / 10, rel=0.01)  # as far off as the stand-in is
        exact = [row.median for row in rows if row.name.endswith("fp32") and row.detail != "two calls"]
        assert 0 < max(x for x in exact if x is not None) < ABSOLUTE["fp32"] / 10
    details = {row.detail for row in results.section("error", "tiny") if row.name == "pooled bf16"}
    assert details == {"mean of the average", "mean of layer 1", "top layer", "means of a file"}


def test_embedders_are_made_as_users_make_them(whole: Whole) -> None:
    options = [{k: v for k, v in made.items() if k != "cuda"} for made in StandIn.made if made["precision"] == "bf16"]
    bf16 = {"device": "stand-in", "precision": "bf16"}
    for more in (
        {},
        {"cache_bytes": 0},
        {"keep_sentence_boundaries": True},
        {"stateful": True, "batch_size": SETTINGS.stateful_rows},
    ):
        assert bf16 | more in options
    assert any(made["cuda"] == Switches(graphs=False) for made in StandIn.made)
    assert any(made["cuda"] == Switches(dependent=True) for made in StandIn.made)


def test_speeds_stand_beside_ceilings_and_rivals(whole: Whole) -> None:
    results = whole[1]
    ours = find(results, "batch", "flashelmo bf16", BATCH)
    assert (ours.unit, ours.median) == ("tokens/s", pytest.approx(8 / 11e-6, rel=1e-4))
    assert ours.ratios == {
        "PyTorch eager fp32": pytest.approx(201 / 11, rel=1e-3),
        "cuDNN LSTM fp32": pytest.approx(201 / 11, rel=1e-3),
    }
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
    peak = find(results, "ceiling", "torch.mm bf16", "16 x 16 x 16", "card")
    copy = find(results, "ceiling", "copy", "1 MiB", "card")
    assert peak.median == pytest.approx(2e-12 * 16**3 / 201e-6, rel=1e-3)  # "torch" is a rival to the fake timer
    assert copy.median == pytest.approx(2e-9 * (1 << 20) / 11e-6, rel=1e-3)
    assert peak.median is not None
    row = find(results, "bulk", "flashelmo bf16", "64 tokens")
    tokens = peak.median * 1e12 / gpu_run.CONFIG.lstm_flops_per_token  # at such a peak nothing else is a limit
    assert row.ceiling == pytest.approx(tokens, rel=0.01)


def test_each_switch_is_timed_against_its_opposite(whole: Whole) -> None:
    results = whole[1]
    rows = results.section("switch", "tiny")
    assert {row.name for row in rows} == {"graphs on", "graphs off", "dependent on", "dependent off"}
    for detail in (ONE, "bulk, 16 tokens"):
        on = find(results, "switch", "graphs on", detail)
        assert on.ratios == {"graphs off": 1.0} and on.median
        assert find(results, "switch", "graphs off", detail).median == on.median


def test_what_needs_a_card_or_a_file_says_so(whole: Whole) -> None:
    results = whole[1]
    stages = results.section("stages", "tiny")
    assert len(stages) == 2 and all(row.median is None and "CUDA" in row.note for row in stages)
    (onnx,) = results.section("onnx")
    assert onnx.note == "no exported model was given (--onnx)"
    assert find(results, "error", "published", "", "golden").note == "no golden data here"


def test_targets_are_printed_beside_what_was_found(whole: Whole) -> None:
    _, results, said, _ = whole
    targets = {row.name: row for row in results.section("target", "tiny")}
    assert targets["bulk text, bf16"].median == find(results, "bulk", "flashelmo bf16", "64 tokens").median
    assert targets["text to means, bf16"].median == 1.0
    peer = targets["2 sentences of 4, bf16, words known"]
    assert (peer.median, peer.note) == (pytest.approx(201 / 11, rel=1e-3), "wanted: at least 2")
    assert targets["32 sentences, bf16"].note == "wanted: at least 1M; not measured"
    table = next(line for line in said if line.startswith("**Targets: tiny model on an H200**"))
    assert "| bulk text, bf16 | tokens/s | 5,818,200 | at least 2.5M, goal 4M |" in table


def test_results_tables_and_plots_are_written(whole: Whole, capsys: pytest.CaptureFixture[str]) -> None:
    _, results, _, out = whole
    assert {path.name for path in out.glob("gpu-*")} == {
        "gpu-h200.json",
        "gpu-h200.md",
        "gpu-h200-tiny.svg",
        "gpu-h200-other.svg",
    }
    assert results.machine["gpu"]["name"] == "NVIDIA H200"
    assert results.commit == {"id": "abc", "dirty": False}
    assert (results.settings["text"], results.settings["golden"]) == ("input.txt", "nothing")
    assert gpu_tables.main([str(out / "gpu-h200.json")]) == 0
    printed = capsys.readouterr().out
    assert printed == (out / "gpu-h200.md").read_text(encoding="utf-8")
    for title in (
        "Thousands of tokens a second: tiny model",
        "Share of the card's limits, and of rivals: other model",
        "Targets: tiny model on an H200",
        "Largest error of any layer",
        "Times as fast with the switch on",
    ):
        assert f"**{title}**" in printed
    assert f"| tiny | {BATCH} | flashelmo bf16 | 727,270 | 18.3 x torch.compile fp32 |" in printed
    assert "Not measured: tiny, onnx, ONNX Runtime: no exported model was given (--onnx)." in printed


def test_published_vectors_are_reproduced(tmp_path: Path, golden: Path) -> None:
    settings = replace(LITTLE, sections=("correctness",), golden=golden, text=text_file(tmp_path), precisions=("fp32",))
    well, results, _ = start(tmp_path, settings)
    assert well
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
    settings = replace(SETTINGS, models=("tiny",), text=text_file(tmp_path), sections=("correctness", "speed"))
    timer = FakeTimer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda module, dynamic: module)
        well, results, said = start(tmp_path, settings, Wrong, timer)
    assert not well
    by_name: dict[str, list[str]] = {}
    for row in results.section("error", "tiny"):
        by_name.setdefault(row.name, []).append(row.note)
    assert by_name["batch bf16"][1] == "FAILED: relative error 0.04, expected at most 0.01"
    assert by_name["batch bf16"][5] == "FAILED: relative error 0.04, expected at most 0.03"
    assert all(note.startswith("FAILED: ") and " nan, expected" in note for note in by_name["batch int8"][1::2])
    assert not any(by_name["batch fp32"]) and any(by_name["stateful fp32"])
    for precision in ("bf16", "fp32", "int8"):
        row = find(results, "batch", f"flashelmo {precision}", BATCH)
        assert (row.median, row.note) == (None, gpu_speed.NOT_TIMED)
    assert find(results, "batch", "PyTorch eager fp32", BATCH).median
    assert not any(name.startswith("flashelmo") for name in timer.ran)
    failures = sum(note.startswith("FAILED") for notes in by_name.values() for note in notes)
    assert said[-1].startswith(f"failures: {failures}; ")


class Restless(StandIn):
    """Its vectors change from call to call, by less than rounding."""

    calls = 0

    def off(self, vectors: Any) -> Any:
        Restless.calls += 1
        return vectors * (1 + 1e-6 * (Restless.calls % 7))


def test_two_calls_must_give_the_same_bits(tmp_path: Path) -> None:
    settings = replace(LITTLE, precisions=("fp32",), sections=("correctness",), text=text_file(tmp_path))
    well, results, _ = start(tmp_path, settings, Restless)
    failed = [row for row in results.rows if row.note]
    assert not well
    assert [(row.name, row.detail, row.unit) for row in failed if row.model == "tiny"] == [
        ("repeated fp32", "two calls", "max abs error")
    ]


class Broken(StandIn):
    """Other shapes in bf16, none in fp32."""

    def off(self, vectors: Any) -> Any:
        if self.precision == "fp32":
            raise RuntimeError("an illegal instruction\nand a long story")
        return vectors[:, :-1]


def test_other_shapes_and_errors_are_told_in_a_line(tmp_path: Path) -> None:
    settings = replace(LITTLE, sections=("correctness",), text=text_file(tmp_path))
    well, results, _ = start(tmp_path, settings, Broken)
    assert not well
    notes = {row.name: row.note for row in results.section("error", "tiny")}
    assert notes["batch bf16"] == "FAILED: FlashElmoError: sentence 1: expected shape [3, 1, 32], found [3, 0, 32]"
    assert notes["batch fp32"] == "FAILED: RuntimeError: an illegal instruction"


def test_absent_rivals_and_failing_contestants_leave_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def fail(*given: Any) -> None:
        raise FlashElmoError("expected a shorter batch")

    monkeypatch.setattr(Eager, "vectors", refuse)
    monkeypatch.setattr(gpu_speed, "Compiled", fail)
    timer = FakeTimer(failing=("flashelmo fp32", "cuDNN LSTM fp32"))
    well, results, _ = start(tmp_path, replace(LITTLE, text=text_file(tmp_path)), timer=timer)
    assert not well
    assert find(results, "batch", "PyTorch eager fp32", BATCH).note == "OutOfMemoryError: CUDA out of memory"
    assert find(results, "batch", "cuDNN LSTM fp32", BATCH).note == "OutOfMemoryError: CUDA out of memory"
    assert find(results, "batch", "flashelmo fp32", BATCH).note == "FAILED: OutOfMemoryError: CUDA out of memory"
    assert find(results, "compiled", "torch.compile fp32", BATCH).note == "expected a shorter batch"
    ours = find(results, "batch", "flashelmo bf16", BATCH)
    assert ours.median and ours.ratios == {}


def test_a_lost_device_ends_the_run_and_keeps_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timer = FakeTimer()
    monkeypatch.setattr(Place, "is_alive", lambda place: "flashelmo bf16" not in timer.ran)
    well, results, said = start(tmp_path, replace(LITTLE, text=text_file(tmp_path)), timer=timer)
    assert not well
    assert find(results, "bulk", "flashelmo bf16", "64 tokens").median
    assert find(results, "bulk", "all", "64 tokens").note == "FAILED: the device is lost after this"
    for section in ("single", "batch", "ragged", "compiled"):
        assert {row.note for row in results.section(section)} == {"skipped, as the device is lost"}
    assert said[-1].startswith("failures: 1; ")


def test_wrong_vectors_on_a_lost_device_end_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Place, "is_alive", lambda place: False)
    settings = replace(LITTLE, sections=("correctness",), text=text_file(tmp_path))
    well, results, _ = start(tmp_path, settings, Broken)
    assert not well
    assert {row.name for row in results.section("error")} == {"batch bf16", "all"}


def test_the_sanitizers_findings_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    settings = replace(LITTLE, precisions=("fp32",), sections=("correctness",), text=text_file(tmp_path), sanitize=True)
    well, results, _ = start(tmp_path, settings)
    assert not well  # it was asked for, and has not run
    (row,) = results.section("sanitizer")
    assert (row.name, row.note) == ("compute-sanitizer", "FAILED: compute-sanitizer is not installed")


def test_a_time_limit_leaves_the_rest_out_and_says_so(tmp_path: Path) -> None:
    timer = FakeTimer()
    settings = replace(SETTINGS, models=("tiny",), text=text_file(tmp_path), limit_seconds=0.0)
    well, results, _ = start(tmp_path, settings, timer=timer)
    assert well
    rows = [row for row in results.rows if row.section != "target"]
    assert {row.note for row in rows} == {"skipped, as the 0 seconds were over"}
    sections = {"error", "ceiling", "bulk", "single", "batch", "ragged", "switch", "stages", "compiled", "onnx"}
    assert {row.section for row in rows} == sections
    assert timer.ran == []


def test_results_are_on_disk_as_soon_as_they_are_there(tmp_path: Path) -> None:
    class Interrupted(FakeTimer):
        def time(self, tasks: Any) -> Any:
            if any("words known" in task.name for task in tasks):
                raise KeyboardInterrupt
            return super().time(tasks)

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, replace(LITTLE, text=text_file(tmp_path)), timer=Interrupted())
    results = Results.read(tmp_path / "gpu-h200.json")
    assert {row.section for row in results.rows} == {"error", "ceiling", "bulk"}


def test_warnings_of_the_engine_are_kept(tmp_path: Path) -> None:
    class Warning_(StandIn):
        def embed(self, sentences: Any, **asked: Any) -> Iterator[Any]:
            import logging

            logging.getLogger("flashelmo").warning("CUDA graphs are not used: %s", "not permitted")
            return super().embed(sentences, **asked)

    settings = replace(LITTLE, precisions=("fp32",), text=text_file(tmp_path))
    well, results, said = start(tmp_path, replace(settings, sections=()), Warning_)
    assert well
    assert {row.note for row in results.section("warning")} == {"CUDA graphs are not used: not permitted"}
    assert any("CUDA graphs are not used: not permitted" in line for line in said)


def test_without_matplotlib_only_the_plots_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    settings = replace(LITTLE, sections=(), precisions=("fp32",), text=text_file(tmp_path))
    well, _, said = start(tmp_path, settings)
    assert well and "not drawn, as matplotlib is not installed" in said


# ------------------------------------------------------------------------------------------------- the engine itself


def test_the_cuda_runtime_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter: the batch is checked, and text is embedded from lists, from windows and from a file."""
    monkeypatch.setattr(gpu_accuracy, "ODD_SENTENCES", [[], ["é"]])
    monkeypatch.setattr(gpu_accuracy, "PASSES", 2)
    settings = replace(
        LITTLE,
        precisions=("bf16",),
        text=text_file(tmp_path, "a cat\nthe mat\n"),
        sections=(),
        real_sentences=1,
        short_sentences=0,
    )
    place = Place("interpreter", "cpu")
    well, results, said = start(tmp_path, settings, ElmoEmbedder, place=place, cuda=CudaSettings())
    assert well, said
    errors = {(row.name, row.detail, row.unit): row.median for row in results.section("error", "tiny")}
    for layer in range(3):
        error = errors["batch bf16", f"layer {layer}", "relative error"]
        assert error is not None and 1e-4 < error < (layer + 1) * RELATIVE["bf16"]
    assert errors["repeated bf16", "two calls", "max abs error"] == 0

    subject = Subject("tiny", tiny_model(), place, ElmoEmbedder)
    text = [["a", "cat"], ["the", "mat"]]
    speed = Speed(subject, Truth(subject, text, settings), settings, FakeTimer(), card_named("H200"), tmp_path)
    rows = speed.bulk(bulk(text, 4), ["bf16"])
    assert [row.name for row in rows] == [
        f"flashelmo bf16{which}" for which in ("", ", windows ready", ", text to means")
    ]
    assert all(row.median == pytest.approx(4 / 11e-6, rel=1e-4) and not row.note for row in rows)
