"""The highway layer against plain PyTorch in float64."""

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from kernel_inputs import ROUNDING, poisoned, random  # noqa: E402

from flashelmo.engine.precision import tolerance  # noqa: E402
from flashelmo.kernels import reference  # noqa: E402
from flashelmo.kernels.highway import HighwayWeights, highway, highway_launch, pack_highway  # noqa: E402
from flashelmo.kernels.tuning import choose_tile  # noqa: E402


def canonical(F):
    """Transform and gate, unlike each other: their biases alone would tell them apart."""
    transform = random(F, F, seed=1) / F**0.5, random(F, seed=2) + 0.5
    gate = random(F, F, seed=3) / F**0.5, random(F, seed=4) - 2
    return transform, gate


def check_against_truth(n, F, dtype, device):
    """Inputs are as rounded already, so that what differs is the order of sums and the result's own rounding."""
    transform, gate = canonical(F)
    weights = pack_highway(*transform, *gate, dtype=dtype, device=device)
    x = random(n, F, seed=5).to(device, dtype)
    found = poisoned(n, F, dtype=dtype, device=device)
    highway_launch(x, weights, found).run()
    (w_t, b_t), (w_g, b_g) = ((w.to(device, dtype).double(), b.to(device).double()) for w, b in (transform, gate))
    truth = reference.highway(x.double(), (w_t, b_t), (w_g, b_g))
    bound = tolerance("fp32", "cuda") + ROUNDING[dtype] * truth.abs()
    assert ((found.double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("n", [1, 63, 130])
def test_values_of_every_type(n, dtype, device):
    check_against_truth(n, 40, dtype, device)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_rows_beyond_the_group_that_shares_columns(dtype, device):
    """More blocks of rows than pass over the columns together, and a last group that is not full."""
    tile = choose_tile("highway", dtype, "ieee", 1 << 20)
    check_against_truth(10 * tile.rows - 1, 2 * tile.columns, dtype, device)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(n=st.integers(1, 70), F=st.integers(1, 80))
def test_any_size(n, F):
    check_against_truth(n, F, torch.float32, "cuda" if torch.cuda.is_available() else "cpu")


def test_weights_as_packed():
    """Columns 2j and 2j + 1 are transform and gate of feature j; by hand, as an error here could cancel elsewhere."""
    weights = pack_highway(
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([5.0, 6.0]),
        torch.tensor([[10.0, 20.0], [30.0, 40.0]]),
        torch.tensor([50.0, 60.0]),
    )
    assert weights.weight.tolist() == [[1, 10, 2, 20], [3, 30, 4, 40]]
    assert weights.bias.tolist() == [5, 50, 6, 60]


@pytest.mark.parametrize(("gate_bias", "expected"), [(-50.0, "carried"), (50.0, "transformed")])
def test_the_gate_chooses(gate_bias, expected, device):
    F = 24
    transform, gate = canonical(F)
    gate[1].fill_(gate_bias)
    weights = pack_highway(*transform, *gate, device=device)
    x = random(5, F, seed=6).to(device)
    found = highway(x, weights)
    if expected == "carried":
        assert torch.equal(found, x)
    else:
        truth = torch.relu(x.double() @ transform[0].to(device).double() + transform[1].to(device))
        assert (found - truth).abs().max() < tolerance("fp32", "cuda")
        assert (found == 0).any() and (found > 0).any()


def test_a_row_does_not_depend_on_its_company(device):
    transform, gate = canonical(40)
    weights = pack_highway(*transform, *gate, device=device)
    x, others = random(16, 40, seed=7).to(device), random(16, 40, seed=8).to(device)
    others[7] = x[7]
    assert torch.equal(highway(x, weights)[7], highway(others, weights)[7])


def test_not_a_number_stays_one(device):
    transform, gate = canonical(8)
    x = random(4, 8).to(device)
    x[1, 2] = float("nan")
    found = highway(x, pack_highway(*transform, *gate, device=device))
    assert found[1].isnan().all() and found[[0, 2, 3]].isfinite().all()


def test_no_rows(device):
    transform, gate = canonical(8)
    assert highway(torch.empty(0, 8, device=device), pack_highway(*transform, *gate, device=device)).shape == (0, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter multiplies in float32 in any case")
def test_tf32_is_close(device):
    transform, gate = canonical(512)
    x = random(130, 512, seed=9).to(device)
    found = highway(x, pack_highway(*transform, *gate, device=device), precision="tf32").double()
    truth = reference.highway(x.double(), *(tuple(p.to(device).double() for p in pair) for pair in (transform, gate)))
    assert (found - truth).norm() / truth.norm() < tolerance("tf32", "cuda")


SAME = random(4, 8)
BAD = {
    "weight not twice as wide": (
        {"weights": HighwayWeights(random(8, 15), random(16))},
        "weight: expected shape [8, 16], found [8, 15]",
    ),
    "integers": (
        {"weights": HighwayWeights(torch.ones(8, 16, dtype=torch.int8), random(16))},
        "weight: expected torch.float32 or ",
    ),
    "a short bias": (
        {"weights": HighwayWeights(random(8, 16), random(8))},
        "bias: expected shape [16], found [8]",
    ),
    "a bias of 16 bits": (
        {"weights": HighwayWeights(random(8, 16), random(16).half())},
        "bias: expected torch.float32, found torch.float16",
    ),
    "other features": ({"x": random(4, 9)}, "x: expected shape [any, 8], found [4, 9]"),
    "another type": ({"x": random(4, 8).half()}, "x: expected torch.float32, found torch.float16"),
    "rows apart": ({"x": random(4, 16)[:, ::2]}, "x: expected a contiguous tensor, found strides (16, 2)"),
    "other rows": ({"out": random(5, 8)}, "out: expected shape [4, 8], found [5, 8]"),
    "an out of 16 bits": ({"out": random(4, 8).half()}, "out: expected torch.float32, found torch.float16"),
    "in place": ({"x": SAME, "out": SAME[:]}, "out: expected memory of its own, found x's"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    wrong, message = BAD[name]
    good = {"x": random(4, 8), "weights": HighwayWeights(random(8, 16), random(16)), "out": random(4, 8)}
    with pytest.raises(ValueError) as raised:
        highway_launch(**(good | wrong))
    assert str(raised.value).startswith(message)


BAD_PARTS = {
    "transform_weight": (random(7, 8), "transform_weight: expected shape [8, 8], found [7, 8]"),
    "gate_weight": (random(8, 7), "gate_weight: expected shape [8, 8], found [8, 7]"),
    "transform_bias": (random(7), "transform_bias: expected shape [8], found [7]"),
    "gate_bias": (random(1, 8), "gate_bias: expected shape [8], found [1, 8]"),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_bad_weights_are_named(name):
    tensor, message = BAD_PARTS[name]
    good = {
        "transform_weight": random(8, 8),
        "transform_bias": random(8),
        "gate_weight": random(8, 8),
        "gate_bias": random(8),
    }
    with pytest.raises(ValueError) as raised:
        pack_highway(**(good | {name: tensor}))
    assert str(raised.value) == message
