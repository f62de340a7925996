"""Character ids to word features: embedding, then convolutions, maximum over positions, bias and activation in one.

    z[word, p, f] = sum over j < width[f], e < E of embedding[ids[word, p + j], e] * W_f[j, e],  p <= M - width[f]
    y[word, f] = activation(max over p of z[word, p, f] + bias[f])

(Kim et al. 2016, https://arxiv.org/abs/1508.06615; the maximum also covers windows of padding, as in bilm-tf.)

- All widths are one product, with the window of the widest filter: a narrower filter's weight is zero in the rows
  beyond its own width. In the published models half of all filters have the largest width.
- A first kernel writes words as the vectors of their characters, one after the other: a window is then a contiguous
  piece of memory that begins one vector after the previous window, and is copied 16 bytes at a time. Gathered by ids in
  pieces of 8 bytes, windows took several times as long as their product. What is written, 32 bytes per character in the
  published models, is read back from the L2 cache.
- A program owns a block of words and one of filters, and keeps their maximum on chip while it goes through the
  positions, several of each word at once: these are the rows of one product.
- Only windows that begin at a word's characters are multiplied. All others hold only padding and have one value per
  filter, which is known beforehand; the maximum starts from it if the word has such a window. Words of similar length
  share a block; where the others have more positions, a word repeats its own last window, which leaves its maximum
  unchanged: its features are batch-invariant.

Letters: W words, M positions, E size of a character's embedding, S its size in memory, F filters, K = widest * S,
Q characters of a word as embedded, where those beyond M repeat the last one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.arguments import FLOATS, Products, check
from flashelmo.kernels.char_cnn_weights import CharCnnWeights
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.product import larger, tanh
from flashelmo.kernels.tuning import Tile, choose_tile

EMBEDDED_VALUES = 512  # per program that embeds, which is one warp

# Rows of a block -> positions of each word among them. With more positions a word takes fewer rounds, but a block holds
# fewer words, which suits few words; with fewer positions, less is computed in vain beyond the ends of words.
POSITIONS = {16: 16, 32: 4, 64: 2, 128: 2}


class SpelledWords(NamedTuple):
    """Distinct words as the kernel reads them.

    Attributes:
        character_ids: int32 [W, M], rows of the embedding, already checked.
        lengths: int32 [W], the number of each word's windows to multiply: those that begin no later than its last
            character that is not padding, and at least one.
        order: int32 [W], the words by length, longest first.
    """

    character_ids: Any
    lengths: Any
    order: Any


@triton.jit(do_not_specialize=["n"])
def char_cnn_embed_kernel(
    ids_ptr, embedding_ptr, embedded_ptr, n, M: tl.constexpr, Q: tl.constexpr, S: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Write words as their characters' vectors, [n / Q, Q, S]. Grid: blocks of characters."""
    o_row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    m_row = o_row < n
    # Characters beyond a word's end are only read by filters too wide for this position: any value will do.
    position = tl.minimum(o_row % Q, M - 1)
    character = tl.load(ids_ptr + o_row // Q * M + position, mask=m_row, other=0)
    o_e = tl.arange(0, S)
    vector = tl.load(embedding_ptr + character[:, None] * S + o_e[None, :], mask=m_row[:, None])
    tl.store((embedded_ptr + o_row.to(tl.int64) * S)[:, None] + o_e[None, :], vector, mask=m_row[:, None])


@triton.jit(do_not_specialize=["W"])
def char_cnn_kernel(
    embedded_ptr, words, weight_ptr, bias_ptr, widths_ptr, padding_ptr, out_ptr, W,
    M: tl.constexpr, Q: tl.constexpr, S: tl.constexpr, F: tl.constexpr, WIDEST: tl.constexpr,
    ACTIVATION: tl.constexpr, POSITIONS: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute a block of words and filters. Grid: blocks of filters; blocks of words, the longest first."""
    WORDS: tl.constexpr = TILE.rows // POSITIONS
    COLUMNS: tl.constexpr = TILE.columns
    o_row = tl.arange(0, TILE.rows)  # word by word, POSITIONS rows each
    o_word = tl.program_id(1) * WORDS + o_row // POSITIONS
    word = tl.load(words.order + o_word, mask=o_word < W, other=0).to(tl.int64)
    length = tl.load(words.lengths + word, mask=o_word < W, other=1)
    o_filter = tl.program_id(0) * TILE.columns + tl.arange(0, TILE.columns)
    m_filter = o_filter < F
    width = tl.load(widths_ptr + o_filter, mask=m_filter, other=1)
    padding = tl.load(padding_ptr + o_filter, mask=m_filter, other=0.0)

    has_padding = length[:, None] + width[None, :] <= M
    maximum = tl.where(has_padding, padding[None, :], float("-inf"))
    o_k = tl.arange(0, TILE.k)
    p_window = (embedded_ptr + word * (Q * S))[:, None] + o_k[None, :]
    p_weight = weight_ptr + o_k[:, None] * F + o_filter[None, :]
    ONE_BLOCK: tl.constexpr = TILE.k >= WIDEST * S
    if ONE_BLOCK:  # the weights stay on chip
        weight = tl.load(p_weight, mask=(o_k < WIDEST * S)[:, None] & m_filter[None, :], other=0.0)
    n_blocks = tl.cdiv(tl.max(width) * S, TILE.k)  # beyond these blocks the filters are zero
    for p in range(0, tl.max(length), POSITIONS):
        start = tl.minimum(p + o_row % POSITIONS, length - 1)
        acc = tl.zeros_like(maximum)
        if ONE_BLOCK:
            window = tl.load(p_window + (start * S)[:, None])
            acc = tl.dot(window, weight, acc, input_precision=PRECISION)
        else:
            for i in range(n_blocks):
                window = tl.load(p_window + (start * S + i * TILE.k)[:, None])
                m_weight = (i * TILE.k + o_k < WIDEST * S)[:, None] & m_filter[None, :]
                weight = tl.load(p_weight + i * TILE.k * F, mask=m_weight, other=0.0)
                acc = tl.dot(window, weight, acc, input_precision=PRECISION)
        if p + POSITIONS > M - WIDEST + 1:  # the widest filters have no window at some of these
            acc = tl.where(start[:, None] + width[None, :] <= M, acc, float("-inf"))
        maximum = larger(maximum, acc)

    if POSITIONS > 1:
        maximum = tl.reduce(tl.reshape(maximum, (WORDS, POSITIONS, COLUMNS)), 1, larger)
    y = maximum + tl.load(bias_ptr + o_filter, mask=m_filter, other=0.0)[None, :]
    if ACTIVATION == "relu":
        y = larger(y, 0.0)
    else:
        y = tanh(y)
    o_word = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    word = tl.load(words.order + o_word, mask=o_word < W, other=0).to(tl.int64)
    p_out = out_ptr + (word * F)[:, None] + o_filter[None, :]
    tl.store(p_out, y.to(out_ptr.dtype.element_ty), mask=(o_word < W)[:, None] & m_filter[None, :])


def char_cnn_launches(
    words: SpelledWords,
    weights: CharCnnWeights,
    out: Tensor,
    *,
    precision: Products = "ieee",
    batch_invariant: bool = False,
) -> tuple[Launch, Launch]:
    """Return the launches that embed the words' characters and write their features to `out`.

    Args:
        words: W distinct words.
        out: [W, F] in the weights' type.
        precision: of float32 products; "tf32" is fast, with an error of about 3e-4.
        batch_invariant: one tile for any number of words, so that a word's bits do not depend on it.

    Raises:
        ValueError: a tensor does not have the expected shape, type or layout, words have fewer positions than the
            widest filter, or there is no such precision.
    """
    dtype = weights.weight.dtype
    check("embedding", weights.embedding, [None, None], FLOATS)
    S, F = weights.embedding.shape[1], weights.weight.shape[-1]
    check("weight", weights.weight, [weights.widest * S, F], [weights.embedding.dtype])
    for name, tensor in (("bias", weights.bias), ("padding", weights.padding)):
        check(name, tensor, [F], [torch.float32])
    check("widths", weights.widths, [F], [torch.int32])
    check("character_ids", words.character_ids, [None, None], [torch.int32])
    W, M = words.character_ids.shape
    check("lengths", words.lengths, [W], [torch.int32])
    check("order", words.order, [W], [torch.int32])
    if weights.widest > M:
        raise ValueError(f"character_ids: expected {weights.widest} positions or more, a filter's width, found {M}")
    check("out", out, [W, F], [dtype])
    tile = char_cnn_tile(dtype, precision, W, weights.widest * S, batch_invariant=batch_invariant)
    positions = POSITIONS[tile.rows]
    Q = M + triton.cdiv(triton.cdiv(weights.widest * S, tile.k) * tile.k, S) - 1  # a window may begin at the last
    embedded = torch.empty(W, Q, S, dtype=dtype, device=out.device)
    sizes = {"M": M, "Q": Q, "S": S}
    arguments = {
        "embedded_ptr": embedded,
        "words": words._replace(character_ids=None),
        "weight_ptr": weights.weight,
        "bias_ptr": weights.bias,
        "widths_ptr": weights.widths,
        "padding_ptr": weights.padding,
        "out_ptr": out,
        "W": W,
        **sizes,
        "F": F,
        "WIDEST": weights.widest,
        "ACTIVATION": weights.activation,
        "POSITIONS": positions,
        "TILE": tile,
        "PRECISION": precision,
    }
    grid = triton.cdiv(F, tile.columns), triton.cdiv(W * positions, tile.rows)
    return _embed_launch(words, weights, embedded, sizes), Launch(char_cnn_kernel, grid, arguments, tile.options)


def _embed_launch(words: SpelledWords, weights: CharCnnWeights, embedded: Tensor, sizes: dict[str, int]) -> Launch:
    W, Q, S = embedded.shape
    tile = Tile(max(1, EMBEDDED_VALUES // S), S, k=1, warps=1, stages=1)
    tensors = {"ids_ptr": words.character_ids, "embedding_ptr": weights.embedding, "embedded_ptr": embedded}
    arguments = {**tensors, "n": W * Q, **sizes, "TILE": tile}
    return Launch(char_cnn_embed_kernel, (triton.cdiv(W * Q, tile.rows),), arguments, tile.options)


def char_cnn_tile(
    dtype: torch.dtype, precision: Products, rows: int, size: int, *, batch_invariant: bool = False
) -> Tile:
    """Return the tile that holds a whole window, or else one that goes through it block by block.

    Args:
        rows: the number of words.
        size: values of a window of the widest filter.

    Raises:
        ValueError: there is no such precision.
    """
    whole = choose_tile("characters", dtype, precision, rows, batch_invariant=batch_invariant)
    if size <= whole.k:
        return whole
    return choose_tile("wide characters", dtype, precision, rows, batch_invariant=batch_invariant)


def char_cnn(
    words: SpelledWords, weights: CharCnnWeights, *, precision: Products = "ieee", batch_invariant: bool = False
) -> Tensor:
    """Return the features [W, F] of words, in the order in which they were given.

    Arguments and errors are those of `char_cnn_launches`.
    """
    out = torch.empty(
        len(words.order), weights.weight.shape[-1], dtype=weights.weight.dtype, device=weights.weight.device
    )
    for launch in char_cnn_launches(words, weights, out, precision=precision, batch_invariant=batch_invariant):
        launch.run()
    return out
