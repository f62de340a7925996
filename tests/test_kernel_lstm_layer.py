"""A layer over all depths: which variant runs which, buckets that stand for many schedules, and where outputs go."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from kernel_lstm import FLOATS, VARIANTS, RandomLayer, launches_of, random_layer, real_nodes, scheduled

from flashelmo.engine.cuda.layout import Sizes
from flashelmo.engine.precision import tolerance
from flashelmo.kernels.launch import Launch, can_depend, check_dependent
from flashelmo.kernels.lstm import hoisted
from flashelmo.kernels.lstm import run as run_module
from flashelmo.kernels.lstm.layer import choose, cut, lstm_layer
from flashelmo.kernels.lstm.run import LaunchOptions, LayerRun, Nodes

SIZES = ((1, 3, 5, 2), (1, 2, 9))
MANY_SIZES = ((1, 3, 5, 40, 41, 4, 2), (1, 35, 2))
BUCKET_ROWS = (4, 6, 20, 20, 3, 1)  # two depths more than the schedule has, and more rows in each
ROOM = 29  # nodes, while the rows are 54


def chosen(run: LayerRun) -> list[tuple[str, range]]:
    return [(variant.name, depths) for variant, depths in cut(run)]


# -------------------------------------------------------------------------------------------------------------- choice


def test_depths_are_grouped_by_the_variant_that_serves_their_rows(device: str) -> None:
    layer = random_layer(
        device, sizes=MANY_SIZES
    )  # P = 12 in float32: up to 6 rows, reading the input's part is cheaper
    few = [("fused", range(2, 3)), ("fused", range(4, 6))]
    for name in ("persistent", "hoisted"):
        expected = [*few, (name, range(1, 2)), (name, range(3, 4)), (name, range(6, 8))]
        found = chosen(layer.poisoned(options=layer.options(name)))
        assert found == sorted(expected, key=lambda each: each[1].start)
    assert chosen(layer.poisoned(int8=True)) == [("hoisted", range(1, 8))]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("kind", FLOATS)
def test_some_variant_serves_any_rows(device: str, kind: str, int8: bool) -> None:
    layer = random_layer(device, P=16, C=32, dtype=FLOATS[kind])
    for name in VARIANTS:
        run = layer.poisoned(int8=int8, options=layer.options(name))
        names = [choose(run, rows).name for rows in (0, 1, 4, 8, 9, 32, 33, 128, 129, 10_000)]
        few = 4 if kind != "fp32" else 8  # rows that are hoisted
        expected = [
            "persistent" if rows <= 32 and VARIANTS[name].has_barrier else "hoisted" if int8 or rows <= few else "fused"
            for rows in (0, 1, 4, 8, 9, 32, 33, 128, 129, 10_000)
        ]
        assert names == expected


def test_slabs_are_cut_where_their_input_part_is_large(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(device, sizes=((1, 2, 2, 2, 2),) * 2)
    monkeypatch.setattr(hoisted, "SLAB_BYTES", 2 * 4 * 24 * 4 * 4)  # four nodes of both directions
    run = layer.poisoned()
    assert list(hoisted.slabs(run, range(1, 6))) == [range(1, 3), range(3, 5), range(5, 6)]
    assert list(hoisted.slabs(run, range(2, 4))) == [range(2, 4)]
    expected = real_nodes(layer.expected()[0], layer.nodes)
    for name in ("hoisted", "persistent"):
        outputs, _ = lstm_layer(layer.pack(), layer.nodes, layer.x, options=layer.options(name))
        assert (real_nodes(outputs, layer.nodes) - expected).abs().max() < tolerance("fp32", "cuda")
    monkeypatch.setattr(hoisted, "SLAB_BYTES", 1)  # less than a node's
    assert list(hoisted.slabs(run, range(1, 4))) == [range(1, 2), range(2, 3), range(3, 4)]


@pytest.mark.parametrize("name", ["persistent", "hoisted"])
@pytest.mark.parametrize("n_roots", [1, 4])
def test_a_layer_matches_the_reference(device: str, n_roots: int, name: str) -> None:
    layer = random_layer(device, sizes=MANY_SIZES, n_roots=n_roots)
    roots = 0.3 * torch.randn(2, n_roots, 12, device=device), 0.3 * torch.randn(2, n_roots, 24, device=device)
    outputs, _ = lstm_layer(layer.pack(), layer.nodes, layer.x, roots=roots, options=layer.options(name))
    expected = real_nodes(layer.expected(roots)[0], layer.nodes)
    assert (real_nodes(outputs, layer.nodes) - expected).abs().max() < tolerance("fp32", "cuda")


def test_roots_that_do_not_fit_are_named(device: str) -> None:
    layer = random_layer(device, n_roots=2)
    hidden, cell = torch.zeros(2, 2, 12, device=device), torch.zeros(2, 2, 24, device=device)
    for roots, message in (
        ((hidden, cell[:, :1]), r"^roots' cell: expected shape \[2, 2, 24\], found \[2, 1, 24\]"),
        ((hidden.double(), cell), "^roots' hidden: expected torch.float32, found torch.float64"),
    ):
        with pytest.raises(ValueError, match=message):
            lstm_layer(layer.pack(), layer.nodes, layer.x, roots=roots)


# ------------------------------------------------------------------------------------------------------------- buckets


def bucket_of(layer: RandomLayer) -> Nodes:
    """The layer's nodes in a bucket of the engine's."""
    most = tuple(accumulate((0, layer.nodes.n_roots, *BUCKET_ROWS)))
    sizes = Sizes((most, most), n_roots=layer.nodes.n_roots, n_nodes=ROOM + layer.nodes.n_roots, n_tokens=0)
    return scheduled(layer.schedule, sizes, layer.device)


def in_bucket(x: torch.Tensor) -> torch.Tensor:
    """Inputs of the bucket's nodes, NaN where there are none."""
    room = x.new_full((x.shape[0], ROOM + 1, x.shape[2]), torch.nan)
    room[:, : x.shape[1]] = x
    return room


@pytest.mark.parametrize(
    ("name", "int8"), [("fused", False), ("hoisted", False), ("hoisted", True), ("persistent", False)]
)
@pytest.mark.parametrize("skip", [False, True], ids=["no skip", "skip"])
def test_a_bucket_gives_what_its_schedule_gives(device: str, name: str, int8: bool, skip: bool) -> None:
    P, C = (16, 32) if int8 else (VARIANTS[name].P, VARIANTS[name].C)
    layer = random_layer(device, sizes=SIZES, P=P, C=C)
    bucket, weights = bucket_of(layer), layer.pack(int8=int8)
    run = layer.poisoned(int8=int8, options=layer.options(name), nodes=bucket, x=in_bucket(layer.x))
    assert chosen(run)[0][0] == name
    roots = 0.3 * torch.randn(2, 1, P, device=device), 0.3 * torch.randn(2, 1, C, device=device)
    exact, _ = lstm_layer(weights, layer.nodes, layer.x, skip=skip, roots=roots, options=run.options)
    found, tensors = lstm_layer(weights, bucket, in_bucket(layer.x), skip=skip, roots=roots, options=run.options)
    assert found.shape == (2, ROOM + 1, P) and tensors.cell.shape[2] == max(BUCKET_ROWS)
    ours, expected = real_nodes(found, layer.nodes), real_nodes(exact, layer.nodes)
    assert ours.isfinite().all()
    assert (ours - expected).abs().max() <= tolerance("fp32", "cuda")  # the tile may be another, and so the sums' order
    if not skip and not int8:
        assert (ours - real_nodes(layer.expected(roots)[0], layer.nodes)).abs().max() <= tolerance("fp32", "cuda")


@pytest.mark.parametrize("name", ["fused", "hoisted"])
def test_a_bucket_takes_its_words_from_a_larger_table(device: str, name: str) -> None:
    layer, table = random_layer(device, sizes=SIZES, P=VARIANTS[name].P, C=24).by_word()
    found, _ = lstm_layer(layer.pack(), bucket_of(layer), table, by_word=True)
    ours, expected = real_nodes(found, layer.nodes), real_nodes(layer.expected()[0], layer.nodes)
    assert (ours - expected).abs().max() <= tolerance("fp32", "cuda")


def test_a_bucket_of_no_nodes(device: str) -> None:
    """As one whose tensors were not filled yet."""
    layer = random_layer(device, sizes=SIZES, P=80)
    empty = bucket_of(layer)
    empty.starts.zero_()
    for nodes in (empty, replace(empty, parents=empty.parents[:, :1].clone(), words=empty.words[:, :1].clone())):
        nodes.words[:, 0] = 0
        out = torch.full((2, nodes.n_nodes, 80), torch.nan, device=device)
        lstm_layer(layer.pack(), nodes, torch.zeros_like(out), out=out)
        assert torch.equal(out.isfinite().all(-1), torch.arange(nodes.n_nodes, device=device).expand(2, -1) < 1)


def test_a_slab_has_no_more_nodes_than_there_is_room_for(device: str) -> None:
    layer = random_layer(device, sizes=SIZES)
    bucket = bucket_of(layer)
    assert [bucket.span(range(1, n)) for n in (2, 3, 4, 7)] == [4, 10, ROOM, ROOM]
    assert (bucket.n_depths, bucket.n_roots, bucket.max_rows, bucket.n_nodes) == (6, 1, 20, ROOM + 1)
    run = layer.poisoned(nodes=bucket, x=in_bucket(layer.x))
    inputs = hoisted.slab_inputs(run, range(2, 7))
    assert inputs.shape == (2, ROOM, 12) and inputs.isfinite().all()
    assert torch.equal(inputs[0, :10], layer.x[0, 2:12])


# ------------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("skip", [False, True], ids=["no skip", "skip"])
def test_outputs_are_written_where_they_are_wanted(device: str, skip: bool) -> None:
    layer = random_layer(device, sizes=((1, 3, 2), (1, 2, 7)))
    expected, _ = lstm_layer(layer.pack(), layer.nodes, layer.x, skip=skip)
    all_layers = torch.full((3, *expected.shape), torch.nan, device=device)
    found, tensors = lstm_layer(layer.pack(), layer.nodes, layer.x, skip=skip, out=all_layers[1])
    assert found.data_ptr() == all_layers[1].data_ptr()
    assert (tensors.outputs if skip else tensors.hidden) is found
    assert torch.equal(real_nodes(all_layers[1], layer.nodes), real_nodes(expected, layer.nodes))
    assert not all_layers[1, :, 0].any()  # the roots' rows
    assert all_layers[[0, 2]].isnan().all()


def test_outputs_that_do_not_fit_are_named(device: str) -> None:
    layer = random_layer(device)
    for out, message in (
        (torch.zeros(2, 3, 12, device=device), r"^out: expected shape \[2, 24, 12\], found \[2, 3, 12\]"),
        (torch.zeros(2, 24, 12, device=device).half(), r"^out: expected torch.float32, found torch.float16"),
        (torch.zeros(2, 24, 12, device="meta"), r"^out: expected a tensor on (cpu|cuda:0) as weights, found meta"),
    ):
        with pytest.raises(ValueError, match=message):
            lstm_layer(layer.pack(), layer.nodes, layer.x, out=out)


# ------------------------------------------------------------------------------------------------------------ launches


def without(launch: Launch, *names: str) -> Launch:
    return replace(launch, arguments={name: value for name, value in launch.arguments.items() if name not in names})


def test_depths_at_once_have_the_launches_of_each_and_are_checked_once(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = random_layer(device, sizes=((1, 3, 70, 3, 1), (1, 2, 2, 2, 1)), C=64)
    run = layer.poisoned(skip=True)
    steps = [launch for depth in range(2, 6) for launch in launches_of(run, "fused", range(depth, depth + 1))]
    monkeypatch.setattr(run_module, "check", lambda *_: pytest.fail("checked again"))
    fused = launches_of(run, "fused", range(2, 6))
    product, *after = launches_of(run, "hoisted", range(2, 6))
    assert [launch.arguments["depth"] for launch in fused] == [2, 2, 3, 3, 4, 4, 5, 5]
    assert len({launch.arguments["TILE"] for launch in fused}) > 2
    for ours, expected in zip(fused, steps, strict=True):  # tensors are the same objects, and so equal
        assert without(ours, "slab_depth") == without(expected, "slab_depth")
    for ours, expected in zip(after[1::2], fused[1::2], strict=True):
        assert ours == expected  # the projection
    x_gates = product.arguments["out_ptr"]
    for gates in after[::2]:
        assert gates.arguments["tensors"].x_gates is x_gates and gates.arguments["tensors"].x is None
        assert (gates.arguments["slab_depth"], gates.arguments["M"]) == (2, 77) == (2, x_gates.shape[1])


def test_the_interpreter_takes_no_notice_of_dependence(device: str) -> None:
    if device == "cuda":
        pytest.skip("in the interpreter alone")
    run = random_layer(device, sizes=SIZES).poisoned(options=LaunchOptions(dependent=True))
    for launch in launches_of(run, "fused"):
        assert launch.arguments["MODE"].dependent is False and "launch_pdl" not in launch.options


@pytest.mark.parametrize("int8", [False, True])
def test_dependent_launches_give_the_same(device: str, int8: bool) -> None:
    if device == "cpu" or not can_depend(torch.device(device)):
        pytest.skip("there are no dependent launches here")
    layer = random_layer(device, sizes=SIZES, P=16, C=64)
    results: list[Any] = []
    for dependent in (False, True):
        options = LaunchOptions(dependent=dependent)
        found, _ = lstm_layer(layer.pack(int8=int8), layer.nodes, layer.x, skip=True, options=options)
        results.append(real_nodes(found, layer.nodes))
    assert torch.equal(*results) and results[0].isfinite().all()


def test_cards_without_dependent_launches_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    card = torch.device("cuda", 0)
    assert not can_depend(card) and not can_depend(torch.device("cpu"))
    with pytest.raises(ValueError) as error:
        check_dependent(card)
    assert str(error.value) == "dependent: expected a device of compute capability 9.0 or more, found 8.0"
    for capability in ((9, 0), (10, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert can_depend(card)
        check_dependent(card)
