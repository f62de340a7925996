"""Queues launches of compiled kernels from a C function, in a microsecond or two each, without the interpreter lock.

A large window is some hundred launches that differ only in their grid and in one integer, the depth. From Python, each
waits for the interpreter, which other threads need to plan further windows.
"""

from __future__ import annotations

import logging
import struct
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

DEPENDENT, AT_ONCE = 1, 2  # flags
MAP, MAP_ALIGNED = "128s", 64  # a tensor map's format for `struct`, and its alignment in bytes
# Types as Triton names them in a compiled kernel's signature, by the letters of `struct`; pointers begin with "*".
LETTERS = {"i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
LETTERS |= {"fp32": "f", "f32": "f", "fp64": "d", "i1": "b", "u1": "B"}

logger = logging.getLogger("flashelmo")


class CKernel(NamedTuple):
    """A compiled kernel, as the C function takes it.

    Attributes:
        function: on the device; threads: per program; shared: bytes of its memory; flags: how it is launched.
        letters: of each value that `pack` is given; a tuple for a tuple, None for what is compiled in.
        packer: packs all values one after the other.
        offsets: int32, where each parameter begins among them.
        integers: where the 32-bit integers are that are parameters by themselves, by name.
    """

    function: int
    threads: int
    shared: int
    flags: int
    letters: tuple[Any, ...]
    packer: struct.Struct
    offsets: bytes
    integers: Mapping[str, int]

    @classmethod
    def of(
        cls, function: int, metadata: Sequence[int], flags: int, signature: Mapping[str, Any], sizes: Sequence[int]
    ) -> CKernel | None:
        """Return the kernel; None if a parameter has a type that is not known here.

        Args:
            metadata: warps, programs of a cluster and bytes of shared memory.
            signature: types by parameter, in order.
            sizes: how many values each parameter is: one, except for an encoded map with its sizes and strides.
        """
        n_warps, n_of_cluster, shared = metadata
        if n_of_cluster != 1 or _module() is None:
            return None
        letters, packed, end = list[Any](), "=", 0
        offsets, integers = list[int](), dict[str, int]()
        try:
            for (name, kind), size in zip(signature.items(), sizes, strict=True):
                for letter in _letters(kind, size):
                    letters.append(letter)
                    for each in _flat(letter):
                        padding = -end % (MAP_ALIGNED if each == MAP else struct.calcsize(each))
                        offsets.append(end + padding)
                        packed += padding * "x" + each
                        end += padding + struct.calcsize(each)
                if kind == "i32":
                    integers[name] = offsets[-1]
        except KeyError:
            return None
        packer = struct.Struct(packed)
        return cls(
            function, 32 * n_warps, shared, flags, tuple(letters), packer, array("i", offsets).tobytes(), integers
        )

    def pack(self, values: Sequence[Any]) -> bytes:
        """Return the packed values of all parameters in order, with addresses for tensors."""
        flat: list[Any] = []
        _flatten(self.letters, values, flat, _module().map_bytes)
        return self.packer.pack(*flat)

    def with_integers(self, packed: bytes, integers: Mapping[str, int]) -> bytes:
        """Return packed values with these integers replaced."""
        changed = bytearray(packed)
        for name, value in integers.items():
            struct.pack_into("=i", changed, self.integers[name], value)
        return bytes(changed)


def launch(
    parts: Sequence[tuple[CKernel, bytes, str | None]],
    which: array[int],
    integers: array[int],
    grids: array[int],
    device: int,
    stream: int,
) -> None:
    """Queue launches on a stream of the current device, whose number is given.

    Args:
        parts: each a kernel, its packed values, and the name of the integer in which its launches differ; None if they
            differ in none.
        which, integers: int32 [n], the part and the integer of each launch.
        grids: int32 [n, 3], without zeros.

    Raises:
        RuntimeError: with the driver's message.
    """
    given = tuple(
        (*kernel[:4], packed, kernel.offsets, -1 if name is None else kernel.integers[name])
        for kernel, packed, name in parts
    )
    _module().launch(given, which, integers, grids, device, stream)


def _letters(kind: Any, size: int) -> Sequence[Any]:
    """Return the letters of a parameter's values.

    Raises:
        KeyError: the type is not known.
    """
    if isinstance(kind, tuple):
        return [tuple(_letters(member, 1)[0] for member in kind)]
    if kind == "constexpr":
        return [None]
    if kind.startswith("tensordesc"):
        n = (size - 1) // 2
        if not size == 2 * n + 1 > 1:
            raise KeyError(kind)
        return [MAP, *"i" * n, *"q" * n]
    return ["Q" if kind.startswith("*") else LETTERS[kind]]


def _flat(letter: Any) -> Iterator[str]:
    """Yield the letters of all numbers in a value."""
    if isinstance(letter, tuple):
        for member in letter:
            yield from _flat(member)
    elif letter is not None:
        yield letter


def _flatten(letters: Sequence[Any], values: Sequence[Any], flat: list[Any], map_bytes: Callable[[Any], bytes]) -> None:
    """Append all numbers in the values to `flat`."""
    for letter, value in zip(letters, values, strict=True):
        if letter is None:
            continue
        if type(letter) is tuple:
            _flatten(letter, value, flat, map_bytes)
        elif letter == MAP:
            flat.append(map_bytes(value))
        else:
            flat.append(0 if value is None else value)  # null pointer


@cache
def _module() -> Any:
    """Return the compiled module, cached by Triton after the first time; None, after one warning, if that fails."""
    from triton.backends.nvidia.driver import include_dirs
    from triton.runtime.build import compile_module_from_src

    try:
        source = Path(__file__).with_suffix(".c").read_text(encoding="utf-8")
        return compile_module_from_src(source, "flashelmo_series", include_dirs=include_dirs)
    except Exception as error:
        logger.warning("launches are queued one by one, which is slower: %s", str(error).partition("\n")[0])
        return None
