"""The pointwise parts of an LSTM's time step in training, forward and backward, of both directions at once.

Forward, from the gates before activation, i, f, g, o side by side:

    c = clip(sigmoid(f) * c_before + sigmoid(i) * tanh(g), cell_clip),  u = sigmoid(o) * tanh(c)

and the activated gates overwrite the gates they were computed from. Backward, with the gradient du of u, and dc from
the next time step:

    dc  = (dc + du * o * (1 - tanh(c)^2)) where |c| < cell_clip, else 0
    d_i = dc * g * i (1 - i),  d_f = dc * c_before * f (1 - f),  d_g = dc * i (1 - g^2),  d_o = du * tanh(c) * o (1 - o)
    dc_before = dc * f

Both are memory-bound: each value is read and written once. States and arithmetic are float32; gates and u have the
products' type. The rows of one direction begin `*_stride` values after those of the previous one.

Letters: B rows, C cells; both directions are the first dimension, 2.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, float32

from flashelmo.kernels.arguments import FLOATS, check
from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.weights import bound_of
from flashelmo.kernels.product import clip, sigmoid, tanh
from flashelmo.kernels.tuning import Tile

TILE = Tile(1, 512, k=1, warps=4, stages=1)  # each thread has four cells, whose gates are loads of 8 or 16 bytes


@triton.jit
def _places(B, C: tl.constexpr, TILE: tl.constexpr):
    """Return this program's direction, row and columns, and which of these exist. Grid: all rows; blocks of columns."""
    row = tl.program_id(0)
    o_column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    return (row // B).to(tl.int64), (row % B).to(tl.int64), o_column, o_column < C


@triton.jit
def _gate(p_gates, number: tl.constexpr, C: tl.constexpr, o_column, m_column):
    return tl.load(p_gates + number * C + o_column, mask=m_column, other=0.0).to(tl.float32)


@triton.jit
def cell_forward_kernel(
    gates, before, after, u, cell_clip, B, gates_stride, before_stride, after_stride,
    C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute one row's block of columns."""
    direction, row, o_column, m_column = _places(B, C, TILE)
    p_gates = gates + direction * gates_stride + row * (4 * C)
    i = sigmoid(_gate(p_gates, 0, C, o_column, m_column), False)
    f = sigmoid(_gate(p_gates, 1, C, o_column, m_column), False)
    g = tanh(_gate(p_gates, 2, C, o_column, m_column))
    o = sigmoid(_gate(p_gates, 3, C, o_column, m_column), False)
    c = tl.load(before + direction * before_stride + row * C + o_column, mask=m_column, other=0.0)
    c = clip(f * c + i * g, cell_clip)
    tl.store(after + direction * after_stride + row * C + o_column, c, mask=m_column)
    tl.store(u + (direction * B + row) * C + o_column, o * tanh(c), mask=m_column)
    tl.store(p_gates + o_column, i, mask=m_column)
    tl.store(p_gates + C + o_column, f, mask=m_column)
    tl.store(p_gates + 2 * C + o_column, g, mask=m_column)
    tl.store(p_gates + 3 * C + o_column, o, mask=m_column)


@triton.jit
def cell_backward_kernel(
    d_u, d_c, gates, cell, before, d_gates, cell_clip, B, gates_stride, cell_stride, before_stride, d_gates_stride,
    C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute one row's block of columns; d_c is read and replaced."""
    direction, row, o_column, m_column = _places(B, C, TILE)
    p_gates = gates + direction * gates_stride + row * (4 * C)
    i = _gate(p_gates, 0, C, o_column, m_column)
    f = _gate(p_gates, 1, C, o_column, m_column)
    g = _gate(p_gates, 2, C, o_column, m_column)
    o = _gate(p_gates, 3, C, o_column, m_column)
    c = tl.load(cell + direction * cell_stride + row * C + o_column, mask=m_column, other=0.0)
    c_before = tl.load(before + direction * before_stride + row * C + o_column, mask=m_column, other=0.0)
    p_row = (direction * B + row) * C + o_column
    du = tl.load(d_u + p_row, mask=m_column, other=0.0).to(tl.float32)
    dc = tl.load(d_c + p_row, mask=m_column, other=0.0)
    t = tanh(c)
    dc = tl.where(tl.abs(c) < cell_clip, dc + du * o * (1.0 - t * t), 0.0)
    tl.store(d_c + p_row, dc * f, mask=m_column)
    p_out = d_gates + direction * d_gates_stride + row * (4 * C) + o_column
    tl.store(p_out, dc * g * i * (1.0 - i), mask=m_column)
    tl.store(p_out + C, dc * c_before * f * (1.0 - f), mask=m_column)
    tl.store(p_out + 2 * C, dc * i * (1.0 - g * g), mask=m_column)
    tl.store(p_out + 3 * C, du * t * o * (1.0 - o), mask=m_column)


def cell_forward_launch(gates: Tensor, before: Tensor, after: Tensor, u: Tensor, cell_clip: float | None) -> Launch:
    """Return the launch of a time step forward.

    Args:
        gates: [2, B, 4C], with any stride between directions; replaced by the activated gates.
        before: float32 [2, B, C], likewise.
        after: float32 [2, B, C], likewise; written.
        u: [2, B, C] with the gates' type; written.
        cell_clip: bound of the cell state; None for no bound.

    Raises:
        ValueError: a tensor does not have the expected shape, type or layout.
    """
    B, C = _check_gates("gates", gates)
    for name, tensor in (("before", before), ("after", after)):
        _check_rows(name, tensor, [2, B, C], [float32])
    check("u", u, [2, B, C], [gates.dtype])
    arguments = {
        "gates": gates, "before": before, "after": after, "u": u, "cell_clip": bound_of(cell_clip), "B": B,
        "gates_stride": gates.stride(0), "before_stride": before.stride(0), "after_stride": after.stride(0),
        "C": C, "TILE": TILE,
    }  # fmt: skip
    return Launch(cell_forward_kernel, (2 * B, cdiv(C, TILE.columns)), arguments, TILE.options)


def cell_backward_launch(
    d_u: Tensor, d_c: Tensor, gates: Tensor, cell: Tensor, before: Tensor, d_gates: Tensor, cell_clip: float | None
) -> Launch:
    """Return the launch of a time step backward.

    Args:
        d_u: [2, B, C], the gradient of u.
        d_c: float32 [2, B, C], the gradient of the cell state from the next step; replaced by that of the state before.
        gates: [2, B, 4C], activated, with any stride between directions, as for all that follow.
        cell, before: float32 [2, B, C], the states after and before the step.
        d_gates: [2, B, 4C] with the gates' type; written: the gradient of the gates before activation.
        cell_clip: bound of the cell state; None for no bound.

    Raises:
        ValueError: a tensor does not have the expected shape, type or layout.
    """
    B, C = _check_gates("gates", gates)
    check("d_u", d_u, [2, B, C], FLOATS)
    check("d_c", d_c, [2, B, C], [float32])
    _check_rows("d_gates", d_gates, [2, B, 4 * C], [gates.dtype])
    for name, tensor in (("cell", cell), ("before", before)):
        _check_rows(name, tensor, [2, B, C], [float32])
    arguments = {
        "d_u": d_u, "d_c": d_c, "gates": gates, "cell": cell, "before": before, "d_gates": d_gates,
        "cell_clip": bound_of(cell_clip), "B": B, "gates_stride": gates.stride(0), "cell_stride": cell.stride(0),
        "before_stride": before.stride(0), "d_gates_stride": d_gates.stride(0), "C": C, "TILE": TILE,
    }  # fmt: skip
    return Launch(cell_backward_kernel, (2 * B, cdiv(C, TILE.columns)), arguments, TILE.options)


def _check_gates(name: str, gates: Tensor) -> tuple[int, int]:
    """Check the gates; return B and C."""
    _check_rows(name, gates, [2, None, None], FLOATS)
    _, B, four_c = gates.shape
    if four_c % 4:
        raise ValueError(f"{name}: expected four gates side by side, found {four_c} columns")
    return B, four_c // 4


def _check_rows(name: str, tensor: Tensor, shape: list[int | None], dtypes: object) -> None:
    """Do the checks of `check`, for a tensor that is contiguous within each direction."""
    check(name, tensor[0], shape[1:], dtypes)  # type: ignore[arg-type]
    if tensor.shape[0] != 2:
        raise ValueError(f"{name}: expected two directions, found {tensor.shape[0]}")
