"""The LSTM's step: kernels against the float64 reference, over random forests whose outputs were poisoned before."""

import pytest
import torch

pytest.importorskip("triton")

from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_lstm import RandomLayer, random_layer, real_nodes
from tolerances import RELATIVE_TOLERANCES, TOLERANCES
from triton import language as tl

from flashelmo.kernels import lstm_persistent
from flashelmo.kernels.launch import Precision
from flashelmo.kernels.lstm_launches import step_launches
from flashelmo.kernels.lstm_persistent import Barrier, persistent_launch
from flashelmo.kernels.lstm_tensors import LstmTensors
from flashelmo.kernels.lstm_weights import LstmWeights, pack_lstm, quantize
from flashelmo.kernels.nodes import Nodes

TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def run_steps(
    weights: LstmWeights, tensors: LstmTensors, nodes: Nodes, precision: Precision = "ieee", by_word: bool = False
) -> None:
    for depth in range(1, nodes.n_depths + 1):
        for launch in step_launches(weights, tensors, nodes, depth, slab_depth=1, precision=precision, by_word=by_word):
            launch.run()


def run_persistent(weights: LstmWeights, tensors: LstmTensors, nodes: Nodes, precision: Precision = "ieee") -> None:
    barrier = Barrier.on(tensors.hidden.device)
    launch = persistent_launch(weights, tensors, nodes, 1, nodes.n_depths, barrier, slab_depth=1, precision=precision)
    launch.run()
    assert int(barrier.arrivals) == 2 * nodes.n_depths * launch.grid[0]
    barrier.check()


RUNNERS = {"steps": run_steps, "persistent": run_persistent}


def assert_close(layer: RandomLayer, tensors: LstmTensors, kind: str) -> None:
    """Hidden states of all nodes, and the last depth's cells."""
    hidden, cell = layer.expected()
    ours, expected = real_nodes(tensors.hidden, layer.nodes), real_nodes(hidden, layer.nodes)
    assert ours.isfinite().all()
    last = layer.nodes.n_depths
    if kind in TOLERANCES:
        assert (ours - expected).abs().max() < TOLERANCES[kind]
    else:
        assert (ours - expected).norm() / expected.norm() < RELATIVE_TOLERANCES[kind]
    for d, starts in enumerate(layer.nodes.depths):
        first, stop = starts[last], starts[last + 1]
        ours, expected = tensors.cell[last % 2, d, : stop - first].double().cpu(), cell[d, first:stop]
        bound = TOLERANCES.get(kind) or 3 * RELATIVE_TOLERANCES[kind]  # of one value, not of a norm
        assert ((ours - expected).abs() <= bound).all()


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("hoisted", [False, True], ids=["fused", "hoisted"])
@pytest.mark.parametrize("kind", TYPES)
def test_steps_match_the_reference(device: str, kind: str, hoisted: bool, runner: str) -> None:
    layer = random_layer(device, dtype=TYPES[kind])
    tensors = layer.poisoned(hoisted=hoisted)
    RUNNERS[runner](layer.pack(), tensors, layer.nodes)
    assert_close(layer.rounded(), tensors, kind)


@pytest.mark.parametrize("runner", RUNNERS)
def test_tf32_is_near(device: str, runner: str) -> None:
    layer = random_layer(device)
    tensors = layer.poisoned(hoisted=True, precision="tf32")
    RUNNERS[runner](layer.pack(), tensors, layer.nodes, precision="tf32")
    assert_close(layer, tensors, "tf32")


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("kind", TYPES)
def test_8_bit_weights_are_near(device: str, kind: str, runner: str) -> None:
    layer = random_layer(device, dtype=TYPES[kind], sizes=((1, 3, 5, 9), (1, 2, 7)), P=16, C=32)
    tensors = layer.poisoned(hoisted=True)
    weights = layer.pack(int8=True)
    assert weights.recurrent.dtype == weights.projection.dtype == torch.int8
    RUNNERS[runner](weights, tensors, layer.nodes)
    assert_close(layer, tensors, "int8")


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    "sizes",
    [((1,), (1,)), ((17,), (1, 1, 1)), ((63, 2), (5,)), ((1, 2, 65), (130,))],
    ids=["one node", "17 rows", "63 rows", "65 and 130 rows"],
)
def test_ragged_rows(device: str, sizes: tuple[tuple[int, ...], ...], runner: str) -> None:
    layer = random_layer(device, sizes=sizes)
    tensors = layer.poisoned()
    RUNNERS[runner](layer.pack(), tensors, layer.nodes)
    assert_close(layer, tensors, "fp32")


@pytest.mark.parametrize(("P", "C"), [(1, 1), (4, 6), (16, 64), (33, 40), (128, 136)])
def test_sizes_that_fit_no_block(device: str, P: int, C: int) -> None:
    layer = random_layer(device, sizes=((1, 2), (3,)), P=P, C=C)
    for hoisted, runner in ((False, run_steps), (True, run_persistent)):
        tensors = layer.poisoned(hoisted=hoisted)
        runner(layer.pack(), tensors, layer.nodes)
        assert_close(layer, tensors, "fp32")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple), min_size=1, max_size=2).map(tuple),
    P=st.integers(1, 40),
    C=st.integers(1, 70),
    hoisted=st.booleans(),
    runner=st.sampled_from(sorted(RUNNERS)),
    n_roots=st.integers(1, 5),
)
def test_any_sizes(
    sizes: tuple[tuple[int, ...], ...], P: int, C: int, hoisted: bool, runner: str, n_roots: int
) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    layer = random_layer(device, sizes=sizes, P=P, C=C, n_roots=n_roots, seed=P + C)
    tensors = layer.poisoned(hoisted=hoisted)
    RUNNERS[runner](layer.pack(), tensors, layer.nodes)
    assert_close(layer, tensors, "fp32")


@pytest.mark.parametrize("clips", [(None, None), (0.1, None), (None, 0.05)], ids=["none", "cell", "projection"])
def test_clips(device: str, clips: tuple[float | None, float | None]) -> None:
    layer = random_layer(device, cell_clip=clips[0], projection_clip=clips[1])
    tensors = layer.poisoned()
    run_steps(layer.pack(), tensors, layer.nodes)
    assert_close(layer, tensors, "fp32")
    if clips[1] is not None:
        assert real_nodes(tensors.hidden, layer.nodes).abs().max() == torch.tensor(clips[1])


def test_without_projection_nothing_is_projected_or_clipped(device: str) -> None:
    layer = random_layer(device, P=12, C=12, projection=False, projection_clip=0.01)
    tensors = layer.poisoned()
    run_steps(layer.pack(), tensors, layer.nodes)
    assert_close(layer, tensors, "fp32")


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("kind", TYPES)
def test_the_skip_goes_to_the_output_alone(device: str, kind: str, runner: str) -> None:
    layer = random_layer(device, dtype=TYPES[kind])
    with_skip, without = layer.poisoned(skip=True), layer.poisoned()
    RUNNERS[runner](layer.pack(), with_skip, layer.nodes)
    RUNNERS[runner](layer.pack(), without, layer.nodes)
    hidden = real_nodes(with_skip.hidden, layer.nodes)
    assert torch.equal(hidden, real_nodes(without.hidden, layer.nodes))
    total = (hidden + real_nodes(layer.x, layer.nodes)).to(layer.dtype).double()
    assert torch.equal(real_nodes(with_skip.outputs, layer.nodes), total)


def test_inputs_by_word(device: str) -> None:
    layer = random_layer(device)
    tensors = layer.poisoned()
    run_steps(layer.pack(), tensors, layer.nodes)
    words = torch.randperm(layer.nodes.n_nodes, generator=torch.Generator().manual_seed(1)).to(device, torch.int32)
    nodes = Nodes(layer.nodes.starts, layer.nodes.parents, words.expand(2, -1).contiguous(), layer.nodes.depths)
    one_direction = layer.x[0]
    by_word = torch.empty_like(one_direction)
    by_word[words.long()] = one_direction
    other = layer.poisoned()._replace(x=by_word)
    run_steps(layer.pack(), other, nodes, by_word=True)
    first, stop = layer.nodes.depths[0][1], layer.nodes.depths[0][-1]
    assert torch.equal(other.hidden[0, first:stop], tensors.hidden[0, first:stop])


def test_a_row_depends_on_its_parent_alone(device: str) -> None:
    layer = random_layer(device, sizes=((1, 20), (1, 20)))
    tensors = layer.poisoned()
    run_steps(layer.pack(), tensors, layer.nodes)
    tensors.x[:, 2:5] = 9.0  # other nodes of the first depth than the one that is looked at
    again = layer.poisoned()
    run_steps(layer.pack(), again, layer.nodes)
    assert torch.equal(again.hidden[:, 5:22], tensors.hidden[:, 5:22])
    assert not torch.equal(again.hidden[:, 2:5], tensors.hidden[:, 2:5])


def test_shared_sums_leave_their_counts_at_zero_and_repeat(device: str) -> None:
    layer = random_layer(device, sizes=((40, 40), (40, 40)), C=64)
    results = []
    for _ in range(3):
        tensors = layer.poisoned()
        run_steps(layer.pack(), tensors, layer.nodes)
        assert not tensors.arrivals.any()
        results.append(real_nodes(tensors.hidden, layer.nodes))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_packing_puts_the_gates_of_a_cell_side_by_side() -> None:
    D, P, C = 2, 3, 5
    values = torch.arange(D * 4 * P * C, dtype=torch.float32).reshape(D, 4, P, C)
    weights = pack_lstm(
        values,
        -values,
        values[:, :, 0].contiguous(),
        torch.ones(D, C, P),
        cell_clip=3.0,
        projection_clip=None,
        device="cpu",
    )
    for gate in range(4):
        assert torch.equal(weights.input[:, :, gate::4], values[:, gate])
        assert torch.equal(weights.recurrent[:, :, gate::4], -values[:, gate])
        assert torch.equal(weights.bias[:, gate::4], values[:, gate, 0])
    assert weights.recurrent.data_ptr() - weights.input.data_ptr() == 4 * P * 4 * C  # one matrix [x, r] by [2P, 4C]
    assert (weights.cell_clip, weights.projection_clip) == (3.0, float("inf"))


def test_quantized_weights_are_within_half_a_step() -> None:
    weight = torch.randn(2, 30, 7, generator=torch.Generator().manual_seed(0))
    weight[0, :, 3] = 0
    integers, scale = quantize(weight)
    assert integers.abs().max() == 127
    assert ((integers * scale[:, None] - weight).abs() <= 0.5001 * scale[:, None]).all()


def changed(tensors: LstmTensors, **values: torch.Tensor | None) -> LstmTensors:
    return tensors._replace(**values)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("hidden", lambda t: t.float().double(), "hidden: expected torch.float32, found torch.float64"),
        ("hidden", lambda t: t[:, :, :4].contiguous(), r"hidden: expected shape \[2, 24, 12\], found \[2, 24, 4\]"),
        ("hidden", lambda t: t.movedim(1, 2).contiguous().movedim(1, 2), "hidden: expected a contiguous tensor"),
        ("x", lambda t: t[0], r"x: expected shape \[2, 24, 12\], found \[24, 12\]"),
        (
            "cell",
            lambda t: t[:, :, :3].contiguous(),
            "cell: expected at least 20 rows, those of the largest depth, found 3",
        ),
        ("cell", lambda t: t.to(torch.float16), "cell: expected torch.float32, found torch.float16"),
        ("exposed", lambda t: t[:1], r"exposed: expected shape \[2, 20, 24\], found \[1, 20, 24\]"),
        ("outputs", lambda _: torch.zeros(3), r"outputs: expected shape \[2, 24, 12\], found \[3\]"),
        ("x_gates", lambda _: torch.zeros(2, 9, 12), r"x_gates: expected shape \[2, any, 96\], found \[2, 9, 12\]"),
        ("x_gates", lambda _: torch.zeros(2, 9, 96), "x_gates: expected at least 23 rows, those of the slab, found 9"),
        ("partial", lambda t: t[:3], "partial: expected at least .* values, found 3"),
        ("arrivals", lambda t: t.long(), "arrivals: expected torch.int32, found torch.int64"),
    ],
)
@pytest.mark.parametrize("runner", RUNNERS)
def test_tensors_that_do_not_fit_are_named(device: str, runner: str, name: str, change: object, message: str) -> None:
    layer = random_layer("cpu")
    tensors = layer.poisoned()
    tensors = tensors._replace(**{name: change(getattr(tensors, name))})  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"^{message}"):
        RUNNERS[runner](layer.pack(), tensors, layer.nodes)


def test_depths_that_do_not_exist_are_refused() -> None:
    layer = random_layer("cpu")
    tensors = layer.poisoned()
    with pytest.raises(ValueError, match=r"^depth: expected 1 to 4, found 5"):
        step_launches(layer.pack(), tensors, layer.nodes, 5)
    with pytest.raises(ValueError, match=r"^first_depth, n_depths: expected depths from 1 to 4, found 2 to 5"):
        persistent_launch(layer.pack(), tensors, layer.nodes, 2, 4, Barrier.on("cpu"))


def test_8_bit_weights_need_the_inputs_part() -> None:
    layer = random_layer("cpu")
    with pytest.raises(ValueError, match=r"^x_gates: expected the input's part computed beforehand"):
        step_launches(layer.pack(int8=True), layer.poisoned(), layer.nodes, 1)


def test_words_have_no_skip_connection() -> None:
    layer = random_layer("cpu")
    tensors = layer.poisoned(skip=True)._replace(x=layer.x[0])
    with pytest.raises(ValueError, match=r"^outputs: expected none"):
        step_launches(layer.pack(), tensors, layer.nodes, 1, by_word=True)


def test_directions_must_agree() -> None:
    layer, one = random_layer("cpu"), random_layer("cpu", sizes=((1, 3, 5, 2, 12),))
    with pytest.raises(ValueError, match=r"^nodes: expected 2 directions, as the weights have, found 1"):
        step_launches(layer.pack(), layer.poisoned(), one.nodes, 1)


def test_a_projection_is_needed_where_sizes_differ() -> None:
    layer = random_layer("cpu")
    with pytest.raises(ValueError, match=r"^projection: expected a tensor where P = 12 and C = 24 differ, found None"):
        pack_lstm(layer.input_weight, layer.recurrent_weight, layer.bias, None, cell_clip=None, projection_clip=None)


def test_weights_that_do_not_fit_are_named() -> None:
    layer = random_layer("cpu")
    with pytest.raises(ValueError, match=r"^bias: expected shape \[2, 4, 24\], found \[2, 24\]"):
        pack_lstm(
            layer.input_weight, layer.recurrent_weight, layer.bias[:, 0], None, cell_clip=None, projection_clip=None
        )


@pytest.mark.parametrize(
    ("words", "parents", "message"),
    [
        ([0, 9], [0, 0], "words of direction 0: expected ids from 0 to 4, found 9"),
        ([0, -1], [0, 0], "words of direction 0: expected ids from 0 to 4, found -1"),
        ([0, 1], [1, 0], "parents of direction 0, depth 0: expected ids from 0 to 0, found 1"),
        ([0, 1], [0, 7], "parents of direction 0, depth 1: expected ids from 0 to 0, found 7"),
    ],
)
def test_ids_out_of_range_are_refused(words: list[int], parents: list[int], message: str) -> None:
    forest = torch.tensor(words), torch.tensor(parents), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=f"^{message}"):
        Nodes.of([forest], n_words=5)


def test_ids_on_a_device_cannot_be_checked() -> None:
    forest = torch.empty(2, dtype=torch.int32, device="meta"), torch.tensor([0, 0]), torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"^words of direction 0: expected ids in the host's memory"):
        Nodes.of([forest], n_words=5)


def test_tensors_of_another_device_are_named(device: str) -> None:
    layer = random_layer(device)
    tensors = layer.poisoned()._replace(exposed=torch.empty(2, 20, 24, device="meta"))
    with pytest.raises(ValueError, match=r"^tensors.exposed: expected a tensor on a (cpu|cuda) device, found meta"):
        run_steps(layer.pack(), tensors, layer.nodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w._replace(input=w.input.contiguous()), "input: expected one of 2 directions as pack_lstm lays"),
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
def test_weights_that_were_laid_out_otherwise_are_refused(change: object, message: str) -> None:
    layer = random_layer("cpu")
    weights = change(layer.pack())  # type: ignore[operator]
    with pytest.raises(ValueError, match=f"^{message}"):
        step_launches(weights, layer.poisoned(), layer.nodes, 1)


@pytest.mark.parametrize("slab_depth", [0, 3, 9])
def test_a_slab_begins_at_or_before_its_first_depth(slab_depth: int) -> None:
    layer = random_layer("cpu")
    tensors = layer.poisoned(hoisted=True)
    with pytest.raises(ValueError, match=rf"^slab_depth: expected 1 to 2, the first depth, found {slab_depth}"):
        step_launches(layer.pack(), tensors, layer.nodes, 2, slab_depth=slab_depth)


def test_words_that_are_not_there_are_refused() -> None:
    layer = random_layer("cpu")
    tensors = layer.poisoned()._replace(x=layer.x[0, :22])
    with pytest.raises(ValueError, match=r"^x: expected at least 23 words, as the nodes name, found 22"):
        step_launches(layer.pack(), tensors, layer.nodes, 1, by_word=True)


def test_a_precision_that_there_is_not_is_refused() -> None:
    layer = random_layer("cpu")
    with pytest.raises(ValueError, match=r"^precision: expected ieee or tf32, found 'fast'"):
        step_launches(layer.pack(), layer.poisoned(), layer.nodes, 1, precision="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("forest", "message"),
    [
        (([0.5], [0], [0, 1]), "words of direction 0: expected torch.int32 or torch.int64, found torch.float32"),
        (([0, 1], [0], [0, 2]), r"parents of direction 0: expected shape \[2\], found \[1\]"),
        (([0, 1], [0, 0], [0, 1]), "depths of direction 0: expected numbers that ascend from 0 to 2"),
        (([0, 1], [0, 0], [0, 2, 1, 2]), "depths of direction 0: expected numbers that ascend from 0 to 2"),
    ],
)
def test_forests_that_are_none_are_refused(forest: tuple[list[int], ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Nodes.of([tuple(map(torch.tensor, forest))], n_words=5)  # type: ignore[list-item]


def test_no_forest_is_refused_and_an_empty_one_is_not() -> None:
    with pytest.raises(ValueError, match=r"^forests: expected one for each direction, found none"):
        Nodes.of([], n_words=5)
    nothing = torch.empty(0, dtype=torch.int32)
    nodes = Nodes.of([(nothing, nothing, torch.zeros(1, dtype=torch.int64))], n_words=5)
    assert (nodes.n_depths, nodes.n_nodes, nodes.max_rows) == (0, 1, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="in the interpreter programs run one after another")
def test_a_wait_ends_when_time_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two programs waits for one that the interpreter has not begun."""
    monkeypatch.setattr(lstm_persistent, "MAX_POLLS", tl.constexpr(3))
    layer = random_layer("cpu")
    barrier = Barrier.on("cpu", programs=2)
    persistent_launch(layer.pack(), layer.poisoned(), layer.nodes, 1, 1, barrier).run()
    assert int(barrier.arrivals) == 4
    with pytest.raises(RuntimeError, match=r"^barrier: expected all programs of a launch to arrive"):
        barrier.check()


def test_programs_must_be_some() -> None:
    with pytest.raises(ValueError, match=r"^programs: expected 1 to \d+, all of which run at once, found 0"):
        Barrier.on("cpu", programs=0)


def test_a_wait_given_up_is_an_error() -> None:
    barrier = Barrier.on("cpu")
    barrier.check()
    barrier.timed_out.fill_(1)
    with pytest.raises(RuntimeError, match=r"^barrier: expected all programs of a launch to arrive"):
        barrier.check()
