"""The model of the kernels' time: the design's table, costs small enough to count, cards, and the printed table."""

from dataclasses import replace

import pytest

from flashelmo.benchmarks.kernels import model
from flashelmo.benchmarks.kernels.model import Card, Cost, Prediction, Product, card_named, measured
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import preset_config

ORIGINAL = preset_config("original")
H200 = card_named("H200")
# An operation or a byte of memory takes a microsecond, a byte of the cache a tenth; half of the cache is 100 bytes.
PLAIN = Card("plain", 1e6, 1e6, 1e6, 1e6, 10e6, 200, 1, launch=3.0, barrier=5.0)
TINY = ElmoConfig(
    family="bilm",
    cell_size=5,
    projection_size=3,
    n_layers=2,
    cell_clip=None,
    projection_clip=None,
    skip_connections=True,
    filters=((1, 2), (3, 4)),
    n_highway=1,
    activation="relu",
    character_size=7,
    n_characters=262,
    max_characters=10,
)


@pytest.mark.parametrize(
    ("rows", "microseconds"), [(1, 12.4), (8, 12.5), (32, 12.8), (128, 14.3), (512, 29.8), (1024, 57.0)]
)
def test_a_step_with_streamed_weights_takes_what_the_design_says(rows: int, microseconds: float) -> None:
    cost = model.step(ORIGINAL, rows, "bf16", "hoisted")
    assert cost.microseconds(H200, "bf16").microseconds == pytest.approx(microseconds, rel=0.15)
    assert 1e6 * cost.operations / H200.half == pytest.approx({512: 27, 1024: 54}.get(rows, rows * 0.0531), rel=0.02)


def test_weights_and_operations_of_the_original_model() -> None:
    hoisted, fused = (model.step(ORIGINAL, 1, "bf16", way) for way in ("hoisted", "fused"))
    assert hoisted.weights == 41_943_040  # recurrent and projection, both directions
    assert fused.weights - hoisted.weights == 33_554_432  # the input's
    assert fused.operations == ORIGINAL.lstm_flops_per_token / 2  # of one layer
    assert model.step(ORIGINAL, 1, "int8", "hoisted").weights == hoisted.weights / 2
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
    assert gates.fetched(PLAIN) == 10 * (2 * 16 * 2 + 256)
    hopper = replace(PLAIN, name="H200")
    assert product.tile(hopper) == tile  # from 2,048 rows on
    assert product._replace(rows=2048).tile(hopper).columns == 256
    assert product._replace(rows=2048).tile(PLAIN) == tile


@pytest.mark.parametrize("rows", model.ROWS)
def test_as_tiled_takes_no_less(rows: int) -> None:
    cost = model.step(ORIGINAL, rows, "bf16", "fused")
    assert cost.as_tiled(H200, "bf16").microseconds >= cost.microseconds(H200, "bf16").microseconds
    assert [each.operation for each in cost.products] == ["gates", "projection"]
    fetched = sum(each.fetched(H200) for each in cost.products)
    assert fetched >= cost.weights


def test_costs_small_enough_to_count() -> None:
    # D 2, C 5, P 3; two rows
    assert model.gates(TINY, 2, "bf16", "fused") == Cost(
        operations=2 * 2 * 2 * 6 * 20,
        streamed=2 * 2 * 3 * 2,
        weights=2 * 6 * 20 * 2,
        states=2 * 2 * (3 * 2 + 5 * 4 + 5 * 4 + 5 * 2),
        launches=1,
    )
    assert model.gates(TINY, 2, "int8", "hoisted") == Cost(
        operations=2 * 2 * 2 * 3 * 20,
        streamed=2 * 2 * 20 * 4,
        weights=2 * 3 * 20,
        states=2 * 2 * (3 * 2 + 5 * 4 + 5 * 4 + 5 * 2),
        launches=1,
    )
    assert model.projection(TINY, 2, "fp32") == Cost(
        operations=2 * 2 * 2 * 5 * 3, weights=2 * 5 * 3 * 4, states=2 * 2 * (5 + 3) * 4, launches=1
    )
    step = model.step(TINY, 2, "bf16", "persistent")
    assert (step.launches, step.barriers) == (0, 2)
    assert step.weights == 2 * 3 * 20 * 2 + 2 * 5 * 3 * 2
    assert model.hoisted_input(TINY, 4, "bf16") == Cost(
        operations=2 * 2 * 4 * 3 * 20, streamed=2 * 4 * (3 * 2 + 20 * 4), weights=2 * (3 * 2 + 4) * 20, launches=1
    )
    # words of 3 and of 10 characters: a filter of width 3 has 8 windows in 10 positions
    windows = 1 * 2 * (3 + 10) + 3 * 4 * (3 + 8)
    assert model.characters(TINY, [3, 10], "fp32") == Cost(
        operations=2 * 7 * windows,
        streamed=2 * (4 * 10 + 6 * 4),
        weights=(2 + 12) * 7 * 4 + 262 * 7 * 4,
        launches=1,
    )
    assert model.highway(TINY, 4, "bf16") == Cost(
        operations=2 * 4 * 6 * 12, streamed=2 * 4 * 6 * 2, weights=(6 * 2 + 4) * 12, launches=1
    )
    assert model.token_layers(TINY, 10, 3, "bf16") == Cost(
        operations=2 * 10 * 3 * 3 * 6, streamed=10 * (15 * 2 + 3 * 6 * 4 + 12), launches=1
    )


def test_time_is_the_longest_of_the_parts_and_the_waiting() -> None:
    assert Cost(operations=7, streamed=5, launches=1).microseconds(PLAIN, "bf16") == Prediction(10.0, "matrix")
    assert Cost(operations=7, streamed=9, barriers=1).microseconds(PLAIN, "bf16") == Prediction(14.0, "memory")
    assert Cost(operations=1, launches=2).microseconds(PLAIN, "bf16") == Prediction(7.0, "launch")
    assert Cost(states=50, operations=3).microseconds(PLAIN, "bf16") == Prediction(5.0, "L2")
    assert Cost(operations=7, streamed=5, launches=9).roofline(PLAIN, "bf16") == 7.0


def test_weights_stay_in_a_cache_of_twice_their_size() -> None:
    kept, streamed = Cost(weights=100), Cost(weights=101)
    assert kept.microseconds(PLAIN, "bf16") == Prediction(10.0, "L2")
    assert streamed.microseconds(PLAIN, "bf16") == Prediction(101.0, "memory")


def test_costs_add_up() -> None:
    one, other = Cost(1, 2, 3, 4, 5, 6), Cost(10, 20, 30, 40, 50, 60)
    assert one + other == Cost(11, 22, 33, 44, 55, 66)
    assert one * 3 == Cost(3, 6, 9, 12, 15, 18)
    assert one.bytes == 9


def test_each_kind_has_its_peak() -> None:
    card = replace(PLAIN, half=3.0, tf32=2.0, fp32=1.0)
    assert [card.peak(kind) for kind in ("bf16", "fp16", "int8", "tf32", "fp32")] == [3.0, 3.0, 3.0, 2.0, 1.0]
    assert measured(card, half=9.0, memory=8.0) == replace(card, half=9.0, memory=8.0)
    assert measured(card, tf32=7.0, fp32=6.0) == replace(card, tf32=7.0, fp32=6.0)


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
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("h200", "H200"),
    ],
)
def test_cards_are_known_by_the_name_that_cuda_gives(cuda: str, name: str) -> None:
    assert card_named(cuda).name == name


@pytest.mark.parametrize("cuda", ["NVIDIA L40S", "Tesla V100-SXM2-16GB", ""])
def test_unknown_cards_are_refused(cuda: str) -> None:
    with pytest.raises(FlashElmoError, match=r"^card: expected one of H200, .*, found '"):
        card_named(cuda)


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert model.main(["--card", "A100"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("original model on A100: 312 TFLOP/s in 16 bits")
    hoisted = next(line for line in printed if line.startswith("step, hoisted") and " 1 rows" in line)
    assert hoisted.endswith("µs  memory")
    assert float(hoisted.split()[-3]) == pytest.approx(41.9e6 / 2.039e6 + 3.0, rel=0.02)
    assert model.main(["--card", "GT 710"]) == 1
    assert capsys.readouterr().err.startswith("kernels.model: card: expected one of ")
