"""Fused steps, for many rows: input and recurrent state are multiplied in one pass, [x, r] @ [W_x; W_r].

A depth has two launches, of `gates_kernel` and `projection_kernel`. Hoisted steps launch the same two, with the input
part already computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.cell import Mode, depth_nodes, gates_tile, projection_tile
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.lstm.steps import (
    Part,
    choose_projection,
    depth_launches,
    eviction_policy,
    gates_arguments,
    is_approximate,
    projection_arguments,
)
from flashelmo.kernels.lstm.weights import interleave
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


@triton.jit(do_not_specialize=["depth", "slab_depth", "N", "M", "R", "T"])
def gates_kernel(
    weights, tensors, nodes, x_gates_ptr, depth, slab_depth, N, M, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Compute c and h of one depth. Grid: blocks of rows, adjacent where they share weights; blocks of cells; D."""
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
    """Compute r of one depth. Grid: blocks of rows; blocks of columns times splits; D."""
    i_rows, i_columns, direction = tl.program_id(0), tl.program_id(1) // TILE.splits, tl.program_id(2)
    _, first, last = depth_nodes(nodes, direction, depth, T)
    if first + i_rows * TILE.rows < last:
        i_split = tl.program_id(1) % TILE.splits
        projection_tile(
            weights, tensors, nodes, depth, direction, i_rows, i_columns, i_split, N, R, T, SHAPE, TILE, MODE
        )  # fmt: skip


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
    (D, _, C), weights, arguments = run.weights.shape, run.weights, gates_arguments(run, slab_depth, x_gates)
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
    (D, P, _), arguments = run.weights.shape, projection_arguments(run, pack)

    def kind(rows: int) -> tuple[Tile, Mode]:
        return choose_projection(run, rows), Mode(run.options.precision, eviction_policy(run, rows), False)

    def launch(kind: tuple[Tile, Mode]) -> Launch:
        return Launch(projection_kernel, (), arguments | {"TILE": kind[0], "MODE": kind[1]}, kind[0].options)

    def grid(rows: int, kind: tuple[Tile, Mode]) -> tuple[int, ...]:
        return cdiv(rows, kind[0].rows), cdiv(P, kind[0].columns) * kind[0].splits, D

    return Part(kind, launch, grid)
