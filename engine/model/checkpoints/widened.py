"""Projections between equal sizes: idle units make the sizes differ, as the canonical layout has it.

The canonical layout projects cells (or filters) to P only if their number differs. AllenNLP's and ELMoForManyLangs'
cells and AllenNLP's filters are always projected. A unit whose weights and biases are all zero outputs zero for any
input, in an LSTM, a convolution or a highway, and adds nothing through its zero row in the projection: with some such
units, the same function fits the canonical layout.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flashelmo.engine.arrays import Float32
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import expected_shapes

IDLE = 64  # units: kernels' tiles stay full


def widen(config: ElmoConfig, tensors: dict[str, Float32]) -> tuple[ElmoConfig, dict[str, Float32]]:
    """Return a configuration that has room for all projections in `tensors`, and tensors of its shapes.

    Args:
        config: it may describe projections from P to P, which means none.
        tensors: of its shapes, by canonical name, with these projections.
    """
    homeless = tensors.keys() - expected_shapes(config).keys()
    if not homeless:
        return config, tensors
    if "lstm.0.forward.projection" in homeless:
        config = replace(config, cell_size=config.cell_size + IDLE)
    if "projection.weight" in homeless:
        width, number = config.filters[-1]
        config = replace(config, filters=(*config.filters[:-1], (width, number + IDLE)))
    shapes = expected_shapes(config)
    return config, {name: _padded(tensor, shapes[name]) for name, tensor in tensors.items()}


def _padded(tensor: Float32, shape: tuple[int, ...]) -> Float32:
    """Return a tensor with zeros added at the end of each dimension."""
    return np.pad(tensor, [(0, wanted - size) for wanted, size in zip(shape, tensor.shape, strict=True)])
