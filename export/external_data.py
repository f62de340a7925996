"""Weights in their own file beside a graph, or beside several graphs that share them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.graph.builder import Tensors

# isort: split
import onnx  # after the graph's builder, whose error says how to install it

ALIGNMENT = 4096  # so that the file can be memory-mapped


class Place(NamedTuple):
    """Where a tensor is: the name of a file beside the graph's, and bytes in it."""

    location: str
    offset: int
    length: int


def places_of(tensors: Tensors, name: str) -> dict[str, Place]:
    """Return the place of each tensor in a file of this name: one after the other, each aligned."""
    places, end = {}, 0
    for tensor_name, tensor in tensors.items():
        begin = end + -end % ALIGNMENT
        places[tensor_name] = Place(name, begin, tensor.nbytes)
        end = begin + tensor.nbytes
    return places


def write_data(tensors: Tensors, places: Mapping[str, Place], folder: Path) -> None:
    """Write tensors at their places, which are all in one file.

    Raises:
        FlashElmoError: the file cannot be written.
    """
    path = folder / next(iter(places.values())).location
    try:
        with path.open("wb") as file:
            for name, tensor in tensors.items():
                file.write(bytes(places[name].offset - file.tell()))
                file.write(np.ascontiguousarray(tensor).data)
    except OSError as error:
        raise FlashElmoError(f"{path}: cannot be written: {reason_of(error)}") from None


def refer(proto: onnx.ModelProto, places: Mapping[str, Place]) -> None:
    """Set the place of each initializer that is not in the graph."""
    for stored in proto.graph.initializer:
        if stored.data_location == onnx.TensorProto.EXTERNAL:
            del stored.external_data[:]
            for key, value in places[stored.name]._asdict().items():
                stored.external_data.add(key=key, value=str(value))
