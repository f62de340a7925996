"""Persistent steps, for very few rows: many time steps in one launch.

There a step takes microseconds, and its two launches from the host take longer than that. One program a multiprocessor
stays for all steps of a slab, whose input part is one product beforehand as for hoisted steps: it computes its blocks
of cells (`cell.gates_tile`), waits for the others, computes its blocks of the projection (`cell.projection_tile`), and
waits again. All programs must run at once: the launch is cooperative. The weights that a step reads are marked to stay
in the L2 cache, where 8-bit ones of the original size, 21 MB, fit on an H100 or newer.

Inside a captured graph, which costs the host nothing, two launches a step are faster at every number of rows: on an
H200 in bf16 a row alone takes 13.0 us and here 14.3, 32 rows 18.0 and 19.5, 64 rows 25.1 and 33.3.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm.cell import (
    Mode,
    choose_projection,
    depth_nodes,
    gates_arguments,
    gates_tile,
    is_approximate,
    projection_tile,
)
from flashelmo.kernels.lstm.hoisted import input_product, slabs
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.tuning import choose_tile

MOST_ROWS = 32  # up to here a step takes less than its two launches from the host
MAX_POLLS = tl.constexpr(1 << 22)  # of a wait: seconds, where a step takes microseconds


def serves(run: LayerRun, rows: int) -> bool:
    """Very few rows, where programs have a barrier to wait at."""
    return run.options.barrier is not None and rows <= MOST_ROWS


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """The launches of some depths that follow each other, in order: a slab's product, then all its steps.

    Raises:
        ValueError: a depth does not exist, or there is no barrier.
    """
    for slab in slabs(run, depths):
        product, x_gates = input_product(run, slab)
        yield product
        yield _launch(run, slab, x_gates)


def _launch(run: LayerRun, slab: range, x_gates: Tensor) -> Launch:
    """All steps of a slab."""
    barrier, weights, precision = run.options.barrier, run.weights, run.options.precision
    if barrier is None:
        raise ValueError("barrier: expected one, as persistent steps need, found None")
    rows = max(run.nodes.rows(depth) for depth in slab)
    tile = choose_tile("persistent gates", weights.dtype, precision, rows, int8=weights.int8)
    arguments = gates_arguments(run, slab.start, x_gates) | {
        "tensors": run.tensors._replace(x_gates=x_gates),
        "barrier": barrier,
        "n_depths": len(slab),
        "GATES": tile,
        "PROJECTION": choose_projection("persistent projection", run, rows),
        "MODE": Mode(precision, "evict_last", is_approximate(weights.dtype), False),
    }
    return Launch(persistent_kernel, (barrier.programs,), arguments, tile.options | {"launch_cooperative_grid": True})


@triton.jit(do_not_specialize=["slab_depth", "n_depths", "N", "M", "R", "T"])
def persistent_kernel(
    weights, tensors, nodes, barrier, slab_depth, n_depths, N, M, R, T,
    SHAPE: tl.constexpr, GATES: tl.constexpr, PROJECTION: tl.constexpr, MODE: tl.constexpr,
):  # fmt: skip
    """Depths slab_depth ... slab_depth + n_depths - 1. Grid: any number of programs that run at once."""
    program, n_programs = tl.program_id(0), tl.num_programs(0)
    N_CELLS: tl.constexpr = (SHAPE.C + GATES.columns - 1) // GATES.columns
    N_COLUMNS: tl.constexpr = (SHAPE.P + PROJECTION.columns - 1) // PROJECTION.columns
    N_SUMS: tl.constexpr = N_COLUMNS * PROJECTION.splits
    polls = MAX_POLLS
    for depth in range(slab_depth, slab_depth + n_depths):
        for i in range(program, N_CELLS * SHAPE.D, n_programs):
            direction = i // N_CELLS
            _, first, last = depth_nodes(nodes, direction, depth, T)
            for i_rows in range(tl.cdiv(last - first, GATES.rows)):
                gates_tile(
                    weights, tensors, nodes, depth, slab_depth, direction, i_rows, i % N_CELLS, N, M, R, T,
                    SHAPE, GATES, MODE,
                )  # fmt: skip
        polls = wait_for_all(barrier, polls)
        for i in range(program, N_SUMS * SHAPE.D, n_programs):
            direction, i_sums = i // N_SUMS, i % N_SUMS
            _, first, last = depth_nodes(nodes, direction, depth, T)
            for i_rows in range(tl.cdiv(last - first, PROJECTION.rows)):
                projection_tile(
                    weights, tensors, nodes, depth, direction, i_rows,
                    i_sums // PROJECTION.splits, i_sums % PROJECTION.splits, N, R, T,
                    SHAPE, PROJECTION, MODE,
                )  # fmt: skip
        polls = wait_for_all(barrier, polls)


@triton.jit
def wait_for_all(barrier, polls_left):
    """Wait until all programs of the grid are here; returns how often a later wait may look.

    The ticket says which round of arrivals this is, so that nothing is ever reset.
    """
    tl.debug_barrier()  # what this program's threads have written goes before its arrival
    n_programs = tl.num_programs(0).to(tl.int64)
    ticket = tl.atomic_add(barrier.arrivals, 1, sem="acq_rel")  # the last to come does not look again
    target = (ticket // n_programs + 1) * n_programs
    arrived = ticket + 1
    while (arrived < target) & (polls_left > 0):
        arrived = tl.atomic_add(barrier.arrivals, 0, sem="acquire")  # a load, by one thread for all
        polls_left -= 1
    if arrived < target:
        tl.store(barrier.timed_out, 1)
    tl.debug_barrier()
    return tl.where(arrived < target, 0, MAX_POLLS)  # once given up, no later wait holds the device
