"""Fused steps in plain Triton: as `fused`, but the copy engine (TMA) loads blocks, and only c is gathered.

This is between the portable kernels, whose mathematics it shares, and `warp_specialized`, whose weight layout it reads:
Triton's interpreter can run it. It serves many rows on sm_100, and on sm_90 where Triton has no Gluon.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.cell import cell, depth_nodes
from flashelmo.kernels.lstm.hopper import has_bulk_copies, has_layout, hopper_layout, rows_of
from flashelmo.kernels.lstm.hopper_projection import projection
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.lstm.steps import Part, block_gates_arguments, depth_launches
from flashelmo.kernels.product import zeros
from flashelmo.kernels.tuning import Tile

TILE = Tile(128, 32, 64, 8, 3)
LEAST_ROWS = 65  # fewer are hoisted: 23 us for 64 rows, where a fused step of portable kernels takes 32


def serves(run: LayerRun, rows: int) -> bool:
    """Whether this serves: many rows where there are bulk copies; any, where the number of rows must not decide."""
    many = rows >= LEAST_ROWS or run.options.batch_invariant
    return many and has_layout(run) and has_bulk_copies(run.weights.dtype, run.weights.device)


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """Yield the launches of consecutive depths, in order.

    Raises:
        ValueError: a depth does not exist.
    """
    return depth_launches(run, depths, _gates(run), projection(run))


def _gates(run: LayerRun) -> Part:
    weights, tensors, (D, _, C) = run.weights.layout(hopper_layout), run.tensors, run.weights.shape
    arguments = block_gates_arguments(run, weights) | {
        "x_desc": rows_of(tensors.x, TILE.rows, TILE.k),
        "hidden_desc": rows_of(tensors.parent_hidden, TILE.rows, TILE.k),
        "weight_desc": rows_of(weights.gates, TILE.k, 4 * TILE.columns),
        "bias": weights.bias,
        "TILE": TILE,
    }
    launch = Launch(tma_gates_kernel, (), arguments, TILE.options)
    return Part(
        lambda rows: TILE, lambda tile: launch, lambda rows, tile: (cdiv(rows, tile.rows), C // tile.columns, D)
    )


@triton.jit(do_not_specialize=["depth", "N", "R", "T"])
def tma_gates_kernel(
    x_desc, hidden_desc, weight_desc, bias, cell_clip, cell_ptr, unprojected, nodes, depth, N, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """Compute c and h of one depth. Grid: blocks of rows; blocks of cells; D."""
    P: tl.constexpr = SHAPE.P
    i_rows, i_cells, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _, first, last = depth_nodes(nodes, direction, depth, T)
    row, column = first + i_rows * TILE.rows, i_cells * (4 * TILE.columns)
    if row < last:
        acc = zeros(TILE.rows, 4 * TILE.columns)
        for k in range(0, P // TILE.k):
            x = x_desc.load([direction * N + row, k * TILE.k])
            acc = tl.dot(x, weight_desc.load([direction * (2 * P) + k * TILE.k, column]), acc)
        for k in range(0, P // TILE.k):
            r = hidden_desc.load([direction * N + row, k * TILE.k])
            acc = tl.dot(r, weight_desc.load([direction * (2 * P) + P + k * TILE.k, column]), acc)
        i, f, g, o = split_gates(acc, TILE)
        store_cells(
            i, f, g, o, bias, cell_clip, cell_ptr, unprojected, nodes, depth, direction, row, first, last, i_cells,
            N, R, SHAPE, TILE, APPROXIMATE,
        )  # fmt: skip


@triton.jit
def split_gates(acc, TILE: tl.constexpr):
    """Return the four gates of columns that are ordered as in `HopperLayout.gates`."""
    acc = tl.reshape(acc, (TILE.rows, TILE.columns // 16, 4, 2, 4, 2))
    acc = tl.reshape(tl.permute(acc, (0, 1, 4, 2, 3, 5)), (TILE.rows, TILE.columns, 2, 2))
    i_and_g, f_and_o = tl.split(acc)
    i, g = tl.split(i_and_g)
    f, o = tl.split(f_and_o)
    return i, f, g, o


@triton.jit
def store_cells(
    i, f, g, o, bias, cell_clip, cell_ptr, unprojected, nodes, depth, direction, row, first, last, i_cells, N, R,
    SHAPE: tl.constexpr, TILE: tl.constexpr, APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """Compute and store c and h from a block of sums; the bias is added here."""
    C: tl.constexpr = SHAPE.C
    o_node, o_cell = row + tl.arange(0, TILE.rows), i_cells * TILE.columns + tl.arange(0, TILE.columns)
    m_row = o_node < last
    m, direction = m_row[:, None], tl.cast(direction, tl.int64)
    parent = tl.load(nodes.parents + direction * N + o_node, mask=m_row, other=0)
    p_before = cell_ptr + ((depth + 1) % 2 * SHAPE.D + direction) * R * C  # within a direction 32 bits are enough
    c = tl.load(p_before + (parent * C)[:, None] + o_cell[None, :], mask=m, other=0.0)
    p_bias = bias + direction * (4 * C) + o_cell
    i += tl.load(p_bias)[None, :]
    f += tl.load(p_bias + C)[None, :]
    g += tl.load(p_bias + 2 * C)[None, :]
    o += tl.load(p_bias + 3 * C)[None, :]
    c, h = cell(i, f, g, o, c, cell_clip, APPROXIMATE, APPROXIMATE)
    o_here = ((o_node - first) * C)[:, None] + o_cell[None, :]
    tl.store(cell_ptr + (depth % 2 * SHAPE.D + direction) * R * C + o_here, c, mask=m)
    tl.store(unprojected + direction * R * C + o_here, h.to(unprojected.dtype.element_ty), mask=m)
