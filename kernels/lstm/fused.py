"""Fused steps, for many rows: input and recurrent state are multiplied in one pass, [x, r] @ [W_x; W_r].

A depth has two launches, of `gates_kernel` and `projection_kernel`. Hoisted steps have the same two, which then find
the input's part computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.cell import (
    Mode,
    choose_projection,
    depth_launches,
    depth_nodes,
    gates_arguments,
    gates_tile,
    is_approximate,
    projection_arguments,
    projection_tile,
)
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.tuning import WEIGHT_BOUND_ROWS, choose_tile


def serves(run: LayerRun, rows: int) -> bool:
    """Any number of rows, but not 8-bit weights: those of the input are not of their type."""
    return not run.weights.int8


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """The launches of some depths that follow each other, in order.

    Raises:
        ValueError: a depth does not exist, or the weights have 8 bits.
    """
    if run.weights.int8:
        raise ValueError("weights: expected all in one type, as fused steps need, found some of 8 bits")
    yield from step_launches(run, depths)


@triton.jit(do_not_specialize=["depth", "slab_depth", "N", "M", "R", "T"])
def gates_kernel(
    weights, tensors, nodes, x_gates_ptr, depth, slab_depth, N, M, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """c and h of one depth. Grid: blocks of rows, side by side where they share weights; blocks of cells; D."""
    i_rows, i_cells, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    _, first, last = depth_nodes(nodes, direction, depth, T)
    if first + i_rows * TILE.rows < last:
        gates_tile(
            weights, tensors, nodes, x_gates_ptr, depth, slab_depth, direction, i_rows, i_cells, N, M, R, T,
            SHAPE, TILE, MODE,
        )  # fmt: skip


@triton.jit(do_not_specialize=["depth", "N", "R", "T"])
def projection_kernel(
    weights, tensors, nodes, depth, N, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """r of one depth. Grid: blocks of rows; blocks of columns times splits; D."""
    i_rows, i_columns, direction = tl.program_id(0), tl.program_id(1) // TILE.splits, tl.program_id(2)
    _, first, last = depth_nodes(nodes, direction, depth, T)
    if first + i_rows * TILE.rows < last:
        i_split = tl.program_id(1) % TILE.splits
        projection_tile(
            weights, tensors, nodes, depth, direction, i_rows, i_columns, i_split, N, R, T, SHAPE, TILE, MODE
        )  # fmt: skip


def step_launches(run: LayerRun, depths: range, x_gates: Tensor | None = None) -> Iterator[Launch]:
    """The launches of gates and projection of each depth, in order.

    Args:
        x_gates: [D, M, 4C], the input's part of these depths' nodes; None, and it is computed on the way.

    Raises:
        ValueError: a depth does not exist, there is no such precision, or the tensors of split sums are too small.
    """
    run.check_depths(depths)
    gates, projection = gates_arguments(run, depths.start, x_gates), projection_arguments(run)
    return depth_launches(
        run,
        depths,
        lambda run, rows: _gates_launch(run, gates, rows),
        lambda run, rows: _projection_launch(run, projection, rows),
    )


def _gates_launch(run: LayerRun, arguments: dict[str, Any], rows: int) -> Launch:
    (D, _, C), weights, hoisted = run.weights.shape, run.weights, arguments["x_gates_ptr"] is not None
    device = None if hoisted else weights.device
    tile = choose_tile("gates", weights.dtype, run.options.precision, rows, device=device, int8=weights.int8)
    grid = cdiv(rows, tile.rows), cdiv(C, tile.columns), D
    chosen = {"TILE": tile, "MODE": _mode(run, rows, approximate=is_approximate(weights.dtype))}
    return Launch(gates_kernel, grid, arguments | chosen, tile.options)


def _projection_launch(run: LayerRun, arguments: dict[str, Any], rows: int) -> Launch:
    D, P, _ = run.weights.shape
    tile = choose_projection("projection", run, rows)
    grid = cdiv(rows, tile.rows), cdiv(P, tile.columns) * tile.splits, D
    chosen = {"TILE": tile, "MODE": _mode(run, rows)}
    return Launch(projection_kernel, grid, arguments | chosen, tile.options)


def _mode(run: LayerRun, rows: int, approximate: bool = False) -> Mode:
    keep = "evict_last" if run.options.keep_weights and rows <= WEIGHT_BOUND_ROWS else ""
    return Mode(run.options.precision, keep, approximate)
