"""What Triton has compiled, given its arguments once, and launched without asking Triton again.

Triton finds the compiled kernel anew at each launch, which takes the host ten times as long as the launch itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import accumulate, chain
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from flashelmo.kernels import series

LEAST, MOST = -(1 << 31), (1 << 31) - 1  # of 32 bits
ALIGNED = 16  # bytes: kernels are compiled for addresses that are multiples of it, and for others


class Kernel(NamedTuple):
    """What Triton compiled for launches of one signature, and how the launcher that it built is called.

    Attributes:
        function: under `triton.jit`.
        launcher: called with the grid, the stream, `head` and the values of all parameters.
        head: the function on the device and how it is launched, without hooks.
        encodes: whether the launcher encodes tensor descriptors itself.
        maps: how each descriptor is to be encoded.
        positions: where the first value of each parameter is among all values.
        stream: gives a device's current stream.
        in_series: the kernel as `series.launch` takes it; None where it must be launched by itself.
    """

    function: Any
    launcher: Callable[..., None]
    head: tuple[Any, ...]
    encodes: bool
    maps: tuple[Any, ...]
    positions: Mapping[str, int]
    stream: Callable[[int], int]
    in_series: series.InSeries | None = None

    @classmethod
    def of(cls, found: Any, kernel: Any, arguments: Mapping[str, Any]) -> Kernel | None:
        """From what Triton's launch of the kernel returned; None where another launcher than CUDA's ran it.

        Args:
            arguments: of that launch, by parameter name.
        """
        from triton.backends.nvidia.driver import CudaLauncher

        if not isinstance(found, CompiledKernel) or not isinstance(found.run, CudaLauncher):
            return None
        how: Any = found.run
        launcher, encodes = how, True
        head: tuple[Any, ...] = found.function, found.packed_metadata, None, None, None
        if not (how.global_scratch_size or how.profile_scratch_size):  # no memory to allocate for each launch
            head = found.function, how.launch_cooperative_grid, how.launch_pdl, None, None, *head[1:]
            launcher, encodes = _below_descriptors(how.launch)
        maps = tuple(getattr(found.metadata, "tensordesc_meta", None) or ())
        sizes = [len(values) for values in _values(kernel, arguments, encodes, maps)]
        names = [parameter.name for parameter in kernel.params]
        positions = dict(zip(names, accumulate([0, *sizes[:-1]]), strict=True))
        in_series = None
        if not encodes:
            flags = series.DEPENDENT * bool(how.launch_pdl) | series.AT_ONCE * bool(how.launch_cooperative_grid)
            in_series = series.InSeries.of(found.function, found.packed_metadata, flags, found.src.signature, sizes)
        stream = triton.runtime.driver.active.get_current_stream
        return cls(kernel, launcher, head, encodes, maps, positions, stream, in_series)

    def given(self, arguments: Mapping[str, Any], device: torch.device) -> Compiled:
        """With its arguments by parameter name."""
        values = list(chain.from_iterable(_values(self.function, arguments, self.encodes, self.maps)))
        return Compiled(self, values, device.index, None if self.in_series is None else self.in_series.pack(values))


class Compiled(NamedTuple):
    """A compiled kernel and all it is given.

    Tensors are pointers and descriptors are encoded, once for all launches: what a launch holds keeps their memory.

    Attributes:
        values: of all parameters in order.
        device: its number.
        packed: the values for `series.launch`.
    """

    kernel: Kernel
    values: list[Any]
    device: int
    packed: bytes | None

    def launch(self, grid: tuple[int, ...], arguments: Mapping[str, Any], names: Iterable[str]) -> None:
        """Launch with another grid and other values of these parameters, in the device's current stream."""
        if torch.cuda.current_device() != self.device:
            with torch.cuda.device(self.device):
                self.launch(grid, arguments, names)
            return
        values, kernel = self.values.copy(), self.kernel
        for name in names:
            values[kernel.positions[name]] = arguments[name]
        x, y, z, *_ = *grid, 1, 1
        kernel.launcher(x, y, z, kernel.stream(self.device), *kernel.head, *values)


def _values(kernel: Any, arguments: Mapping[str, Any], encodes: bool, maps: Iterable[Any]) -> Iterator[list[Any]]:
    """Of each parameter: addresses for tensors, several values for a descriptor unless its launcher encodes it."""
    from triton.backends.nvidia.driver import make_tensordesc_arg

    following = iter(maps)
    for name, default, is_constexpr, _ in _parameters(kernel):
        value = arguments.get(name, default)
        if is_constexpr or isinstance(value, tuple) or encodes or not is_descriptor(value):
            yield [value if is_constexpr else _pointers(value)]
        else:
            yield make_tensordesc_arg(value, next(following, None))


def kinds(kernel: Any, arguments: Mapping[str, Any]) -> Iterator[Any]:
    """Of each parameter, all that a kernel may be specialized for, and perhaps more."""
    for name, default, is_constexpr, is_plain in _parameters(kernel):
        value = arguments.get(name, default)
        yield value if is_constexpr else _kind(value, is_plain)


class _Parameter(NamedTuple):
    """Of a kernel, as Triton's own takes longer to be asked; `is_plain`: not specialized for the value."""

    name: str
    default: Any
    is_constexpr: bool
    is_plain: bool


@cache
def _parameters(kernel: Any) -> list[_Parameter]:
    return [_Parameter(each.name, each.default, each.is_constexpr, each.do_not_specialize) for each in kernel.params]


def _kind(value: Any, plain: bool) -> Any:
    """Of an argument; `plain` integers are any of their size."""
    if is_tensor(value):
        return value.dtype, value.data_ptr() % ALIGNED == 0
    if isinstance(value, tuple):
        return type(value), *[_kind(member, plain) for member in value]
    if is_descriptor(value):
        return value.base.dtype, tuple(value.block_shape), getattr(value, "layout", None), value.padding
    if plain and type(value) is int:
        return LEAST <= value <= MOST
    return type(value) if isinstance(value, float) else (type(value), value)


@cache
def _below_descriptors(launch: Any) -> tuple[Callable[..., None], bool]:
    """The function that launches once tensor descriptors are encoded, and whether it encodes them itself.

    Launchers of Triton versions that have no inner `launcher` do.
    """
    if not inspect.isfunction(launch):
        return launch, False
    inner = inspect.getclosurevars(launch).nonlocals.get("launcher")
    return (launch, True) if inner is None else (inner, False)


def is_descriptor(value: Any) -> bool:
    """Whether an argument is a tensor descriptor, of Triton's or of Gluon's kind."""
    return hasattr(value, "block_shape")


def is_tensor(value: Any) -> bool:
    """As `isinstance`, which PyTorch has made slow for what is none."""
    return type(value) is Tensor or (value is not None and hasattr(value, "data_ptr") and isinstance(value, Tensor))


def _pointers(value: Any) -> Any:
    """An argument with its tensors' addresses in their place."""
    if is_tensor(value):
        return value.data_ptr()
    return tuple(map(_pointers, value)) if isinstance(value, tuple) else value
