"""What a card allows: limits of workloads, the model of kernels' time, cards, and targets."""

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from bench_fakes import H200, SETTINGS
from tiny_models import BILM

import flashelmo.kernels
from flashelmo.benchmarks.__main__ import main
from flashelmo.benchmarks.gpu import tables
from flashelmo.benchmarks.gpu.limits import ceilings, lstm_step, suited_tokens
from flashelmo.benchmarks.gpu.profile import OTHER, stage_of
from flashelmo.benchmarks.kernels import model
from flashelmo.benchmarks.kernels.card import Card, card_named, card_of, results_on
from flashelmo.benchmarks.kernels.model import Cost, Prediction
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.text import Workload
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import preset_config

ORIGINAL, CARD = preset_config("original"), card_named("H200")


def test_a_ceiling_is_the_sum_of_its_steps() -> None:
    workload = Workload("ragged", "3 sentences", [["the"] * 3, ["the"] * 3, ["the"]])
    step = {rows: lstm_step(ORIGINAL, rows, "bf16").microseconds(CARD, "bf16").microseconds for rows in (2, 3)}
    once = 1e6 * 2 * 512 * 4 * 4096 * 2 / CARD.memory
    lstm = 2 * (step[3] + 2 * step[2] + once)
    both = ceilings(ORIGINAL, workload, CARD, "bf16")
    assert both[0] == pytest.approx(7 / lstm * 1e6)
    known = ceilings(ORIGINAL, workload, CARD, "bf16", words_known=True)
    assert known[0] == known[1] > both[1]


def test_few_rows_are_bound_by_weights_and_many_by_operations() -> None:
    one, many = lstm_step(ORIGINAL, 1, "bf16"), lstm_step(ORIGINAL, 1024, "bf16")
    recurrent = 2 * (512 * 4 * 4096 + 4096 * 512) * 2
    assert one.weights == recurrent and one.launches == 0
    assert one.microseconds(CARD, "bf16").microseconds == pytest.approx(1e6 * recurrent / CARD.memory, rel=0.02)
    assert many.operations == 1024 * ORIGINAL.lstm_flops_per_token / ORIGINAL.n_layers
    assert many.microseconds(CARD, "bf16").bound == "matrix"
    found = ceilings(ORIGINAL, Workload("batch", "", [["word"] * 20] * 512), CARD, "bf16")[0]
    assert 0.9 * CARD.half < found * ORIGINAL.lstm_flops_per_token < CARD.half
    most = 1 << 21  # slow cards get less text
    assert suited_tokens(ORIGINAL, CARD, most, "bf16") == most
    assert suited_tokens(ORIGINAL, card_named("L4"), most, "bf16") == 1 << 18
    assert suited_tokens(ORIGINAL, replace(CARD, half=1.0), most, "bf16") == most // 64


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


# D 2, C 5, P 3; two rows, four words or ten tokens. A filter of width 3 has 8 windows in 10 positions.
STATES = 2 * 2 * (3 * 2 + 5 * 4 + 5 * 4 + 5 * 2)
WINDOWS = 1 * 2 * (3 + 10) + 3 * 4 * (3 + 8)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (model.gates(TINY, 2, "bf16", "fused"), Cost(2 * 2 * 2 * 6 * 20, 2 * 2 * 3 * 2, 2 * 6 * 20 * 2, STATES, 1)),
        (model.gates(TINY, 2, "int8", "fused"), Cost(2 * 2 * 2 * 6 * 20, 12, 2 * 6 * 20, STATES - 12, 1)),
        (model.projection(TINY, 2, "fp32"), Cost(2 * 2 * 2 * 5 * 3, 0, 2 * 5 * 3 * 4, 2 * 2 * (5 + 3) * 4, 1)),
        (model.hoisted_input(TINY, 4, "bf16"), Cost(2 * 2 * 4 * 3 * 20, 8 * (3 * 2 + 20 * 4), 2 * (6 + 4) * 20, 0, 1)),
        (model.characters(TINY, [3, 10], "fp32"), Cost(14 * WINDOWS, 2 * (40 + 6 * 4), (14 + 262) * 7 * 4, 0, 2)),
        (model.highway(TINY, 4, "bf16"), Cost(2 * 4 * 6 * 12, 2 * 4 * 6 * 2, (6 * 2 + 4) * 12, 0, 1)),
        (model.token_layers(TINY, 10, 3, "bf16"), Cost(2 * 10 * 3 * 3 * 6, 10 * (15 * 2 + 3 * 6 * 4 + 12), 0, 0, 1)),
        (Cost(1, 2, 3, 4, 5) + Cost(10, 20, 30, 40, 50), Cost(11, 22, 33, 44, 55)),
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
    card = replace(PLAIN, half=3.0, tf32=2.0, fp32=1.0)
    assert [card.peak(each) for each in ("bf16", "fp16", "int8", "tf32", "fp32")] == [3.0, 3.0, 3.0, 2.0, 1.0]


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "--card", "A100"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("original model on A100: 312 TFLOP/s in 16 bits")
    hoisted = next(line for line in printed if "step, hoisted" in line and " 1 rows" in line)
    cells = [cell.strip() for cell in hoisted.split("│")[1:-1]]
    assert cells[-1] == "memory" and float(cells[3]) == pytest.approx(41.9e6 / 2.039e6 + 3.0, rel=0.02)
    assert main(["model", "--card", "GT 710"]) == 1
    assert capsys.readouterr().err.startswith("flashelmo bench: card: expected one of ")


def test_cards_are_known_by_the_name_that_cuda_gives() -> None:
    for cuda, name in (
        *(("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe")),
        *(("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"), ("h200", "H200")),
    ):
        assert card_named(cuda).name == name
    for unknown in ("NVIDIA L40S", ""):
        with pytest.raises(FlashElmoError, match=r"^card: expected one of H200, .*, found '"):
            card_named(unknown)
    said: list[str] = []
    card = card_of({"name": "NVIDIA L40S", "l2_bytes": 96e6, "multiprocessors": 142}, said.append)
    assert (card.name, card.l2_bytes, card.launch) == ("NVIDIA L40S", 96e6, card_named("A100").launch)
    assert said == ["NVIDIA L40S is not in the table of cards: launch and L2 bandwidth are taken from the A100"]
    assert CARD.with_limit("half", 5e14).half == 5e14 and CARD.with_limit("half", None) == CARD
    assert CARD.with_limit("l2", 1.0).l2 == CARD.l2 and CARD.with_limit("l2", 9e12).l2 == 9e12


def test_every_kernel_belongs_to_a_stage() -> None:
    trees = [
        ast.parse(path.read_text(encoding="utf-8")) for path in Path(flashelmo.kernels.__file__).parent.rglob("*.py")
    ]
    functions = [node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    stages = {stage_of(name) for name in functions if name.endswith("_kernel")}
    assert len(stages) == 8 and OTHER not in stages
