"""Arrays in memory that two processes share, copied into it once and handed over as an open file.

The memory has no name: the system frees it with the last process that has it open, however that process ends, and the
size limit of `/dev/shm` does not apply to it.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from math import prod
from multiprocessing.connection import Connection
from typing import IO, Any, NamedTuple, TypeVar

import numpy as np

from flashelmo.engine.arrays import Array, Int64

T = TypeVar("T")

ALIGNMENT = 64  # bytes: as wide as a vector register
BUFFER_BYTES = 1 << 20


class ArrayLayout(NamedTuple):
    """How arrays are stored end to end in a file: their number type, shapes [B, dimensions] and total bytes."""

    dtype: str
    shapes: Int64
    n_bytes: int


class Pickled(NamedTuple):
    """A pickled value whose arrays are in a file, each at its (start, bytes) in `spans`."""

    pickle: bytes
    spans: list[tuple[int, int]]
    n_bytes: int


def write_arrays(arrays: Iterable[Array]) -> tuple[int, ArrayLayout]:
    """Copy arrays of one type and number of dimensions into new memory; the caller closes the descriptor."""

    def write(file: IO[bytes]) -> ArrayLayout:
        dtype, shapes = "float32", []
        for array in arrays:
            dtype = array.dtype.str
            shapes.append(array.shape)
            file.write(np.ascontiguousarray(array).data)
        return ArrayLayout(dtype, np.array(shapes, np.int64), file.tell())

    return _new_file(write)


def read_arrays(descriptor: int, layout: ArrayLayout) -> Iterator[Array]:
    """Yield copies of the arrays, each made when asked for; close the descriptor."""
    return _copies(_map(descriptor, layout.n_bytes, mmap.ACCESS_READ), layout)


def write_object(value: object) -> tuple[int, Pickled]:
    """Pickle a value, with each array once and outside the pickle; the caller closes the descriptor."""
    buffers: list[memoryview] = []
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=5, buffer_callback=lambda buffer: buffers.append(buffer.raw())).dump(value)

    def write(file: IO[bytes]) -> Pickled:
        spans = []
        for buffer in buffers:
            file.write(bytes(-file.tell() % ALIGNMENT))
            spans.append((file.tell(), buffer.nbytes))
            file.write(buffer)
        return Pickled(pickled.getvalue(), spans, file.tell())

    return _new_file(write)


def read_object(descriptor: int, pickled: Pickled) -> Any:
    """Return the value, whose arrays are copy-on-write views of the shared memory; close the descriptor."""
    memory = memoryview(_map(descriptor, pickled.n_bytes, mmap.ACCESS_COPY))
    return pickle.loads(pickled.pickle, buffers=[memory[start : start + size] for start, size in pickled.spans])


def send_file(connection: Connection[Any, Any], descriptor: int) -> None:
    """Send an open file to the process at the other end; the caller closes its own descriptor."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        socket.send_fds(end, [b"f"], [descriptor])


def receive_file(connection: Connection[Any, Any]) -> int:
    """Return the descriptor of the file that `send_file` sends."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        data, descriptors, _, _ = socket.recv_fds(end, 1, 1)
    if not data:
        raise EOFError
    if not descriptors:
        raise OSError("a file that was handed over was not received: too many files are open")
    return descriptors[0]


class _Pickler(pickle.Pickler):
    """Pickles memory-mapped arrays as ordinary ones, so that they too stay out of the pickle."""

    def reducer_override(self, value: Any) -> Any:
        return value.view(np.ndarray).__reduce_ex__(5) if isinstance(value, np.memmap) else NotImplemented


def _new_file(write: Callable[[IO[bytes]], T]) -> tuple[int, T]:
    """Return a nameless file in memory, and the function's result from writing it."""
    descriptor = _open_nameless()
    try:
        with open(descriptor, "wb", BUFFER_BYTES, closefd=False) as file:
            return descriptor, write(file)
    except BaseException:
        os.close(descriptor)
        raise


def _open_nameless() -> int:
    if sys.platform == "linux" and hasattr(os, "memfd_create"):
        return os.memfd_create("flashelmo")
    with tempfile.TemporaryFile() as file:  # if the system has no such files: one in its folder of temporary files
        return os.dup(file.fileno())


def _map(descriptor: int, n_bytes: int, access: int) -> mmap.mmap | bytearray:
    """Map the file's memory, which keeps its own descriptor; an empty file cannot be mapped."""
    try:
        return mmap.mmap(descriptor, n_bytes, access=access) if n_bytes else bytearray()
    finally:
        os.close(descriptor)


def _copies(memory: mmap.mmap | bytearray, layout: ArrayLayout) -> Iterator[Array]:
    values, start = np.frombuffer(memory, layout.dtype), 0
    for shape in layout.shapes.tolist():
        stop = start + prod(shape)
        yield values[start:stop].reshape(shape).copy()
        start = stop
