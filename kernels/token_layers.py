"""Layers of tokens, gathered from the forests, mixed, and averaged over sentences where that is asked for.

With layer 0 of a token [x, x] of its word vector x, layer k > 0 what LSTM layer k - 1 put out at its two nodes, forward
and backward side by side, and mix [O, L] the coefficients:

    out[o, token] = sum over k of mix[o, k] * layer k of the token
    out[o, sentence] = the mean of that over the sentence's tokens, zero where there are none

so that a sentence's tokens a:b are the view out[:, a:b], in which each layer is contiguous.

An identity gives all layers, one row with a single 1 the top layer, one of 1 / L their average, and one of
softmax(w) * gamma the learned scalar mix of Peters et al. 2018 (https://arxiv.org/abs/1802.05365).

A program reads each row it needs once and writes all O outputs from it. Sums are float32. Every layer counts, with a
coefficient of zero too: NaN in one layer of a token is NaN in all its outputs, as in the formula. A row of the identity
in float32 gives back the layer's bits, but for a zero's sign.

Letters: L layers, O outputs, P projection, N nodes, B sentences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.launch import FLOATS, Launch, check, check_ids
from flashelmo.kernels.tuning import Tile

# Bound by memory: 16 bytes a load and thread, and few enough tokens that one sentence's vectors fill many programs.
TOKENS = 8  # at a time
COLUMNS = 128  # of P, at most
WARPS = 4


class Tokens(NamedTuple):
    """The tokens whose layers are asked for, sentences end to end.

    Attributes:
        words: int32 [tokens], the row of each token's word vector.
        nodes: int32 [2, tokens], its node in the forward and in the backward forest, counted from the roots on.
        offsets: int32 or int64 [B + 1], sentence b's tokens are offsets[b]:offsets[b + 1]; None for every token by
            itself.
        n_words, n_nodes: the ids lie below; roots are counted.
    """

    words: Any
    nodes: Any
    offsets: Any
    n_words: Any = 0
    n_nodes: Any = 0

    @classmethod
    def of(
        cls,
        words: Tensor,
        nodes: Tensor,
        offsets: Tensor | None,
        *,
        n_words: int,
        n_nodes: int,
        n_roots: int = 1,
        device: torch.device | str = "cpu",
    ) -> Tokens:
        """Tokens on the device, of integers in the host's memory.

        Args:
            words: [tokens]; they lie below n_words.
            nodes: [2, tokens], as `engine.text.schedule.Forest` counts them, without the roots; they lie below n_nodes.
            offsets: [B + 1], from 0 to the number of tokens; None for every token by itself.
            n_roots: nodes that stand before all others in the kernels' count (`lstm.run.Nodes`).

        Raises:
            ValueError: an id lies outside its range, or the offsets descend.
        """
        integers = (torch.int32, torch.int64)
        check("words", words, [None], integers)
        check("nodes", nodes, [2, len(words)], integers)
        check_ids("words", words, n_words)
        check_ids("nodes", nodes, n_nodes)
        if offsets is not None:
            check("offsets", offsets, [None], integers)
            _check_offsets(offsets, len(words))
            offsets = offsets.to(device, torch.int32)
        nodes = (nodes + n_roots).to(device, torch.int32)
        return cls(words.to(device, torch.int32), nodes, offsets, n_words, n_nodes + n_roots)


class Shape(NamedTuple):
    """Constants of a model and of what is asked of it: one compilation each."""

    L: int
    O: int  # noqa: E741
    P: int


@triton.jit
def load_layers(
    word_vectors, outputs, tokens, o_token, m_token, o_column, direction, n_tokens, N,
    SHAPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One direction's layers of some tokens, float32 [TILE.k, tokens, columns]; zero beyond layer L."""
    P: tl.constexpr = SHAPE.P
    layer = tl.arange(0, TILE.k)[:, None]
    word = tl.load(tokens.words + o_token, mask=m_token, other=0).to(tl.int64)
    node = tl.load(tokens.nodes + direction * n_tokens + o_token, mask=m_token, other=0).to(tl.int64)
    p_output = outputs + (((layer - 1) * 2 + direction).to(tl.int64) * N + node[None, :]) * P
    p_row = tl.where(layer == 0, (word_vectors + word * P)[None, :], p_output)
    m_row = m_token[None, :] & (layer < SHAPE.L)
    m = m_row[:, :, None] & (o_column < P)[None, None, :]
    return tl.load(p_row[:, :, None] + o_column[None, None, :], mask=m, other=0.0).to(tl.float32)


@triton.jit
def load_mix(mix, i_output, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """Coefficients of one output [TILE.k]; zero beyond layer L."""
    layer = tl.arange(0, TILE.k)
    return tl.load(mix + i_output * SHAPE.L + layer, mask=layer < SHAPE.L, other=0.0)


@triton.jit(do_not_specialize=["n_tokens", "N"])
def tokens_kernel(
    word_vectors, outputs, tokens, mix, out, n_tokens, N,
    SHAPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Mixed layers of tokens, out [O, tokens, 2, P]. Grid: blocks of tokens; blocks of columns; directions."""
    direction = tl.program_id(2)
    o_token = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    m_token = o_token < n_tokens
    o_column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    layers = load_layers(
        word_vectors, outputs, tokens, o_token, m_token, o_column, direction, n_tokens, N, SHAPE, TILE
    )  # fmt: skip
    m = m_token[:, None] & (o_column < SHAPE.P)[None, :]
    for i_output in range(SHAPE.O):
        mixed = tl.sum(load_mix(mix, i_output, SHAPE, TILE)[:, None, None] * layers, axis=0)
        o_row = ((tl.cast(n_tokens, tl.int64) * i_output + o_token) * 2 + direction) * SHAPE.P
        tl.store(out + o_row[:, None] + o_column[None, :], mixed.to(out.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["n_tokens", "N"])
def sentences_kernel(
    word_vectors, outputs, tokens, mix, out, n_tokens, N,
    SHAPE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Mixed means of sentences, out [O, B, 2, P]. Grid: sentences; blocks of columns; directions."""
    sentence, n_sentences, direction = tl.program_id(0), tl.num_programs(0), tl.program_id(2)
    o_column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    first, last = tl.load(tokens.offsets + sentence), tl.load(tokens.offsets + sentence + 1)
    LAYERS: tl.constexpr = TILE.k
    TOKENS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.columns
    sums = tl.zeros([LAYERS, TOKENS, COLUMNS], tl.float32)
    start = first
    while start < last:
        o_token = start + tl.arange(0, TILE.rows)
        sums += load_layers(
            word_vectors, outputs, tokens, o_token, o_token < last, o_column, direction, n_tokens, N, SHAPE, TILE
        )  # fmt: skip
        start += TILE.rows
    means = tl.sum(sums, axis=1) / tl.maximum(last - first, 1).to(tl.float32)
    for i_output in range(SHAPE.O):
        mixed = tl.sum(load_mix(mix, i_output, SHAPE, TILE)[:, None] * means, axis=0)
        o_row = ((tl.cast(n_sentences, tl.int64) * i_output + sentence) * 2 + direction) * SHAPE.P
        tl.store(out + o_row + o_column, mixed.to(out.dtype.element_ty), mask=o_column < SHAPE.P)


def token_layers_launch(word_vectors: Tensor, outputs: Tensor, tokens: Tokens, mix: Tensor, out: Tensor) -> Launch:
    """The launch that fills `out`.

    Args:
        word_vectors: [words, P].
        outputs: [L - 1, 2, N, P] of the same type, what the LSTM layers put out, forward and backward.
        tokens: of these words and nodes.
        mix: float32 [O, L].
        out: float32, fp16 or bf16 [O, tokens, 2P], or [O, B, 2P] where the tokens have offsets.

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
    for name, rows, ids in (("word_vectors", word_vectors.shape[0], tokens.n_words), ("outputs", N, tokens.n_nodes)):
        if rows < ids:
            raise ValueError(f"{name}: expected at least {ids} rows, as the tokens were made for, found {rows}")
    kernel, programs, rows = tokens_kernel, triton.cdiv(n_tokens, TOKENS), n_tokens
    if tokens.offsets is not None:
        check("tokens.offsets", tokens.offsets, [None], [torch.int32, torch.int64])
        programs = rows = tokens.offsets.shape[0] - 1
        kernel = sentences_kernel
    check("out", out, [mix.shape[0], rows, 2 * P], FLOATS)
    tile = Tile(TOKENS, min(COLUMNS, triton.next_power_of_2(P)), triton.next_power_of_2(L), WARPS, stages=1)
    arguments = {
        "word_vectors": word_vectors,
        "outputs": outputs,
        "tokens": tokens._replace(n_words=None, n_nodes=None),
        "mix": mix,
        "out": out,
        "n_tokens": n_tokens,
        "N": N,
        "SHAPE": Shape(L, mix.shape[0], P),
        "TILE": tile,
    }
    return Launch(kernel, (programs, triton.cdiv(P, tile.columns), 2), arguments, tile.options)


def token_layers(
    word_vectors: Tensor, outputs: Tensor, tokens: Tokens, mix: Tensor, *, out_dtype: torch.dtype = torch.float32
) -> Tensor:
    """Mixed layers of tokens [O, tokens, 2P], or their means over sentences [O, B, 2P], zero for an empty sentence.

    Args:
        word_vectors: [words, P].
        outputs: [L - 1, 2, N, P] of the same type, what the LSTM layers put out, forward and backward.
        tokens: of these words and nodes.
        mix: float32 [O, L].

    Raises:
        ValueError: a tensor has another shape, type or layout than it should.
    """
    n_rows = (tokens.words if tokens.offsets is None else tokens.offsets[1:]).shape[0]
    out = torch.empty(mix.shape[0], n_rows, 2 * word_vectors.shape[-1], dtype=out_dtype, device=word_vectors.device)
    token_layers_launch(word_vectors, outputs, tokens, mix, out).run()
    return out


def _check_offsets(offsets: Tensor, n_tokens: int) -> None:
    check_ids("offsets", offsets, n_tokens + 1)
    found = offsets.tolist()
    if not found or found != sorted(found) or (found[0], found[-1]) != (0, n_tokens):
        raise ValueError(f"offsets: expected numbers that ascend from 0 to {n_tokens}, found {_brief(found)}")


def _brief(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 8 else f"[{', '.join(map(str, numbers[:4]))}, ..., {numbers[-1]}]"
