"""The LSTM cell with projection: the parts of kernels that variants share, and their arguments.

For a node and its parent, with r the projected state that recurs (P values), c the cell (C values) and x the layer's
input (P values):

    i, f, g, o = x @ W_x + r_parent @ W_r + b
    c = clip(sigmoid(f) * c_parent + sigmoid(i) * tanh(g), cell_clip)
    h = sigmoid(o) * tanh(c)
    r = clip(h @ W_p, projection_clip)

(Sak et al. 2014, https://arxiv.org/abs/1402.1128, with bilm-tf's clips; b already includes the forget bias.) The skip
connection adds x to the layer's output, never to what recurs.

`gates_tile` computes c and h; `projection_tile` computes r and writes it to its node and to the rows of the node's
children, so that a depth's rows of x and of r are contiguous, and only c is gathered from the parents. Both read from
the schedule which nodes exist, so that a captured graph of launches serves any schedule of its size. The input part
x @ W_x + b may be computed beforehand for many steps at once ("hoisted"): where rows are few and the time goes into
reading weights, this saves almost half of it. In the lowest layer it may be computed once per distinct word.

Sums and cells are float32; x, r and h have the compute type.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from flashelmo.kernels.product import clip, product, sigmoid, tanh, zeros
from flashelmo.kernels.tuning import SPLIT_ARRIVALS

ARRIVALS = tl.constexpr(SPLIT_ARRIVALS)


class GatesTensors(NamedTuple):
    """The fields of `LstmTensors` that gates read and write; x is None where its part was computed beforehand."""

    x: Any
    parent_hidden: Any
    cell: Any
    unprojected: Any


class ProjectionTensors(NamedTuple):
    """The fields of `LstmTensors` that a projection reads and writes."""

    x: Any
    hidden: Any
    parent_hidden: Any
    unprojected: Any
    outputs: Any
    partial_sums: Any
    counters: Any


class Mode(NamedTuple):
    """How a kernel computes; each value is compiled separately.

    Attributes:
        precision: of float32 products, "ieee" or "tf32".
        keep: eviction policy of the weights in the L2 cache.
        approximate: tanh and the output gate are the card's own approximations.
    """

    precision: str
    keep: str
    approximate: bool


@triton.jit
def depth_nodes(nodes, direction, depth, T):
    """Return the first node of the previous depth, the first of this depth, and one past its last."""
    p = nodes.starts + direction * (T + 2) + depth
    return tl.load(p - 1), tl.load(p), tl.load(p + 1)


@triton.jit
def gates_tile(
    weights, tensors, nodes, x_gates_ptr, depth, slab_depth, direction, i_rows, i_cells, N, M, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Compute c and h of a block of rows and cells."""
    P: tl.constexpr = SHAPE.P
    C: tl.constexpr = SHAPE.C
    PRECISION: tl.constexpr = MODE.precision
    KEEP: tl.constexpr = MODE.keep
    APPROXIMATE: tl.constexpr = MODE.approximate
    _, first, last = depth_nodes(nodes, direction, depth, T)
    direction = tl.cast(direction, tl.int64)
    o_row = i_rows * TILE.rows + tl.arange(0, TILE.rows)
    node = (first + o_row).to(tl.int64)
    m_row = node < last
    parent = tl.load(nodes.parents + direction * N + node, mask=m_row, other=0).to(tl.int64)
    o_gate = i_cells * (4 * TILE.columns) + tl.arange(0, 4 * TILE.columns)  # column 4c + k is gate k of cell c
    m_gate = o_gate < 4 * C
    EVEN: tl.constexpr = C % TILE.columns == 0
    row = direction * N + node
    if x_gates_ptr is not None:
        if nodes.words is not None:
            x_row = direction * M + tl.load(nodes.words + row, mask=m_row, other=0)
        else:
            x_row = direction * M + node - tl.load(nodes.starts + direction * (T + 2) + slab_depth)

    o_cell = i_cells * TILE.columns + tl.arange(0, TILE.columns)
    m = m_row[:, None] & (o_cell < C)[None, :]
    p_before = tensors.cell + (((depth + 1) % 2 * SHAPE.D + direction) * R + parent) * C
    c = tl.load(p_before[:, None] + o_cell[None, :], mask=m, other=0.0)  # loads while the product is computed

    p_hidden = tensors.parent_hidden + row * P
    if x_gates_ptr is not None:
        p_x = x_gates_ptr + x_row * (4 * C)
        x_gates = tl.load(p_x[:, None] + o_gate[None, :], mask=m_row[:, None] & m_gate[None, :], other=0.0)
        x_gates = x_gates.to(tl.float32)
        p_weight = weights.recurrent + direction * (8 * P * C) + o_gate
        acc = product(x_gates, p_hidden, p_hidden, m_row, p_weight, m_gate, P, 1, 4 * C, EVEN, TILE.k, PRECISION, KEEP)
    else:
        p_weight = weights.input + direction * (8 * P * C) + o_gate  # the recurrent weight follows it
        p_x = tensors.x + row * P
        bias = tl.load(weights.bias + direction * 4 * C + o_gate, mask=m_gate, other=0.0)
        acc = zeros(TILE.rows, 4 * TILE.columns) + bias[None, :]
        acc = product(acc, p_x, p_hidden, m_row, p_weight, m_gate, P, 2, 4 * C, EVEN, TILE.k, PRECISION, KEEP)

    i_and_g, f_and_o = tl.split(tl.reshape(acc, (TILE.rows, TILE.columns, 2, 2)))  # the last axis is split first
    i, g = tl.split(i_and_g)
    f, o = tl.split(f_and_o)
    c, h = cell(i, f, g, o, c, weights.cell_clip, False, APPROXIMATE)
    o_here = ((direction * R + o_row) * C)[:, None] + o_cell[None, :]
    tl.store(tensors.cell + tl.cast(depth % 2 * SHAPE.D * C, tl.int64) * R + o_here, c, mask=m)
    tl.store(tensors.unprojected + o_here, h.to(tensors.unprojected.dtype.element_ty), mask=m)


@triton.jit
def cell(i, f, g, o, c, cell_clip, APPROXIMATE_ALL: tl.constexpr, APPROXIMATE: tl.constexpr):
    """Return c and h, from the gates' sums and the parent's c.

    APPROXIMATE uses the card's own tanh where h is rounded right away; APPROXIMATE_ALL uses it in i and f too, whose
    error c carries on. The fused multiply-add is explicit: left to itself, a compiler may fuse either product,
    differently in each variant.
    """
    c = tl.fma(sigmoid(f, APPROXIMATE_ALL), c, sigmoid(i, APPROXIMATE_ALL) * tanh(g, APPROXIMATE))
    c = clip(c, cell_clip)
    return c, sigmoid(o, APPROXIMATE) * tanh(c, APPROXIMATE)


@triton.jit
def projection_tile(
    weights, tensors, nodes, depth, direction, i_rows, i_columns, i_split, N, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Compute r of a block of rows and columns, or one split's partial sums (split-K), which the last split adds up."""
    P: tl.constexpr = SHAPE.P
    C: tl.constexpr = SHAPE.C
    PRECISION: tl.constexpr = MODE.precision
    KEEP: tl.constexpr = MODE.keep
    _, first, last = depth_nodes(nodes, direction, depth, T)
    direction = tl.cast(direction, tl.int64)
    o_row = i_rows * TILE.rows + tl.arange(0, TILE.rows)
    node = (first + o_row).to(tl.int64)
    m_row = node < last
    o_column = i_columns * TILE.columns + tl.arange(0, TILE.columns)
    m_column = o_column < P
    m = m_row[:, None] & m_column[None, :]
    SPLITS: tl.constexpr = TILE.splits
    SIZE: tl.constexpr = C // SPLITS
    p_h = tensors.unprojected + (direction * R + o_row) * C + i_split * SIZE
    p_weight = weights.projection + (direction * C + i_split * SIZE) * P + o_column
    EVEN: tl.constexpr = P % TILE.columns == 0
    acc = zeros(TILE.rows, TILE.columns)
    acc = product(acc, p_h, p_h, m_row, p_weight, m_column, SIZE, 1, P, EVEN, TILE.k, PRECISION, KEEP)

    i_block = i_rows * SHAPE.D + direction
    complete = True
    if SPLITS > 1:
        o_sums = (i_block * SPLITS * TILE.rows + tl.arange(0, TILE.rows)[:, None]) * P + o_column[None, :]
        tl.store(tensors.partial_sums + i_split * TILE.rows * P + o_sums, acc, mask=m)
        p_counter = tensors.counters + i_block * tl.cdiv(P, TILE.columns) + i_columns
        complete = (arrive(p_counter, SPLITS) & (ARRIVALS - 1)) == 0
        if complete:
            acc = tl.zeros_like(acc)
            for split in tl.static_range(SPLITS):  # always in this order: the same sum in every run
                p_sums = tensors.partial_sums + split * TILE.rows * P + o_sums
                acc += tl.load(p_sums, mask=m, other=0.0, cache_modifier=".cg")
    if complete:
        child, n_children = children_of(nodes, direction, node, m_row, N)
        skipped = load_skipped(tensors, direction, node, m_row, o_column, N, P)
        r = store_projected(acc, weights.projection_clip, tensors, skipped, direction, node, m_row, o_column, N, P)
        store_to_children(r, tensors, child, n_children, direction, m_row, o_column, N, P)


@triton.jit
def arrive(p_counter, SPLITS: tl.constexpr):
    """Count a split whose sums this program has written; return a multiple of ARRIVALS once all splits have arrived.

    The counter only ascends, so it is never reset: every launch adds ARRIVALS to it, however many splits it has.
    """
    tl.static_assert(ARRIVALS % SPLITS == 0)
    tl.debug_barrier()  # every thread's sums are written before the program counts itself
    return tl.atomic_add(p_counter, ARRIVALS // SPLITS, sem="acq_rel") + ARRIVALS // SPLITS


@triton.jit
def children_of(nodes, direction, node, m_row, N):
    """Return each node's first child and number of children, which come from the schedule, so can be loaded early."""
    p_children = nodes.children + direction * (N + 1) + node
    child = tl.load(p_children, mask=m_row, other=0)
    return child, tl.load(p_children + 1, mask=m_row, other=0) - child


@triton.jit
def load_skipped(tensors, direction, node, m_row, o_column, N, P: tl.constexpr):
    """Load x of a block; it is complete once the layer below has ended, so can be loaded early. None without a skip."""
    skipped = None
    if tensors.outputs is not None:
        o_x = ((direction * N + node) * P)[:, None] + o_column[None, :]
        skipped = tl.load(tensors.x + o_x, mask=m_row[:, None] & (o_column < P)[None, :], other=0.0)
    return skipped


@triton.jit
def store_projected(sums, bound, tensors, skipped, direction, node, m_row, o_column, N, P: tl.constexpr):
    """Store r of a block at its nodes, and r + x in the output; return r."""
    row, m = direction * N + node, m_row[:, None] & (o_column < P)[None, :]
    r = clip(sums, bound).to(tensors.hidden.dtype.element_ty)
    o_r = (row * P)[:, None] + o_column[None, :]
    tl.store(tensors.hidden + o_r, r, mask=m)
    if tensors.outputs is not None:
        output = r.to(tl.float32) + skipped.to(tl.float32)
        tl.store(tensors.outputs + o_r, output.to(tensors.outputs.dtype.element_ty), mask=m)
    return r


@triton.jit
def store_to_children(r, tensors, child, n_children, direction, m_row, o_column, N, P: tl.constexpr):
    """Store r of a block in the rows of its nodes' children, which are contiguous."""
    m = m_row[:, None] & (o_column < P)[None, :]
    o_child = ((direction * N + child) * P)[:, None] + o_column[None, :]
    for i in range(tl.max(n_children, axis=0)):  # nearly always one
        tl.store(tensors.parent_hidden + o_child + i * P, r, mask=m & (i < n_children)[:, None])
