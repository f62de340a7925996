"""Projections between equal sizes: idle units make the sizes differ, as the canonical layout has it.

The canonical layout projects cells (or filters) to P only where their number is another. AllenNLP's and
ELMoForManyLangs' cells and AllenNLP's filters are always projected. A unit whose weights and biases are all zero is
zero for any input, in the LSTM, a convolution and a highway alike, and adds nothing through its row of zeros in the
projection: with some of them the same function has the canonical layout.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flashelmo.engine.arrays import Float32
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import expected_shapes

IDLE = 64  # units: the tiles of kernels stay whole


def widen(config: ElmoConfig, tensors: dict[str, Float32]) -> tuple[ElmoConfig, dict[str, Float32]]:
    """A configuration that has a place for all projections in `tensors`, and the tensors of its shapes.

    Args:
        config: which may describe projections from P to P, that is none.
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
    """Zeros behind the values of each dimension."""
    return np.pad(tensor, [(0, wanted - size) for wanted, size in zip(shape, tensor.shape, strict=True)])
