"""The LSTM's variants against the float64 reference, over random forests whose outputs were poisoned before."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gluon_interpreter import run_all
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_lstm import (
    FLOATS,
    HALVES,
    HOPPER,
    KINDS,
    PORTABLE,
    VARIANTS,
    RandomLayer,
    directions,
    launches_of,
    random_layer,
    real_nodes,
)

from flashelmo.engine.precision import PRECISIONS
from flashelmo.kernels import tuning
from flashelmo.kernels.lstm.hopper import gate_columns, gate_rows
from flashelmo.kernels.lstm.layer import VARIANTS as TABLE
from flashelmo.kernels.lstm.layer import lstm_layer
from flashelmo.kernels.lstm.run import LaunchOptions, LayerRun
from flashelmo.kernels.lstm.weights import CanonicalLstm, Interleaved, interleave
from flashelmo.kernels.tuning import SPLIT_ARRIVALS


def assert_close(
    layer: RandomLayer, run: LayerRun, kind: str, roots: tuple[torch.Tensor, torch.Tensor] | None = None
) -> None:
    """Hidden states of all nodes, and the last depth's cells."""
    tensors, (hidden, cell) = run.tensors, layer.expected(roots)
    ours, expected = real_nodes(tensors.hidden, layer.nodes), real_nodes(hidden, layer.nodes)
    assert ours.isfinite().all()
    last = layer.nodes.n_depths
    allowed = PRECISIONS[kind].on("cuda").bound
    if allowed.max_abs is not None:
        assert (ours - expected).abs().max() < allowed.max_abs
    else:
        assert (ours - expected).norm() / expected.norm() < allowed.tightest
    for d, starts in enumerate(layer.nodes.depths):
        first, stop = starts[last], starts[last + 1]
        ours, expected = tensors.cell[last % 2, d, : stop - first].double().cpu(), cell[d, first:stop]
        bound = allowed.max_abs or 3 * allowed.tightest  # of one value, not of a norm
        assert ((ours - expected).abs() <= bound).all()


def test_every_variant_is_tested() -> None:
    assert sorted(VARIANTS) == sorted(variant.name for variant in TABLE)


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind in KINDS if kind in FLOATS])
def test_steps_match_the_reference(device: str, name: str, kind: str) -> None:
    layer = random_layer(device, dtype=FLOATS[kind])
    assert_close(layer.rounded(), layer.computed(name), kind)


@pytest.mark.parametrize("name", [name for name, kind in KINDS if kind == "tf32"])
def test_tf32_is_near(device: str, name: str) -> None:
    layer = random_layer(device)
    assert_close(layer, layer.computed(name, precision="tf32"), "tf32")


@pytest.mark.parametrize("name", PORTABLE)
@pytest.mark.parametrize(
    "sizes",
    [((1,), (1,)), ((17,), (1, 1, 1)), ((63, 2), (5,)), ((1, 2, 65), (130,))],
    ids=["one node", "17 rows", "63 rows", "65 and 130 rows"],
)
def test_ragged_rows(device: str, sizes: tuple[tuple[int, ...], ...], name: str) -> None:
    layer = random_layer(device, sizes=sizes)
    assert_close(layer, layer.computed(name), "fp32")


@pytest.mark.parametrize("name", PORTABLE)
@pytest.mark.parametrize(("P", "C"), [(1, 1), (4, 6), (16, 64), (33, 40), (128, 136)])
def test_sizes_that_fit_no_block(device: str, P: int, C: int, name: str) -> None:
    layer = random_layer(device, sizes=((1, 2), (3,)), P=P, C=C)
    assert_close(layer, layer.computed(name), "fp32")


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=2).map(tuple),
    P=st.integers(1, 40),
    C=st.integers(1, 70),
    name=st.sampled_from(PORTABLE),
    n_roots=st.integers(1, 5),
)
def test_any_sizes(sizes: tuple[tuple[int, ...], ...], P: int, C: int, name: str, n_roots: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = random_layer(device, sizes=sizes, P=P, C=C, n_roots=n_roots, seed=P + C)
    assert_close(layer, layer.computed(name), "fp32")


@pytest.mark.parametrize("name", PORTABLE)
@pytest.mark.parametrize("clips", [(None, None), (0.1, None), (None, 0.05)], ids=["none", "cell", "projection"])
def test_clips(device: str, clips: tuple[float | None, float | None], name: str) -> None:
    layer = random_layer(device, sizes=((1, 3), (2,)), cell_clip=clips[0], projection_clip=clips[1])
    run = layer.computed(name)
    assert_close(layer, run, "fp32")
    if clips[1] is not None:
        assert real_nodes(run.tensors.hidden, layer.nodes).abs().max() == torch.tensor(clips[1])


@pytest.mark.parametrize("name", PORTABLE)
def test_without_projection_nothing_is_projected_or_clipped(device: str, name: str) -> None:
    layer = random_layer(device, sizes=((1, 3), (2,)), P=12, C=12, projection=False, projection_clip=0.01)
    assert_close(layer, layer.computed(name), "fp32")


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind in KINDS if kind in FLOATS])
def test_the_skip_goes_to_the_output_alone(device: str, kind: str, name: str) -> None:
    layer = random_layer(device, dtype=FLOATS[kind], sizes=((1, 3), (2, 9)))
    with_skip, without = layer.computed(name, skip=True).tensors, layer.computed(name).tensors
    hidden = real_nodes(with_skip.hidden, layer.nodes)
    assert torch.equal(hidden, real_nodes(without.hidden, layer.nodes))
    total = (hidden + real_nodes(layer.x, layer.nodes)).to(layer.dtype).double()
    assert torch.equal(real_nodes(with_skip.outputs, layer.nodes), total)


@pytest.mark.parametrize("name", PORTABLE)
def test_a_row_depends_on_its_parent_alone(device: str, name: str) -> None:
    layer = random_layer(device, sizes=((1, 9), (1, 9)))
    hidden = layer.computed(name).tensors.hidden
    layer.x[:, 2:5] = 9.0  # other nodes of the second depth than those that are looked at
    again = layer.computed(name).tensors.hidden
    assert torch.equal(again[:, 5:11], hidden[:, 5:11])
    assert not torch.equal(again[:, 2:5], hidden[:, 2:5])


@pytest.mark.parametrize("name", PORTABLE)
def test_split_sums_leave_their_counters_even_and_repeat(device: str, name: str) -> None:
    layer = random_layer(device, sizes=((5, 3), (2, 7)), C=64)
    results = []
    for _ in range(2):
        run = layer.computed(name)
        tiles = [value for launch in launches_of(run, name) for value in launch.arguments.values()]
        assert any(getattr(tile, "splits", 1) > 1 for tile in tiles)
        assert run.tensors.counters.any() and not (run.tensors.counters % SPLIT_ARRIVALS).any()
        results.append(real_nodes(run.tensors.hidden, layer.nodes))
    assert torch.equal(*results)


FORESTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "one node": ((1,), (1,)),
    "few rows": ((3, 1, 9, 16), (1, 2)),
    "32 rows": ((17, 32, 3), (1, 8, 31, 2)),
    "64 rows": ((17, 40, 64, 2), (33, 20, 1, 1)),
    "130 rows": ((1, 130, 2), (65, 7, 129)),
    "300 rows": ((300, 290), (5,)),
}


def on_hopper() -> Iterator[tuple[str, str, str, bool, bool]]:
    """Variants, forests of as many rows as they may be given, types, with skip or not, batch-invariant or not."""
    if not torch.cuda.is_available():  # NumPy multiplies fp16 slowly
        yield from (("tma", forest, "bf16", skip, False) for forest in FORESTS for skip in (False, True))
        yield "tma", "64 rows", "bf16", True, True
        yield "tma", "one node", "fp16", True, False
        yield from (("persistent", "few rows", kind, skip, False) for kind in HALVES for skip in (False, True))
        yield "persistent", "one node", "bf16", False, False
        yield "persistent", "32 rows", "bf16", True, False
        yield from (("few_rows", forest, "bf16", True, False) for forest in ("few rows", "64 rows"))
        yield from (("warp_specialized", "130 rows", "bf16", skip, skip) for skip in (False, True))
        return
    for name, forest, kind, skip in product(HOPPER, FORESTS, VARIANTS["tma"].kinds, (False, True)):
        most = VARIANTS[name].most_rows
        if most is None or max(map(max, FORESTS[forest])) <= most:
            yield name, forest, kind, skip, False
        if most is None and kind == "bf16" and skip:
            yield name, forest, kind, skip, True


def test_rows_that_a_variant_may_be_given_are_those_that_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    run = random_layer("cpu", sizes=((1,), (1,)), P=128, C=512, dtype=torch.float16).poisoned()
    invariant = replace(run, options=LaunchOptions(batch_invariant=True))
    monkeypatch.setattr(tuning, "capability", lambda device: (9, 0))
    monkeypatch.setattr(tuning, "n_multiprocessors", lambda device: 132)
    object.__setattr__(run.weights, "device", SimpleNamespace(type="cuda"))
    for variant in (variant for variant in TABLE if variant.name in HOPPER):
        most = VARIANTS[variant.name].most_rows
        assert any(variant.serves(each, most or 1) for each in (run, invariant))
        assert any(variant.serves(each, (most or 300) + 1) for each in (run, invariant)) == (most is None)


@pytest.mark.parametrize(("name", "forest", "kind", "skip", "invariant"), list(on_hopper()))
def test_variants_for_hopper_match_the_reference(
    device: str, name: str, forest: str, kind: str, skip: bool, invariant: bool
) -> None:
    if device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("for sm_90")
    sizes, options = FORESTS[forest], LaunchOptions(batch_invariant=invariant)
    for P, C in VARIANTS[name].sizes if device == "cuda" else VARIANTS[name].sizes[:1]:
        layer = random_layer(device, dtype=FLOATS[kind], sizes=sizes, P=P, C=C, n_roots=3)
        roots = 0.3 * torch.randn(2, 3, P, device=device), 0.3 * torch.randn(2, 3, C, device=device)
        roots = roots[0].to(layer.dtype), roots[1]
        results = []
        for _ in range(2 if device == "cuda" else 1):
            run = layer.poisoned(skip=skip, roots=roots, options=options)
            run_all(launches_of(run, name))
            results.append(real_nodes(run.tensors.hidden, layer.nodes))
        assert_close(layer.rounded(), run, kind, roots)
        assert torch.equal(results[0], results[-1])
        if skip:
            total = (results[0] + real_nodes(layer.x, layer.nodes)).to(layer.dtype).double()
            assert torch.equal(real_nodes(run.tensors.outputs, layer.nodes), total)


def test_columns_for_hopper_are_a_permutation() -> None:
    for order in (gate_columns, gate_rows):
        gates, cells = order(512, torch.device("cpu"))
        assert sorted((4 * cells + gates).tolist()) == list(range(4 * 512))


@pytest.mark.parametrize("name", PORTABLE)
def test_a_variant_runs_some_depths_and_leaves_the_rest(device: str, name: str) -> None:
    layer = random_layer(device, sizes=((1, 3, 2, 2), (1, 2, 2, 2)))
    run = layer.poisoned()
    for depths in (range(1, 2), range(2, 4)):
        for launch in launches_of(run, name, depths):
            launch.run()
    whole = layer.computed(name).tensors.hidden
    for d, starts in enumerate(layer.nodes.depths):
        assert torch.equal(run.tensors.hidden[d, : starts[4]], whole[d, : starts[4]])
        assert run.tensors.hidden[d, starts[4] : starts[5]].isnan().all()


# ------------------------------------------------------------------------------------------------------------- weights


def test_packing_puts_the_gates_of_a_cell_side_by_side() -> None:
    layer = random_layer("cpu", P=3, C=5)
    canonical, weights = layer.canonical, layer.pack().layout(interleave)
    for gate in range(4):
        assert torch.equal(weights.input[:, :, gate::4], canonical.input[:, gate])
        assert torch.equal(weights.recurrent[:, :, gate::4], canonical.recurrent[:, gate])
        assert torch.equal(weights.bias[:, gate::4], canonical.bias[:, gate])
    assert weights.recurrent.data_ptr() - weights.input.data_ptr() == 4 * 3 * 4 * 5  # one matrix [x, r] by [2P, 4C]
    assert canonical.projection is not None and torch.equal(weights.projection, canonical.projection)
    assert (weights.cell_clip, weights.projection_clip) == (0.5, 0.4)
    unclipped = random_layer("cpu", cell_clip=None, projection_clip=None).pack().layout(interleave)
    assert (unclipped.cell_clip, unclipped.projection_clip) == (float("inf"), float("inf"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": lambda c: c.bias[:, 0]}, r"bias: expected shape \[2, 4, 24\], found \[2, 24\]"),
        ({"input": lambda c: c.input.double()}, "input: expected torch.float32 or .*, found torch.float64"),
        ({"recurrent": lambda c: c.recurrent[:1]}, r"recurrent: expected shape \[2, 4, 12, 24\], found \[1, 4, 12"),
        ({"projection": lambda c: c.projection.mT}, r"projection: expected shape \[2, 24, 12\], found \[2, 12, 24\]"),
        (
            {"projection": lambda c: None},
            "projection: expected a tensor where P = 12 and C = 24 differ, found None",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(change: dict[str, Callable[[CanonicalLstm], Any]], message: str) -> None:
    canonical = random_layer("cpu").canonical
    changed: dict[str, Any] = {name: of(canonical) for name, of in change.items()}
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(canonical, **changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w._replace(input=w.input.contiguous()), "input: expected one of 2 directions as `interleave` lays"),
        (lambda w: w._replace(recurrent=w.recurrent.clone()), "recurrent: expected one of 2 directions"),
        (lambda w: w._replace(input=torch.stack([w.input] * 2, 1)[:, 0]), "recurrent: expected to lie behind input"),
        (lambda w: w._replace(bias=w.bias[:, :10]), r"bias: expected shape \[2, 96\], found \[2, 10\]"),
        (
            lambda w: w._replace(projection=w.projection.half()),
            "projection: expected torch.float32, found torch.float16",
        ),
        (lambda w: w._replace(projection=w.projection.mT.contiguous().mT), "projection: expected a contiguous tensor"),
        (lambda w: w._replace(projection=None), "projection: expected a tensor, found NoneType"),
    ],
)
def test_weights_that_were_laid_out_otherwise_are_refused(
    change: Callable[[Interleaved], Interleaved], message: str
) -> None:
    weights = random_layer("cpu").pack()
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(weights, layouts={interleave: change(weights.layout(interleave))})


# -------------------------------------------------------------------------------------------------------------- checks


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("hidden", lambda t: t.float().double(), "hidden: expected torch.float32, found torch.float64"),
        ("hidden", lambda t: t[:, :, :4].contiguous(), r"hidden: expected shape \[2, 24, 12\], found \[2, 24, 4\]"),
        ("hidden", lambda t: t.movedim(1, 2).contiguous().movedim(1, 2), "hidden: expected a contiguous tensor"),
        ("x", lambda t: t[0], r"x: expected shape \[2, 24, 12\], found \[24, 12\]"),
        ("x", lambda t: t.to("meta"), "x: expected a tensor on (cpu|cuda:0) as weights, found meta"),
        (
            "cell",
            lambda t: t[:, :, :3].contiguous(),
            "cell: expected at least 20 rows, those of the largest depth, found 3",
        ),
        (
            "cell",
            lambda t: torch.empty(2, 2, 89478486, 24, device="meta"),
            "cell: expected at most 89478485 rows of 24 cells, found 89478486",
        ),
        ("cell", lambda t: t.to(torch.float16), "cell: expected torch.float32, found torch.float16"),
        ("unprojected", lambda t: t[:1], r"unprojected: expected shape \[2, 20, 24\], found \[1, 20, 24\]"),
        ("outputs", lambda _: torch.zeros(3), r"outputs: expected shape \[2, 24, 12\], found \[3\]"),
        ("partial_sums", lambda t: t.half(), "partial_sums: expected torch.float32, found torch.float16"),
        ("counters", lambda t: t.long(), "counters: expected torch.int32, found torch.int64"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    device: str, name: str, change: Callable[[torch.Tensor], torch.Tensor], message: str
) -> None:
    run = random_layer(device).poisoned()
    tensors = run.tensors._replace(**{name: change(getattr(run.tensors, name))})
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(run, tensors=tensors)


@pytest.mark.parametrize("variant", PORTABLE)
@pytest.mark.parametrize("name", ["partial_sums", "counters"])
def test_too_little_room_for_split_sums_is_named(device: str, variant: str, name: str) -> None:
    layer = random_layer(device, sizes=((20,), (20,)), C=64)
    run = layer.poisoned()
    run = replace(run, tensors=run.tensors._replace(**{name: getattr(run.tensors, name)[:1]}))
    with pytest.raises(ValueError, match=f"^{name}: expected at least .* values, found 1$"):
        launches_of(run, variant)


@pytest.mark.parametrize("name", PORTABLE)
@pytest.mark.parametrize("depths", [range(1, 6), range(2), range(5, 7), range(3, 2), range(1, 4, 2)], ids=str)
def test_depths_that_do_not_exist_are_refused(device: str, name: str, depths: range) -> None:
    layer = random_layer(device)
    with pytest.raises(ValueError, match=r"^depths: expected some from 1 to 4, found "):
        launches_of(layer.poisoned(), name, depths)


def test_directions_must_agree(device: str) -> None:
    run = random_layer(device).poisoned()
    with pytest.raises(ValueError, match=r"^nodes: expected 2 directions, as the weights have, found 1"):
        replace(run, nodes=directions(run.nodes, 1))


def test_nodes_of_another_device_are_named(device: str) -> None:
    run = random_layer(device).poisoned()
    with pytest.raises(ValueError, match=r"^nodes: expected a tensor on (cpu|cuda:0) as weights, found meta"):
        replace(run, nodes=replace(run.nodes, starts=run.nodes.starts.to("meta")))


def test_tensors_of_another_device_are_named(device: str) -> None:
    run = random_layer(device).poisoned()
    run = replace(run, tensors=run.tensors._replace(unprojected=torch.empty(2, 20, 24, device="meta")))
    with pytest.raises(ValueError, match=r"^tensors.unprojected: expected a tensor on a (cpu|cuda) device, found meta"):
        launches_of(run, "fused")[1].run()


@pytest.mark.parametrize("name", PORTABLE)
def test_a_precision_that_there_is_not_is_refused(device: str, name: str) -> None:
    layer = random_layer(device)
    options = LaunchOptions("fast")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^precision: expected ieee or tf32, found 'fast'"):
        launches_of(layer.poisoned(options=options), name)


def test_an_empty_schedule_has_no_depths(device: str) -> None:
    layer = random_layer(device, sizes=((), ()))
    assert (layer.nodes.n_depths, layer.nodes.n_nodes, layer.nodes.max_rows) == (0, 1, 1)
    outputs, _ = lstm_layer(layer.pack(), layer.nodes, layer.x)
    assert outputs.shape == (2, 1, 12)


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a card with sm_90"
)
@pytest.mark.parametrize("name", ["few_rows", "warp_specialized", "tma"])
def test_splits_that_wait_in_vain_make_no_number_on_a_card(name: str) -> None:
    """Without any look a program knows only of those that were there before; the next launch is right."""
    layer = random_layer("cuda", sizes=((40,), (33,)), P=128, C=512, dtype=torch.float16).rounded()
    run = layer.poisoned()
    for polls in (0, LaunchOptions().polls):
        run.tensors.poison()
        run_all(launches_of(replace(run, options=LaunchOptions(polls=polls)), name))
        found = real_nodes(run.tensors.hidden, layer.nodes)
        assert found.isnan().any() if polls == 0 else found.isfinite().all()
