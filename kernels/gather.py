"""Rows of words by node, gathered before a layer whose inputs must be contiguous.

    out[d, node] = table[words[d, node]]

Words of one step are scattered over the table of word vectors, while a card's bulk copies (TMA) take contiguous rows.
All nodes of a window are gathered at once; bits are copied, which is memory-bound.

Letters: D directions, N nodes, P projection.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.arguments import check
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.tuning import Tile

VALUES = 4096  # per program, with 4 warps: 16 bytes per load and thread, and several loads in flight
NODES = 32  # per program, at most
COLUMNS = 2048  # per program, at most


@triton.jit(do_not_specialize=["n"])
def gather_words_kernel(table_ptr, words_ptr, out_ptr, n, P: tl.constexpr, TILE: tl.constexpr):
    """Copy a block of rows; all directions' rows follow one another. Grid: blocks of rows; blocks of columns."""
    o_row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    o_column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    m_row = o_row < n
    word = tl.load(words_ptr + o_row, mask=m_row, other=0).to(tl.int64)
    m = m_row[:, None] & (o_column < P)[None, :]
    rows = tl.load((table_ptr + word * P)[:, None] + o_column[None, :], mask=m)
    tl.store((out_ptr + o_row.to(tl.int64) * P)[:, None] + o_column[None, :], rows, mask=m)


def gather_words_launch(table: Tensor, words: Tensor, out: Tensor) -> Launch:
    """Return the launch that copies a row of the table to each node.

    Args:
        table: [rows, P] of any type.
        words: int32 [D, N], rows of the table, already checked; any valid row where there is no node.
        out: [D, N, P] with the table's type.

    Raises:
        ValueError: a tensor does not have the expected shape, type or layout.
    """
    check("table", table, [None, None], [table.dtype])
    check("words", words, [None, None], [torch.int32])
    P, n = table.shape[1], words.numel()
    check("out", out, [*words.shape, P], [table.dtype])
    columns = min(COLUMNS, triton.next_power_of_2(P))
    tile = Tile(min(NODES, VALUES // columns), columns, k=1, warps=4, stages=1)
    arguments = {"table_ptr": table, "words_ptr": words, "out_ptr": out, "n": n, "P": P, "TILE": tile}
    return Launch(gather_words_kernel, (triton.cdiv(n, tile.rows), triton.cdiv(P, columns)), arguments, tile.options)


def gather_words(table: Tensor, words: Tensor) -> Tensor:
    """Return table[words]: [rows, P] and int32 [D, N] -> [D, N, P].

    Arguments and errors are those of `gather_words_launch`.
    """
    out = torch.empty(*words.shape, table.shape[-1], dtype=table.dtype, device=table.device)
    gather_words_launch(table, words, out).run()
    return out
