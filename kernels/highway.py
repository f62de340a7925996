"""A highway layer: product, gate and carry in one kernel.

    g = sigmoid(x @ W_g + b_g)
    y = g * relu(x @ W_t + b_t) + (1 - g) * x

(Srivastava et al. 2015, https://arxiv.org/abs/1505.00387.) Transform and gate of a feature are columns 2j and 2j + 1 of
one weight, so that a block of the product holds both and the layer needs no intermediate in memory; to carry x, it is
read once more. Sums and gates are float32.

Letters: n rows, F features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.arguments import FLOATS, Products, check
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.product import larger, product, zeros
from flashelmo.kernels.tuning import ROW_GROUP, choose_tile


class HighwayWeights(NamedTuple):
    """One layer's weights as the kernel reads them.

    Attributes:
        weight: [F, 2F]; columns 2j and 2j + 1 are transform and gate of feature j.
        bias: float32 [2F], likewise.
    """

    weight: Tensor
    bias: Tensor


def pack_highway(
    transform_weight: Tensor,
    transform_bias: Tensor,
    gate_weight: Tensor,
    gate_bias: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> HighwayWeights:
    """Lay out the weights [F, F] and biases [F] of one layer for the kernel; where the gate is 1, x is not carried.

    Args:
        dtype: the compute type.

    Raises:
        ValueError: a tensor does not have the expected shape or type.
    """
    check("transform_weight", transform_weight, [None, None], FLOATS)
    F = transform_weight.shape[1]
    for name, weight in (("transform_weight", transform_weight), ("gate_weight", gate_weight)):
        check(name, weight, [F, F], FLOATS)
    for name, bias in (("transform_bias", transform_bias), ("gate_bias", gate_bias)):
        check(name, bias, [F], FLOATS)
    weight = torch.stack([transform_weight, gate_weight], dim=-1).flatten(-2)
    bias = torch.stack([transform_bias, gate_bias], dim=-1).flatten(-2)
    return HighwayWeights(weight.to(device, dtype), bias.to(device, torch.float32))


@triton.jit(do_not_specialize=["n"])
def highway_kernel(
    x_ptr, weights, out_ptr, n,
    F: tl.constexpr, TILE: tl.constexpr, ROW_GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a block of rows and features. Grid: blocks of features; blocks of rows."""
    i_rows, i_features = tl.swizzle2d(
        tl.program_id(1), tl.program_id(0), tl.num_programs(1), tl.num_programs(0), ROW_GROUP
    )
    row = (i_rows * TILE.rows + tl.arange(0, TILE.rows)).to(tl.int64)
    m_row = row < n
    o_column = i_features * (2 * TILE.columns) + tl.arange(0, 2 * TILE.columns)
    m_column = o_column < 2 * F
    p_x = x_ptr + row * F
    EVEN: tl.constexpr = F % TILE.columns == 0
    bias = tl.load(weights.bias + o_column, mask=m_column, other=0.0)
    acc = zeros(TILE.rows, 2 * TILE.columns) + bias[None, :]
    acc = product(acc, p_x, p_x, m_row, weights.weight + o_column, m_column, F, 1, 2 * F, EVEN, TILE.k, PRECISION, "")

    transform, gate = tl.split(tl.reshape(acc, (TILE.rows, TILE.columns, 2)))
    o_feature = i_features * TILE.columns + tl.arange(0, TILE.columns)
    m = m_row[:, None] & (o_feature < F)[None, :]
    x = tl.load(p_x[:, None] + o_feature[None, :], mask=m, other=0.0).to(tl.float32)
    g = tl.sigmoid(gate)
    # An explicit fma: a compiler may fuse either product, so the bits of a result would depend on the tile.
    y = tl.fma(g, larger(transform, 0.0), (1.0 - g) * x)
    tl.store(out_ptr + (row * F)[:, None] + o_feature[None, :], y.to(out_ptr.dtype.element_ty), mask=m)


def highway_launch(
    x: Tensor, weights: HighwayWeights, out: Tensor, *, precision: Products = "ieee", batch_invariant: bool = False
) -> Launch:
    """Return the launch that writes one highway layer of x to `out`.

    Args:
        x: [n, F] in the weights' type.
        out: [n, F] in the same type, and not x itself: every block reads whole rows of x.
        precision: of float32 products; "tf32" is fast, with an error of about 3e-4.
        batch_invariant: one tile for any number of rows, so that a row's bits do not depend on it.

    Raises:
        ValueError: a tensor does not have the expected shape, type or layout, or there is no such precision.
    """
    check("weight", weights.weight, [None, None], FLOATS)
    F, dtype = weights.weight.shape[0], weights.weight.dtype
    check("weight", weights.weight, [F, 2 * F], FLOATS)
    check("bias", weights.bias, [2 * F], [torch.float32])
    check("x", x, [None, F], [dtype])
    n = x.shape[0]
    check("out", out, [n, F], [dtype])
    if out.data_ptr() == x.data_ptr() != 0:
        raise ValueError("out: expected memory of its own, found x's")
    tile = choose_tile("highway", dtype, precision, n, device=x.device, batch_invariant=batch_invariant)
    arguments = {
        "x_ptr": x,
        "weights": weights,
        "out_ptr": out,
        "n": n,
        "F": F,
        "TILE": tile,
        "ROW_GROUP": ROW_GROUP,
        "PRECISION": precision,
    }
    grid = triton.cdiv(F, tile.columns), triton.cdiv(n, tile.rows)
    return Launch(highway_kernel, grid, arguments, tile.options)


def highway(
    x: Tensor, weights: HighwayWeights, *, precision: Products = "ieee", batch_invariant: bool = False
) -> Tensor:
    """Return one highway layer of x: [n, F] -> [n, F].

    Arguments and errors are those of `highway_launch`.
    """
    out = torch.empty_like(x)
    highway_launch(x, weights, out, precision=precision, batch_invariant=batch_invariant).run()
    return out
