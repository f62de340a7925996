"""Tokens' mixed layers pooled over sentences: kernels of `token_layers`.

    out[o, sentence] = the mean, or the maximum, of the tokens' mixed layers, zero where there are none

A mean adds token j of its sentence to partial sum j % LANES, in order, then adds the upper half of the partial sums to
the lower until one is left, and divides. So a sentence's mean has the same bits whatever else is requested with it. A
maximum is NaN if any token's value is.

Letters: L layers, O outputs, P projection, N nodes, B sentences.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from flashelmo.kernels.mixing import LARGEST, copied_layer, load_layers, set_flag, store_output
from flashelmo.kernels.product import larger
from flashelmo.kernels.tuning import Tile

LANES = 8  # partial sums of a mean: more would be idle in short sentences, and cost registers
# For means and maxima. With few sentences, a program has fewer columns, so that a long sentence is shared by many, and
# more stages, as it goes through the sentence in more steps. A block's ids are loaded one stage before its rows, so
# that stages - 2 blocks of rows are in flight.
MANY_MEANS = Tile(rows=LANES, columns=128, k=1, warps=2, stages=4)
FEW_MEANS = Tile(rows=LANES, columns=32, k=1, warps=1, stages=8)
MANY = 512  # programs of MANY_MEANS: four per multiprocessor of a large card


@triton.jit
def sum_rows(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the sum [COLUMNS] of [ROWS, COLUMNS], adding the upper half to the lower: one order in any layout."""
    if ROWS == 1:
        return tl.reshape(x, (COLUMNS,))
    else:
        lower, upper = tl.split(tl.permute(tl.reshape(x, (2, ROWS // 2, COLUMNS)), (1, 2, 0)))
        return sum_rows(lower + upper, ROWS // 2, COLUMNS)


@triton.jit
def largest_row(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the maximum [COLUMNS] of [ROWS, COLUMNS]."""
    if ROWS == 1:
        return tl.reshape(x, (COLUMNS,))
    else:
        lower, upper = tl.split(tl.permute(tl.reshape(x, (2, ROWS // 2, COLUMNS)), (1, 2, 0)))
        return largest_row(larger(lower, upper), ROWS // 2, COLUMNS)


@triton.jit
def output_of(layers, mix, i_output, L: tl.constexpr):
    """Return one output of layers in float32, without a branch."""
    copied = copied_layer(mix, i_output, L)
    copy = layers[0].to(tl.float32)
    mixed = tl.where(copied < 0, copy, 0.0) * tl.load(mix + i_output * L)
    for k in tl.static_range(1, L):
        layer = layers[k].to(tl.float32)
        mixed = tl.fma(tl.where(copied < 0, layer, 0.0), tl.load(mix + i_output * L + k), mixed)
        copy = tl.where(copied == k, layer, copy)
    return tl.where(copied < 0, mixed, copy)


@triton.jit(do_not_specialize=["n_tokens", "N"])
def sentences_kernel(
    word_vectors, outputs, tokens, mix, out, flag, n_tokens, N,
    SHAPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute mixed means of sentences, out [O, B, 2, P]. Grid: sentences; directions; blocks of columns."""
    L: tl.constexpr = SHAPE.L
    O: tl.constexpr = SHAPE.O  # noqa: E741
    ROWS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.columns
    STAGES: tl.constexpr = TILE.stages
    sentence, n_sentences, direction = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    o_column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = tl.load(tokens.offsets + sentence), tl.load(tokens.offsets + sentence + 1)
    sums = ()
    for _ in tl.static_range(L):
        sums += (tl.zeros([ROWS, COLUMNS], tl.float32),)  # type: ignore[assignment]
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        o_token = start + tl.arange(0, ROWS)
        layers = load_layers(
            word_vectors, outputs, tokens, mix, o_token, o_token < last, o_column, direction, n_tokens, N, SHAPE
        )  # fmt: skip
        longer = ()
        for k in tl.static_range(L):
            longer += (sums[k] + layers[k].to(tl.float32),)  # type: ignore[assignment]
        sums = longer
    means = ()
    for k in tl.static_range(L):
        means += (tl.div_rn(sum_rows(sums[k], ROWS, COLUMNS), tl.maximum(last - first, 1).to(tl.float32)),)  # type: ignore[assignment]
    n_bad = tl.zeros([COLUMNS], tl.int32)
    for i_output in tl.static_range(O):
        o_row = ((tl.cast(n_sentences, tl.int64) * i_output + sentence) * 2 + direction) * SHAPE.P
        n_bad += store_output(means, mix, i_output, out + o_row + o_column, o_column < SHAPE.P, L)
    if flag is not None:
        set_flag(flag, n_bad)


@triton.jit(do_not_specialize=["n_tokens", "N"])
def maxima_kernel(
    word_vectors, outputs, tokens, mix, out, flag, n_tokens, N,
    SHAPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Compute maxima of sentences' mixed layers, out [O, B, 2, P]. Grid: sentences; directions; blocks of columns."""
    O: tl.constexpr = SHAPE.O  # noqa: E741
    ROWS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.columns
    STAGES: tl.constexpr = TILE.stages
    sentence, n_sentences, direction = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    o_column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = tl.load(tokens.offsets + sentence), tl.load(tokens.offsets + sentence + 1)
    largest = ()
    for _ in tl.static_range(O):
        largest += (tl.full([ROWS, COLUMNS], float("-inf"), tl.float32),)  # type: ignore[assignment]
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        o_token = start + tl.arange(0, ROWS)
        m_token = o_token < last
        layers = load_layers(
            word_vectors, outputs, tokens, mix, o_token, m_token, o_column, direction, n_tokens, N, SHAPE
        )  # fmt: skip
        found = ()
        for i_output in tl.static_range(O):
            values = tl.where(m_token[:, None], output_of(layers, mix, i_output, SHAPE.L), float("-inf"))
            found += (larger(largest[i_output], values),)  # type: ignore[assignment]
        largest = found
    m = o_column < SHAPE.P
    n_bad = tl.zeros([COLUMNS], tl.int32)
    for i_output in tl.static_range(O):
        o_row = ((tl.cast(n_sentences, tl.int64) * i_output + sentence) * 2 + direction) * SHAPE.P
        value = tl.where(first < last, largest_row(largest[i_output], ROWS, COLUMNS), 0.0).to(out.dtype.element_ty)
        tl.store(out + o_row + o_column, value, mask=m)
        n_bad += tl.where(m & ~(tl.abs(value.to(tl.float32)) <= LARGEST), 1, 0)
    if flag is not None:
        set_flag(flag, n_bad)


POOLING: dict[str, Any] = {"mean": sentences_kernel, "max": maxima_kernel}


def means_tile(n_sentences: int, P: int) -> Tile:
    """Return the tile of means or maxima of so many sentences.

    Every tile adds in the same order, so that the bits of a mean do not depend on the choice.
    """
    tile = MANY_MEANS if 2 * n_sentences * triton.cdiv(P, MANY_MEANS.columns) >= MANY else FEW_MEANS
    return tile._replace(columns=min(tile.columns, triton.next_power_of_2(P)))
