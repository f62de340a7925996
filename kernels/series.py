"""Launches of compiled kernels queued together by a C function, a microsecond or two each, without the interpreter.

A large window is some hundred launches that differ in their grid and in one integer, the depth. From Python each waits
for the interpreter, which other threads need to plan further windows.
"""

from __future__ import annotations

import logging
import struct
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

DEPENDENT, AT_ONCE = 1, 2  # flags
MAP = "tensor map"
# Types as Triton names them in a compiled kernel's signature, by the letters of `struct`; pointers begin with "*".
LETTERS = {"i8": "b", "i16": "h", "i32": "i", "i64": "q", "u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
LETTERS |= {"fp32": "f", "f32": "f", "fp64": "d", "i1": "b", "u1": "B"}

logger = logging.getLogger("flashelmo")


class Part(NamedTuple):
    """A kernel with all its parameters, as the C function takes it.

    Attributes:
        function: on the device; threads: of a program; shared: bytes of its memory; flags: how it is launched.
        values: of all parameters; offsets: int32, where each begins.
        integers: where in `values` those of 32 bits lie that are parameters by themselves, by name.
    """

    function: int
    threads: int
    shared: int
    flags: int
    values: bytes
    offsets: bytes
    integers: Mapping[str, int]

    @classmethod
    def of(
        cls,
        function: int,
        metadata: Sequence[int],
        flags: int,
        signature: Mapping[str, Any],
        arguments: Mapping[str, Sequence[Any]],
    ) -> Part | None:
        """Of a compiled kernel; None where its parameters have types that are not known here.

        Args:
            metadata: warps, programs of a cluster and bytes of shared memory.
            signature: types by parameter, in order.
            arguments: values by parameter: one, with addresses for tensors, or an encoded map with sizes and strides.
        """
        n_warps, n_of_cluster, shared = metadata
        if n_of_cluster != 1 or _module() is None:
            return None
        values, offsets, integers = b"", list[int](), dict[str, int]()
        for name, kind in signature.items():
            for letter, value in _flat(kind, arguments[name]):
                if letter is None:
                    return None
                size = 64 if letter == MAP else struct.calcsize(letter)
                values += bytes(-len(values) % size)
                offsets.append(len(values))
                if kind == "i32":
                    integers[name] = len(values)
                values += _module().map_bytes(value) if letter == MAP else struct.pack(letter, value)
        return cls(function, 32 * n_warps, shared, flags, values, array("i", offsets).tobytes(), integers)


def launch(
    parts: Sequence[tuple[Part, str]], which: array[int], integers: array[int], grids: array[int], stream: int
) -> None:
    """Queue launches on a stream of the current device.

    Args:
        parts: each with the name of the integer that its launches differ in.
        which, integers: int32 [n], the part and the integer of each launch.
        grids: int32 [n, 3], none of them 0.

    Raises:
        RuntimeError: what the driver says.
    """
    given = tuple((*part[:6], part.integers[name]) for part, name in parts)
    _module().launch(given, which, integers, grids, stream)


def _flat(kind: Any, values: Sequence[Any]) -> Iterator[tuple[str | None, Any]]:
    """Letter and value of each number that a parameter is made of; no letter for a type that is not known."""
    if isinstance(kind, tuple):
        for member, value in zip(kind, values[0], strict=True):
            yield from _flat(member, [value])
    elif kind == "constexpr":
        return
    elif kind.startswith("tensordesc"):
        n = (len(values) - 1) // 2
        yield (MAP, values[0]) if len(values) == 2 * n + 1 > 1 else (None, None)
        yield from (("i", size) for size in values[1 : n + 1])
        yield from (("q", stride) for stride in values[n + 1 :])
    elif kind.startswith("*"):
        yield "Q", values[0] or 0
    else:
        yield LETTERS.get(kind), values[0]


@cache
def _module() -> Any:
    """The compiled module, from Triton's cache after the first time; None, after one warning, where it can't be."""
    from triton.backends.nvidia.driver import include_dirs
    from triton.runtime.build import compile_module_from_src

    try:
        source = Path(__file__).with_suffix(".c").read_text(encoding="utf-8")
        return compile_module_from_src(source, "flashelmo_series", include_dirs=include_dirs)
    except Exception as error:
        logger.warning("launches are queued one by one, which is slower: %s", str(error).partition("\n")[0])
        return None
