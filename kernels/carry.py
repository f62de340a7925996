"""Copies the states that rows end with to where the next window's rows begin: what a stateful run carries on.

    hidden_out[d, rows[b]] = hidden[d, nodes[b]]
    cell_out[d, rows[b]] = cell[slots[b], d, ranks[b]]

Row b's last node is nodes[b]. c is kept for two depths, which alternate (`lstm.run.LstmTensors.cell`): that of the
row's last depth is in slot slots[b], at position ranks[b]. Bits are copied, which is memory-bound; one launch copies a
layer's hidden states and cells.

Letters: D directions, N nodes, R rows of the largest depth, B rows, S rows of the state, P projection, C cells.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor, float32, int32

from flashelmo.kernels.arguments import FLOATS, check
from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.tuning import Tile

TILE = Tile(4, 512, k=1, warps=4, stages=1)


class Ends(NamedTuple):
    """Where rows end, and where their states go: int32 [B] each, already checked.

    Several rows may go to the same one, whose state is then undefined: rows of a bucket that stand for no sentence.
    """

    nodes: Any
    ranks: Any
    slots: Any
    rows: Any


@triton.jit(do_not_specialize=["N", "R", "S", "B"])
def carry_kernel(
    hidden, cell, hidden_out, cell_out, ends, N, R, S, B,
    D: tl.constexpr, P: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Copy a block of rows and columns. Grid: blocks of rows; blocks of columns; D."""
    direction = tl.program_id(2).to(tl.int64)
    o_row = tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    o_column = tl.program_id(1) * TILE.columns + tl.arange(0, TILE.columns)
    m_row = o_row < B
    node = tl.load(ends.nodes + o_row, mask=m_row, other=0)
    rank = tl.load(ends.ranks + o_row, mask=m_row, other=0)
    slot = tl.load(ends.slots + o_row, mask=m_row, other=0)
    out = direction * S + tl.load(ends.rows + o_row, mask=m_row, other=0)
    m_p, m_c = m_row[:, None] & (o_column < P)[None, :], m_row[:, None] & (o_column < C)[None, :]
    r = tl.load(hidden + ((direction * N + node) * P)[:, None] + o_column[None, :], mask=m_p)
    c = tl.load(cell + (((slot * D + direction) * R + rank) * C)[:, None] + o_column[None, :], mask=m_c)
    tl.store(hidden_out + (out * P)[:, None] + o_column[None, :], r, mask=m_p)
    tl.store(cell_out + (out * C)[:, None] + o_column[None, :], c, mask=m_c)


def carry_launch(hidden: Tensor, cell: Tensor, ends: Ends, hidden_out: Tensor, cell_out: Tensor) -> Launch:
    """Return the launch that copies the rows' last states.

    Args:
        hidden: [D, N, P].
        cell: float32 [2, D, R, C].
        hidden_out: [D, S, P] with the type of `hidden`.
        cell_out: float32 [D, S, C].

    Raises:
        ValueError: a tensor does not have the expected shape, type or layout.
    """
    check("cell", cell, [2, None, None, None], [float32])
    _, D, R, C = cell.shape
    check("hidden", hidden, [D, None, None], FLOATS)
    _, N, P = hidden.shape
    check("hidden_out", hidden_out, [D, None, P], [hidden.dtype])
    S = hidden_out.shape[1]
    check("cell_out", cell_out, [D, S, C], [float32])
    B = len(ends.rows)
    for name, tensor in ends._asdict().items():
        check(f"ends.{name}", tensor, [B], [int32])
    arguments = {
        "hidden": hidden,
        "cell": cell,
        "hidden_out": hidden_out,
        "cell_out": cell_out,
        "ends": ends,
        **{"N": N, "R": R, "S": S, "B": B, "D": D, "P": P, "C": C, "TILE": TILE},
    }
    return Launch(carry_kernel, (cdiv(B, TILE.rows), cdiv(max(P, C), TILE.columns), D), arguments, TILE.options)
