"""The roots' states, from which the first depth starts: given, or zero.

One launch before the first depth writes them as the states of depth 0, and also writes r to the rows of the first
depth's nodes, as a projection does for later depths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.cell import depth_nodes
from flashelmo.kernels.lstm.run import LayerRun, NodeTensors
from flashelmo.kernels.tuning import Tile

TILE = Tile(4, 512, k=1, warps=4, stages=1)


class RootTensors(NamedTuple):
    """The fields of `LstmTensors` that this reads and writes."""

    hidden: Any
    parent_hidden: Any
    cell: Any
    root_hidden: Any
    root_cell: Any


@triton.jit(do_not_specialize=["N", "R", "T", "HIDDEN_STRIDE", "CELL_STRIDE"])
def roots_kernel(
    tensors, nodes, N, R, T, HIDDEN_STRIDE, CELL_STRIDE, SHAPE: tl.constexpr, TILE: tl.constexpr
):  # fmt: skip
    """Write the roots' states, and their r to the first depth's rows. Grid: blocks of rows; blocks of columns; D."""
    P: tl.constexpr = SHAPE.P
    C: tl.constexpr = SHAPE.C
    ROWS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.columns
    direction = tl.program_id(2).to(tl.int64)
    o_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_p, m_c = (o_column < P)[None, :], (o_column < C)[None, :]
    _, first, last = depth_nodes(nodes, direction, 1, T)
    node = (first + o_row).to(tl.int64)
    m_root, m_row = o_row < first, node < last
    r = tl.zeros([ROWS, COLUMNS], tensors.hidden.dtype.element_ty)
    r_first, c = r, tl.zeros([ROWS, COLUMNS], tl.float32)
    if tensors.root_hidden is not None:
        parent = tl.load(nodes.parents + direction * N + node, mask=m_row, other=0)
        p_r = tensors.root_hidden + direction * HIDDEN_STRIDE + o_column[None, :]
        p_c = tensors.root_cell + direction * CELL_STRIDE + o_column[None, :]
        r = tl.load(p_r + (o_row * P)[:, None], mask=m_root[:, None] & m_p, other=0.0)
        r_first = tl.load(p_r + (parent * P)[:, None], mask=m_row[:, None] & m_p, other=0.0)
        c = tl.load(p_c + (o_row * C)[:, None], mask=m_root[:, None] & m_c, other=0.0)
    o_hidden = (direction * N * P) + o_column[None, :]
    tl.store(tensors.hidden + o_hidden + (o_row * P)[:, None], r, mask=m_root[:, None] & m_p)
    tl.store(tensors.parent_hidden + o_hidden + (node * P)[:, None], r_first, mask=m_row[:, None] & m_p)
    o_cell = ((direction * R + o_row) * C)[:, None] + o_column[None, :]
    tl.store(tensors.cell + o_cell, c, mask=m_root[:, None] & m_c)


def roots_launch(run: LayerRun) -> Launch:
    """Return the launch that writes the roots' states, before the first depth's launches."""
    tensors, nodes = run.tensors, run.nodes
    rows, columns = max(nodes.n_roots, nodes.rows(1)), max(run.weights.shape.P, run.weights.shape.C)
    strides = (0, 0) if tensors.root_hidden is None else (tensors.root_hidden.stride(0), tensors.root_cell.stride(0))
    arguments = run.arguments | {
        "tensors": tensors.only(RootTensors),
        "nodes": NodeTensors(nodes.starts, nodes.parents),
        "HIDDEN_STRIDE": strides[0],
        "CELL_STRIDE": strides[1],
        "TILE": TILE,
    }
    grid = cdiv(rows, TILE.rows), cdiv(columns, TILE.columns), run.weights.shape.D
    return Launch(roots_kernel, grid, arguments, TILE.options)
