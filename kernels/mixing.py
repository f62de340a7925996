"""What kernels of tokens' layers share: how a layer is read, mixed and written.

A row of mix that has a single 1 and otherwise zeros copies that layer, bit for bit if the type stays the same. In every
other row all layers count, even with a coefficient of zero: NaN in one layer of a token gives NaN in its mix, as in the
formula. A program reads each row that some output needs once, and writes all O outputs from it. Sums are float32, and
their fused multiply-adds explicit: of a * b + c * d a compiler may fuse either product, so the bits of a result would
depend on the tile.

Letters: L layers, O outputs, P projection, N nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32: beyond it are infinity and, in comparisons here, NaN


class Shape(NamedTuple):
    """Constants of a model and of what is requested of it; kernels are compiled for each."""

    L: int
    O: int  # noqa: E741
    P: int


@triton.jit
def copied_layer(mix, i_output, L: tl.constexpr):
    """Return the layer that an output copies, or -1 if it is a mix."""
    n, copied = 0, -1
    for k in tl.static_range(L):
        coefficient = tl.load(mix + i_output * L + k)
        n += (coefficient != 0.0).to(tl.int32)
        copied = tl.where(coefficient == 1.0, k, copied)
    return tl.where(n == 1, copied, -1)


@triton.jit
def load_layers(
    word_vectors, outputs, tokens, mix, o_token, m_token, o_column, direction, n_tokens, N,
    SHAPE: tl.constexpr,
):  # fmt: skip
    """Return one direction's layers of some tokens: L times [tokens, columns]; zero where no output needs a layer."""
    L: tl.constexpr = SHAPE.L
    O: tl.constexpr = SHAPE.O  # noqa: E741
    P: tl.constexpr = SHAPE.P
    word = tl.load(tokens.words + o_token, mask=m_token, other=0).to(tl.int64)
    node = tl.load(tokens.nodes + direction * n_tokens + o_token, mask=m_token, other=0).to(tl.int64)
    m = m_token[:, None] & (o_column < P)[None, :]
    layers = ()
    for k in tl.static_range(L):
        is_needed = False
        for i_output in tl.static_range(O):
            copied = copied_layer(mix, i_output, L)
            is_needed = is_needed | (copied < 0) | (copied == k)
        if k == 0:
            p_row = word_vectors + word * P
        else:
            p_row = outputs + ((tl.cast(N, tl.int64) * (2 * k - 2 + direction)) + node) * P
        layers += (tl.load(p_row[:, None] + o_column[None, :], mask=m & is_needed, other=0.0),)  # type: ignore[assignment]
    return layers


@triton.jit
def store_output(layers, mix, i_output, p_out, m, L: tl.constexpr):
    """Write one output of layers, or of their means, to pointers of their shape; return 1 where it is not finite."""
    copied = copied_layer(mix, i_output, L)
    if copied < 0:
        mixed = tl.load(mix + i_output * L) * layers[0].to(tl.float32)
        for k in tl.static_range(1, L):
            mixed = tl.fma(layers[k].to(tl.float32), tl.load(mix + i_output * L + k), mixed)
        value = mixed.to(p_out.dtype.element_ty)
    else:
        copy = layers[0]
        for k in tl.static_range(1, L):
            copy = tl.where(copied == k, layers[k], copy)
        value = copy.to(p_out.dtype.element_ty)
    tl.store(p_out, value, mask=m)
    return tl.where(m & ~(tl.abs(value.to(tl.float32)) <= LARGEST), 1, 0)


@triton.jit
def set_flag(flag, n_bad):
    """Set the flag if this program has found a value that is not finite."""
    if tl.max(n_bad) > 0:
        tl.store(flag, 1)
