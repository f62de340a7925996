"""Fused steps, for many rows: input and recurrent state are multiplied in one pass, [x, r] @ [W_x; W_r].

A depth has two launches, of `gates_kernel` and `projection_kernel`; `cell` has their mathematics. Hoisted steps launch
the same two, with the input part already computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.cell import (
    ARRIVALS,
    ProjectionTensors,
    arrive,
    cell,
    children_of,
    depth_nodes,
    load_skipped,
    store_projected,
    store_to_children,
)
from flashelmo.kernels.lstm.run import LayerRun, NodeTensors
from flashelmo.kernels.lstm.steps import Part, choose_projection, depth_launches, eviction_policy, is_approximate
from flashelmo.kernels.lstm.weights import interleave
from flashelmo.kernels.product import product, zeros
from flashelmo.kernels.tuning import Tile, choose_tile


def serves(run: LayerRun, rows: int) -> bool:
    """Whether the weights are laid out for this variant: it serves any number of rows, but not 8-bit products."""
    return interleave in run.weights.layouts


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """Yield the launches of consecutive depths, in order.

    Raises:
        ValueError: a depth does not exist.
    """
    return step_launches(run, depths)


class GatesTensors(NamedTuple):
    """The fields of `LstmTensors` that gates read and write; x is None where its part was computed beforehand."""

    x: Any
    parent_hidden: Any
    cell: Any
    unprojected: Any


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


@triton.jit(do_not_specialize=["depth", "slab_depth", "N", "M", "R", "T"])
def gates_kernel(
    weights, tensors, nodes, x_gates_ptr, depth, slab_depth, N, M, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Compute c and h of one depth. Grid: blocks of rows, adjacent where they share weights; blocks of cells; D."""
    P: tl.constexpr = SHAPE.P
    C: tl.constexpr = SHAPE.C
    PRECISION: tl.constexpr = MODE.precision
    KEEP: tl.constexpr = MODE.keep
    EVEN: tl.constexpr = C % TILE.columns == 0
    i_rows, i_cells = tl.program_id(0), tl.program_id(1)
    _, first, last = depth_nodes(nodes, tl.program_id(2), depth, T)
    if first + i_rows * TILE.rows < last:
        direction = tl.program_id(2).to(tl.int64)
        o_row = i_rows * TILE.rows + tl.arange(0, TILE.rows)
        node = (first + o_row).to(tl.int64)
        m_row = node < last
        parent = tl.load(nodes.parents + direction * N + node, mask=m_row, other=0).to(tl.int64)
        o_gate = i_cells * (4 * TILE.columns) + tl.arange(0, 4 * TILE.columns)  # column 4c + k is gate k of cell c
        m_gate = o_gate < 4 * C
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
            acc = product(
                x_gates, p_hidden, p_hidden, m_row, p_weight, m_gate, P, 1, 4 * C, EVEN, TILE.k, PRECISION, KEEP
            )
        else:
            p_weight = weights.input + direction * (8 * P * C) + o_gate  # the recurrent weight follows it
            p_x = tensors.x + row * P
            bias = tl.load(weights.bias + direction * 4 * C + o_gate, mask=m_gate, other=0.0)
            acc = zeros(TILE.rows, 4 * TILE.columns) + bias[None, :]
            acc = product(acc, p_x, p_hidden, m_row, p_weight, m_gate, P, 2, 4 * C, EVEN, TILE.k, PRECISION, KEEP)

        i_and_g, f_and_o = tl.split(tl.reshape(acc, (TILE.rows, TILE.columns, 2, 2)))  # the last axis is split first
        i, g = tl.split(i_and_g)
        f, o = tl.split(f_and_o)
        c, h = cell(i, f, g, o, c, weights.cell_clip, False, MODE.approximate)
        o_here = ((direction * R + o_row) * C)[:, None] + o_cell[None, :]
        tl.store(tensors.cell + tl.cast(depth % 2 * SHAPE.D * C, tl.int64) * R + o_here, c, mask=m)
        tl.store(tensors.unprojected + o_here, h.to(tensors.unprojected.dtype.element_ty), mask=m)


@triton.jit(do_not_specialize=["depth", "N", "R", "T"])
def projection_kernel(
    weights, tensors, nodes, depth, N, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Compute r of one depth, or splits' partial sums (split-K), which a block's last split adds up.

    Grid: blocks of rows; blocks of columns times splits; D.
    """
    P: tl.constexpr = SHAPE.P
    C: tl.constexpr = SHAPE.C
    PRECISION: tl.constexpr = MODE.precision
    KEEP: tl.constexpr = MODE.keep
    EVEN: tl.constexpr = P % TILE.columns == 0
    SPLITS: tl.constexpr = TILE.splits
    SIZE: tl.constexpr = C // SPLITS
    i_rows, i_columns = tl.program_id(0), tl.program_id(1) // SPLITS
    _, first, last = depth_nodes(nodes, tl.program_id(2), depth, T)
    if first + i_rows * TILE.rows < last:
        _, first, last = depth_nodes(nodes, tl.program_id(2), depth, T)  # again: on sm_80 this takes a register less
        i_split, direction = tl.program_id(1) % SPLITS, tl.program_id(2).to(tl.int64)
        o_row = i_rows * TILE.rows + tl.arange(0, TILE.rows)
        node = (first + o_row).to(tl.int64)
        m_row = node < last
        o_column = i_columns * TILE.columns + tl.arange(0, TILE.columns)
        m_column = o_column < P
        m = m_row[:, None] & m_column[None, :]
        p_h = tensors.unprojected + (direction * R + o_row) * C + i_split * SIZE
        p_weight = weights.projection + (direction * C + i_split * SIZE) * P + o_column
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


def step_launches(run: LayerRun, depths: range, x_gates: Tensor | None = None) -> Iterator[Launch]:
    """Yield the launches of gates and projection of each depth, in order.

    Args:
        x_gates: [D, M, 4C], the input part of these depths' nodes; if None, it is computed on the way.

    Raises:
        ValueError: a depth does not exist, there is no such precision, or the tensors for split sums are too small.
    """
    return depth_launches(run, depths, _gates(run, depths.start, x_gates), projection(run))


def _gates(run: LayerRun, slab_depth: int, x_gates: Tensor | None) -> Part:
    """Return the gates of a slab, which begins at `slab_depth`."""
    (D, _, C), weights = run.weights.shape, run.weights
    words = None if x_gates is None else run.words
    tensors = run.tensors.only(GatesTensors)
    arguments = run.arguments | {  # None where it is not used, so that a kernel is compiled once
        "weights": weights.layout(interleave),
        "tensors": tensors if x_gates is None else tensors._replace(x=None),
        "nodes": NodeTensors(run.nodes.starts, run.nodes.parents, words=None if words is None else words.of_nodes),
        "x_gates_ptr": x_gates,
        "slab_depth": slab_depth,
        "M": 0 if x_gates is None else x_gates.shape[1],
    }
    device, options = None if x_gates is not None else weights.device, run.options
    invariant = options.batch_invariant

    def kind(rows: int) -> tuple[Tile, Mode]:
        given = "gates", weights.dtype, options.precision, rows
        tile = choose_tile(*given, device=device, batch_invariant=invariant)
        return tile, Mode(options.precision, eviction_policy(run, rows), is_approximate(weights.dtype))

    def launch(kind: tuple[Tile, Mode]) -> Launch:
        return Launch(gates_kernel, (), arguments | {"TILE": kind[0], "MODE": kind[1]}, kind[0].options)

    return Part(kind, launch, lambda rows, kind: (cdiv(rows, kind[0].rows), cdiv(C, kind[0].columns), D))


def projection(run: LayerRun, pack: Callable[..., Any] = interleave) -> Part:
    """Return the projection of all portable variants, with weights in the layout that `pack` makes.

    Raises:
        KeyError: the weights are not in this layout.
    """
    D, P, _ = run.weights.shape
    arguments = run.arguments | {
        "weights": run.weights.layout(pack),
        "tensors": run.tensors.only(ProjectionTensors)._replace(x=run.tensors.skipped),
        "nodes": NodeTensors(run.nodes.starts, None, run.nodes.children),
    }

    def kind(rows: int) -> tuple[Tile, Mode]:
        return choose_projection(run, rows), Mode(run.options.precision, eviction_policy(run, rows), False)

    def launch(kind: tuple[Tile, Mode]) -> Launch:
        return Launch(projection_kernel, (), arguments | {"TILE": kind[0], "MODE": kind[1]}, kind[0].options)

    def grid(rows: int, kind: tuple[Tile, Mode]) -> tuple[int, ...]:
        return cdiv(rows, kind[0].rows), cdiv(P, kind[0].columns) * kind[0].splits, D

    return Part(kind, launch, grid)
