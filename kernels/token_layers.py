"""Layers of tokens, gathered from the forests, mixed, and, if requested, pooled over sentences.

Layer 0 of a token is [x, x], with its word vector x; layer k > 0 is the output of LSTM layer k - 1 at the token's two
nodes, forward and backward side by side; and mix [O, L] are the coefficients:

    out[o, token] = sum over k of mix[o, k] * layer k of the token
    out[o, sentence] = the mean, or the maximum, of that over the sentence's tokens, zero where there are none

so a sentence's tokens a:b are the view out[:, a:b], in which each layer is contiguous.

With an identity as mix, the outputs are all layers; one row with a single 1 gives the top layer, one of 1 / L the
average of the layers, and one of softmax(w) * gamma the learned scalar mix of Peters et al. 2018
(https://arxiv.org/abs/1802.05365).

`mixing` describes what a row of mix gives, `pooling` how sentences are pooled.

A given flag is set if a value that is written is infinite or NaN, and otherwise left as it is: results need not be
searched for an overflow. It may be in the host's pinned memory, which a card writes to directly, so that reading it
takes neither a copy nor more waiting than for the results.

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
from flashelmo.kernels.mixing import Shape, load_layers, set_flag, store_output
from flashelmo.kernels.pooling import POOLING, means_tile
from flashelmo.kernels.tuning import Tile

# Memory-bound: whole rows, 16 bytes per load and thread, and as many values per program as leave registers for several
# programs per multiprocessor.
VALUES = 2048  # of a layer, per program of tokens
TOKENS = 32  # per program, at most
COLUMNS = 2048  # per program, at most
WARPS = 4


class Tokens(NamedTuple):
    """The tokens whose layers are requested, sentence after sentence; kernels read wherever these integers point.

    Attributes:
        words: int32 [tokens], the row of each token's word vector.
        nodes: int32 [2, tokens], each token's node in the forward and in the backward forest, counted from the roots.
        offsets: int32 or int64 [B + 1]; sentence b's tokens are offsets[b]:offsets[b + 1]. None for every token by
            itself.
    """

    words: Any
    nodes: Any
    offsets: Any


@triton.jit(do_not_specialize=["n_tokens", "N"])
def tokens_kernel(
    word_vectors, outputs, tokens, mix, out, flag, n_tokens, N,
    SHAPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Write mixed layers of tokens, out [O, tokens, 2, P]. Grid: blocks of tokens; directions; blocks of columns."""
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


def token_layers_launch(
    word_vectors: Tensor,
    outputs: Tensor,
    tokens: Tokens,
    mix: Tensor,
    out: Tensor,
    flag: Tensor | None = None,
    pool: str = "mean",
) -> Launch:
    """Return the launch that fills `out`.

    Args:
        word_vectors: [words, P].
        outputs: [L - 1, 2, N, P] of the same type, the outputs of the LSTM layers, forward and backward.
        tokens: of these words and nodes.
        mix: float32 [O, L].
        out: float32, fp16 or bf16 [O, tokens, 2P], or [O, B, 2P] where the tokens have offsets.
        flag: int32 [1], set to 1 where `out` is not finite; on the device, or pinned in the host's memory.
        pool: "mean" or "max", over sentences, where the tokens have offsets.

    Raises:
        ValueError: a tensor does not have the expected shape, type or layout.
        KeyError: the tokens have offsets, and there is no such pooling.
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
    """Return tokens and columns per program: whole rows if these are not too long."""
    columns = min(COLUMNS, triton.next_power_of_2(P))
    return Tile(min(TOKENS, VALUES // columns), columns, 1, WARPS, stages=1)


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
    """Return tokens' mixed layers [O, tokens, 2P], or pooled over sentences [O, B, 2P], zero for an empty sentence.

    Arguments and errors are those of `token_layers_launch`, whose `out` has `out_dtype`.
    """
    n_rows = (tokens.words if tokens.offsets is None else tokens.offsets[1:]).shape[0]
    out = torch.empty(mix.shape[0], n_rows, 2 * word_vectors.shape[-1], dtype=out_dtype, device=word_vectors.device)
    token_layers_launch(word_vectors, outputs, tokens, mix, out, flag, pool).run()
    return out
