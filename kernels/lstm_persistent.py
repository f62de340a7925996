"""Many time steps of the LSTM in one launch, for depths of few rows.

There a step takes microseconds. Its two launches from the host take longer than that; inside a captured graph they take
about what the two waits here do, and only a measurement can tell which is less. One program a multiprocessor stays for
all the steps: it computes its blocks of cells (`lstm.gates_tile`), waits for the others, computes its blocks of the
projection (`lstm.projection_tile`), and waits again. The weights that a step reads are marked to stay in the L2 cache,
where 8-bit ones of the original size, 21 MB, fit on an H100 or newer.

Programs wait for each other, so all must run at once: the launch is cooperative, with a program a multiprocessor. A
grid of one program is legal and never waits, so that Triton's interpreter runs it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from flashelmo.kernels.launch import Launch, Precision, check
from flashelmo.kernels.lstm import depth_nodes, gates_tile, projection_tile
from flashelmo.kernels.lstm_launches import is_approximate
from flashelmo.kernels.lstm_tensors import LstmTensors, NodeTensors, check_tensors, choose_projection
from flashelmo.kernels.lstm_weights import LstmWeights
from flashelmo.kernels.nodes import Nodes
from flashelmo.kernels.tuning import choose_tile

MAX_POLLS = tl.constexpr(1 << 22)  # of a wait: seconds, where a step takes microseconds


class Barrier(NamedTuple):
    """Where the programs of a device's persistent launches meet.

    Attributes:
        arrivals: int64 [1], how many programs have ever arrived; each launch adds a multiple of its programs.
        timed_out: int32 [1], not 0 once a wait has been given up.
        programs: of every launch that meets here; one launch at a time.
    """

    arrivals: Any
    timed_out: Any
    programs: int

    @classmethod
    def on(cls, device: torch.device | str, programs: int | None = None) -> Barrier:
        """A barrier on a device, for as many programs as it has multiprocessors where no number is given."""
        device = torch.device(device)
        most = n_multiprocessors(device)
        if programs is not None and (programs < 1 or (device.type == "cuda" and programs > most)):
            raise ValueError(f"programs: expected 1 to {most}, all of which run at once, found {programs}")
        arrivals, timed_out = (torch.zeros(1, dtype=dtype, device=device) for dtype in (torch.int64, torch.int32))
        return cls(arrivals, timed_out, programs or most)

    def check(self) -> None:
        """Raise RuntimeError if a wait of a launch so far was given up: its results are wrong. Waits for the device."""
        if int(self.timed_out):
            raise RuntimeError("barrier: expected all programs of a launch to arrive, found some missing after seconds")


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


@triton.jit(do_not_specialize=["first_depth", "n_depths", "slab_depth", "N", "M", "R", "T"])
def persistent_kernel(
    weights, tensors, nodes, barrier, first_depth, n_depths, slab_depth, N, M, R, T,
    SHAPE: tl.constexpr, GATES: tl.constexpr, PROJECTION: tl.constexpr, PRECISION: tl.constexpr,
    APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """Depths first_depth ... first_depth + n_depths - 1. Grid: any number of programs that run at once."""
    program, n_programs = tl.program_id(0), tl.num_programs(0)
    N_CELLS: tl.constexpr = (SHAPE.C + GATES.columns - 1) // GATES.columns
    N_COLUMNS: tl.constexpr = (SHAPE.P + PROJECTION.columns - 1) // PROJECTION.columns
    N_SHARES: tl.constexpr = N_COLUMNS * PROJECTION.splits
    polls = MAX_POLLS
    for depth in range(first_depth, first_depth + n_depths):
        for i in range(program, N_CELLS * SHAPE.D, n_programs):
            direction = i // N_CELLS
            _, first, last = depth_nodes(nodes, direction, depth, T)
            for i_rows in range(tl.cdiv(last - first, GATES.rows)):
                gates_tile(
                    weights, tensors, nodes, depth, slab_depth, direction, i_rows, i % N_CELLS, N, M, R, T,
                    SHAPE, GATES, PRECISION, "evict_last", APPROXIMATE, False,
                )  # fmt: skip
        polls = wait_for_all(barrier, polls)
        for i in range(program, N_SHARES * SHAPE.D, n_programs):
            direction, i_share = i // N_SHARES, i % N_SHARES
            _, first, last = depth_nodes(nodes, direction, depth, T)
            for i_rows in range(tl.cdiv(last - first, PROJECTION.rows)):
                projection_tile(
                    weights, tensors, nodes, depth, direction, i_rows,
                    i_share // PROJECTION.splits, i_share % PROJECTION.splits, N, R, T,
                    SHAPE, PROJECTION, PRECISION, "evict_last", False,
                )  # fmt: skip
        polls = wait_for_all(barrier, polls)


def persistent_launch(
    weights: LstmWeights,
    tensors: LstmTensors,
    nodes: Nodes,
    first_depth: int,
    n_depths: int,
    barrier: Barrier,
    *,
    by_word: bool = False,
    slab_depth: int = 1,
    precision: Precision = "ieee",
) -> Launch:
    """One launch of n_depths depths that follow each other.

    Args:
        tensors, by_word, slab_depth, precision: as for `lstm_launches.step_launches`.
        barrier: whose number of programs is the grid.

    Raises:
        ValueError: a tensor has another shape, type or layout than it should, or a depth does not exist.
    """
    last_depth = first_depth + n_depths - 1
    if not 1 <= first_depth <= last_depth <= nodes.n_depths:
        raise ValueError(
            f"first_depth, n_depths: expected depths from 1 to {nodes.n_depths}, found {first_depth} to {last_depth}"
        )
    shape = check_tensors(weights, tensors, nodes, by_word, slab_depth, first_depth, last_depth)
    check("arrivals of the barrier", barrier.arrivals, [1], [torch.int64])
    rows = max(nodes.rows(depth) for depth in range(first_depth, last_depth + 1))
    gates = choose_tile("persistent gates", weights.dtype, precision, rows, int8=weights.is_int8)
    projection = choose_projection("persistent projection", weights, tensors, precision, rows)
    hoisted = tensors.x_gates is not None
    arguments = {
        "weights": weights,
        "tensors": tensors,
        "nodes": NodeTensors(nodes.starts, nodes.parents, nodes.words if by_word and not hoisted else None),
        "barrier": barrier,
        "first_depth": first_depth,
        "n_depths": n_depths,
        "slab_depth": slab_depth,
        "N": nodes.n_nodes,
        "M": tensors.x_gates.shape[1] if hoisted else 0,
        "R": tensors.cell.shape[2],
        "T": nodes.n_depths,
        "SHAPE": shape,
        "GATES": gates,
        "PROJECTION": projection,
        "PRECISION": precision,
        "APPROXIMATE": is_approximate(weights.dtype),
    }
    options = gates.options | {"launch_cooperative_grid": True}
    return Launch(persistent_kernel, (barrier.programs,), arguments, options)


def n_multiprocessors(device: torch.device) -> int:
    """Programs that surely run at once on a device: its multiprocessors; 1 in Triton's interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
