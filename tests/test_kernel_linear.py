"""The product with bias against plain PyTorch in float64."""

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from flashelmo.engine.precision import tolerance  # noqa: E402
from flashelmo.kernels import reference  # noqa: E402
from flashelmo.kernels.linear import linear, linear_launch  # noqa: E402
from flashelmo.kernels.tuning import choose_tile  # noqa: E402

# The result's own rounding to nearest: half a unit in the last place of the mantissa, relative.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def random(*shape, seed=0, dtype=torch.float32, device="cpu"):
    """Values about as large as activations; products of K of them stay within a few units."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def arguments(n, K, F, D=None, dtype=torch.float32, device="cpu"):
    batch = [] if D is None else [D]
    weight = random(*batch, K, F, seed=1) / K**0.5
    return (
        random(*batch, n, K, seed=2, dtype=dtype, device=device),
        weight.to(device, dtype),
        random(*batch, F, seed=3, device=device),
    )


def poisoned(*shape, dtype, device):
    return torch.full(shape, float("nan"), dtype=dtype, device=device)


def check_against_truth(found, x, weight, bias):
    """Inputs are as rounded already, so that what differs is the order of sums and the result's own rounding."""
    truth = reference.linear(x.double(), weight.double(), bias.double())
    bound = tolerance("fp32", "cuda") + ROUNDING[found.dtype] * truth.abs()
    assert found.shape == truth.shape
    assert ((found.double() - truth).abs() <= bound).all()


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("n", [1, 63, 130])
def test_values_of_every_type(n, dtype, device):
    x, weight, bias = arguments(n, 48, 72, dtype=dtype, device=device)
    out = poisoned(n, 72, dtype=dtype, device=device)
    linear_launch(x, weight, bias, out).run()
    check_against_truth(out, x, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_float32_results_of_16_bit_inputs(dtype, device):
    x, weight, bias = arguments(5, 40, 24, dtype=dtype, device=device)
    found = linear(x, weight, bias, out_dtype=torch.float32)
    assert found.dtype == torch.float32
    check_against_truth(found, x, weight, bias)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_rows_beyond_the_group_that_shares_columns(dtype, device):
    """More blocks of rows than pass over the columns together, and a last group that is not full."""
    tile = choose_tile("linear", dtype, "ieee", 1 << 20)
    n = 10 * tile.rows - 1
    x, weight, bias = arguments(n, 8, 3 * tile.columns - 1, dtype=dtype, device=device)
    out = poisoned(n, 3 * tile.columns - 1, dtype=dtype, device=device)
    linear_launch(x, weight, bias, out).run()
    check_against_truth(out, x, weight, bias)


def test_matrices_that_lie_apart(device):
    """As the LSTM's input weight, behind which the recurrent one lies."""
    x, _, bias = arguments(6, 20, 36, D=2, device=device)
    both = random(2, 2, 20, 36, seed=4, device=device) / 20**0.5
    weight = both[:, 0]
    assert not weight.is_contiguous()
    check_against_truth(linear(x, weight, bias), x, weight, bias)


def test_one_matrix_for_all_of_the_batch(device):
    x, weight, bias = arguments(3, 20, 36, D=2, device=device)
    weight = weight[:1].expand(2, 20, 36)
    check_against_truth(linear(x, weight, bias), x, weight, bias)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(n=st.integers(1, 70), K=st.integers(1, 80), F=st.integers(1, 80), D=st.sampled_from([None, 1, 2, 3]))
def test_any_size(n, K, F, D):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, weight, bias = arguments(n, K, F, D, device=device)
    out = poisoned(*x.shape[:-1], F, dtype=torch.float32, device=device)
    linear_launch(x, weight, bias, out).run()
    check_against_truth(out, x, weight, bias)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the interpreter multiplies in float32 in any case")
def test_tf32_is_close(device):
    x, weight, bias = arguments(130, 512, 200, device=device)
    truth = reference.linear(x.double(), weight.double(), bias.double())
    found = linear(x, weight, bias, precision="tf32").double()
    assert (found - truth).norm() / truth.norm() < tolerance("tf32", "cuda")


def test_no_rows(device):
    x, weight, bias = arguments(0, 8, 8, device=device)
    assert linear(x, weight, bias).shape == (0, 8)


def test_a_row_does_not_depend_on_its_company(device):
    x, weight, bias = arguments(16, 48, 40, device=device)
    others = random(16, 48, seed=5, device=device)
    others[7] = x[7]
    assert torch.equal(linear(x, weight, bias)[7], linear(others, weight, bias)[7])


def test_not_a_number_stays_one(device):
    x, weight, bias = arguments(4, 8, 8, device=device)
    x[1, 2] = float("nan")
    found = linear(x, weight, bias)
    assert found[1].isnan().all() and found[[0, 2, 3]].isfinite().all()


BAD = {
    "a vector": ({"x": random(4)}, r"x: expected shape [n, K] or [D, n, K], found [4]"),
    "integers": ({"x": torch.ones(2, 4, 8, dtype=torch.int32)}, "x: expected torch.float32 or "),
    "rows apart": ({"x": random(2, 4, 16)[..., ::2]}, "x: expected a contiguous tensor, found strides (64, 16, 2)"),
    "a larger K": (
        {"weight": random(2, 9, 6)},
        "weight: expected shape [2, 8, any], as x is [2, 4, 8], found [2, 9, 6]",
    ),
    "another D": (
        {"weight": random(3, 8, 6)},
        "weight: expected shape [2, 8, any], as x is [2, 4, 8], found [3, 8, 6]",
    ),
    "no D": ({"weight": random(8, 6)}, "weight: expected shape [2, 8, any], as x is [2, 4, 8], found [8, 6]"),
    "a number": ({"weight": torch.tensor(1.0)}, "weight: expected shape [2, 8, any], as x is [2, 4, 8], found []"),
    "another type": ({"weight": random(2, 8, 6).half()}, "weight: expected torch.float32, found torch.float16"),
    "columns apart": (
        {"weight": random(2, 6, 8).transpose(1, 2)},
        "weight: expected a contiguous tensor, found strides (1, 8)",
    ),
    "a bias of 16 bits": ({"bias": random(2, 6).half()}, "bias: expected torch.float32, found torch.float16"),
    "a short bias": ({"bias": random(2, 5)}, "bias: expected shape [2, 6], found [2, 5]"),
    "a short out": ({"out": random(2, 3, 6)}, "out: expected shape [2, 4, 6], found [2, 3, 6]"),
    "an out of 16 bits": ({"out": random(2, 4, 6).half()}, "out: expected torch.float32, found torch.float16"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    wrong, message = BAD[name]
    good = {"x": random(2, 4, 8), "weight": random(2, 8, 6), "bias": random(2, 6), "out": random(2, 4, 6)}
    with pytest.raises(ValueError) as raised:
        linear_launch(**(good | wrong))
    assert str(raised.value).startswith(message)
