"""A product with bias, for one matrix or for several at once.

    y = x @ W + b

The characters' projection after the highways, and the LSTM's input product x @ W_x + b of many steps at once, both
directions in one launch (`lstm.hoisted`). Sums are float32.

Letters: D matrices, n rows, K inputs, F outputs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.launch import FLOATS, Launch, Products, check
from flashelmo.kernels.product import product, zeros
from flashelmo.kernels.tuning import ROW_GROUP, choose_tile


@triton.jit(do_not_specialize=["n", "n_x", "first_stride"])
def linear_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, first_ptr, n, n_x, first_stride,
    K: tl.constexpr, F: tl.constexpr, WEIGHT_STRIDE: tl.constexpr,
    TILE: tl.constexpr, ROW_GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of rows and columns. Grid: blocks of columns; blocks of rows; D."""
    i_rows, i_columns = tl.swizzle2d(
        tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), ROW_GROUP
    )
    d = tl.program_id(2).to(tl.int64)
    o_row = i_rows * TILE.rows + tl.arange(0, TILE.rows)
    o_column = i_columns * TILE.columns + tl.arange(0, TILE.columns)
    m_row, m_column = o_row < n, o_column < F
    row = d * n_x + o_row
    if first_ptr is not None:
        first = tl.load(first_ptr + d * first_stride)
        row, m_row = row + first, m_row & (first + o_row < n_x)
    p_x = x_ptr + row * K
    p_weight = weight_ptr + d * WEIGHT_STRIDE + o_column
    bias = tl.load(bias_ptr + d * F + o_column, mask=m_column, other=0.0)
    acc = zeros(TILE.rows, TILE.columns) + bias[None, :]
    acc = product(acc, p_x, p_x, m_row, p_weight, m_column, K, 1, F, F % TILE.columns == 0, TILE.k, PRECISION, "")
    p_out = out_ptr + ((d * n + o_row) * F)[:, None] + o_column[None, :]
    tl.store(p_out, acc.to(out_ptr.dtype.element_ty), mask=m_row[:, None] & m_column[None, :])


def linear_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    first_rows: Tensor | None = None,
    precision: Products = "ieee",
) -> Launch:
    """The launch that writes x @ weight + bias to `out`.

    Args:
        x: [n, K] or [D, n, K]; more rows where `first_rows` says which are meant.
        weight: [K, F] or [D, K, F] in x's type; the D matrices may lie apart in memory, each is contiguous.
        bias: float32 [F] or [D, F].
        out: [n, F] or [D, n, F], in x's type or float32.
        first_rows: int32 [D] on the device, the first row of x of each matrix; rows beyond x's last are left out.
        precision: of float32 products; "tf32" is fast and off by about 3e-4.

    Raises:
        ValueError: a tensor has another shape, type or layout than it should.
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
    check("weight", weight[0] if D else weight, [K, F], [x.dtype])
    check("bias", bias, [*D, F], [torch.float32])
    check("out", out, [*D, n, F], sorted({x.dtype, torch.float32}, key=str))
    tile = choose_tile("linear", x.dtype, precision, n, device=x.device)
    arguments = {
        "x_ptr": x,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "out_ptr": out,
        "first_ptr": first_rows,
        "n": n,
        "n_x": n_x,
        "first_stride": 0 if first_rows is None else first_rows.stride(0),
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
    x: Tensor, weight: Tensor, bias: Tensor, *, out_dtype: torch.dtype | None = None, precision: Products = "ieee"
) -> Tensor:
    """x @ weight + bias: [n, K] or [D, n, K] -> [n, F] or [D, n, F] of type `out_dtype`, by default x's.

    Arguments and errors are those of `linear_launch`.
    """
    out = torch.empty(*x.shape[:-1], weight.shape[-1], dtype=out_dtype or x.dtype, device=x.device)
    linear_launch(x, weight, bias, out, precision=precision).run()
    return out
