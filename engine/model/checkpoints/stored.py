"""Tables of names: where each canonical tensor lies in a published file, and how it is transformed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import all_finite

Conversion: TypeAlias = Callable[[Float32], Float32]
ALL_ROWS = slice(None)


def identity(tensor: Float32) -> Float32:
    """The tensor itself."""
    return tensor


class Stored(NamedTuple):
    """A canonical tensor as a file stores it.

    Attributes:
        name: of the stored tensor, which may hold several canonical ones below each other.
        shape: of the whole stored tensor.
        read: the stored rows to the canonical tensor.
        write: the inverse of `read`, in formats that are also written.
        rows: those of the stored tensor that hold this one.
    """

    name: str
    shape: tuple[int, ...]
    read: Conversion = identity
    write: Conversion = identity
    rows: slice = ALL_ROWS


def check_stored(table: Collection[Stored], found: Mapping[str, tuple[int, ...]], source: Path, options: str) -> None:
    """Raise FlashElmoError unless `found`, names and shapes in the file `source`, is what `options` describe."""
    for name, shape in {stored.name: stored.shape for stored in table}.items():
        if name not in found:
            raise FlashElmoError(f"{source}: tensor {name} is missing; by {options} its shape is {shape}")
        if found[name] != shape:
            raise FlashElmoError(f"{source}: tensor {name} has shape {found[name]}, expected {shape} by {options}")
    if others := sorted(found.keys() - {stored.name for stored in table}):
        raise FlashElmoError(f"{source}: tensor {others[0]} {found[others[0]]} has no place in a model of {options}")


def to_canonical(stored: Stored, tensor: Any, source: Path) -> Float32:
    """The canonical float32 tensor from a stored tensor, an array or an HDF5 dataset, whose 16 or 64 bits are cast.

    Raises:
        FlashElmoError: naming the file `source` and the tensor, where it is of another type or not finite.
    """
    if tensor.dtype.kind != "f":  # before anything is read: another type's values may be as large as it pleases
        raise FlashElmoError(f"{source}: tensor {stored.name} has type {tensor.dtype}, expected float32")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinity, which is refused
        rows = tensor[stored.rows].astype(np.float32, copy=False)
    if not all_finite(rows):
        raise FlashElmoError(f"{source}: tensor {stored.name} holds NaN or infinity")
    return np.ascontiguousarray(stored.read(rows))
