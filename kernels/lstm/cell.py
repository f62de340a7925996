"""The LSTM cell with projection: its mathematics, and the parts of kernels that variants share.

For a node and its parent, with r the projected state that recurs (P values), c the cell (C values) and x the layer's
input (P values):

    i, f, g, o = x @ W_x + r_parent @ W_r + b
    c = clip(sigmoid(f) * c_parent + sigmoid(i) * tanh(g), cell_clip)
    h = sigmoid(o) * tanh(c)
    r = clip(h @ W_p, projection_clip)

(Sak et al. 2014, https://arxiv.org/abs/1402.1128, with bilm-tf's clips; b already includes the forget bias.) The skip
connection adds x to the layer's output, never to what recurs.

A step's gates compute c and h; its projection computes r and writes it to its node and to the rows of the node's
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

from flashelmo.kernels.product import clip, sigmoid, tanh
from flashelmo.kernels.tuning import SPLIT_ARRIVALS

ARRIVALS = tl.constexpr(SPLIT_ARRIVALS)


class ProjectionTensors(NamedTuple):
    """The fields of `LstmTensors` that a projection reads and writes."""

    x: Any
    hidden: Any
    parent_hidden: Any
    unprojected: Any
    outputs: Any
    partial_sums: Any
    counters: Any


@triton.jit
def depth_nodes(nodes, direction, depth, T):
    """Return the first node of the previous depth, the first of this depth, and one past its last."""
    p = nodes.starts + direction * (T + 2) + depth
    return tl.load(p - 1), tl.load(p), tl.load(p + 1)


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
