"""Fused steps for many rows on Hopper, in Gluon: one warp copies, two groups of warps multiply in turn.

`warp_specialized_kernel` has the gates; this file decides on the launches. `tma` computes the same in plain Triton,
which the interpreter runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.hopper import has_layout, hopper_layout, is_served, shape_and_strides
from flashelmo.kernels.lstm.hopper_projection import projection
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.lstm.steps import Part, block_gates_arguments, depth_launches
from flashelmo.kernels.lstm.warp_specialized_kernel import specialized_gates_kernel
from flashelmo.kernels.tuning import Tile, n_programs

TILE = Tile(128, 32, 64, 4, 6)  # per consumer, by its warps
REGISTERS = 216  # per thread of a consumer; a producer's have 24
LEAST_ROWS = 65


def serves(run: LayerRun, rows: int) -> bool:
    """Whether this serves: many rows on Hopper; any, where the number of rows must not decide."""
    many = rows >= LEAST_ROWS or run.options.batch_invariant
    return many and has_layout(run) and is_served(run.weights.dtype, run.weights.device)


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """Yield the launches of consecutive depths, in order.

    Raises:
        ValueError: a depth does not exist.
    """
    return depth_launches(run, depths, _gates(run), projection(run))


def descriptor(tensor: Tensor, rows: int, columns: int) -> Any:
    """Return a descriptor of a tensor's rows [n, values], copied in blocks of `rows` by `columns`."""
    layout = _layout(tensor.dtype, rows, columns)
    return TensorDescriptor(tensor, *shape_and_strides(tensor), [rows, columns], layout)


@cache
def _layout(dtype: torch.dtype, rows: int, columns: int) -> Any:
    element = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16, torch.int8: gl.int8}[dtype]
    return gl.NVMMASharedLayout.get_default_for([rows, columns], element)


def _gates(run: LayerRun) -> Part:
    weights, tensors = run.weights.layout(hopper_layout), run.tensors
    blocks = {
        "x_desc": descriptor(tensors.x, TILE.rows, TILE.k),
        "hidden_desc": descriptor(tensors.parent_hidden, TILE.rows, TILE.k),
        "weight_desc": descriptor(weights.gates, TILE.k, 4 * TILE.columns),
        "scales": None,
    }
    return specialized_gates(run, weights, blocks, TILE, REGISTERS)


def specialized_gates(run: LayerRun, weights: Any, blocks: dict[str, Any], tile: Tile, registers: int) -> Part:
    """Return the gates for weights in some layout, given its descriptors and scales in `blocks`."""
    D, _, C = run.weights.shape
    arguments = block_gates_arguments(run, weights) | blocks
    arguments |= {"bias": weights.bias, "TILE": tile, "REGISTERS": registers}
    most = n_programs(run.weights.device)
    launch = Launch(specialized_gates_kernel, (), arguments, {"num_warps": tile.warps})

    def grid(rows: int, tile: Tile) -> tuple[int]:
        return (min(most, D * cdiv(rows, tile.rows) * (C // tile.columns)),)

    return Part(lambda rows: tile, lambda tile: launch, grid)


class Scales(NamedTuple):
    """What turns integer sums into gates: float32 scales of rows [D, N] and columns [D, 4, C]."""

    rows: Any
    columns: Any
