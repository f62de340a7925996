"""A product with bias, for one matrix or for several at once.

    y = x @ W + b

It serves the characters' projection after the highways, and the LSTM's input product x @ W_x + b of many steps at once,
both directions in one launch (`lstm.hoisted`). Sums are float32.

Many rows are multiplied otherwise where that is faster, with sums in another order: on sm_90 in 16 bits by bulk copies
(`linear_tma`), and on any card in float32 by PyTorch's product. On an H200 the LSTM's input product of 2,048 nodes took
1,627 us in TF32 by this kernel, as Triton multiplies TF32 by warp group only where the weight is transposed, and 203 us
by cuBLAS; in float32 1,785 and 1,407.

Letters: D matrices, n rows, K inputs, F outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.arguments import FLOATS, Products, check
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.linear_tma import is_able, is_k_major, is_served, linear_tma_launch
from flashelmo.kernels.product import product, zeros
from flashelmo.kernels.pytorch import float32_products
from flashelmo.kernels.tuning import ROW_GROUP, TMA_TILES, choose_tile


@triton.jit(do_not_specialize=["n", "n_x", "first", "first_stride"])
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, first_ptr, count_ptr, n, n_x, first, first_stride,
    K: tl.constexpr, F: tl.constexpr, WEIGHT_STRIDE: tl.constexpr,
    TILE: tl.constexpr, ROW_GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a block of rows and columns of one matrix. Grid: blocks of columns; blocks of rows; D."""
    i_rows, i_columns = tl.swizzle2d(
        tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), ROW_GROUP
    )
    if count_ptr is None or i_rows * TILE.rows < tl.load(count_ptr):
        d = tl.program_id(2).to(tl.int64)
        o_row = i_rows * TILE.rows + tl.arange(0, TILE.rows)
        o_column = i_columns * TILE.columns + tl.arange(0, TILE.columns)
        m_row, m_column = o_row < n, o_column < F
        row = d * n_x + o_row
        if first_ptr is not None:
            first += tl.load(first_ptr + d * first_stride)
        row, m_row = row + first, m_row & (first + o_row < n_x)
        p_x = x_ptr + row * K
        p_weight = weight_ptr + d * WEIGHT_STRIDE + o_column
        bias = tl.load(bias_ptr + d * F + o_column, mask=m_column, other=0.0)
        acc = zeros(TILE.rows, TILE.columns) + bias[None, :]
        acc = product(acc, p_x, p_x, m_row, p_weight, m_column, K, 1, F, F % TILE.columns == 0, TILE.k, PRECISION, "")
        p_out = out_ptr + ((d * n + o_row) * F)[:, None] + o_column[None, :]
        tl.store(p_out, acc.to(out_ptr.dtype.element_ty), mask=m_row[:, None] & m_column[None, :])


LIBRARY_ROWS = 128  # from this many on, float32 is multiplied by PyTorch


class LibraryProduct:
    """PyTorch's product in place of a kernel; like one, it is run for a grid and may be captured in graphs."""

    @staticmethod
    def fn(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, precision: Products) -> None:
        """Write x [D, n, K] @ weight [D, K, F] + bias [D, F] to out [D, n, F]."""
        with float32_products(precision):
            for each in zip(bias, x, weight, out, strict=True):
                torch.addmm(*each[:3], out=each[3])

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Return what runs the product, as a kernel does for a grid."""
        return self.fn


def by_library(x: Tensor, n: int) -> bool:
    """Whether PyTorch multiplies when x has so many rows."""
    return x.device.type == "cuda" and x.dtype == torch.float32 and n >= LIBRARY_ROWS


def linear_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    first_rows: Tensor | int | None = None,
    count: Tensor | None = None,
    precision: Products = "ieee",
    batch_invariant: bool = False,
) -> Launch:
    """Return the launch that writes x @ weight + bias to `out`.

    Args:
        x: [n, K] or [D, n, K], or more rows, with `first_rows` saying where the n begin.
        weight: [K, F] or [D, K, F] in x's type; the D matrices need not be adjacent in memory, but each is contiguous.
            In 16 bits, with K and F multiples of 8, the transpose of each may be contiguous instead (`linear_tma`).
        bias: float32 [F] or [D, F].
        out: [n, F] or [D, n, F], in x's type or float32.
        first_rows: where the n rows begin: one number for all matrices or int32 [D] on the device; results for rows
            beyond x's last are undefined.
        count: int32 [1] on the device, how many of the n rows there are; results beyond them are undefined.
        precision: of float32 products; "tf32" is fast, with an error of about 3e-4.
        batch_invariant: one kernel and one tile for any number of rows, so that a row's bits do not depend on it.

    Raises:
        ValueError: a tensor does not have the expected shape, type or layout.
    """
    if x.ndim not in (2, 3):
        raise ValueError(f"x: expected shape [n, K] or [D, n, K], found {list(x.shape)}")
    *D, n_x, K = x.shape
    n = n_x if first_rows is None else out.shape[-2]
    check("x", x, [*D, n_x, K], FLOATS)
    if list(weight.shape[:-1]) != [*D, K]:
        wanted = ", ".join(map(str, [*D, K, "any"]))
        raise ValueError(f"weight: expected shape [{wanted}], as x is {list(x.shape)}, found {list(weight.shape)}")
    F = weight.shape[-1]
    check("bias", bias, [*D, F], [torch.float32])
    if count is not None:
        check("count", count, [1], [torch.int32])
    check("out", out, [*D, n, F], sorted({x.dtype, torch.float32}, key=str))
    by_tma = is_able(x, weight, out)
    transposed = by_tma and is_k_major(weight)
    matrix = weight[0] if D else weight
    check("weight", matrix.mT if transposed else matrix, [F, K] if transposed else [K, F], [x.dtype])
    on_device = first_rows if isinstance(first_rows, Tensor) else None
    first = first_rows if isinstance(first_rows, int) else 0
    if transposed or (by_tma and is_served(x, n) and not batch_invariant):
        tile = TMA_TILES["linear"][-1] if batch_invariant else None
        return linear_tma_launch(x, weight, bias, out, first_rows=on_device, first=first, count=count, tile=tile)
    if by_library(x, n) and on_device is None and not batch_invariant:
        tensors = {"x": x[..., first : first + n, :], "weight": weight, "bias": bias, "out": out}
        batches = {name: tensor if D else tensor[None] for name, tensor in tensors.items()}
        return Launch(LibraryProduct(), (1,), batches | {"precision": precision}, {})
    tile = choose_tile("linear", x.dtype, precision, n, device=x.device, batch_invariant=batch_invariant)
    arguments = {
        "x_ptr": x,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "out_ptr": out,
        "first_ptr": on_device,
        "count_ptr": count,
        "n": n,
        "n_x": n_x,
        "first": first,
        "first_stride": 0 if on_device is None else on_device.stride(0),
        "K": K,
        "F": F,
        "WEIGHT_STRIDE": weight.stride(0) if D else 0,
        "TILE": tile,
        "ROW_GROUP": ROW_GROUP,
        "PRECISION": precision,
    }
    grid = triton.cdiv(F, tile.columns), triton.cdiv(n, tile.rows), D[0] if D else 1
    return Launch(linear_kernel, grid, arguments, tile.options)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    out_dtype: torch.dtype | None = None,
    precision: Products = "ieee",
    batch_invariant: bool = False,
) -> Tensor:
    """Return x @ weight + bias: [n, K] or [D, n, K] -> [n, F] or [D, n, F] of type `out_dtype`, by default x's.

    Arguments and errors are those of `linear_launch`.
    """
    out = torch.empty(*x.shape[:-1], weight.shape[-1], dtype=out_dtype or x.dtype, device=x.device)
    linear_launch(x, weight, bias, out, precision=precision, batch_invariant=batch_invariant).run()
    return out
