"""The LSTM cell with projection: the parts of kernels that variants share, and what these are given.

With r the projected state that recurs (P values), c the cell (C values) and x the layer's input (P values), of a node
and its parent:

    i, f, g, o = x @ W_x + r_parent @ W_r + b
    c = clip(sigmoid(f) * c_parent + sigmoid(i) * tanh(g), cell_clip)
    h = sigmoid(o) * tanh(c)
    r = clip(h @ W_p, projection_clip)

(Sak et al. 2014, https://arxiv.org/abs/1402.1128, with bilm-tf's clips; the forget bias is already in b.) The skip
connection adds x to what the layer puts out, never to what recurs.

`gates_tile` gathers the parents' states and computes c and h, `projection_tile` r. Both read from the schedule which
nodes there are, so that a captured graph of launches serves any schedule of its size. The input's part x @ W_x + b may
be computed beforehand for many steps at once ("hoisted"): where rows are few and the time is that of reading weights,
it saves almost half of it.

Sums and cells are float32; x, r and h have the compute type.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.launch import cdiv
from flashelmo.kernels.lstm.run import LayerRun, NodeTensors
from flashelmo.kernels.lstm.weights import interleave
from flashelmo.kernels.product import clip, product, sigmoid, tanh, zeros
from flashelmo.kernels.tuning import Tile, choose_tile


class Mode(NamedTuple):
    """How a kernel computes: one compilation each.

    Attributes:
        precision: of float32 products, "ieee" or "tf32".
        keep: eviction policy of the weights in the L2 cache.
        approximate: tanh and the output gate are the card's own approximations.
        dependent: the launch may begin before the one before it ends.
    """

    precision: str
    keep: str
    approximate: bool
    dependent: bool


@triton.jit
def depth_nodes(nodes, direction, depth, T):
    """First node of the depth before, first node of this depth, one beyond its last."""
    p = nodes.starts + direction * (T + 2) + depth
    return tl.load(p - 1), tl.load(p), tl.load(p + 1)


@triton.jit
def wait_for_launch_before(DEPENDENT: tl.constexpr):
    """Wait until the launch before this one has ended, and let the launch after this one begin.

    Every program must come here. Before, it may read the schedule and the weights alone, and write nothing. A launch
    that skips the wait lets its successor overtake both predecessors.
    """
    if DEPENDENT:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def gates_tile(
    weights, tensors, nodes, depth, slab_depth, direction, i_rows, i_cells, N, M, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """c and h of a block of rows and cells."""
    P: tl.constexpr = SHAPE.P
    C: tl.constexpr = SHAPE.C
    PRECISION: tl.constexpr = MODE.precision
    KEEP: tl.constexpr = MODE.keep
    APPROXIMATE: tl.constexpr = MODE.approximate
    before, first, last = depth_nodes(nodes, direction, depth, T)
    direction = tl.cast(direction, tl.int64)
    o_row = i_rows * TILE.rows + tl.arange(0, TILE.rows)
    node = (first + o_row).to(tl.int64)
    m_row = node < last
    parent = tl.load(nodes.parents + direction * N + node, mask=m_row, other=0).to(tl.int64)
    o_gate = i_cells * (4 * TILE.columns) + tl.arange(0, 4 * TILE.columns)  # column 4c + k is gate k of cell c
    m_gate = o_gate < 4 * C
    EVEN: tl.constexpr = C % TILE.columns == 0
    if tensors.x_gates is not None:
        x_row = direction * M + node - tl.load(nodes.starts + direction * (T + 2) + slab_depth)
    elif nodes.words is not None:
        x_row = tl.load(nodes.words + direction * N + node, mask=m_row, other=0).to(tl.int64)
    else:
        x_row = direction * N + node
    wait_for_launch_before(MODE.dependent)

    o_cell = i_cells * TILE.columns + tl.arange(0, TILE.columns)
    m = m_row[:, None] & (o_cell < C)[None, :]
    p_before = tensors.cell + (((depth + 1) % 2 * SHAPE.D + direction) * R + parent) * C
    c = tl.load(p_before[:, None] + o_cell[None, :], mask=m, other=0.0)  # on its way while the product is computed

    p_hidden = tensors.hidden + (direction * N + before + parent) * P
    if tensors.x_gates is not None:
        p_x = tensors.x_gates + x_row * (4 * C)
        x_gates = tl.load(p_x[:, None] + o_gate[None, :], mask=m_row[:, None] & m_gate[None, :], other=0.0)
        if weights.recurrent_scale is None:
            p_weight = weights.recurrent + direction * (8 * P * C) + o_gate
            acc = product(
                x_gates, p_hidden, p_hidden, m_row, p_weight, m_gate, P, 1, 4 * C, EVEN, TILE.k, PRECISION, KEEP
            )
        else:
            p_weight = weights.recurrent + direction * (4 * P * C) + o_gate
            acc = tl.zeros_like(x_gates)
            acc = product(acc, p_hidden, p_hidden, m_row, p_weight, m_gate, P, 1, 4 * C, EVEN, TILE.k, PRECISION, KEEP)
            scale = tl.load(weights.recurrent_scale + direction * 4 * C + o_gate, mask=m_gate, other=0.0)
            acc = acc * scale[None, :] + x_gates
    else:
        p_weight = weights.input + direction * (8 * P * C) + o_gate  # the recurrent weight follows it
        p_x = tensors.x + x_row * P
        bias = tl.load(weights.bias + direction * 4 * C + o_gate, mask=m_gate, other=0.0)
        acc = zeros(TILE.rows, 4 * TILE.columns) + bias[None, :]
        acc = product(acc, p_x, p_hidden, m_row, p_weight, m_gate, P, 2, 4 * C, EVEN, TILE.k, PRECISION, KEEP)

    i_and_g, f_and_o = tl.split(tl.reshape(acc, (TILE.rows, TILE.columns, 2, 2)))  # the last axis is split first
    i, g = tl.split(i_and_g)
    f, o = tl.split(f_and_o)
    c = tl.sigmoid(f) * c + tl.sigmoid(i) * tanh(g, APPROXIMATE)  # exact where float32 keeps it from step to step
    c = clip(c, weights.cell_clip)
    h = sigmoid(o, APPROXIMATE) * tanh(c, APPROXIMATE)
    o_here = ((direction * R + o_row) * C)[:, None] + o_cell[None, :]
    tl.store(tensors.cell + tl.cast(depth % 2 * SHAPE.D * C, tl.int64) * R + o_here, c, mask=m)
    tl.store(tensors.unprojected + o_here, h.to(tensors.unprojected.dtype.element_ty), mask=m)


@triton.jit
def projection_tile(
    weights, tensors, nodes, depth, direction, i_rows, i_columns, i_split, N, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """r of a block of rows and columns, or one split's partial sums (split-K): the last split to come adds all up."""
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
    wait_for_launch_before(MODE.dependent)
    acc = zeros(TILE.rows, TILE.columns)
    acc = product(acc, p_h, p_h, m_row, p_weight, m_column, SIZE, 1, P, EVEN, TILE.k, PRECISION, KEEP)

    i_block = i_rows * SHAPE.D + direction
    complete = True
    if SPLITS > 1:
        o_sums = (i_block * SPLITS * TILE.rows + tl.arange(0, TILE.rows)[:, None]) * P + o_column[None, :]
        tl.store(tensors.partial_sums + i_split * TILE.rows * P + o_sums, acc, mask=m)
        tl.debug_barrier()  # every thread's sums are written before the program counts itself
        p_counter = tensors.counters + i_block * tl.cdiv(P, TILE.columns) + i_columns
        complete = tl.atomic_add(p_counter, 1, sem="acq_rel") == SPLITS - 1
        if complete:
            tl.store(p_counter, 0)  # for the next depth
            acc = tl.zeros_like(acc)
            for split in tl.static_range(SPLITS):  # in this order, whoever came last: one sum in every run
                p_sums = tensors.partial_sums + split * TILE.rows * P + o_sums
                acc += tl.load(p_sums, mask=m, other=0.0, cache_modifier=".cg")
    if complete:
        if weights.projection_scale is not None:
            acc *= tl.load(weights.projection_scale + direction * P + o_column, mask=m_column, other=0.0)[None, :]
        r = clip(acc, weights.projection_clip).to(tensors.hidden.dtype.element_ty)
        o_r = ((direction * N + node) * P)[:, None] + o_column[None, :]
        tl.store(tensors.hidden + o_r, r, mask=m)
        if tensors.outputs is not None:
            x = tl.load(tensors.x + o_r, mask=m, other=0.0).to(tl.float32)
            tl.store(tensors.outputs + o_r, (r.to(tl.float32) + x).to(tensors.outputs.dtype.element_ty), mask=m)


def gates_arguments(run: LayerRun, slab_depth: int, x_gates: Tensor | None) -> dict[str, Any]:
    """What `gates_tile` is given of a slab that begins at a depth, but for tile and mode.

    A kernel is compiled for which tensors there are: none that it leaves alone.
    """
    nodes, hoisted = run.nodes, x_gates is not None
    return run.arguments | {
        "weights": run.weights.layout(interleave),
        "tensors": run.tensors._replace(
            x=None if hoisted else run.tensors.x, outputs=None, partial_sums=None, counters=None, x_gates=x_gates
        ),
        "nodes": NodeTensors(nodes.starts, nodes.parents, nodes.words if run.by_word and not hoisted else None),
        "slab_depth": slab_depth,
        "M": 0 if x_gates is None else x_gates.shape[1],
    }


def projection_arguments(run: LayerRun) -> dict[str, Any]:
    """What `projection_tile` is given, but for tile and mode."""
    x = None if run.tensors.outputs is None else run.tensors.x
    return run.arguments | {
        "weights": run.weights.layout(interleave),
        "tensors": run.tensors._replace(x=x, cell=None),
        "nodes": NodeTensors(run.nodes.starts, None, None),
    }


def choose_projection(operation: str, run: LayerRun, rows: int) -> Tile:
    """The projection's tile for so many rows, its sums split where the cells can be split evenly.

    Raises:
        ValueError: the tensors of split sums are too small.
    """
    (D, P, C), weights = run.weights.shape, run.weights
    tile = choose_tile(operation, weights.dtype, run.options.precision, rows, int8=weights.int8)
    if C % tile.splits or tile.splits == 1:
        return tile._replace(splits=1)
    blocks = D * cdiv(rows, tile.rows)
    needed = {"partial_sums": blocks * tile.splits * tile.rows * P, "counters": blocks * cdiv(P, tile.columns)}
    for name, values in needed.items():
        if len(getattr(run.tensors, name)) < values:
            raise ValueError(f"{name}: expected at least {values} values, found {len(getattr(run.tensors, name))}")
    return tile


def is_approximate(dtype: torch.dtype) -> bool:
    """Whether tanh and the output gate are the card's approximate ones: where h is rounded to bf16 at once."""
    return dtype == torch.bfloat16 and not triton.knobs.runtime.interpret
