"""Hoisted steps, for few rows: the input's part x @ W_x + b of all nodes of some depths is one product beforehand.

A step's time is then that of reading weights, and it has half of them to read. Depths whose input part is computed at
once are a slab: as many as fit SLAB_BYTES. After the product a depth has the two launches of a fused step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flashelmo.kernels.launch import Launch
from flashelmo.kernels.linear import linear_launch
from flashelmo.kernels.lstm.fused import step_launches
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.lstm.weights import interleave

SLAB_BYTES = 256 << 20  # of the input's part of a slab, both directions


def serves(run: LayerRun, rows: int) -> bool:
    """8-bit weights, or rows for which a step's input part is better computed beforehand, for its whole slab.

    A cell's part is then written and read again, 2 * 4 gates * 4 bytes a row, in place of its input weights, 4 gates *
    P * itemsize: fewer bytes up to 8 * rows = P * itemsize, which is 128 rows at P = 512 in 16 bits.
    """
    # Measured on an H200 it pays up to 64 rows: at 128 a step takes 40.6 us and its input part 11.7, a fused one 44.8.
    return run.weights.int8 or 8 * rows <= run.weights.shape.P * run.weights.dtype.itemsize


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """The launches of some depths that follow each other, in order: a slab's product, then its steps.

    Raises:
        ValueError: a depth does not exist.
    """
    for slab in slabs(run, depths):
        product, x_gates = input_product(run, slab)
        yield product
        yield from step_launches(run, slab, x_gates)


def slabs(run: LayerRun, depths: range) -> Iterator[range]:
    """The depths in slabs as long as can be, each of a depth at least."""
    run.check_depths(depths)
    D, _, C = run.weights.shape
    most, first = SLAB_BYTES // (4 * D * 4 * C), depths.start  # nodes of a slab
    for depth in depths[1:]:
        if run.nodes.span(range(first, depth + 1)) > most:
            yield range(first, depth)
            first = depth
    yield range(first, depths.stop)


def input_product(run: LayerRun, slab: range) -> tuple[Launch, Tensor]:
    """The launch that computes a slab's input part, and what it writes: float32 [D, M, 4C]."""
    weights, x = run.weights.layout(interleave), slab_inputs(run, slab)
    x_gates = torch.empty(*x.shape[:-1], weights.bias.shape[1], dtype=torch.float32, device=x.device)
    return linear_launch(x, weights.input, weights.bias, x_gates, precision=run.options.precision), x_gates


def slab_inputs(run: LayerRun, slab: range) -> Tensor:
    """The layer's inputs of a slab's nodes, [D, M, P]; a direction with fewer nodes repeats its last."""
    nodes = run.nodes
    x: Tensor = run.tensors.x
    starts = nodes.starts.long()
    last = (starts[:, -1:] - 1).clamp_(min=0)
    node = torch.minimum(starts[:, slab.start, None] + torch.arange(nodes.span(slab), device=x.device), last)
    if run.by_word:
        return x[nodes.words.gather(1, node).long()]
    return x.gather(1, node[..., None].expand(-1, -1, x.shape[-1]))
