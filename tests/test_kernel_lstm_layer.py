"""Buckets, which stand for many schedules, and outputs written where they are wanted: the same values as without."""

from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from kernel_lstm import RandomLayer, random_layer, real_nodes
from tolerances import TOLERANCES

from flashelmo.kernels import lstm_launches
from flashelmo.kernels.launch import can_depend, check_dependent
from flashelmo.kernels.lstm_launches import slab_launches, step_launches
from flashelmo.kernels.lstm_layer import Slab, lstm_layer, slab_inputs, slab_rows, slabs
from flashelmo.kernels.lstm_persistent import Barrier
from flashelmo.kernels.lstm_tensors import Shape
from flashelmo.kernels.nodes import Nodes

SIZES = ((1, 3, 5, 2), (1, 2, 9))
ROWS = (4, 6, 20, 20, 3, 1)  # two depths more than the schedule has, and more rows in each
ROOM = 29  # nodes, while the rows are 54
UNREAD = 1 << 30  # a parent or word that would be read far outside its tensor


def bucket_of(nodes: Nodes) -> Nodes:
    """The nodes in a bucket, with what must not be read beyond each direction's last one."""
    shape = nodes.n_directions, nodes.n_roots + ROOM
    starts = torch.empty(nodes.n_directions, len(ROWS) + 2, dtype=torch.int32, device=nodes.starts.device)
    starts[:] = nodes.starts[:, -1:]
    starts[:, : nodes.n_depths + 2] = nodes.starts
    parents, words = (starts.new_full(shape, UNREAD) for _ in range(2))
    for d, depths in enumerate(nodes.depths):
        parents[d, : depths[-1]] = nodes.parents[d, : depths[-1]]
        words[d, : depths[-1]] = nodes.words[d, : depths[-1]]
    most = tuple(accumulate((0, nodes.n_roots, *ROWS)))
    return Nodes(starts, parents, words, (most,) * nodes.n_directions, nodes.n_words)


def in_bucket(x: torch.Tensor) -> torch.Tensor:
    """Inputs of the bucket's nodes, NaN where there are none."""
    room = x.new_full((x.shape[0], ROOM + 1, x.shape[2]), torch.nan)
    room[:, : x.shape[1]] = x
    return room


WAYS = {  # at P = 4 only up to 2 rows are hoisted in float32, at P = 80 up to 40
    "hoisted": (80, False, ["hoisted"], False),
    "fused": (4, False, ["fused", "hoisted"], False),
    "int8": (16, True, ["hoisted"], False),
    "persistent": (16, False, ["persistent"], True),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("skip", [False, True], ids=["no skip", "skip"])
def test_a_bucket_gives_what_its_schedule_gives(device: str, way: str, skip: bool) -> None:
    P, int8, kinds, persistent = WAYS[way]
    layer = random_layer(device, sizes=SIZES, P=P, C=32)
    bucket, weights = bucket_of(layer.nodes), layer.pack(int8=int8)
    assert list(dict.fromkeys(slab.kind for slab in slabs(weights, bucket, persistent=persistent))) == kinds
    barrier = Barrier.on(device) if persistent else None
    roots = 0.3 * torch.randn(2, 1, P, device=device), 0.3 * torch.randn(2, 1, 32, device=device)
    exact, _ = lstm_layer(weights, layer.nodes, layer.x, skip=skip, roots=roots, barrier=barrier)
    found, tensors = lstm_layer(weights, bucket, in_bucket(layer.x), skip=skip, roots=roots, barrier=barrier)
    assert found.shape == (2, ROOM + 1, P) and tensors.cell.shape[2] == max(ROWS)
    ours, expected = real_nodes(found, layer.nodes), real_nodes(exact, layer.nodes)
    assert ours.isfinite().all()
    assert (ours - expected).abs().max() <= TOLERANCES["fp32"]  # the tile may be another, and so the sums' order
    if not skip and not int8:
        assert (ours - real_nodes(layer.expected(roots)[0], layer.nodes)).abs().max() <= TOLERANCES["fp32"]


def by_word(layer: RandomLayer) -> tuple[RandomLayer, torch.Tensor]:
    """The layer with nodes that name random words, and the words' table, longer than they need."""
    table = torch.randn(50, layer.x.shape[-1], device=layer.device)
    table[30:] = torch.nan
    words = torch.randint(0, 30, layer.nodes.words.shape, device=layer.device, dtype=torch.int32)
    nodes = replace(layer.nodes, words=words, n_words=30)
    return replace(layer, nodes=nodes, x=table[words.long()]), table


@pytest.mark.parametrize(("P", "C"), [(4, 24), (80, 24)], ids=["fused", "hoisted"])
def test_a_bucket_takes_its_words_from_a_larger_table(device: str, P: int, C: int) -> None:
    layer, table = by_word(random_layer(device, sizes=SIZES, P=P, C=C))
    found, _ = lstm_layer(layer.pack(), bucket_of(layer.nodes), table, by_word=True)
    ours, expected = real_nodes(found, layer.nodes), real_nodes(layer.expected()[0], layer.nodes)
    assert (ours - expected).abs().max() <= TOLERANCES["fp32"]


def test_a_bucket_of_no_nodes(device: str) -> None:
    """As one whose tensors were not filled yet."""
    layer = random_layer(device, sizes=SIZES, P=80)
    empty = bucket_of(layer.nodes)
    empty.starts.zero_()
    for nodes in (empty, replace(empty, parents=empty.parents[:, :1], words=empty.words[:, :1])):
        nodes.words[:, 0] = 0
        out = torch.full((2, nodes.n_nodes, 80), torch.nan, device=device)
        lstm_layer(layer.pack(), nodes, torch.zeros_like(out), out=out)
        assert torch.equal(out.isfinite().all(-1), torch.arange(nodes.n_nodes, device=device).expand(2, -1) < 1)


def test_a_slab_has_no_more_nodes_than_there_is_room_for(device: str) -> None:
    layer = random_layer(device, sizes=SIZES)
    bucket = bucket_of(layer.nodes)
    assert [slab_rows(Slab("hoisted", 1, n), bucket) for n in (1, 2, 3, 6)] == [4, 10, ROOM, ROOM]
    assert (bucket.n_depths, bucket.n_roots, bucket.max_rows, bucket.n_nodes) == (6, 1, 20, ROOM + 1)
    inputs = slab_inputs(Slab("hoisted", 2, 5), bucket, in_bucket(layer.x), False)
    assert inputs.shape == (2, ROOM, 12) and inputs.isfinite().all()
    assert torch.equal(inputs[0, :10], layer.x[0, 2:12])


@pytest.mark.parametrize("skip", [False, True], ids=["no skip", "skip"])
def test_outputs_are_written_where_they_are_wanted(device: str, skip: bool) -> None:
    layer = random_layer(device)
    expected, _ = lstm_layer(layer.pack(), layer.nodes, layer.x, skip=skip)
    all_layers = torch.full((3, *expected.shape), torch.nan, device=device)
    found, tensors = lstm_layer(layer.pack(), layer.nodes, layer.x, skip=skip, out=all_layers[1])
    assert found.data_ptr() == all_layers[1].data_ptr()
    assert (tensors.outputs if skip else tensors.hidden) is found
    assert torch.equal(real_nodes(all_layers[1], layer.nodes), real_nodes(expected, layer.nodes))
    assert not all_layers[1, :, 0].any()  # the roots' rows
    assert all_layers[[0, 2]].isnan().all()


@pytest.mark.parametrize("hoisted", [False, True], ids=["fused", "hoisted"])
def test_a_slab_has_the_launches_of_its_steps_and_is_checked_once(
    monkeypatch: pytest.MonkeyPatch, hoisted: bool
) -> None:
    layer = random_layer("cpu", sizes=((1, 3, 70, 3, 1), (1, 2, 2, 2, 1)), C=64)
    weights, tensors, checked = layer.pack(), layer.poisoned(skip=True, hoisted=hoisted), []
    steps = [
        launch for depth in range(2, 6) for launch in step_launches(weights, tensors, layer.nodes, depth, slab_depth=2)
    ]

    def check_tensors(*arguments: Any) -> Shape:
        checked.append(arguments[-2:])
        return Shape(2, 12, 64)

    monkeypatch.setattr(lstm_launches, "check_tensors", check_tensors)
    slab = list(
        slab_launches(
            weights, tensors, layer.nodes, range(2, 6),
            by_word=False, slab_depth=2, precision="ieee", dependent=False,
        )
    )  # fmt: skip
    assert checked == [(2, 5)]
    assert [launch.arguments["depth"] for launch in slab] == [2, 2, 3, 3, 4, 4, 5, 5]
    assert len({launch.arguments["TILE"] for launch in slab}) > 2
    for ours, expected in zip(slab, steps, strict=True):  # tensors are the same objects, and so equal
        assert ours == expected._replace(arguments={name: expected.arguments[name] for name in ours.arguments})
        assert ours.arguments.keys() == expected.arguments.keys()


def test_the_interpreter_takes_no_notice_of_dependence() -> None:
    layer = random_layer("cpu", sizes=SIZES)
    if torch.cuda.is_available():
        pytest.skip("in the interpreter alone")
    for launch in step_launches(layer.pack(), layer.poisoned(), layer.nodes, 1, dependent=True):
        assert launch.arguments["DEPENDENT"] is False and "launch_pdl" not in launch.options


def test_dependent_launches_give_the_same(device: str) -> None:
    if device == "cuda" and not can_depend(torch.device(device)):
        pytest.skip("the card has no dependent launches")
    layer = random_layer(device, sizes=SIZES, P=16, C=64)
    for int8 in (False, True):
        plain, dependent = (
            lstm_layer(layer.pack(int8=int8), layer.nodes, layer.x, skip=True, dependent=d)[0] for d in (False, True)
        )
        assert torch.equal(real_nodes(plain, layer.nodes), real_nodes(dependent, layer.nodes))
        assert real_nodes(plain, layer.nodes).isfinite().all()


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


def test_outputs_that_do_not_fit_are_named() -> None:
    layer = random_layer("cpu")
    for out, message in (
        (torch.zeros(2, 3, 12), r"^out: expected shape \[2, 24, 12\], found \[2, 3, 12\]"),
        (torch.zeros(2, 24, 12).half(), r"^out: expected torch.float32, found torch.float16"),
        (torch.zeros(2, 24, 12, device="meta"), r"^out: expected a tensor on cpu as weights, found meta"),
    ):
        with pytest.raises(ValueError, match=message):
            lstm_layer(layer.pack(), layer.nodes, layer.x, out=out)
