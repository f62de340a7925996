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
    """Rows for which a step's input part is better computed beforehand, for its whole slab.

    A cell's part is then written and read again, 2 * 4 gates * itemsize a row, in place of its input weights, 4 gates *
    P * itemsize: fewer bytes up to 2 * rows = P. Measured on an H200 it pays up to a quarter of that, 64 rows at P =
    512: with 128 a step takes 40.6 us and its input part 11.7, a fused one 44.8.
    """
    is_few = 8 * rows <= run.weights.shape.P
    return is_few and interleave in run.weights.layouts and not run.options.batch_invariant


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
    most, first = SLAB_BYTES // (D * 4 * C * run.weights.dtype.itemsize), depths.start  # nodes of a slab
    for depth in depths[1:]:
        if run.nodes.span(range(first, depth + 1)) > most:
            yield range(first, depth)
            first = depth
    yield range(first, depths.stop)


def input_product(run: LayerRun, slab: range) -> tuple[Launch, Tensor]:
    """The launch that computes a slab's input part, and what it writes: [D, M, 4C] in the compute type."""
    weights = run.weights.layout(interleave)
    return slab_product(run, slab, weights.input, weights.bias)


def slab_product(run: LayerRun, slab: range, weight: Tensor, bias: Tensor) -> tuple[Launch, Tensor]:
    """The same by a weight [D, P, 4C] and a bias [D, 4C] in whatever order of columns.

    Where a slab begins is read on the device, unless all directions begin alike.
    """
    (D, _, C), x = run.weights.shape, run.tensors.x
    x_gates = torch.empty(D, run.nodes.span(slab), 4 * C, dtype=x.dtype, device=x.device)
    first_rows = run.nodes.n_roots if slab.start == 1 else run.nodes.starts[:, slab.start]
    return linear_launch(x, weight, bias, x_gates, first_rows=first_rows, precision=run.options.precision), x_gates
