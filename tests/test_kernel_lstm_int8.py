"""Steps in 8-bit integers against the same rounding in float64, closely, and against exact steps."""

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gluon_interpreter import run_all
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_lstm import FLOATS, VARIANTS, RandomLayer, launches_of, random_layer, real_nodes
from torch import Tensor

from flashelmo.engine.precision import tolerance
from flashelmo.kernels import reference
from flashelmo.kernels.lstm import proven
from flashelmo.kernels.lstm.hopper import gate_columns
from flashelmo.kernels.lstm.int8 import Int8Layout, dequantized, int8_layout
from flashelmo.kernels.lstm.layer import VARIANTS as TABLE
from flashelmo.kernels.lstm.layer import pack_lstm

# ||found - expected|| / ||expected||. An r beside a tie may be another integer, which of so few values is much: often
# where h has 16 bits, which the reference has not, and in float32 where a card's sums have another order.
CLOSE = {"fp32": 1e-3 if not torch.cuda.is_available() else 0.01, "fp16": 0.01, "bf16": 0.02}
FORESTS: list[tuple[tuple[int, ...], ...]] = [
    ((1,), (1,)),
    ((3, 1, 9, 16), (1, 2)),
    ((17, 40, 64, 2), (33, 20, 1, 1)),
    ((1, 130, 2), (65, 7, 129)),
]
Roots = tuple[Tensor, Tensor]


def in_integers(values: Tensor, scale: Tensor) -> Tensor:
    """Rows [..., P] as integers of their scale [...] stand for them, in float64."""
    return (values.float() / scale[..., None]).clamp(-127, 127).round().double() * scale[..., None].double()


def expected(layer: RandomLayer, roots: Roots | None = None) -> Tensor:
    """Hidden states [D, N, P] in float64, with weights, inputs and states rounded as the kernels round them."""
    weights, nodes = layer.canonical.projected(), layer.nodes
    D, P, C = weights.shape
    both = torch.cat([weights.input, weights.recurrent], 2)
    columns = both.abs().amax(2).clamp(min=1e-30)[:, :, None] / 127
    both = (both / columns).round().double() * columns.double()
    hidden, cell = torch.zeros(D, nodes.n_nodes, P).double(), torch.zeros(D, nodes.n_nodes, C).double()
    if roots is not None:
        hidden[:, : nodes.n_roots], cell[:, : nodes.n_roots] = (root.double().cpu() for root in roots)
    assert weights.projection is not None
    projection = weights.projection.to(layer.dtype).double()
    for d, starts in enumerate(nodes.depths):
        for before, first, last in zip(starts, starts[1:], starts[2:], strict=False):
            parents = before + nodes.parents[d, first:last].long().cpu()
            x, r = layer.x[d, first:last].float().cpu(), hidden[d, parents]
            scale = torch.maximum(x.abs().amax(1), r.float().abs().amax(1)).clamp(min=1e-30) / 127
            hidden[d, first:last], cell[d, first:last] = reference.lstm_step(
                in_integers(x, scale),
                in_integers(r, scale),
                cell[d, parents],
                both[d, :, :P],
                both[d, :, P:],
                weights.bias[d].double(),
                projection[d],
                weights.cell_clip,
                weights.projection_clip,
            )
            hidden[d, first:last] = hidden[d, first:last].to(layer.dtype)
    return hidden


def error(found: Tensor, wanted: Tensor, layer: RandomLayer) -> float:
    ours, exact = real_nodes(found, layer.nodes), real_nodes(wanted, layer.nodes)
    return float((ours - exact).norm() / exact.norm())


def random_roots(layer: RandomLayer) -> Roots:
    D, P, C = layer.canonical.shape
    n = layer.nodes.n_roots
    rng = torch.Generator().manual_seed(1)
    hidden, cell = (0.3 * torch.randn(D, n, size, generator=rng) for size in (P, C))
    return hidden.to(layer.device, layer.dtype), cell.to(layer.device)


def assert_right(layer: RandomLayer, kind: str, name: str = "int8", skip: bool = False) -> None:
    """From random roots; on a card twice, with the same bits."""
    roots, results = random_roots(layer), []
    for _ in range(2 if layer.x.is_cuda else 1):
        run = layer.poisoned(int8=True, skip=skip, roots=roots)
        run_all(launches_of(run, name))
        results.append(real_nodes(run.tensors.hidden, layer.nodes))
    assert error(run.tensors.hidden, expected(layer, roots), layer) < CLOSE[kind]
    assert torch.equal(results[0], results[-1])
    if skip:
        total = (results[0] + real_nodes(layer.x, layer.nodes)).to(layer.dtype).double()
        assert torch.equal(real_nodes(run.tensors.outputs, layer.nodes), total)


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("sizes", FORESTS, ids=["one node", "few rows", "64 rows", "130 rows"])
def test_steps_match_the_same_rounding_in_float64(device: str, sizes: tuple[tuple[int, ...], ...], kind: str) -> None:
    """With a skip connection; `test_any_sizes` has none."""
    assert_right(random_layer(device, sizes=sizes, dtype=FLOATS[kind], P=16, C=40, n_roots=3), kind, skip=True)


@pytest.mark.parametrize(
    ("sizes", "kind"), [(each, ("bf16", "fp16")[k % 2]) for k, each in enumerate([*FORESTS, ((300, 290), (5,))])]
)
def test_the_variant_for_hopper_matches_it_too(device: str, sizes: tuple[tuple[int, ...], ...], kind: str) -> None:
    if device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("for sm_90")
    for P, C in VARIANTS["int8_specialized"].sizes if device == "cuda" else VARIANTS["int8_specialized"].sizes[:1]:
        layer = random_layer(device, sizes=sizes, dtype=FLOATS[kind], P=P, C=C, n_roots=3)
        assert_right(layer, kind, "int8_specialized", skip=True)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=2).map(tuple),
    P=st.integers(1, 40),
    C=st.integers(1, 70),
    clips=st.sampled_from([(0.5, 0.4), (None, None), (0.1, None), (None, 0.05), (3.0, 3.0)]),
    n_roots=st.integers(1, 5),
)
def test_any_sizes(sizes: Any, P: int, C: int, clips: Any, n_roots: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cell_clip, projection_clip = clips
    layer = random_layer(
        device, sizes=sizes, P=P, C=C, n_roots=n_roots, seed=P + C, cell_clip=cell_clip, projection_clip=projection_clip
    )
    assert_right(layer, "fp32")


def test_without_projection(device: str) -> None:
    layer = random_layer(device, sizes=((1, 3), (2,)), P=12, C=12, projection=False, projection_clip=0.01)
    assert_right(layer, "fp32")


@pytest.mark.parametrize("kind", FLOATS)
def test_steps_are_near_exact_ones(device: str, kind: str) -> None:
    layer = random_layer(
        device, sizes=((9, 7, 20, 31), (3, 2, 7)), dtype=FLOATS[kind], P=64, C=256, cell_clip=3, projection_clip=3
    )
    found = layer.computed("int8", int8=True).tensors.hidden
    assert 1e-3 < error(found, layer.expected()[0], layer) < tolerance("int8", "cuda")


def test_a_row_depends_on_its_parent_alone(device: str) -> None:
    """Though another has a far larger input."""
    layer = random_layer(device, sizes=((1, 9), (1, 9)))
    hidden = layer.computed("int8", int8=True).tensors.hidden
    layer.x[:, 2:5] = 99.0
    again = layer.computed("int8", int8=True).tensors.hidden
    assert torch.equal(again[:, 5:11], hidden[:, 5:11])
    assert not torch.equal(again[:, 2:5], hidden[:, 2:5])


@pytest.mark.parametrize("kind", FLOATS)
def test_rows_are_rounded_by_their_largest_value(device: str, kind: str) -> None:
    layer = random_layer(device, sizes=((2, 9), (1, 3)), dtype=FLOATS[kind], P=33, n_roots=2)
    layer.x[:, 3] *= 50
    layer.x[:, 4] = 0
    layer.x[:, 5:7] *= 0.01
    run = layer.computed("int8", int8=True)
    tensors = run.tensors
    both = torch.stack([layer.x, tensors.parent_hidden]).float()
    found = torch.stack([tensors.x_int8, tensors.hidden_int8]) * tensors.row_scale[..., None]
    scale = both.abs().amax((0, 3)).clamp(min=1e-30) / 127
    for d, starts in enumerate(layer.nodes.depths):
        real = slice(starts[1], starts[-1])
        assert torch.allclose(tensors.row_scale[d, real], scale[d, real])
        assert ((found - both).abs()[:, d, real] <= 0.501 * scale[d, real][:, None]).all()
        assert tensors.row_scale[d, starts[-1] :].isnan().all()  # where there is no node
    assert tensors.x_int8[0, 3].abs().max() == 127 > tensors.hidden_int8[0, 3].abs().max()
    assert tensors.hidden_int8[0, 5].abs().max() == 127 > tensors.x_int8[0, 5].abs().max()


def test_a_row_of_zeros_is_zero(device: str) -> None:
    layer = random_layer(device, sizes=((3,), (2,)))
    layer.x.zero_()
    assert_right(layer, "fp32")
    tensors = layer.computed("int8", int8=True).tensors  # from roots that are zero too
    assert not tensors.x_int8[0, 1:4].any() and not tensors.hidden_int8[0, 1:4].any()


def test_a_nan_reaches_its_row_and_its_children(device: str) -> None:
    """No integer stands for it, but a row's scale does."""
    layer = random_layer(device, sizes=((1, 3, 2), (1, 2)), P=16, C=32)
    layer.x[0, 2, 5] = torch.nan
    found = real_nodes(layer.computed("int8", int8=True).tensors.hidden, layer.nodes).isnan()
    assert torch.equal(found, real_nodes(expected(layer), layer.nodes).isnan())
    assert found.all(1).nonzero().flatten().tolist() == [1, 4]  # a node and its child


@pytest.mark.parametrize("C", [5, 32, 40])
def test_weights_are_within_half_a_step(C: int) -> None:
    layer = random_layer("cpu", P=3, C=C)
    weights = layer.pack(int8=True)
    layout = weights.layout(int8_layout)
    both = torch.cat([layer.canonical.input, layer.canonical.recurrent], 2)
    found = dequantized(layout, weights.shape)
    assert ((found - both).abs() <= 0.5001 * layout.scale[:, :, None]).all()
    gates, cells = gate_columns(-(-C // 32) * 32, torch.device("cpu"))
    assert not layout.gates.view(2, -1, 6)[:, cells >= C].any()
    for n in (0, 1, 9, 17):  # a row of the layout is a column of the weights
        if cells[n] < C:
            row = layout.gates.view(2, -1, 6)[:, n] * layout.scale[:, gates[n], cells[n]][:, None]
            assert torch.equal(row, found[:, gates[n], :, cells[n]])


@pytest.mark.parametrize("name", ["gates", "scale", "bias", "projection"])
def test_weights_of_another_type_are_named(name: str) -> None:
    weights = random_layer("cpu").pack(int8=True)
    packed: Int8Layout = weights.layout(int8_layout)
    other = packed._replace(**{name: getattr(packed, name).double()})
    with pytest.raises(ValueError, match=f"^{name}: expected torch.*, found torch.float64"):
        replace(weights, layouts={int8_layout: other})


@pytest.mark.parametrize("name", ["parent_hidden", "x_int8", "hidden_int8", "row_scale"])
def test_tensors_of_another_type_are_named(device: str, name: str) -> None:
    run = random_layer(device).poisoned(int8=True)
    tensors = run.tensors._replace(**{name: getattr(run.tensors, name).double()})
    with pytest.raises(ValueError, match=f"^{name}: expected torch.*, found torch.float64"):
        replace(run, tensors=tensors)


def test_the_first_use_compares_with_the_same_rounding(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far closer than exact steps are, so that its bound is one for errors alone."""
    monkeypatch.setattr(proven, "ROWS", (1, 3, 20))
    layer = random_layer(device, dtype=torch.bfloat16, P=32, C=64)
    weights = pack_lstm(layer.canonical, dtype=torch.bfloat16, int8=True, device=device, bound=1.0)
    run = replace(layer.poisoned(int8=True), weights=weights)
    variant = next(each for each in TABLE if each.name == "int8")
    assert 0 < proven.difference(variant, run) < CLOSE["bf16"]
