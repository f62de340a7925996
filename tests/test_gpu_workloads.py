"""Parts of the suites on a GPU: clocks, workloads and their ceilings, rivals, stages, the model of kernels' time."""

import ast
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import onnxruntime
import pytest
import torch

pytest.importorskip("triton")

from gpu_run import CONFIG, H200, SETTINGS, tiny_model
from tiny_models import BILM, MODELS, SENTENCES

import flashelmo.kernels
from flashelmo.benchmarks.__main__ import main
from flashelmo.benchmarks.contestant import Clock, Way
from flashelmo.benchmarks.gpu import rivals, stages, tables, workloads
from flashelmo.benchmarks.gpu.rivals import Eager, at_most, lstm_stacks
from flashelmo.benchmarks.gpu.stages import Busy, covered, others, shares, stage_of
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
from flashelmo.benchmarks.kernels.card import Card, Device, card_named, results_on
from flashelmo.benchmarks.kernels.model import Cost, Prediction, Product
from flashelmo.benchmarks.results import Row
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.export import onnx_elmo
from flashelmo.export.build import build_onnx

ORIGINAL, CARD, CPU = preset_config("original"), card_named("H200"), Device("stand-in", "cpu")

# ------------------------------------------------------------------------------------------------------------- clocks


def test_calls_are_queued_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host and a device: a call queues work, which is done when somebody waits."""
    now, queued = [0.0], [0.0]
    log: list[str] = []

    def run(work: float) -> None:
        queued[0] += work if log else 3.0
        log.append("run")

    def wait() -> None:
        now[0] += queued[0]
        queued[0] = 0.0
        log.append("wait")

    monkeypatch.setattr("flashelmo.benchmarks.contestant.time", SimpleNamespace(perf_counter=lambda: now[0]))
    clock = Clock(lambda: Way(lambda batch: [], run, wait=wait))
    assert clock.seconds([0.01], at_least=0.045, warm_ups=4) == pytest.approx(0.01)
    once = ["wait", "run", "wait"]
    assert log == once * 4 + once + ["wait", *["run"] * 5, "wait"]
    log[:] = ["warm"]
    assert clock.seconds([1.0], at_least=0.045, warm_ups=4) == 1.0
    assert log == ["warm", *once * 2, *once]  # two calls warm up who is slow


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
    assert bulk(text, 6).tokens == 6 and list(batches(text, 2)) == [text[:2], text[2:]]


def test_a_short_text_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a b\n\nc\n", encoding="utf-8")
    assert load_text(3, path, 0) == ([["a", "b"], [], ["c"]], "text.txt")
    assert load_text(7, path, 0) == ([["a", "b"], [], ["c"]] * 3, "text.txt, 3 times over")
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(FlashElmoError, match="expected text, found none"):
        load_text(3, path, 0)
    monkeypatch.setattr(workloads, "REAL_TEXT", tmp_path / "nothing here")
    monkeypatch.setattr(workloads, "GENERATED", 100)
    sentences, source = load_text(250, None, 5)
    assert sum(map(len, sentences)) >= 250 and source == "generated text, seed 5, 2 times over"


def test_a_ceiling_is_the_sum_of_its_steps() -> None:
    workload = Workload("ragged", "3 sentences", [["the"] * 3, ["the"] * 3, ["the"]])
    step = {rows: lstm_step(ORIGINAL, rows, "bf16").microseconds(CARD, "bf16").microseconds for rows in (2, 3)}
    once = 1e6 * 2 * 512 * 4 * 4096 * 2 / CARD.memory
    lstm = 2 * (step[3] + 2 * step[2] + once)
    assert ceilings(ORIGINAL, workload, CARD, "bf16").lstm == pytest.approx(7 / lstm * 1e6)
    known = ceilings(ORIGINAL, workload, CARD, "bf16", words_known=True)
    assert known.lstm == known.both > ceilings(ORIGINAL, workload, CARD, "bf16").both


def test_few_rows_are_bound_by_weights_and_many_by_operations() -> None:
    one, many = lstm_step(ORIGINAL, 1, "bf16"), lstm_step(ORIGINAL, 1024, "bf16")
    recurrent = 2 * (512 * 4 * 4096 + 4096 * 512) * 2
    assert one.weights == recurrent and one.launches == 0
    assert one.microseconds(CARD, "bf16").microseconds == pytest.approx(1e6 * recurrent / CARD.memory, rel=0.02)
    assert many.operations == 1024 * ORIGINAL.lstm_flops_per_token / ORIGINAL.n_layers
    assert many.microseconds(CARD, "bf16").bound == "matrix"
    found = ceilings(ORIGINAL, Workload("batch", "", [["word"] * 20] * 512), CARD, "bf16").lstm
    assert 0.9 * CARD.half < found * ORIGINAL.lstm_flops_per_token < CARD.half
    most = 1 << 21  # slow cards get less text
    assert suited_tokens(ORIGINAL, CARD, most, "bf16") == most
    assert suited_tokens(ORIGINAL, card_named("L4"), most, "bf16") == 1 << 18
    assert suited_tokens(ORIGINAL, replace(CARD, half=1.0), most, "bf16") == most // 64


# ------------------------------------------------------------------------------------------------------------- rivals


def test_the_eager_reference_is_the_reference() -> None:
    tiny, sentences = tiny_model(), [sentence for sentence in SENTENCES if sentence]
    eager = Eager(tiny, CPU, "fp32")
    for found, other in zip(eager.vectors(sentences), ReferenceRuntime(tiny).embed_batch(sentences), strict=True):
        np.testing.assert_allclose(found, other, atol=1e-6, rtol=0)
    with mock.patch.object(eager, "layers", wraps=eager.layers) as layers:
        eager.way(batch_size=3).run(sentences)
    assert [call.args[0] for call in layers.call_args_list] == [sentences[:3], sentences[3:]]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_stacks_do_the_same_products() -> None:
    named = [each for stack in lstm_stacks(CONFIG) for each in stack.named_parameters()]
    weights = sum(parameter.numel() for name, parameter in named if name.startswith("weight"))
    assert 2 * weights == CONFIG.lstm_flops_per_token
    way = rivals.stacks(CONFIG, 3, 5, CPU, "fp32")
    with mock.patch.object(torch.nn.LSTM, "forward") as forward:
        way.run([])
    assert [call.args[0].shape for call in forward.call_args_list] == [(5, 3, CONFIG.projection_size)] * 2
    with pytest.raises(FlashElmoError, match="a peer in speed alone"):
        way.vectors([])


class Recorded(onnx_elmo.OnnxElmo):
    """An exported file on the CPU, which keeps what its runs gave."""

    results: ClassVar[list[dict[str, Any]]] = []

    def run(self, **given: Any) -> dict[str, Any]:
        self.results.append(super().run(**given))
        return self.results[-1]


def test_onnx_runtime_leaves_its_outputs_on_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    build_onnx(MODELS["skip"], path)
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
        with pytest.raises(FlashElmoError, match="expected some of CPUExecutionProvider, found CUDAExecutionProvider"):
            rivals.onnx(path, CPU)
    monkeypatch.setattr(onnx_elmo, "OnnxElmo", lambda path, providers: Recorded(path) if providers == "cuda" else None)
    rivals.onnx(path, CPU).run([["a", "b"], ["c"]])
    (outputs,) = Recorded.results
    assert {type(value).__name__ for value in outputs.values()} == {"OrtValue"}
    assert outputs["mask"].numpy().tolist() == [[True, True], [True, False]]


# ------------------------------------------------------------------------------------------------------------- stages


def test_every_kernel_belongs_to_a_stage() -> None:
    names = [
        node.name
        for path in Path(flashelmo.kernels.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
    ]
    assert len(names) >= 8
    found = {stage_of(name) for name in names}
    stages = {"characters", "highway", "linear", "LSTM gates", "LSTM projection", "tokens"}
    assert found == stages | {"words", "LSTM states"}


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
    expected = {"LSTM gates": 40, "LSTM projection": 20, "other": 20, "copies to the host": 10, "idle": 20}
    assert found == pytest.approx(expected)
    assert next(iter(found)) == "LSTM gates" and list(found)[-1] == "idle"
    assert others(events) == "other: void at::native::index_kernel<...>"
    assert shares([]) == {} and others(events[:2]) == ""


def test_stages_of_a_card_that_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def event(name: str, device: Any, start: float, end: float) -> Any:
        return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end))

    cuda, profile, run = SimpleNamespace(name="CUDA"), mock.MagicMock(), mock.Mock()
    events = [event("linear_kernel", cuda, 0, 3), event("python", None, 0, 9), event("x", cuda, 3, 4)]
    profile.return_value.__enter__.return_value.events = lambda: events
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.profiler, "profile", profile)
    rows = stages.measure_stages("m", "bf16", run, "cuda:0")
    run.assert_called_once_with()
    profile.assert_called_once_with(activities=[torch.profiler.ProfilerActivity.CUDA])
    expected = [("linear", 75.0), ("other", 25.0), ("idle", 0.0)]
    assert [(row.detail, row.median) for row in rows] == expected and {row.note for row in rows} == {"other: x"}
    events.clear()
    (row,) = stages.measure_stages("m", "bf16", run, "cuda:0")
    assert "may not be permitted" in row.note


def test_targets_take_the_slowest_ratio_and_the_largest_text() -> None:
    def row(section: str, name: str, detail: str, median: float, **more: Any) -> Row:
        return Row(section, "original", name, "tokens/s", detail, median=median, samples=[median], **more)

    peers = {"cuDNN LSTM bf16": 3.0, "cuDNN LSTM bf16, two streams": 2.5, "PyTorch eager fp32": 20.0}
    rows = [
        row("bulk", "flashelmo bf16", "2,097,152 tokens", 3e6),
        row("bulk", "flashelmo bf16, text to means", "2,097,152 tokens", 2.4e6),
        row("bulk", "flashelmo bf16", "65,536 tokens", 2e6),
        row("single", "flashelmo bf16, words known", "a sentence of 20", 4e4),
        row("batch", "flashelmo bf16", "32 sentences of 20", 9e5, ratios=peers),
        row("batch", "flashelmo bf16, words known", "32 sentences of 20", 1.1e6, ratios=peers),
        row("batch", "flashelmo bf16, words known", "512 sentences of 20", 3e6, ratios=peers),
    ]
    found = tables.targets(replace(results_on(H200, SETTINGS, "gpu"), rows=rows), "original")
    assert [(each.name, each.unit, each.median) for each in found] == [
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


# ------------------------------------------------------------------------------------------- the model of kernels' time

# An operation or a byte of memory takes a microsecond, a byte of the cache a tenth; half of the cache is 100 bytes.
PLAIN = Card("plain", 1e6, 1e6, 1e6, 1e6, 10e6, 200, 1, launch=3.0)
TINY = replace(
    BILM, cell_size=5, projection_size=3, filters=((1, 2), (3, 4)), n_highway=1, character_size=7, max_characters=10
)


@pytest.mark.parametrize(
    ("rows", "microseconds"), [(1, 12.4), (8, 12.5), (32, 12.8), (128, 14.3), (512, 29.8), (1024, 57.0)]
)
def test_a_step_with_streamed_weights_takes_what_the_design_says(rows: int, microseconds: float) -> None:
    cost = model.step(ORIGINAL, rows, "bf16", "hoisted")
    assert cost.microseconds(CARD, "bf16").microseconds == pytest.approx(microseconds, rel=0.15)
    assert 1e6 * cost.operations / CARD.half == pytest.approx({512: 27, 1024: 54}.get(rows, rows * 0.0531), rel=0.02)
    fused = model.step(ORIGINAL, rows, "bf16", "fused")
    assert fused.microseconds(CARD, "bf16", tiled=True).microseconds >= fused.microseconds(CARD, "bf16").microseconds
    assert [each.operation for each in fused.products] == ["gates", "projection"]
    assert sum(each.fetched(CARD) for each in fused.products) >= fused.weights


def test_weights_and_operations_of_the_original_model() -> None:
    hoisted, fused = (model.step(ORIGINAL, 1, "bf16", way) for way in ("hoisted", "fused"))
    assert hoisted.weights == 41_943_040  # recurrent and projection, both directions
    assert fused.weights - hoisted.weights == 33_554_432  # the input's
    assert fused.operations == ORIGINAL.lstm_flops_per_token / 2  # of one layer
    assert fused.weights - model.step(ORIGINAL, 1, "int8", "fused").weights == 33_554_432  # half of the gates' bytes
    assert model.highway(ORIGINAL, 1, "bf16").operations * 2 == pytest.approx(33.6e6, rel=0.01)
    assert model.final_projection(ORIGINAL, 1, "bf16").operations == pytest.approx(2.1e6, rel=0.01)
    all_positions = model.characters(ORIGINAL, [50], "bf16").operations
    assert all_positions == pytest.approx(17.6e6, rel=0.02)  # 50 positions
    assert model.characters(ORIGINAL, [8], "bf16").operations < all_positions / 4


def test_tiles_fetch_rows_and_columns_again_and_again() -> None:
    product = Product("linear", "bf16", 2, 1000, 700, 30)
    tile = product.tile(PLAIN)
    assert (tile.rows, tile.columns) == (128, 128)  # 8 blocks of rows, 6 of columns
    assert product.fetched(PLAIN) == 2 * 30 * (6 * 1000 + 8 * 700) * 2
    gates = Product("gates", "int8", 1, 16, 256, 10)  # 32 cells a tile, 128 columns
    assert gates.fetched(PLAIN) == 10 * (2 * 16 + 256)
    hopper = replace(PLAIN, name="H200")
    assert product.tile(hopper) == tile  # from 2,048 rows on
    assert product._replace(rows=2048).tile(hopper).columns == 256
    assert product._replace(rows=2048).tile(PLAIN) == tile


# D 2, C 5, P 3; two rows, four words or ten tokens. A filter of width 3 has 8 windows in 10 positions.
STATES = 2 * 2 * (3 * 2 + 5 * 4 + 5 * 4 + 5 * 2)
WINDOWS = 1 * 2 * (3 + 10) + 3 * 4 * (3 + 8)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (model.gates(TINY, 2, "bf16", "fused"), Cost(2 * 2 * 2 * 6 * 20, 2 * 2 * 3 * 2, 2 * 6 * 20 * 2, STATES, 1)),
        (model.gates(TINY, 2, "int8", "hoisted"), Cost(2 * 2 * 2 * 3 * 20, 2 * 2 * 20 * 4, 2 * 3 * 20, STATES, 1)),
        (model.projection(TINY, 2, "fp32"), Cost(2 * 2 * 2 * 5 * 3, 0, 2 * 5 * 3 * 4, 2 * 2 * (5 + 3) * 4, 1)),
        (
            model.hoisted_input(TINY, 4, "bf16"),
            Cost(2 * 2 * 4 * 3 * 20, 2 * 4 * (3 * 2 + 20 * 4), 2 * (3 * 2 + 4) * 20, 0, 1),
        ),
        (
            model.characters(TINY, [3, 10], "fp32"),
            Cost(2 * 7 * WINDOWS, 2 * (4 * 10 + 6 * 4), (2 + 12) * 7 * 4 + 262 * 7 * 4, 0, 2),
        ),
        (model.highway(TINY, 4, "bf16"), Cost(2 * 4 * 6 * 12, 2 * 4 * 6 * 2, (6 * 2 + 4) * 12, 0, 1)),
        (model.token_layers(TINY, 10, 3, "bf16"), Cost(2 * 10 * 3 * 3 * 6, 10 * (15 * 2 + 3 * 6 * 4 + 12), 0, 0, 1)),
        (Cost(1, 2, 3, 4, 5) + Cost(10, 20, 30, 40, 50), Cost(11, 22, 33, 44, 55)),
        (sum([Cost(1, 2, 3, 4, 5)] * 3, Cost()), Cost(3, 6, 9, 12, 15)),
    ],
)
def test_costs_small_enough_to_count(found: Cost, expected: Cost) -> None:
    assert found == expected


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (Cost(operations=7, streamed=5, launches=1), Prediction(10.0, "matrix")),
        (Cost(operations=7, streamed=9, launches=1), Prediction(12.0, "memory")),
        (Cost(operations=1, launches=2), Prediction(7.0, "launch")),
        (Cost(states=50, operations=3), Prediction(5.0, "L2")),
        (Cost(weights=100), Prediction(10.0, "L2")),  # which stay in a cache of twice their size
        (Cost(weights=101), Prediction(101.0, "memory")),
    ],
)
def test_time_is_the_longest_of_the_parts_and_the_waiting(cost: Cost, expected: Prediction) -> None:
    assert cost.microseconds(PLAIN, "bf16") == expected
    assert Cost(operations=7, streamed=5, launches=9).roofline(PLAIN, "bf16") == 7.0
    card = replace(PLAIN, half=3.0, tf32=2.0, fp32=1.0)
    assert [card.peak(each) for each in ("bf16", "fp16", "int8", "tf32", "fp32")] == [3.0, 3.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("cuda", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("h200", "H200"),
        ("NVIDIA L40S", ""),
        ("", ""),
    ],
)
def test_cards_are_known_by_the_name_that_cuda_gives(cuda: str, name: str) -> None:
    if name:
        assert card_named(cuda).name == name
        return
    with pytest.raises(FlashElmoError, match=r"^card: expected one of H200, .*, found '"):
        card_named(cuda)


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--card", "A100"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("original model on A100: 312 TFLOP/s in 16 bits")
    hoisted = next(line for line in printed if "step, hoisted" in line and " 1 rows" in line)
    cells = [cell.strip() for cell in hoisted.split("│")[1:-1]]
    assert cells[-1] == "memory" and float(cells[3]) == pytest.approx(41.9e6 / 2.039e6 + 3.0, rel=0.02)
    assert main(["model", "--card", "GT 710"]) == 1
    assert capsys.readouterr().err.startswith("flashelmo bench: card: expected one of ")
