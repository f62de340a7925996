"""Gates in 8-bit integers for many rows on Hopper: the kernel of `warp_specialized` with the numbers of `int8`."""

from __future__ import annotations

from collections.abc import Iterator

from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm.hopper import fits, is_served
from flashelmo.kernels.lstm.hopper_projection import projection
from flashelmo.kernels.lstm.int8 import int8_layout, rows_part
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.lstm.steps import Part, depth_launches
from flashelmo.kernels.lstm.warp_specialized import LEAST_ROWS, Scales, descriptor, specialized_gates
from flashelmo.kernels.tuning import Tile

TILE = Tile(128, 32, 128, 4, 6)  # per consumer, by its warps
REGISTERS = 240  # per thread of a consumer, which holds all of a tile's cells at once


def serves(run: LayerRun, rows: int) -> bool:
    """Whether this serves: many rows on Hopper; or any, where rows must not decide, as `int8` projects differently."""
    weights, many = run.weights, rows >= LEAST_ROWS or run.options.batch_invariant
    return weights.int8 and many and fits(weights.shape) and is_served(weights.dtype, weights.device)


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """Yield the launches of consecutive depths, in order.

    Raises:
        ValueError: a depth does not exist.
    """
    return depth_launches(run, depths, rows_part(run), _gates(run), projection(run, int8_layout))


def _gates(run: LayerRun) -> Part:
    weights, tensors = run.weights.layout(int8_layout), run.tensors
    blocks = {
        "x_desc": descriptor(tensors.x_int8, TILE.rows, TILE.k),
        "hidden_desc": descriptor(tensors.hidden_int8, TILE.rows, TILE.k),
        "weight_desc": descriptor(weights.gates, 4 * TILE.columns, TILE.k),
        "scales": Scales(tensors.row_scale, weights.scale),
    }
    return specialized_gates(run, weights, blocks, TILE, REGISTERS)
