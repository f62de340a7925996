"""A launch as a value, which can be run, compiled or timed."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

from flashelmo.kernels import series
from flashelmo.kernels.compiled import LEAST, MOST, Compiled, Kernel, is_descriptor, is_tensor, kinds


@dataclass(frozen=True)
class Launch:
    """One kernel, its grid and its arguments by parameter name, which can be run, compiled or timed.

    Attributes:
        kernel: a function under `triton.jit`.
        grid: programs along each axis; nothing is launched where one is 0.
        arguments: tensors, numbers and constants by parameter name.
        options: the compiler's, such as `num_warps` and `num_stages`.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    _shared: _Shared = field(default_factory=lambda: _Shared(), init=False, repr=False, compare=False)

    def at(self, grid: tuple[int, ...] | None = None, **integers: int) -> Launch:
        """Return the same launch with another grid and other integers, in a few microseconds of the host's time.

        Once one of these launches has run, the others skip Triton's search for the compiled kernel, which takes the
        host ten times as long.

        Raises:
            ValueError: the kernel is compiled for this number, or a number has more than 32 bits.
        """
        self._shared.admit(self, integers)
        other = object.__new__(Launch)  # takes a third of the time of a frozen dataclass
        other.__dict__.update(self.__dict__, arguments={**self.arguments, **integers})
        if grid is not None:
            other.__dict__["grid"] = grid
        return other

    def run(self) -> None:
        """Launch on the tensors' device. The first launch also compiles and loads: do not capture it in a CUDA graph.

        Raises:
            ValueError: a tensor is not on a CUDA device, or not on the same one as the others.
        """
        if 0 in self.grid:
            return
        if (compiled := self._compiled()) is not None and not _has_hooks(self.kernel):
            compiled.launch(self.grid, {name: self.arguments[name] for name in self._shared.names})
            return
        device = self._found_device()
        if device.type == "cpu":  # Triton's interpreter
            self.kernel[self.grid](**self.arguments, **self.options)
            return
        with torch.cuda.device(device):
            found = self.kernel[self.grid](**self.arguments, **self.options)
        if self._shared.names:
            _found[(device, *self.signature())] = Kernel.of(found, self.kernel, self.arguments)

    def _compiled(self) -> Compiled | None:
        """Return what was compiled for launches like this one, with its arguments; None before one of them has run."""
        shared = self._shared
        if shared.compiled is None and shared.names and (device := self._found_device()).type != "cpu":
            kernel = _found.get((device, *self.signature()))
            shared.compiled = None if kernel is None else kernel.given(self.arguments, device)
        return shared.compiled

    def _found_device(self) -> torch.device:
        """Return the tensors' device, looked up once for launches that share them."""
        if self._shared.device is None:
            self._shared.device = self._device()
        return self._shared.device

    def signature(self) -> Iterator[Any]:
        """Yield what Triton compiles a kernel for, and perhaps more: launches with equal signatures share a kernel."""
        yield self.kernel
        yield tuple(self.options.items())
        yield from kinds(self.kernel, self.arguments)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments, including those in descriptors and inside named tuples, by name."""
        named: dict[str, Tensor] = {}
        for name, value in self.arguments.items():
            members = {name.removesuffix("_ptr").removesuffix("_desc"): value.base if is_descriptor(value) else value}
            if hasattr(value, "_asdict"):
                members = {f"{name}.{key}": member for key, member in value._asdict().items()}
            named |= {key: member for key, member in members.items() if isinstance(member, Tensor)}
        return named

    def _tensors(self) -> Iterator[Tensor]:
        """Yield the tensors without their names, which take time."""
        for value in self.arguments.values():
            for member in value if isinstance(value, tuple) else (value,):
                if is_tensor(member):
                    yield member
                elif is_descriptor(member):
                    yield member.base

    def _device(self) -> torch.device:
        kind = "cpu" if triton.knobs.runtime.interpret else "cuda"
        devices = {tensor.device for tensor in self._tensors() if not _is_mapped(tensor, kind)}
        if len(devices) == 1 and next(iter(devices)).type == kind:
            return devices.pop()
        tensors = {name: tensor for name, tensor in self.tensors.items() if not _is_mapped(tensor, kind)}
        first, device = next((name, tensor.device) for name, tensor in tensors.items())
        for name, tensor in tensors.items():
            if tensor.device.type != kind:
                raise ValueError(f"{name}: expected a tensor on a {kind} device, found {tensor.device}")
            if tensor.device != device:
                raise ValueError(f"{name}: expected a tensor on {device} as {first}, found {tensor.device}")
        return device


@dataclass
class _Shared:
    """What launches have in common that differ only in their grid and some integers.

    Attributes:
        names: of these integers.
        device: the tensors' device, once one of the launches has run.
        compiled: likewise, what was compiled; None for a launch that has no others.
    """

    names: tuple[str, ...] = ()
    device: torch.device | None = None
    compiled: Compiled | None = None

    def admit(self, launch: Launch, integers: Mapping[str, int]) -> None:
        """Raise ValueError unless the kernel compiled for the launch also serves these integers."""
        for name, value in integers.items():
            if name not in self.names:
                if name not in _unspecialized(launch.kernel):
                    raise ValueError(f"{name}: expected a parameter that the kernel is not specialized for")
                _check_int32(name, launch.arguments.get(name, 0))
                self.names = (*self.names, name)
            if type(value) is not int or not LEAST <= value <= MOST:
                _check_int32(name, value)


def run_in_order(launches: Iterable[Launch]) -> None:
    """Run launches; those that differ from an earlier one only in grid and one integer are queued together.

    Raises:
        ValueError, RuntimeError: as for `Launch.run`; some launches may then already be queued.
    """
    waiting: list[Launch] = []
    for launch in launches:
        compiled = launch._compiled()
        if compiled is None or len(launch._shared.names) != 1:
            _run_together(waiting)
            waiting = []
            launch.run()
        else:
            waiting.append(launch)
    _run_together(waiting)


def _run_together(launches: Sequence[Launch]) -> None:
    """Run launches all of which may be queued together and are on one device."""
    kinds = {id(launch._shared): launch for launch in launches}
    if len(launches) < 2 or any(_has_hooks(launch.kernel) for launch in kinds.values()):
        for launch in launches:
            launch.run()
        return
    parts: list[tuple[series.CKernel, bytes, str | None]] = []
    numbers, named, device, stream = dict[int, int](), list[str](), 0, 0
    for key, launch in kinds.items():
        compiled, (name,) = launch._shared.compiled, launch._shared.names
        assert compiled is not None
        device, stream, numbers[key] = compiled.device, compiled.kernel.stream(compiled.device), len(parts)
        parts.append((compiled.kernel.c, compiled.packed, name))
        named.append(name)
    which, integers, grids = list[int](), list[int](), list[int]()
    for launch in launches:
        if 0 not in launch.grid:
            which.append(numbers[id(launch._shared)])
            integers.append(launch.arguments[named[which[-1]]])
            grids += (*launch.grid, 1, 1)[:3]
    with torch.cuda.device(device):
        series.launch(parts, array("i", which), array("i", integers), array("i", grids), device, stream)


_found: dict[Any, Kernel | None] = {}  # by device and signature


def _is_mapped(tensor: Tensor, kind: str) -> bool:
    """Whether a tensor in host memory is pinned, so that a card can read and write it at the same address."""
    return kind == "cuda" and tensor.device.type == "cpu" and tensor.is_pinned()


def _has_hooks(kernel: Any) -> bool:
    """Whether hooks are to be called at each launch, as profilers need."""
    runtime = triton.knobs.runtime
    hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(kernel.pre_run_hooks) or any(hook is not None and getattr(hook, "calls", True) for hook in hooks)


def _unspecialized(kernel: Any) -> set[str]:
    """Return the parameters whose values are not specialized; the interpreter keeps `triton.jit`'s arguments."""
    told = kernel.kwargs["do_not_specialize"] if hasattr(kernel, "kwargs") else kernel.do_not_specialize
    return {kernel.arg_names[name] if isinstance(name, int) else name for name in told or ()}


def _check_int32(name: str, value: Any) -> None:
    """Raise ValueError unless a number is compiled as a 32-bit integer."""
    if type(value) is not int or not LEAST <= value <= MOST:
        raise ValueError(f"{name}: expected an integer of 32 bits, found {value!r}")


def cdiv(n: int, size: int) -> int:
    """Return how many blocks of a size n takes; `triton.cdiv` takes the host several microseconds."""
    return -(-n // size)
