"""A layer over all depths: which variant runs which, buckets that stand for many schedules, and where outputs go."""

import subprocess
import sys
from dataclasses import replace
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from kernel_lstm import FLOATS, VARIANTS, RandomLayer, launches_of, random_layer, real_nodes, scheduled

from flashelmo.engine.cuda.layout import Sizes
from flashelmo.engine.precision import tolerance
from flashelmo.kernels import tuning
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm import few_rows, hoisted, persistent
from flashelmo.kernels.lstm import run as run_module
from flashelmo.kernels.lstm.hopper_projection import choose_projection_tile
from flashelmo.kernels.lstm.layer import choose, cut, lstm_layer
from flashelmo.kernels.lstm.run import LayerRun, Nodes, Workspace
from flashelmo.kernels.lstm.weights import Shape, interleave
from flashelmo.kernels.tuning import SPLIT_ARRIVALS

SIZES = ((1, 3, 5, 2), (1, 2, 9))
MANY_SIZES = ((1, 3, 5, 40, 41, 4, 2), (1, 35, 2))
BUCKET_ROWS = (4, 6, 20, 20, 3, 1)  # two depths more than the schedule has, and more rows in each
ROOM = 29  # nodes, while the rows are 54


def chosen(run: LayerRun) -> list[tuple[str, range]]:
    return [(variant.name, depths) for variant, depths in cut(run)]


# -------------------------------------------------------------------------------------------------------------- choice


def test_depths_are_grouped_by_the_variant_that_serves_their_rows(device: str) -> None:
    layer = random_layer(device, sizes=MANY_SIZES, P=24)  # up to 3 rows the input's part is better computed beforehand
    first, last = ("hoisted", range(1, 2)), ("hoisted", range(7, 8))
    assert chosen(layer.poisoned()) == [first, ("fused", range(2, 7)), last]
    assert chosen(layer.poisoned(int8=True)) == [("int8", range(1, 8))]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("kind", FLOATS)
def test_some_variant_serves_any_rows(device: str, kind: str, int8: bool) -> None:
    layer = random_layer(device, P=32, C=32, dtype=FLOATS[kind])
    run = layer.poisoned(int8=int8)
    for rows in (0, 1, 4, 5, 32, 33, 128, 129, 10_000):
        assert choose(run, rows).name == ("int8" if int8 else "hoisted" if rows <= 4 else "fused")


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("capability", [(9, 0), (8, 0), (10, 0), (10, 3), (12, 0)])
def test_variants_for_hopper_serve_16_bits_at_their_sizes(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], kind: str
) -> None:
    layer = random_layer("cpu", sizes=((1,), (1,)), P=128, C=512, dtype=FLOATS[kind])
    run, in_8_bits = layer.poisoned(), layer.poisoned(int8=True)
    monkeypatch.setattr(tuning, "capability", lambda device: capability)
    monkeypatch.setattr(tuning, "n_multiprocessors", lambda device: 132)
    for each in (run, in_8_bits):
        object.__setattr__(each.weights, "device", SimpleNamespace(type="cuda"))
    expected = ["hoisted" if rows <= 16 else "fused" for rows in (1, 64, 65, 4096)]
    if capability == (9, 0) and kind != "fp32":
        expected = ["persistent", "few_rows", "warp_specialized", "warp_specialized"]
    if capability[0] == 10 and kind != "fp32":
        expected[2:] = ["tma", "tma"]
    assert [choose(run, rows).name for rows in (1, 64, 65, 4096)] == expected
    by_word = LayerRun.__new__(LayerRun)
    by_word.__dict__.update(run.__dict__, words=object())
    names = {rows: choose(by_word, rows).name for rows in (16, 17, 32, 33, 4096)}
    hoisted_rows = [rows for rows, name in names.items() if name in ("persistent", "few_rows", "hoisted")]
    most = {(9, 0): 33, (8, 0): 32, (12, 0): 32}.get(capability, 16) if kind != "fp32" else 4096
    assert max(hoisted_rows) == most
    many = "int8_specialized" if "few_rows" in expected else "int8"
    assert [choose(in_8_bits, rows).name for rows in (1, 64, 65, 4096)] == ["int8", "int8", many, many]
    object.__setattr__(run.weights, "layouts", {interleave: run.weights.layout(interleave)})  # as at other sizes
    assert choose(run, 4096).name == "fused"


@pytest.mark.parametrize(
    ("shape", "multiprocessors", "expected"),
    [
        (Shape(2, 512, 4096), 132, True),
        (Shape(2, 512, 4096), 114, False),  # as an H100 for PCIe has
        (Shape(2, 256, 2048), 78, True),
        (Shape(2, 1024, 4096), 132, False),
        (Shape(2, 512, 8192), 132, False),  # its blocks fill more than shared memory
    ],
    ids=str,
)
def test_few_rows_are_projected_by_programs_that_all_run_at_once(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, multiprocessors: int, expected: bool
) -> None:
    monkeypatch.setattr(few_rows, "n_programs", lambda device: multiprocessors)
    assert few_rows.is_resident(shape, torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("shape", "multiprocessors", "expected"),
    [
        (Shape(2, 512, 4096), 128, True),
        (Shape(2, 512, 4096), 114, False),
        (Shape(2, 128, 1024), 32, True),
        (Shape(2, 512, 512), 132, True),
        (Shape(2, 1024, 4096), 132, False),  # its weights have no room
        (Shape(2, 128, 2048), 132, False),  # 16 splits
        (Shape(2, 256, 640), 132, False),
    ],
    ids=str,
)
def test_weights_stay_where_all_programs_run_at_once(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, multiprocessors: int, expected: bool
) -> None:
    monkeypatch.setattr(persistent, "n_programs", lambda device: multiprocessors)
    assert persistent.fits(shape, torch.device("cpu")) == expected


@pytest.mark.parametrize("multiprocessors", [31, 32])
def test_where_not_all_run_at_once_the_other_projection_serves(
    monkeypatch: pytest.MonkeyPatch, multiprocessors: int
) -> None:
    run = random_layer("cpu", sizes=((1,), (1,)), P=128, C=512, dtype=torch.float16).poisoned()
    monkeypatch.setattr(few_rows, "n_programs", lambda device: multiprocessors)
    names = [launch.kernel.fn.__name__ for launch in launches_of(run, "few_rows")]
    projection = "few_projection_kernel" if multiprocessors == 32 else "hopper_projection_kernel"
    assert names[-2:] == ["few_gates_kernel", projection]


@pytest.mark.parametrize("missing", ["triton.experimental", "triton.experimental.gluon.nvidia.hopper"])
def test_a_triton_without_gluon_has_the_other_variants_and_says_so(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from flashelmo.kernels.lstm.layer import VARIANTS; "
    code += "print(*[variant.name for variant in VARIANTS])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["tma", "int8", "hoisted", "fused"]
    assert "expected Gluon, found" in found.stderr and len(found.stderr.splitlines()) == 1


@pytest.mark.parametrize("rows", [1, 64, 65, 128, 129, 200, 256, 257, 300, 512, 513, 1024, 1056, 1057, 2048, 4096])
@pytest.mark.parametrize("shape", [Shape(2, 512, 4096), Shape(2, 256, 2048), Shape(2, 128, 1024)], ids=str)
def test_splits_that_wait_for_each_other_all_run_at_once(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, rows: int
) -> None:
    """Every program of such a launch has a multiprocessor of its own, on an sm_100 too."""
    monkeypatch.setattr(tuning, "capability", lambda device: (10, 0))
    for device, n in ((torch.device("cpu"), tuning.MULTIPROCESSORS), (torch.device("cuda"), 148)):
        monkeypatch.setattr(tuning, "n_multiprocessors", lambda device: 148)
        tile = choose_projection_tile(rows, shape, device)
        programs = shape.D * -(-rows // tile.rows) * (shape.P // tile.columns) * tile.splits
        assert shape.C % (tile.splits * tile.k) == 0 and SPLIT_ARRIVALS % tile.splits == 0
        assert programs <= n or (tile.splits == 1 and tile.rows == 128)
        if tile.splits > 1:
            sums, counters = tuning.split_sizes(shape.P, device)
            assert programs * tile.rows * tile.columns <= shape.D * sums and programs <= shape.D * counters
    assert rows > 128 or tile.columns == 32


@pytest.mark.parametrize("name", ["tma", "fused"])
@pytest.mark.parametrize("rows", [300, 700])
def test_split_sums_stay_in_their_workspace(name: str, rows: int, device: str) -> None:
    """What lies behind them is somebody else's."""
    if name == "tma" and device == "cuda" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("for sm_90")
    layer = random_layer(device, sizes=((1, rows),) * 2, P=128, C=512, dtype=torch.float16)
    run = layer.poisoned()
    workspace = Workspace.of(run.weights.shape, device)
    behind = [torch.cat([each, torch.full_like(each, 7)]) for each in (workspace.partial_sums, workspace.counters)]
    n_sums, n_counters = len(workspace.partial_sums), len(workspace.counters)
    tensors = run.tensors._replace(partial_sums=behind[0][:n_sums], counters=behind[1][:n_counters])
    for launch in launches_of(replace(run, tensors=tensors), name):
        launch.run()
    assert bool((behind[0][n_sums:] == 7).all()) and bool((behind[1][n_counters:] == 7).all())


def test_a_workspace_that_is_too_small_is_refused() -> None:
    run = random_layer("cpu", sizes=((1, 2),) * 2, P=128, C=512, dtype=torch.float16).poisoned()
    short = replace(run, tensors=run.tensors._replace(partial_sums=run.tensors.partial_sums[:1_000_000]))
    with pytest.raises(ValueError, match=r"partial_sums: expected at least \d+ values, found \d+"):
        launches_of(short, "tma")


def test_slabs_are_cut_where_their_input_part_is_large(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(device, sizes=((1, 2, 2, 2, 2),) * 2, P=16)
    monkeypatch.setattr(hoisted, "SLAB_BYTES", 2 * 4 * 24 * 4 * 4)  # four nodes of both directions
    run = layer.poisoned()
    assert list(hoisted.slabs(run, range(1, 6))) == [range(1, 3), range(3, 5), range(5, 6)]
    assert list(hoisted.slabs(run, range(2, 4))) == [range(2, 4)]
    expected = real_nodes(layer.expected()[0], layer.nodes)
    outputs, _ = lstm_layer(layer.pack(), layer.nodes, layer.x)
    assert (real_nodes(outputs, layer.nodes) - expected).abs().max() < tolerance("fp32", "cuda")
    monkeypatch.setattr(hoisted, "SLAB_BYTES", 1)  # less than a node's
    assert list(hoisted.slabs(run, range(1, 4))) == [range(1, 2), range(2, 3), range(3, 4)]


@pytest.mark.parametrize("n_roots", [1, 4])
def test_a_layer_matches_the_reference(device: str, n_roots: int) -> None:
    layer = random_layer(device, sizes=MANY_SIZES, n_roots=n_roots)
    roots = 0.3 * torch.randn(2, n_roots, 12, device=device), 0.3 * torch.randn(2, n_roots, 24, device=device)
    outputs, _ = lstm_layer(layer.pack(), layer.nodes, layer.x, roots=roots)
    expected = real_nodes(layer.expected(roots)[0], layer.nodes)
    assert (real_nodes(outputs, layer.nodes) - expected).abs().max() < tolerance("fp32", "cuda")


def test_roots_that_do_not_fit_are_named(device: str) -> None:
    layer = random_layer(device, n_roots=2)
    hidden, cell = torch.zeros(2, 2, 12, device=device), torch.zeros(2, 2, 24, device=device)
    for roots, message in (
        ((hidden, cell[:, :1]), r"^root_cell: expected shape \[2, 24\], found \[1, 24\]"),
        ((hidden.double(), cell), "^root_hidden: expected torch.float32, found torch.float64"),
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


@pytest.mark.parametrize(("name", "int8"), [("fused", False), ("hoisted", False), ("int8", True)])
@pytest.mark.parametrize("skip", [False, True], ids=["no skip", "skip"])
def test_a_bucket_gives_what_its_schedule_gives(device: str, name: str, int8: bool, skip: bool) -> None:
    P, C = VARIANTS[name].P, VARIANTS[name].C
    layer = random_layer(device, sizes=SIZES, P=P, C=C)
    bucket, weights = bucket_of(layer), layer.pack(int8=int8)
    run = layer.poisoned(int8=int8, nodes=bucket, x=in_bucket(layer.x))
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


def test_a_bucket_of_no_nodes(device: str) -> None:
    """As one whose tensors were not filled yet."""
    layer = random_layer(device, sizes=SIZES, P=80)
    empty = bucket_of(layer)
    empty.starts.zero_()
    empty.children.zero_()
    for nodes in (empty, replace(empty, parents=empty.parents[:, :1].clone(), children=empty.children[:, :2].clone())):
        out = torch.full((2, nodes.n_nodes, 80), torch.nan, device=device)
        lstm_layer(layer.pack(), nodes, torch.zeros_like(out), out=out)
        assert out.isnan().all()


def test_a_slab_has_no_more_nodes_than_there_is_room_for(device: str) -> None:
    layer = random_layer(device, sizes=SIZES)
    bucket = bucket_of(layer)
    assert [bucket.span(range(1, n)) for n in (2, 3, 4, 7)] == [4, 10, ROOM, ROOM]
    assert (bucket.n_depths, bucket.n_roots, bucket.max_rows, bucket.n_nodes) == (6, 1, 20, ROOM + 1)
    run = layer.poisoned(nodes=bucket, x=in_bucket(layer.x))
    weights, exact = run.weights.layout(interleave), layer.x.double()
    product, x_gates = hoisted.slab_product(run, range(2, 7), weights.input, weights.bias)
    product.run()
    for d, n in enumerate((10, 11)):  # those of the schedule, from the second depth on; the others mean nothing
        first = layer.nodes.depths[d][2]
        wanted = exact[d, first : first + n] @ weights.input[d].double() + weights.bias[d].double()
        assert (x_gates[d, :n].double() - wanted).abs().max() < tolerance("fp32", "cuda")
    assert x_gates.shape == (2, ROOM, 4 * 24)


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
        assert gates.arguments["x_gates_ptr"] is x_gates and gates.arguments["tensors"].x is None
        assert (gates.arguments["slab_depth"], gates.arguments["M"]) == (2, 77) == (2, x_gates.shape[1])
