"""Types of arrays by their numbers; an array's shape is documented where it is used."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]  # with numbers of any type
Arrays: TypeAlias = dict[str, Array]  # by name, as a graph's inputs and outputs
Bool: TypeAlias = npt.NDArray[np.bool_]
Uint8: TypeAlias = npt.NDArray[np.uint8]
Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]
Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Floats: TypeAlias = npt.NDArray[np.floating[Any]]  # of any precision
