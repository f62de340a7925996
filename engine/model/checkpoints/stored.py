"""Tables of names: where each canonical tensor is in a published file, and how it is transformed."""

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
    """Return the tensor itself."""
    return tensor


class Stored(NamedTuple):
    """A canonical tensor as a file stores it.

    Attributes:
        name: of the stored tensor, which may contain several canonical ones, one after the other.
        shape: of the whole stored tensor.
        read: converts the stored rows to the canonical tensor.
        write: the inverse of `read`, for formats that are also written.
        rows: those of the stored tensor that contain this one.
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
    """Return the canonical float32 tensor of a stored one, an array or an HDF5 dataset, casting from 16 or 64 bits.

    Raises:
        FlashElmoError: names the file `source` and the tensor if that has another type or is not finite.
    """
    if tensor.dtype.kind != "f":  # before anything is read: values of another type may be arbitrarily large
        raise FlashElmoError(f"{source}: tensor {stored.name} has type {tensor.dtype}, expected float32")
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, which is refused
        rows = tensor[stored.rows].astype(np.float32, copy=False)
    if not all_finite(rows):
        raise FlashElmoError(f"{source}: tensor {stored.name} holds NaN or infinity")
    return np.ascontiguousarray(stored.read(rows))
