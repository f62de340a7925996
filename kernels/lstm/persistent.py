"""All steps of few rows in one launch on Hopper, in Gluon: weights are read once and stay on the chip.

With few rows, a step's time goes into reading weights and starting two launches. Here a layer's recurrent weights and
projection are kept in the registers and shared memory of as many multiprocessors as can hold them (Diamos et al.
2016, http://proceedings.mlr.press/v48/diamos16.html), and one launch does the steps of a run of consecutive depths.
Their input part, or that of all words, is one product computed beforehand, as in `hoisted`. `persistent_kernel` has the
kernel; this file decides on the launches.

A layer of the original model has 42 MB of these weights; the 128 multiprocessors that its programs run on have 61 MB of
registers and shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm.hoisted import input_parts
from flashelmo.kernels.lstm.hopper import has_layout, hopper_layout, is_served
from flashelmo.kernels.lstm.persistent_exchange import CELLS
from flashelmo.kernels.lstm.persistent_kernel import K, persistent_kernel
from flashelmo.kernels.lstm.roots import roots_launch
from flashelmo.kernels.lstm.run import LayerRun, NodeTensors
from flashelmo.kernels.lstm.steps import is_approximate
from flashelmo.kernels.lstm.warp_specialized import descriptor
from flashelmo.kernels.lstm.weights import Shape
from flashelmo.kernels.tuning import EXCHANGED_ROWS, Tile, n_programs

TILES = tuple(Tile(rows, CELLS.value, K.value, 8, 1) for rows in (16, EXCHANGED_ROWS))  # all nodes of a depth
SIZES = 128, 256, 512  # P: weights of larger ones do not fit; in smaller ones, threads have no word to wait for
SPLITS = 1, 2, 4, 8  # C / P
AT_ONCE = {"num_warps": 8, "launch_cooperative_grid": True}


class PersistentTensors(NamedTuple):
    """The fields of `LstmTensors` that the kernel reads and writes; x is None where there is no skip connection."""

    x: Any
    hidden: Any
    parent_hidden: Any
    cell: Any
    outputs: Any
    exchange: Any


def serves(run: LayerRun, rows: int) -> bool:
    """Whether this serves: few rows on Hopper, where rows may decide, of sizes whose programs can all run at once."""
    few = rows <= EXCHANGED_ROWS and not run.options.batch_invariant and has_layout(run)
    return few and is_served(run.weights.dtype, run.weights.device) and fits(run.weights.shape, run.weights.device)


def fits(shape: Shape, device: torch.device) -> bool:
    """Whether sizes divide into programs that can all run at once, one per multiprocessor."""
    D, P, C = shape
    is_cut = P in SIZES and C % P == 0 and C // P in SPLITS
    return is_cut and D * (C // CELLS.value) <= n_programs(device)


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """Yield the launches of consecutive depths, in order: each slab's product, the roots, and the slab's steps.

    Raises:
        ValueError: a depth does not exist.
    """
    weights = run.weights.layout(hopper_layout)
    for slab, product, x_gates in input_parts(run, depths, weights.input, weights.input_bias):
        if product is not None:
            yield product
        if slab.start == 1:
            yield roots_launch(run)
        yield _steps(run, slab, x_gates)


def _steps(run: LayerRun, slab: range, x_gates: Tensor) -> Launch:
    """Return the launch of all of a slab's steps."""
    weights, tensors, (D, _, C) = run.weights.layout(hopper_layout), run.tensors, run.weights.shape
    rows = max(map(run.nodes.rows, slab))
    words = None if run.words is None else run.words.of_nodes
    arguments = run.arguments | {
        "recurrent_desc": descriptor(weights.recurrent, CELLS.value, K.value),
        "projection_desc": descriptor(weights.projection, K.value, CELLS.value),
        "recurrent": weights.recurrent,
        "x_gates_ptr": x_gates,
        "cell_clip": weights.cell_clip,
        "projection_clip": weights.projection_clip,
        "tensors": tensors.only(PersistentTensors)._replace(x=tensors.skipped),
        "nodes": NodeTensors(run.nodes.starts, run.nodes.parents, run.nodes.children, words),
        "depth": slab.start,
        "end": slab.stop,
        "polls": run.options.polls,
        "M": x_gates.shape[1],
        "TILE": next(tile for tile in TILES if rows <= tile.rows),
        "APPROXIMATE": is_approximate(run.weights.dtype),
    }
    return Launch(persistent_kernel, (C // CELLS.value, D), arguments, AT_ONCE)
