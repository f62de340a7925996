"""The main loop that every kernel shares, and the pointwise functions of their epilogues.

    acc [M, N] += sum over k of rows[M, k] * weight[k, N]

The rows are given by pointers, so that they may be gathered, and may come from two tensors one after the other: the
LSTM's [x, hidden] is never concatenated in memory. Products are in the rows' type, or TF32 if requested; sums are
float32, or int32 where rows and weight are 8-bit integers, whose scales the caller applies.

Sizes need not fit the blocks: what lies beyond them is read as zero.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr, TYPE: tl.constexpr = tl.float32):
    """Return sums to begin with."""
    return tl.zeros([ROWS, COLUMNS], TYPE)


@triton.jit
def product(
    acc,  # float32 or int32 [M, N] that the product is added to, so that it is loaded along with the first blocks
    p_rows,  # [M] pointers to the rows
    p_more_rows,  # [M] pointers to the second half of the rows, where PARTS is 2
    m_rows,  # [M] which rows exist
    p_columns,  # [N] pointers to the columns of the weight [PARTS * SIZE, STRIDE]
    m_columns,  # [N] which columns exist
    SIZE: tl.constexpr,  # length of a row
    PARTS: tl.constexpr,  # 1 or 2
    STRIDE: tl.constexpr,  # from one row of the weight to the next
    EVEN_COLUMNS: tl.constexpr,  # all columns exist
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,  # "ieee" or "tf32"
    KEEP: tl.constexpr,  # eviction policy of the weight
):
    """Return acc plus the product: [M, N] with acc's type."""
    N_BLOCKS: tl.constexpr = (SIZE + BLOCK_K - 1) // BLOCK_K
    for i in range(PARTS * N_BLOCKS):  # one loop for both halves, so that loads run ahead across them
        part = i // N_BLOCKS
        o_k = i % N_BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
        p_a = p_rows
        if PARTS == 2:
            p_a = tl.where(part == 0, p_rows, p_more_rows)
        p_a = p_a[:, None] + o_k[None, :]
        p_b = p_columns[None, :] + (part * SIZE + o_k).to(tl.int64)[:, None] * STRIDE
        m_a, m_b = m_rows[:, None], m_columns[None, :]
        if SIZE % BLOCK_K != 0:
            m_a, m_b = m_a & (o_k < SIZE)[None, :], m_b & (o_k < SIZE)[:, None]
        a = tl.load(p_a, mask=m_a, other=0.0)
        if EVEN_COLUMNS and SIZE % BLOCK_K == 0:
            b = tl.load(p_b, eviction_policy=KEEP)
        else:
            b = tl.load(p_b, mask=m_b, other=0, eviction_policy=KEEP)
        acc = tl.dot(a, b, acc, input_precision=PRECISION, out_dtype=acc.dtype)
    return acc


@triton.jit
def tanh(x, APPROXIMATE: tl.constexpr = False):
    """Return the hyperbolic tangent, with an absolute error of 1.2e-7; if the exponential overflows, the limit is
    right.

    APPROXIMATE uses the card's own instruction, with a relative error of 2^-11 where bf16 rounds to 2^-9: one
    instruction instead of 13. Triton's interpreter does not have it.
    """
    if APPROXIMATE:
        return tl.inline_asm_elementwise(
            "tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )  # fmt: skip
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def sigmoid(x, APPROXIMATE: tl.constexpr):
    """Return the logistic function; APPROXIMATE uses the card's tanh, with an absolute error of 2^-12."""
    if APPROXIMATE:
        return 0.5 * tanh(0.5 * x, APPROXIMATE) + 0.5
    return tl.sigmoid(x)


@triton.jit
def larger(x, y):
    """Return the larger one, or NaN if either is NaN."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def int8_of(rows, scale):
    """Return rows [M, N] in units of their scale [M], rounded to the nearest integer (ties to even), at most 127.

    Adding 1.5 * 2^23 leaves that integer in a float's last bits, without conversions, which are slow.
    """
    units = tl.clamp(rows * (1.0 / scale)[:, None], -127.0, 127.0)
    return (units + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def clip(x, bound):
    """Clip x to [-bound, bound]; an infinite bound clips nothing."""
    return tl.clamp(x, -bound, bound, propagate_nan=tl.PropagateNan.ALL)
