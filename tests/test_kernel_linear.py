"""The product with bias against plain PyTorch in float64."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from kernel_inputs import ROUNDING, poisoned, random  # noqa: E402

from flashelmo.engine.precision import tolerance  # noqa: E402
from flashelmo.kernels import linear as module  # noqa: E402
from flashelmo.kernels import linear_tma, reference  # noqa: E402
from flashelmo.kernels.linear import linear, linear_kernel, linear_launch  # noqa: E402
from flashelmo.kernels.linear_tma import choose_tma_tile, count_tiles, linear_tma_kernel, linear_tma_launch  # noqa: E402
from flashelmo.kernels.tuning import TMA_ROWS, TMA_TILES, Tile, choose_tile  # noqa: E402


def arguments(n, K, F, D=None, dtype=torch.float32, device="cpu"):
    batch = [] if D is None else [D]
    weight = random(*batch, K, F, seed=1) / K**0.5
    return (
        random(*batch, n, K, seed=2, dtype=dtype, device=device),
        weight.to(device, dtype),
        random(*batch, F, seed=3, device=device),
    )


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


@pytest.fixture(params=["none", "ieee", "tf32"])
def own(request: pytest.FixtureRequest) -> Iterator[str]:
    """A precision that a program sets by PyTorch's newer way."""
    cublas: Any = torch.backends.cuda.matmul
    before, cublas.fp32_precision = cublas.fp32_precision, request.param
    yield request.param
    cublas.fp32_precision = before


@pytest.mark.parametrize(("D", "precision"), [(None, "ieee"), (2, "tf32")])
def test_many_rows_of_float32_by_the_library(precision, D, own, device, monkeypatch):
    """Of matrices that lie apart; PyTorch's own precision is afterwards what it was, however a program has set it."""
    x, weight, bias = arguments(module.LIBRARY_ROWS, 20, 36, D=D, device=device)
    x, weight = x.bfloat16().float(), weight.bfloat16().float()  # exact in TF32 too
    if D:
        weight = torch.stack([weight, weight], dim=1)[:, 0]
    n = x.shape[-2]
    assert module.by_library(x, n) == (device == "cuda") and not module.by_library(x.half(), n)
    monkeypatch.setattr(module, "by_library", lambda *_: True)
    seen: list[str] = []
    addmm = torch.addmm

    def seen_by(*given, out):
        seen.append(cublas.fp32_precision)
        assert cudnn.conv.fp32_precision == of_convolutions  # other threads may convolve meanwhile
        return addmm(*given, out=out)

    cublas, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    of_convolutions = cudnn.conv.fp32_precision
    monkeypatch.setattr(torch, "addmm", seen_by)
    out = poisoned(*x.shape[:-1], 36, dtype=torch.float32, device=device)
    launch = linear_launch(x, weight, bias, out, precision=precision)
    assert launch.kernel.fn is module.LibraryProduct.fn
    launch.run()
    assert seen == [precision] * (D or 1) and cublas.fp32_precision == own
    check_against_truth(out, x, weight, bias)


def test_products_in_two_precisions_at_once_leave_pytorch_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """One begins while the other computes: without a lock it would put back the other's precision at its end."""
    computing, seen = threading.Barrier(2), []

    def addmm(*_: Any, out: Any) -> None:
        with suppress(threading.BrokenBarrierError):
            computing.wait(0.2)  # for the other, which does not come
        seen.append(torch.backends.cuda.matmul.fp32_precision)

    monkeypatch.setattr(torch, "addmm", addmm)
    before = torch.backends.cuda.matmul.fp32_precision
    x = torch.zeros(1, 1, 1)
    threads = [
        threading.Thread(target=module.LibraryProduct.fn, args=(x, x, x, x, precision))
        for precision in ("tf32", "ieee")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == ["ieee", "tf32"] and torch.backends.cuda.matmul.fp32_precision == before


# ------------------------------------------------------------------------------------------------------ by bulk copies

SMALL = Tile(16, 32, 16, 4, 2)
WIDE = Tile(32, 256, 32, 8, 2)  # whose columns are stored in parts


@pytest.mark.parametrize("tile", [SMALL, WIDE])
@pytest.mark.parametrize("k_major", [False, True])
@pytest.mark.parametrize("out_dtype", [None, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_of_every_type_and_order(dtype, out_dtype, k_major, tile, device):
    """Ragged in every size: a box that leaves its matrix reads zero there, and leaves the next matrix alone."""
    n, K, F = 37, 40, 264
    x, weight, bias = arguments(n, K, F, D=2, dtype=dtype, device=device)
    given = weight.mT.contiguous().mT if k_major else weight
    out = poisoned(2, n, F, dtype=out_dtype or dtype, device=device)
    for programs in (3, 1000):  # that go from tile to tile, and a program a tile
        out.fill_(float("nan"))
        launch = linear_tma_launch(x, given, bias, out, tile=tile, programs=programs)
        assert launch.arguments["K_MAJOR"] == k_major and bool(launch.arguments["PROGRAMS"]) == (programs == 3)
        launch.run()
        check_against_truth(out, x, weight, bias)


@pytest.mark.parametrize("count", [0, 1, 17, 40])
@pytest.mark.parametrize("tma", [False, True], ids=["portable", "TMA"])
def test_rows_that_the_device_counts(device, tma, count):
    """Those are right, and no block is computed that has none of them."""
    x, weight, bias = arguments(40, 24, 40, D=2, dtype=torch.float16, device=device)
    x[:, count:] = torch.nan
    n_rows = torch.tensor([count], dtype=torch.int32, device=device)
    out = poisoned(2, 40, 40, dtype=torch.float16, device=device)
    for programs in (3, 1000) if tma else (None,):
        if tma:
            launch = linear_tma_launch(x, weight, bias, out, count=n_rows, tile=SMALL, programs=programs)
        else:
            launch = linear_launch(x, weight, bias, out, count=n_rows)
        launch.run()
        check_against_truth(out[:, :count], x[:, :count], weight, bias)
        untouched = -(-count // launch.arguments["TILE"].rows) * launch.arguments["TILE"].rows
        out[:, :untouched] = 77
        assert out.isnan().sum() == out[:, untouched:].numel()
        out.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"^count: expected shape \[1\], found \[2\]"):
        linear_launch(x, weight, bias, out, count=n_rows.repeat(2))


def test_boxes_leave_what_lies_apart(device):
    """Of a weight behind which another lies, NaN; of a matrix without others; and nothing beyond the result."""
    x, _, bias = arguments(20, 24, 40, D=2, dtype=torch.float16, device=device)
    both = (random(2, 2, 24, 40, seed=4) / 24**0.5).to(device, torch.float16)
    both[:, 1] = torch.nan
    around = torch.full((2 * 20 * 40 + 256,), 77.0, dtype=torch.float16, device=device)
    out = around[128:-128].view(2, 20, 40)
    linear_tma_launch(x, both[:, 0], bias, out, tile=SMALL).run()
    check_against_truth(out, x, both[:, 0], bias)
    assert (around[:128] == 77).all() and (around[-128:] == 77).all()
    out = poisoned(20, 40, dtype=torch.float16, device=device)
    linear_tma_launch(x[0], both[0, 0], bias[0], out, tile=SMALL).run()
    check_against_truth(out, x[0], both[0, 0], bias[0])


def test_groups_of_row_blocks_cover_every_tile(device):
    """More blocks of rows than pass over the columns together, and a last group that is not full."""
    x, weight, bias = arguments(19 * SMALL.rows - 3, 8, 3 * SMALL.columns - 8, D=2, dtype=torch.float16, device=device)
    out = poisoned(2, x.shape[1], weight.shape[2], dtype=torch.float32, device=device)
    linear_tma_launch(x, weight, bias, out, tile=SMALL).run()
    check_against_truth(out, x, weight, bias)


def test_which_kernel_serves(device, monkeypatch):
    """Bulk copies on sm_90, from some rows on, in 16 bits, of sizes that they can take; transposed weights anywhere.

    Many rows of float32 are PyTorch's on any card.
    """

    def kernel(n=TMA_ROWS, K=24, F=40, dtype=torch.float16, transpose=False, D=2):
        x, weight, bias = arguments(n, K, F, D=D, dtype=dtype, device=device)
        weight = weight.mT.contiguous().mT if transpose else weight
        return linear_launch(x, weight, bias, poisoned(D, n, F, dtype=dtype, device=device)).kernel

    monkeypatch.setattr(linear_tma, "is_hopper", lambda _: True)
    assert kernel() is kernel(dtype=torch.bfloat16) is linear_tma_kernel
    assert kernel(n=TMA_ROWS - 1) is kernel(K=20) is kernel(F=36) is linear_kernel
    assert kernel(n=module.LIBRARY_ROWS - 1, dtype=torch.float32) is linear_kernel
    many = kernel(n=module.LIBRARY_ROWS, dtype=torch.float32)
    assert isinstance(many, module.LibraryProduct) if device == "cuda" else many is linear_kernel
    monkeypatch.setattr(linear_tma, "is_hopper", lambda _: False)
    assert kernel() is linear_kernel
    assert kernel(n=1, transpose=True) is linear_tma_kernel
    with pytest.raises(ValueError, match=r"^weight: expected a contiguous tensor"):
        kernel(K=20, transpose=True)


def test_a_transposed_weight(device):
    x, weight, bias = arguments(5, 24, 40, dtype=torch.bfloat16, device=device)
    check_against_truth(linear(x, weight.mT.contiguous().mT, bias), x, weight, bias)
    assert linear(x[:0], weight.mT.contiguous().mT, bias).shape == (0, 40)


def test_the_tile_gives_most_multiprocessors_work():
    """Of the sizes in use: the LSTM's input product, and the final projection of ever fewer words."""
    tiles = TMA_TILES["linear"]
    assert [count_tiles(tile, 2, 2048, 16384) for tile in tiles[:2]] == [16 * 64 * 2, 16 * 128 * 2]
    assert choose_tma_tile("linear", 2, 2048, 16384, 132) == tiles[0]
    found = [choose_tma_tile("linear", 1, n, 512, 132) for n in (8192, 4096, 2048, 1024, 128)]
    assert found == [tiles[0], tiles[1], tiles[2], tiles[3], tiles[3]]


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


@pytest.mark.parametrize("kernel", ["portable", "bulk copies", "library"])
@pytest.mark.parametrize("known", [True, False], ids=["known to the host", "read on the device"])
def test_rows_begin_where_they_are_said_to(device, monkeypatch, kernel, known):
    """In all matrices alike or in each elsewhere; of the rows that would lie beyond the last none is asked for."""
    dtype = torch.float32 if kernel == "library" else torch.float16
    x, weight, bias = arguments(90, 24, 40, D=2, dtype=dtype, device=device)
    monkeypatch.setattr(module, "is_served", lambda *_: kernel == "bulk copies")
    monkeypatch.setattr(module, "by_library", lambda *_: kernel == "library")
    firsts = (7, 7) if known else (7, 30)
    out = poisoned(2, 60, 40, dtype=dtype, device=device)
    starts = torch.tensor([[0, 7, 9], [0, firsts[1], 9]], dtype=torch.int32, device=device)
    linear_launch(x, weight, bias, out, first_rows=7 if known else starts[:, 1]).run()
    wanted = torch.stack([x[d, first : first + 60] for d, first in enumerate(firsts)])
    check_against_truth(out, wanted, weight, bias)
