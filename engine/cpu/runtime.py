"""Runtimes: what executes the graph's pieces. Each file stands for one library and imports it only when asked for."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from flashelmo.engine.arrays import Arrays, Float32, Int32, Int64
from flashelmo.engine.model.weights import GATES

Kept: TypeAlias = npt.NDArray[np.generic]  # as `Blocks` says


class Blocks(NamedTuple):
    """How rows lie that a runtime keeps from one of its calls to the next: arrays [planes, rows, width] of a type.

    Where they are part of a larger array, the rows of a plane follow each other, its planes do not.
    """

    planes: int
    width: int
    dtype: type[np.generic] = np.float32

    def empty(self, n_rows: int) -> Kept:
        """Memory for so many rows."""
        return np.empty((self.planes, n_rows, self.width), self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.planes * self.width * np.dtype(self.dtype).itemsize


class LstmSteps(NamedTuple):
    """T steps of n rows of one layer and direction. Arrays are C-contiguous, but for the planes of `Blocks`.

    Attributes:
        layer, direction: which cell; direction 0 is forward.
        gates: the input product's parts, of T * n rows, or in layer 0 a table of distinct words.
        gate_rows: [T, n] into the table; None in the other layers.
        parents: [n] into the states of the depth before.
        hidden, cell: those states, [p, P] and p rows.
        new_hidden: result, [T, n, P].
        new_cell: result after the last step, n rows.
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
        """What the graph of steps takes, by name; planes are the gates, and cells are one plane."""
        inputs: Arrays = {"parents": self.parents, "hidden": self.hidden}
        inputs["cell"] = self.cell[0]
        if self.gate_rows is not None:
            return {**inputs, "gate_rows": self.gate_rows, **dict(zip(GATES, self.gates, strict=True))}
        shape = (*self.new_hidden.shape[:2], -1)
        return inputs | {name: part.reshape(shape) for name, part in zip(GATES, self.gates, strict=True)}


class Runtime(Protocol):
    """Executes the graph's pieces (`graph/pieces.py` gives the shapes); results are written into arrays that are given.

    Attributes:
        concurrent_directions: whether the two directions' pieces may run at once, from two threads.
        gates, cells: how an input product's parts and cells lie.
    """

    concurrent_directions: bool
    gates: Blocks
    cells: Blocks

    def word_vectors(self, windows: Int32 | None, word_ids: Int64 | None, vectors: Float32) -> None:
        """Words to vectors: windows [W, m, width], word_ids [W] -> vectors [W, P]."""

    def input_product(self, layer: int, direction: int, x: Float32, gates: Kept) -> None:
        """The gates' part that does not recur: x [m, P] -> gates, m rows."""

    def steps(self, steps: LstmSteps) -> None:
        """LSTM steps of the same rows."""
