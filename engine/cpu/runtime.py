"""Runtimes: what executes the graph's pieces. Each file stands for one library and imports it only when asked for."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]


class LstmSteps(NamedTuple):
    """T steps of n rows of one layer and direction. All arrays are C-contiguous.

    Attributes:
        layer, direction: which cell; direction 0 is forward.
        gates: the input product's parts: [4, T, n, C], or in layer 0 a table [4, m, C] of distinct words.
        gate_rows: [T, n] into the table; None in the other layers.
        parents: [n] into the states of the depth before.
        hidden, cell: those states, [p, P] and [p, C].
        new_hidden: result, [T, n, P].
        new_cell: result after the last step, [n, C].
    """

    layer: int
    direction: int
    gates: Array
    gate_rows: Int32 | None
    parents: Int32
    hidden: Array
    cell: Array
    new_hidden: Array
    new_cell: Array


class Runtime(Protocol):
    """Executes the graph's pieces (`graph/pieces.py` gives the shapes); results are written into arrays that are given.

    Attributes:
        concurrent_directions: whether the two directions' pieces may run at once, from two threads.
    """

    concurrent_directions: bool

    def word_vectors(self, windows: Int32 | None, word_ids: Int64 | None, vectors: Array) -> None:
        """Words to vectors: windows [W, m, width], word_ids [W] -> vectors [W, P]."""

    def input_product(self, layer: int, direction: int, x: Array, gates: Array) -> None:
        """The gates' part that does not recur: x [m, P] -> gates [4, m, C]."""

    def steps(self, steps: LstmSteps) -> None:
        """LSTM steps of the same rows."""
