"""Runtimes, which execute the graph's pieces. Each file wraps one library and imports it only when needed."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from flashelmo.engine.arrays import Arrays, Float32, Int32, Int64
from flashelmo.engine.model.weights import GATES

Kept: TypeAlias = npt.NDArray[np.generic]  # laid out as `Blocks` says


class Blocks(NamedTuple):
    """The layout of rows that a runtime keeps from call to call: arrays [planes, rows, width] of a type.

    In a part of a larger array, the rows of a plane are contiguous, its planes are not.
    """

    planes: int
    width: int
    dtype: type[np.generic] = np.float32

    def empty(self, n_rows: int) -> Kept:
        """Return memory for so many rows."""
        return np.empty((self.planes, n_rows, self.width), self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, over all planes."""
        return self.planes * self.width * np.dtype(self.dtype).itemsize


class LstmSteps(NamedTuple):
    """T steps of n rows of one layer and direction. Arrays are C-contiguous, except for the planes of `Blocks`.

    Attributes:
        layer, direction: which cell; direction 0 is forward.
        gates: the input product's parts, of T * n rows, or in layer 0 a table of distinct words.
        gate_rows: [T, n] rows of that table; None in the other layers.
        parents: [n] rows of the states of the previous depth.
        hidden, cell: those states, [p, P] and p rows.
        new_hidden: the result, [T, n, P].
        new_cell: the result after the last step, n rows.
    """

    layer: int
    direction: int
    gates: Kept
    gate_rows: Int32 | None
    parents: Int32
    hidden: Float32
    cell: Kept
    new_hidden: Float32
    new_cell: Kept

    def named_inputs(self) -> Arrays:
        """Return the inputs of the graph of steps, by name; planes are the gates, and cells are one plane."""
        inputs: Arrays = {"parents": self.parents, "hidden": self.hidden}
        inputs["cell"] = self.cell[0]
        if self.gate_rows is not None:
            return {**inputs, "gate_rows": self.gate_rows, **dict(zip(GATES, self.gates, strict=True))}
        shape = (*self.new_hidden.shape[:2], -1)
        return inputs | {name: part.reshape(shape) for name, part in zip(GATES, self.gates, strict=True)}


class Runtime(Protocol):
    """Executes the graph's pieces (see `graph/pieces.py` for shapes); results are written into the given arrays.

    Attributes:
        concurrent_directions: whether the two directions' pieces may run at once, from two threads.
        gates, cells: the layout of an input product's parts and of cells.
    """

    concurrent_directions: bool
    gates: Blocks
    cells: Blocks

    def word_vectors(self, windows: Int32 | None, word_ids: Int64 | None, vectors: Float32) -> None:
        """Compute words' vectors: windows [W, m, width], word_ids [W] -> vectors [W, P]."""

    def input_product(self, layer: int, direction: int, x: Float32, gates: Kept) -> None:
        """Compute the gates' non-recurrent part: x [m, P] -> gates, m rows."""

    def steps(self, steps: LstmSteps) -> None:
        """Do LSTM steps of the same rows."""
