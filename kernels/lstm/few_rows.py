"""Hoisted steps for few rows on Hopper, in Gluon: weights are loading before the previous launch ends.

With few rows, a step's time goes into reading weights and waiting. The input part of many depths, or of all words, is
one product computed beforehand, as in `hoisted`. `few_rows_kernels` has gates and projection; this file decides on the
launches.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.few_rows_kernels import CELLS, GATES, few_gates_kernel, few_projection_kernel
from flashelmo.kernels.lstm.hoisted import input_parts
from flashelmo.kernels.lstm.hopper import has_layout, hopper_layout, is_served
from flashelmo.kernels.lstm.hopper_projection import projection
from flashelmo.kernels.lstm.run import LayerRun, NodeTensors
from flashelmo.kernels.lstm.steps import Part, block_gates_arguments, block_projection_arguments, depth_launches
from flashelmo.kernels.lstm.warp_specialized import descriptor
from flashelmo.kernels.lstm.weights import Shape
from flashelmo.kernels.tuning import Tile, n_programs

MOST_ROWS = 64  # twice as many where the input part is by word: see `hoisted.most_rows`
PROJECTION = Tile(64, 64, 64, 4, 8, splits=8)
DEPENDENT = {"num_warps": 4, "launch_pdl": True}
SHARED_BYTES = 220 << 10  # of a multiprocessor's memory that a program may fill with blocks


def serves(run: LayerRun, rows: int) -> bool:
    """Whether this serves: few rows on Hopper, where the number of rows may decide the variant."""
    few = rows <= (MOST_ROWS if run.words is None else 2 * MOST_ROWS) and not run.options.batch_invariant
    return few and has_layout(run) and is_served(run.weights.dtype, run.weights.device)


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """Yield the launches of consecutive depths, in order: each slab's product, then its steps.

    Raises:
        ValueError: a depth does not exist.
    """
    weights = run.weights.layout(hopper_layout)
    for slab, product, x_gates in input_parts(run, depths, weights.input, weights.input_bias):
        if product is not None:
            yield product
        steps = depth_launches(run, slab, _gates(run, slab.start, x_gates), _any_projection(run))
        if slab.start > 1 and product is not None:
            # These gates read the results of `product` before they wait, so they must not begin before it has ended.
            first = next(steps)
            yield Launch(first.kernel, first.grid, first.arguments, {**first.options, "launch_pdl": False})
        yield from steps


def gates_tile(rows: int) -> Tile:
    """Return the gates' tile, whose rows are nodes; with as many stages as let two programs share a multiprocessor."""
    if rows <= 16:
        return Tile(16, CELLS.value, 64, 4, 5)
    return Tile(32, CELLS.value, 64, 4, 5) if rows <= 32 else Tile(64, CELLS.value, 64, 4, 4)


def _gates(run: LayerRun, slab_depth: int, x_gates: Tensor) -> Part:
    """Return the gates of a slab, which begins at `slab_depth`."""
    weights, tensors, (D, _, C) = run.weights.layout(hopper_layout), run.tensors, run.weights.shape
    words = None if run.words is None else run.words.of_nodes
    arguments = block_gates_arguments(run, weights) | {
        "x_gates_ptr": x_gates,
        "nodes": NodeTensors(run.nodes.starts, run.nodes.parents, words=words),
        "slab_depth": slab_depth,
        "M": x_gates.shape[1],
    }

    def launch(tile: Tile) -> Launch:
        blocks = {
            "weight_desc": descriptor(weights.recurrent, GATES.value, tile.k),
            "hidden_desc": descriptor(tensors.parent_hidden, tile.rows, tile.k),
        }
        return Launch(few_gates_kernel, (), arguments | blocks | {"TILE": tile}, DEPENDENT)

    return Part(gates_tile, launch, lambda rows, tile: (C // CELLS.value, cdiv(rows, tile.rows), D))


def is_resident(shape: Shape, device: torch.device) -> bool:
    """Whether all programs of this file's projection, whose splits wait for each other, run at once, one per
    multiprocessor; where not, the projection that the Hopper variants share is used.
    """
    programs = shape.D * (shape.P // PROJECTION.columns) * PROJECTION.splits
    blocks = shape.C // (PROJECTION.splits * PROJECTION.k)
    shared = 2 * blocks * PROJECTION.k * (PROJECTION.rows + PROJECTION.columns)
    return programs <= n_programs(device) and shared <= SHARED_BYTES


def _any_projection(run: LayerRun) -> Part:
    """Return this file's projection for one block of rows, if its programs run at once; else the Hopper variants'."""
    many = projection(run)
    if not is_resident(run.weights.shape, run.weights.device):
        return many
    few = _projection(run)

    def part(rows: int) -> Part:
        return few if rows <= PROJECTION.rows else many

    return Part(
        lambda rows: (part(rows), part(rows).kind(rows)),
        lambda kind: kind[0].launch(kind[1]),
        lambda rows, kind: kind[0].grid(rows, kind[1]),
    )


def _projection(run: LayerRun) -> Part:
    weights, tensors, (D, P, _) = run.weights.layout(hopper_layout), run.tensors, run.weights.shape
    arguments = block_projection_arguments(run, weights) | {
        "unprojected_desc": descriptor(tensors.unprojected, PROJECTION.rows, PROJECTION.k),
        "weight_desc": descriptor(weights.projection, PROJECTION.k, PROJECTION.columns),
        "TILE": PROJECTION,
    }
    launch = Launch(few_projection_kernel, (), arguments, DEPENDENT)
    return Part(
        lambda rows: PROJECTION,
        lambda tile: launch,
        lambda rows, tile: (cdiv(rows, tile.rows), P // tile.columns * tile.splits, D),
    )
