"""Runtimes: what executes the graph's pieces. Each file stands for one library and imports it only when asked for."""

from __future__ import annotations

from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]
Gates: TypeAlias = Array  # [4, ...], one part for each gate


class Runtime(Protocol):
    """The graph's pieces (`graph.py` gives the shapes). Arrays are C-contiguous; outputs are written in place."""

    def word_vectors(self, windows: Int32 | None, word_ids: Int64 | None, vectors: Array) -> None:
        """Words to vectors."""

    def input_product(self, layer: int, direction: int, x: Array, gates: Gates) -> None:
        """The gates' part that does not recur."""

    def steps(
        self,
        layer: int,
        direction: int,
        gates: Gates,
        gate_rows: Int32 | None,
        parents: Int32,
        hidden: Array,
        cell: Array,
        new_hidden: Array,
        new_cell: Array,
    ) -> None:
        """T LSTM steps of the same rows. `gate_rows` is given for layer 0 alone."""
