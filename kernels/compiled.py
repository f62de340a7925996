"""Kernels that Triton has compiled, given their arguments once, and launched without asking Triton again.

At each launch, Triton looks up the compiled kernel anew, which takes the host ten times as long as the launch itself.
How it launches is an internal matter that differs from version to version; the known versions are launched here as they
do it themselves.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from flashelmo.kernels import series

LEAST, MOST = -(1 << 31), (1 << 31) - 1  # of 32-bit integers
ALIGNED = 16  # bytes: kernels are compiled once for addresses that are multiples of this, and once for others
TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
KNOWN = (3, 6), (3, 7), (3, 8), (3, 9)
FIRST = array("i", [0])

logger = logging.getLogger("flashelmo")


class Kernel(NamedTuple):
    """A kernel that Triton compiled for launches of one signature.

    Attributes:
        function: under `triton.jit`.
        found: what Triton's launch returned; from Triton 3.8 on the kernel is unloaded with its last reference.
        c: the same kernel, as the C function takes it.
        maps: how to encode each descriptor.
        stream: returns a device's current stream.
    """

    function: Any
    found: CompiledKernel
    c: series.CKernel
    maps: tuple[Any, ...]
    stream: Callable[[int], int]

    @classmethod
    def of(cls, found: Any, kernel: Any, arguments: Mapping[str, Any]) -> Kernel | None:
        """Return the kernel in the result of Triton's launch; None where only Triton knows how to launch it.

        Args:
            arguments: of that launch, by parameter name.
        """
        from triton.backends.nvidia.driver import CudaLauncher

        if not isinstance(found, CompiledKernel) or not isinstance(found.run, CudaLauncher) or not is_known_triton():
            return None
        how: Any = found.run
        if how.global_scratch_size or how.profile_scratch_size or getattr(how, "gsan_enabled", False):
            return None  # memory is allocated for each launch
        maps = tuple(getattr(found.metadata, "tensordesc_meta", None) or ())
        if len(maps) != sum(map(is_descriptor, arguments.values())):
            return None  # on cards without bulk copies, descriptors are not maps
        sizes = [len(values) for values in _values(kernel, arguments, maps)]
        flags = series.DEPENDENT * bool(how.launch_pdl) | series.AT_ONCE * bool(how.launch_cooperative_grid)
        c = series.CKernel.of(found.function, found.packed_metadata, flags, found.src.signature, sizes)
        return None if c is None else cls(kernel, found, c, maps, triton.runtime.driver.active.get_current_stream)

    def given(self, arguments: Mapping[str, Any], device: torch.device) -> Compiled:
        """Return the kernel together with its arguments by parameter name."""
        values = list(chain.from_iterable(_values(self.function, arguments, self.maps)))
        return Compiled(self, device.index, self.c.pack(values), arguments)


class Compiled(NamedTuple):
    """A compiled kernel and all its arguments.

    Tensors are pointers and descriptors are encoded, once for all launches.

    Attributes:
        device: its number.
        packed: the values for `series.launch`.
        arguments: kept so that the tensors' memory stays allocated.
    """

    kernel: Kernel
    device: int
    packed: bytes
    arguments: Mapping[str, Any]

    def launch(self, grid: tuple[int, ...], integers: Mapping[str, int]) -> None:
        """Launch with another grid and other integers, on the device's current stream."""
        if torch.cuda.current_device() != self.device:
            with torch.cuda.device(self.device):
                self.launch(grid, integers)
            return
        kernel, packed = self.kernel, self.kernel.c.with_integers(self.packed, integers)
        grids = array("i", (*grid, 1, 1)[:3])
        series.launch([(kernel.c, packed, None)], FIRST, FIRST, grids, self.device, kernel.stream(self.device))


@cache
def is_known_triton() -> bool:
    """Whether kernels can be launched as this Triton launches them itself; warns once about an unknown Triton."""
    if TRITON in KNOWN:
        return True
    known = " to ".join(".".join(map(str, each)) for each in (KNOWN[0], KNOWN[-1]))
    logger.warning("Triton %s: expected %s; it launches all kernels itself, which is slower", triton.__version__, known)
    return False


def _values(kernel: Any, arguments: Mapping[str, Any], maps: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield each parameter's values: addresses for tensors, several values for a descriptor."""
    from triton.backends.nvidia.driver import make_tensordesc_arg

    following, more = iter(maps), (None,) if TRITON >= (3, 8) else ()  # encodes non-maps; None: unused
    for name, default, is_constexpr, _ in _parameters(kernel):
        value = arguments.get(name, default)
        if is_constexpr or isinstance(value, tuple) or not is_descriptor(value):
            yield [value if is_constexpr else _pointers(value)]
        else:
            yield make_tensordesc_arg(value, next(following), *more)


def kinds(kernel: Any, arguments: Mapping[str, Any]) -> Iterator[Any]:
    """Yield, for each parameter, all that a kernel may be specialized for, and perhaps more."""
    for name, default, is_constexpr, is_plain in _parameters(kernel):
        value = arguments.get(name, default)
        yield value if is_constexpr else _kind(value, is_plain)


class _Parameter(NamedTuple):
    """A kernel's parameter, kept as asking Triton takes longer; `is_plain`: not specialized for the value."""

    name: str
    default: Any
    is_constexpr: bool
    is_plain: bool


@cache
def _parameters(kernel: Any) -> list[_Parameter]:
    return [_Parameter(each.name, each.default, each.is_constexpr, each.do_not_specialize) for each in kernel.params]


def _kind(value: Any, plain: bool) -> Any:
    """Return what a kernel may be specialized for in an argument: of `plain` integers, only that they fit 32 bits."""
    if is_tensor(value):
        return value.dtype, value.data_ptr() % ALIGNED == 0
    if isinstance(value, tuple):
        return type(value), *[_kind(member, plain) for member in value]
    if is_descriptor(value):
        return value.base.dtype, tuple(value.block_shape), getattr(value, "layout", None), value.padding
    if plain and type(value) is int:
        return LEAST <= value <= MOST
    return type(value) if isinstance(value, float) else (type(value), value)


def is_descriptor(value: Any) -> bool:
    """Whether an argument is a tensor descriptor, Triton's or Gluon's."""
    return hasattr(value, "block_shape")


def is_tensor(value: Any) -> bool:
    """Do as `isinstance`, which PyTorch has made slow for objects that are not tensors."""
    return type(value) is Tensor or (value is not None and hasattr(value, "data_ptr") and isinstance(value, Tensor))


def _pointers(value: Any) -> Any:
    """Return an argument with each tensor replaced by its address."""
    if is_tensor(value):
        return value.data_ptr()
    return tuple(map(_pointers, value)) if isinstance(value, tuple) else value
