"""Layers of tokens, gathered from the forests, mixed, and pooled over sentences where that is asked for.

With layer 0 of a token [x, x] of its word vector x, layer k > 0 what LSTM layer k - 1 put out at its two nodes, forward
and backward side by side, and mix [O, L] the coefficients:

    out[o, token] = sum over k of mix[o, k] * layer k of the token
    out[o, sentence] = the mean, or the largest value, of that over the sentence's tokens, zero where there are none

so that a sentence's tokens a:b are the view out[:, a:b], in which each layer is contiguous.

An identity gives all layers, one row with a single 1 the top layer, one of 1 / L their average, and one of
softmax(w) * gamma the learned scalar mix of Peters et al. 2018 (https://arxiv.org/abs/1802.05365).

A row of mix with a single 1 and zeros is a copy of that layer, bit for bit where the type stays. In every other row all
layers count, with a coefficient of zero too: NaN in one layer of a token is NaN in what is mixed of it, as in the
formula. A program reads each row that some output needs, once, and writes all O outputs from it. Sums are float32, and
their fused products explicit: of a * b + c * d a compiler may fuse either product, so that bits would be a tile's.

A flag that is given is set where a value that is written is infinite or NaN, and left as it is otherwise: an overflow,
which nobody has to look for in the results. It may lie in the host's pinned memory, which a card writes to directly, so
that reading it takes neither a copy nor more waiting than for the results.

A mean adds token j of its sentence to partial sum j % LANES, in order, then the upper half of the partial sums to the
lower, until one is left, and divides. So a sentence's mean has the same bits whatever else is asked for with it. A
maximum is NaN where a token's value is.

Letters: L layers, O outputs, P projection, N nodes, B sentences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.arguments import FLOATS, check
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.product import larger
from flashelmo.kernels.tuning import Tile

# Bound by memory: whole rows, 16 bytes a load and thread, and as many values a program as leave registers for several
# programs a multiprocessor.
VALUES = 2048  # of a layer, in a program of tokens
TOKENS = 32  # in a program, at most
COLUMNS = 2048  # of a program, at most
WARPS = 4

LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32: beyond it are infinity and, by its order, NaN

LANES = 8  # partial sums of a mean: more would be idle in short sentences, and cost registers
# Means and maxima. With few sentences a program has fewer columns, so that a long sentence is the work of many, and
# more stages, as it goes through the sentence in more steps; stages - 2 blocks of rows are on their way, behind their
# ids.
MANY_MEANS = Tile(rows=LANES, columns=128, k=1, warps=2, stages=4)
FEW_MEANS = Tile(rows=LANES, columns=32, k=1, warps=1, stages=8)
MANY = 512  # programs of MANY_MEANS: four for each multiprocessor of a large card


class Tokens(NamedTuple):
    """The tokens whose layers are asked for, sentences end to end; kernels read wherever these integers point.

    Attributes:
        words: int32 [tokens], the row of each token's word vector.
        nodes: int32 [2, tokens], its node in the forward and in the backward forest, counted from the roots on.
        offsets: int32 or int64 [B + 1], sentence b's tokens are offsets[b]:offsets[b + 1]; None for every token by
            itself.
    """

    words: Any
    nodes: Any
    offsets: Any


class Shape(NamedTuple):
    """Constants of a model and of what is asked of it: one compilation each."""

    L: int
    O: int  # noqa: E741
    P: int


@triton.jit
def copied_layer(mix, i_output, L: tl.constexpr):
    """The layer that an output is a copy of, -1 if it is a mix."""
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
    """One direction's layers of some tokens: L times [tokens, columns]; zero where no output needs a layer."""
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
    """One output of layers, or of their means, to pointers of their shape; 1 where what is written is not finite."""
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
    """Set it where a program has found a value that is not finite."""
    if tl.max(n_bad) > 0:
        tl.store(flag, 1)


@triton.jit(do_not_specialize=["n_tokens", "N"])
def tokens_kernel(
    word_vectors, outputs, tokens, mix, out, flag, n_tokens, N,
    SHAPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Mixed layers of tokens, out [O, tokens, 2, P]. Grid: blocks of tokens; directions; blocks of columns."""
    O: tl.constexpr = SHAPE.O  # noqa: E741
    ROWS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.columns
    direction = tl.program_id(1)
    o_token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m_token = o_token < n_tokens
    o_column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    layers = load_layers(
        word_vectors, outputs, tokens, mix, o_token, m_token, o_column, direction, n_tokens, N, SHAPE
    )  # fmt: skip
    m = m_token[:, None] & (o_column < SHAPE.P)[None, :]
    n_bad = tl.zeros([ROWS, COLUMNS], tl.int32)
    for i_output in tl.static_range(O):
        o_row = ((tl.cast(n_tokens, tl.int64) * i_output + o_token) * 2 + direction) * SHAPE.P
        n_bad += store_output(layers, mix, i_output, out + o_row[:, None] + o_column[None, :], m, SHAPE.L)
    if flag is not None:
        set_flag(flag, n_bad)


@triton.jit
def sum_rows(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] -> [COLUMNS], the upper half added to the lower until one is left: one order in any layout."""
    if ROWS == 1:
        return tl.reshape(x, (COLUMNS,))
    else:
        lower, upper = tl.split(tl.permute(tl.reshape(x, (2, ROWS // 2, COLUMNS)), (1, 2, 0)))
        return sum_rows(lower + upper, ROWS // 2, COLUMNS)


@triton.jit
def largest_row(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS] -> [COLUMNS]."""
    if ROWS == 1:
        return tl.reshape(x, (COLUMNS,))
    else:
        lower, upper = tl.split(tl.permute(tl.reshape(x, (2, ROWS // 2, COLUMNS)), (1, 2, 0)))
        return largest_row(larger(lower, upper), ROWS // 2, COLUMNS)


@triton.jit(do_not_specialize=["n_tokens", "N"])
def sentences_kernel(
    word_vectors, outputs, tokens, mix, out, flag, n_tokens, N,
    SHAPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Mixed means of sentences, out [O, B, 2, P]. Grid: sentences; directions; blocks of columns."""
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


@triton.jit
def output_of(layers, mix, i_output, L: tl.constexpr):
    """One output of layers in float32, without a branch."""
    copied = copied_layer(mix, i_output, L)
    copy = layers[0].to(tl.float32)
    mixed = tl.where(copied < 0, copy, 0.0) * tl.load(mix + i_output * L)
    for k in tl.static_range(1, L):
        layer = layers[k].to(tl.float32)
        mixed = tl.fma(tl.where(copied < 0, layer, 0.0), tl.load(mix + i_output * L + k), mixed)
        copy = tl.where(copied == k, layer, copy)
    return tl.where(copied < 0, mixed, copy)


@triton.jit(do_not_specialize=["n_tokens", "N"])
def maxima_kernel(
    word_vectors, outputs, tokens, mix, out, flag, n_tokens, N,
    SHAPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Largest values of sentences' mixed layers, out [O, B, 2, P]. Grid: sentences; directions; blocks of columns."""
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


def token_layers_launch(
    word_vectors: Tensor,
    outputs: Tensor,
    tokens: Tokens,
    mix: Tensor,
    out: Tensor,
    flag: Tensor | None = None,
    pool: str = "mean",
) -> Launch:
    """The launch that fills `out`.

    Args:
        word_vectors: [words, P].
        outputs: [L - 1, 2, N, P] of the same type, what the LSTM layers put out, forward and backward.
        tokens: of these words and nodes.
        mix: float32 [O, L].
        out: float32, fp16 or bf16 [O, tokens, 2P], or [O, B, 2P] where the tokens have offsets.
        flag: int32 [1], set to 1 where `out` is not finite; on the device, or pinned in the host's memory.
        pool: "mean" or "max", of sentences where the tokens have offsets.

    Raises:
        ValueError: a tensor has another shape, type or layout than it should.
    """
    check("word_vectors", word_vectors, [None, None], FLOATS)
    P, n_tokens = word_vectors.shape[1], tokens.words.shape[0]
    check("outputs", outputs, [None, 2, None, P], [word_vectors.dtype])
    L, N = outputs.shape[0] + 1, outputs.shape[2]
    check("tokens.words", tokens.words, [None], [torch.int32])
    check("tokens.nodes", tokens.nodes, [2, n_tokens], [torch.int32])
    check("mix", mix, [None, L], [torch.float32])
    kernel, tile, rows = tokens_kernel, tokens_tile(P), n_tokens
    if tokens.offsets is not None:
        check("tokens.offsets", tokens.offsets, [None], [torch.int32, torch.int64])
        rows = tokens.offsets.shape[0] - 1
        kernel, tile = POOLING[pool], means_tile(rows, P)
    check("out", out, [mix.shape[0], rows, 2 * P], FLOATS)
    if flag is not None:
        check("flag", flag, [1], [torch.int32])
    arguments = {
        "word_vectors": word_vectors,
        "outputs": outputs,
        "tokens": tokens,
        "mix": mix,
        "out": out,
        "flag": flag,
        "n_tokens": n_tokens,
        "N": N,
        "SHAPE": Shape(L, mix.shape[0], P),
        "TILE": tile,
    }
    programs = rows if tokens.offsets is not None else triton.cdiv(rows, tile.rows)
    return Launch(kernel, (programs, 2, triton.cdiv(P, tile.columns)), arguments, tile.options)


def tokens_tile(P: int) -> Tile:
    """Tokens and columns of a program: whole rows where these are not too long."""
    columns = min(COLUMNS, triton.next_power_of_2(P))
    return Tile(min(TOKENS, VALUES // columns), columns, 1, WARPS, stages=1)


def means_tile(n_sentences: int, P: int) -> Tile:
    """Partial results and columns of a program of means or maxima; a mean's order, and so its bits, is any tile's."""
    tile = MANY_MEANS if 2 * n_sentences * triton.cdiv(P, MANY_MEANS.columns) >= MANY else FEW_MEANS
    return tile._replace(columns=min(tile.columns, triton.next_power_of_2(P)))


def token_layers(
    word_vectors: Tensor,
    outputs: Tensor,
    tokens: Tokens,
    mix: Tensor,
    *,
    out_dtype: torch.dtype = torch.float32,
    flag: Tensor | None = None,
    pool: str = "mean",
) -> Tensor:
    """Mixed layers of tokens [O, tokens, 2P], or pooled over sentences [O, B, 2P], zero for an empty sentence.

    Arguments and errors are those of `token_layers_launch`, whose `out` has `out_dtype`.
    """
    n_rows = (tokens.words if tokens.offsets is None else tokens.offsets[1:]).shape[0]
    out = torch.empty(mix.shape[0], n_rows, 2 * word_vectors.shape[-1], dtype=out_dtype, device=word_vectors.device)
    token_layers_launch(word_vectors, outputs, tokens, mix, out, flag, pool).run()
    return out
