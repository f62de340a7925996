"""Steps whose weights stay on the chip: what programs send each other, launch after launch, however slow one is."""

import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

import gluon_interpreter
from gluon_interpreter import run_all
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_lstm import RandomLayer, launches_of, random_layer, real_nodes, scheduled
from ptx_machine import run_assembly
from ptx_memory import Clocks, Region

from flashelmo.engine.cuda.layout import Sizes
from flashelmo.engine.precision import PRECISIONS
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm import layer as table
from flashelmo.kernels.lstm import persistent, persistent_exchange, proven
from flashelmo.kernels.lstm.layer import Variant
from flashelmo.kernels.lstm.run import InputWords, LayerRun, Workspace, new_tensors
from flashelmo.kernels.tuning import CLOCK_WORDS, MOST_POLLS, exchange_size

SIZES = dict(P=128, C=512)  # 8 programs of a direction, of which 2 share a split
BOUND = PRECISIONS["fp16"].bounds["cuda"].relative or 0.0

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0), reason="for sm_90"
)


def made(device: str, sizes: tuple[tuple[int, ...], ...], **options: Any) -> RandomLayer:
    return random_layer(device, sizes=sizes, dtype=torch.float16, **SIZES | options).rounded()


def error(run: LayerRun, layer: RandomLayer) -> float:
    found, expected = real_nodes(run.tensors.hidden, layer.nodes), real_nodes(layer.expected()[0], layer.nodes)
    return float((found - expected).norm() / expected.norm())


def clocks(run: LayerRun) -> list[list[int]]:
    """Last tag, and programs that ended, of either direction."""
    return run.tensors.exchange[: 2 * CLOCK_WORDS].view(2, CLOCK_WORDS)[:, :2].tolist()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.lists(st.integers(1, 32), min_size=1, max_size=5).map(tuple), min_size=2, max_size=2).map(tuple),
    size=st.sampled_from([(128, 512), (128, 1024), (256, 512), (512, 512)]),
    seed=st.integers(0, 99),
)
def test_any_forests_of_few_rows(sizes: Any, size: tuple[int, int], seed: int) -> None:
    """With C / P splits, of programs that stop and go at random."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    P, C = size
    layer = made(device, sizes, P=P, C=C, seed=seed, n_roots=1 + seed % 3)
    run = layer.poisoned(skip=True)
    run_all(launches_of(run, "persistent"), random.Random(seed))
    assert error(run, layer) < BOUND
    assert clocks(run) == [[len(each), C // 64] for each in sizes]


def test_a_workspace_serves_launch_after_launch(device: str) -> None:
    """Of many rows and few: no value of an earlier launch is taken for one of this."""
    layers = [made(device, sizes, seed=k) for k, sizes in enumerate((((20, 30), (32, 1)), ((3, 2, 1), (1, 1, 1, 5))))]
    workspace, bits, steps = Workspace.of(layers[0].pack().shape, device), [], [0, 0]
    for k in range(4):
        layer = layers[k % 2]
        tensors = new_tensors(layer.pack(), layer.nodes, layer.x, workspace=workspace)
        run = LayerRun(layer.pack(), tensors, layer.nodes)
        run_all(launches_of(run, "persistent"), random.Random(k))
        assert error(run, layer) < BOUND
        bits.append(real_nodes(run.tensors.hidden, layer.nodes))
        steps = [n + sum(a < b for a, b in pairwise(s[1:])) for n, s in zip(steps, layer.nodes.depths, strict=True)]
        assert clocks(run) == [[n, 8 * (k + 1)] for n in steps]
    assert torch.equal(bits[0], bits[2]) and torch.equal(bits[1], bits[3])


def test_other_variants_may_compute_some_depths(device: str) -> None:
    layer = made(device, ((5, 9, 40, 17, 3), (2, 31, 33, 1)))
    run = layer.poisoned()
    for name, depths in (("persistent", range(1, 3)), ("few_rows", range(3, 4)), ("persistent", range(4, 6))):
        run_all(launches_of(run, name, depths))
    assert error(run, layer) < BOUND


def test_one_launch_serves_any_schedule_of_its_size(device: str) -> None:
    """As a captured graph's: steps beyond the last depth are none."""
    layer = made(device, ((2, 3, 1), (1, 1)))
    bucket = Sizes.of(layer.schedule, share=False, pooled=False, stateful=False).bucket()
    nodes = scheduled(layer.schedule, bucket, device)
    x = torch.zeros(2, nodes.n_nodes, 128, dtype=layer.dtype, device=device)
    for d, starts in enumerate(layer.nodes.depths):
        first = nodes.n_roots
        x[d, first : first + starts[-1] - starts[1]] = layer.x[d, starts[1] : starts[-1]]
    run = layer.poisoned(nodes=nodes, x=x)
    run_all(launches_of(run, "persistent"))
    assert nodes.n_depths > 3 and clocks(run) == [[3, 8], [2, 8]]
    expected = layer.expected()[0]
    for d, starts in enumerate(layer.nodes.depths):
        first, count = nodes.n_roots, starts[-1] - starts[1]
        found = run.tensors.hidden[d, first : first + count].double().cpu()
        assert (found - expected[d, starts[1] : starts[-1]]).norm() < BOUND * expected[d].norm()


@pytest.mark.parametrize(
    ("ways", "n_products"),
    [
        (("persistent", "persistent", "persistent"), 1),
        (("few_rows", "few_rows", "persistent"), 1),  # as both have one order of columns
        (("persistent", "fused", "persistent"), 1),
        (("persistent", "hoisted", "persistent"), 3),
        (("hoisted", "persistent", "hoisted"), 3),
    ],
    ids=str,
)
def test_the_input_part_may_be_by_word(device: str, ways: tuple[str, ...], n_products: int) -> None:
    """Multiplied once, but again where the last variant that did so has another order of columns."""
    layer = made(device, ((3, 9, 2), (5, 4)))
    which = torch.arange(layer.nodes.n_nodes, device=device) * 5 % 7
    layer = replace(layer, x=layer.x[:, which].contiguous())
    run, of_nodes = layer.poisoned(), which.int().expand(2, -1).contiguous()
    distinct = torch.zeros_like(layer.x)
    for word in range(7):
        distinct[:, word] = layer.x[:, which == word][:, 0]
    words = InputWords.of(run.weights, distinct, of_nodes, torch.tensor([7], dtype=torch.int32, device=device))
    words.gates.fill_(torch.nan)
    run = replace(run, words=words)
    variants = {variant.name: variant for variant in table.VARIANTS}
    found = []
    for depth, way in enumerate(ways, 1):
        launches = list(variants[way].launches(run, range(depth, depth + 1)))
        run_all(launches)
        found += [each for each in launches if each.arguments.get("count_ptr") is not None]
    assert len(found) == n_products
    assert error(run, layer) < BOUND


@pytest.mark.skipif(torch.cuda.is_available(), reason="a card's programs do not fail to order")
@pytest.mark.parametrize("name", ["receive", "receive_sums"])
def test_what_a_program_waits_for_in_vain_is_not_a_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In what it computes then, and in all that others make of it."""
    layer = made("cpu", ((2, 2, 3, 2), (2, 2, 2, 2)))
    run, calls = layer.poisoned(), []
    real: Any = gluon_interpreter.INSTEAD[name]

    def fail_once(*arguments: Any) -> Any:
        values = real(*arguments)
        if gluon_interpreter._here.at[:2] != (3, 0):
            return values
        calls.append(name)
        if len(calls) == 4:  # in the third step: of r, h, r, h, r; of sums in the fourth
            for each in values if isinstance(values, tuple) else (values,):
                each.handle.data[...] = torch.tensor(-1, dtype=torch.int32).numpy().view(each.handle.data.dtype)
        return values

    monkeypatch.setitem(gluon_interpreter.INSTEAD, name, fail_once)
    run_all(launches_of(run, "persistent"))
    starts = layer.nodes.depths[0]
    broken = 3 if name == "receive" else 4  # depth; h is received from depth 1 on, r from depth 2
    hidden = run.tensors.hidden[0]
    assert hidden[starts[1] : starts[broken]].isfinite().all()
    assert hidden[starts[broken] : starts[broken + 1]].isnan().any(dim=1).all()
    assert hidden[starts[broken + 1] : starts[-1]].isnan().all()
    starts = layer.nodes.depths[1]
    assert run.tensors.hidden[1, starts[1] : starts[-1]].isfinite().all()


def test_room_for_what_is_exchanged_is_asked_for(device: str) -> None:
    layer = made(device, ((1,), (1,)))
    run = layer.poisoned()
    expected = exchange_size(2, 128, 512)
    assert expected == 2 * (CLOCK_WORDS + 32 * (64 + 256 + 2 * 512))
    short = run.tensors._replace(exchange=run.tensors.exchange[1:])
    with pytest.raises(ValueError, match=f"^exchange: expected .*{expected}"):
        replace(run, tensors=short)


def test_programs_that_wait_for_each_other_are_launched_at_once() -> None:
    launch = launches_of(made("cpu", ((1,), (1,))).poisoned(), "persistent")[-1]
    assert launch.options["launch_cooperative_grid"] is True and launch.grid == (8, 2)
    assert launch.arguments["polls"] == MOST_POLLS > 1 << 28  # other streams may keep them waiting for long
    assert [tile.rows for tile in persistent.TILES] == [16, 32]


# ------------------------------------------------------------------------------------------------------------- its time


@pytest.mark.parametrize(
    ("ours", "why"),
    [
        ([0.1], ""),
        ([0.11], ""),
        ([0.2] * 3, "24 steps of 8 and 32 rows take 0.400 ms where 'fused' takes 0.200"),
        ([0.2, 0.2, 0.1], ""),
        ([], ""),
    ],
)
def test_a_variant_that_takes_longer_than_its_rival_is_not_used(
    ours: list[float], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By more than a tenth, each time; where the rival fails it is."""
    rows_timed: list[int] = []

    def milliseconds(each: Any, run: LayerRun, rows: int) -> list[float]:
        assert each == (variant, rival)
        rows_timed.append(rows)
        if not ours:
            raise RuntimeError("no kernel image")
        return [ours[(len(rows_timed) - 1) // 2], 0.1]

    rival = next(variant for variant in table.VARIANTS if variant.name == "fused")
    rival = rival._replace(serves=lambda run, rows: True)
    variant = Variant("made up", lambda run, rows: True, lambda run, depths: iter(()), rival.pack, True, rival)
    monkeypatch.setattr(proven, "milliseconds", milliseconds)
    run: Any = SimpleNamespace(weights=SimpleNamespace(device=torch.device("cuda", 0)))
    assert proven._why_slow(variant, run) == why
    assert proven._why_slow(rival, run) == ""
    assert rows_timed == ([8, 32] * len(ours) or [8])


def test_variants_are_timed_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes the least of its times: the card's clock may rise, and others may use it."""
    launched: list[int] = []

    class Event:
        def __init__(self, enable_timing: bool = False) -> None: ...

        record = synchronize = __init__

        def elapsed_time(self, end: Any) -> float:
            return {0: 3.0, 1: 5.0}[launched[-1]] / len(launched)

    def variant(k: int) -> Variant:
        def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
            launched.append(k)
            return iter(())

        return table.VARIANTS[-1]._replace(launches=launches)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
    found = proven.milliseconds([variant(0), variant(1)], made("cpu", ((1,), (1,))).poisoned(), 8)
    n = 2 * proven.TIMES
    assert launched == [0, 1] * n and found == [3.0 / (2 * n - 1), 5.0 / (2 * n)]


def test_what_no_card_has_timed_has_a_rival() -> None:
    rivals = {variant.name: variant.rival and variant.rival.name for variant in table.VARIANTS if variant.rival}
    assert rivals == {"persistent": "few_rows"}


# ------------------------------------------------------------------------------------------------------------- assembly

TAG, BASE = 7, 1 << 40
POLLS = 9


class Words(Region):
    """Words of 64 bits by number, each of which is there from some look at it on."""

    def __init__(self, values: dict[int, tuple[int, int]]) -> None:
        data = np.zeros(8 * (max(values) + 1), np.uint8)
        super().__init__("words", BASE, data, Clocks(2), slots=2)
        self.values, self.looks = values, dict.fromkeys(values, 0)

    def load(self, places: np.ndarray[Any, Any], dtype: Any) -> np.ndarray[Any, Any]:
        (word,) = {int(place) // 8 for place in places}
        value, since = self.values[word]
        self.looks[word] += 1
        tag = TAG if self.looks[word] >= since else TAG - 1
        self.data[8 * word : 8 * word + 8] = np.array([value, tag], np.uint32).view(np.uint8)
        return super().load(places, dtype)


def results(code: str, operands: list[int], memory: Region, kind: Any = np.int32) -> list[Any]:
    """The first two registers after a warp has run assembly, as values of 32 bits."""
    registers = run_assembly(code, operands, memory)
    found = [registers[f"${k}"].astype(np.uint32).view(kind) for k in range(2)]
    assert all((each == each[0]).all() or kind is np.float32 for each in found)
    return [each[0].item() for each in found]


@pytest.mark.parametrize("n", [2, 4, 8])
def test_words_are_waited_for(n: int) -> None:
    """Those of rows 9, 7, 6, ... in a column, STRIDE words apart, and none of an absent row."""
    rows = [-1 if k == 1 else 9 - k for k in range(n)]
    words = Words({3 * row: (0xA0000000 + row, 2 + k) for k, row in enumerate(rows) if row >= 0})
    operands = [*[0] * n, *rows, *[BASE] * n, *[TAG] * n, *[POLLS] * n]
    found = run_assembly(persistent_exchange.receive_code.fn(n, 3), operands, words)
    expected = [0xA0000000 + row if row >= 0 else 0 for row in rows]
    assert [set(found[f"${k}"].tolist()) for k in range(n)] == [{value} for value in expected]
    assert set(words.looks.values()) == {
        max(since for _, since in words.values.values())
    }  # all again until the last is there
    constraints = ["=&r"] * n + ["r"] * n + ["l"] * n + ["r"] * n + ["r"] * n
    assert persistent_exchange.receive_constraints.fn(n).split(",") == constraints


@pytest.mark.parametrize("since", [POLLS, POLLS + 1])
def test_a_wait_ends(since: int) -> None:
    words = Words({0: (1, 1), 3: (2, since)})
    operands = [0, 0, 0, 1, BASE, BASE, TAG, TAG, POLLS, POLLS]
    found = results(persistent_exchange.receive_code.fn(2, 3), operands, words)
    assert words.looks[3] == POLLS
    assert found == ([1, 2] if since == POLLS else [-1, -1])


@pytest.mark.parametrize("splits", [1, 2, 4, 8])
@pytest.mark.parametrize("late", [1, 3, POLLS + 1])
def test_sums_of_splits_are_waited_for_and_added(splits: int, late: int) -> None:
    def bits(value: float) -> int:
        return int(torch.tensor(value).view(torch.int32)) & 0xFFFFFFFF

    values = [(0.5 * split - 1.25, 3.0 - split) for split in range(splits)]
    of_words = {10 + 6 * split + k: (bits(each[k]), 1) for split, each in enumerate(values) for k in range(2)}
    last = 10 + 6 * (splits - 1) + 1
    words = Words(of_words | {last: (of_words[last][0], late)})
    code = persistent_exchange.receive_sums_code.fn(splits, 6)
    found = results(code, [0, 0, 10, BASE, TAG, POLLS], words, np.float32)
    expected = [sum(each[k] for each in values) for k in range(2)] if late <= POLLS else [torch.nan] * 2
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert words.looks[last] == min(late, POLLS)
    looks = dict(words.looks)
    assert results(code, [0, 0, -1, BASE, TAG, POLLS], words, np.float32) == [0, 0] and words.looks == looks


def test_a_value_is_sent_with_its_tag() -> None:
    words = Region("words", BASE, np.zeros(64, np.uint8), Clocks(2), slots=2)
    for word in (4, -1):
        run_assembly(persistent_exchange.SEND.value, [0, word, BASE, 0xDEADBEEF, TAG], words)
    assert words.data.view(np.uint64).tolist() == [0, 0, 0, 0, TAG << 32 | 0xDEADBEEF, 0, 0, 0]
