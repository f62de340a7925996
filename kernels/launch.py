"""What all launchers share: a launch as a value, and the checks of its arguments."""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, chain
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import triton
from torch import Tensor
from triton.compiler import CompiledKernel

from flashelmo.kernels import series

LEAST, MOST = -(1 << 31), (1 << 31) - 1  # of 32 bits
ALIGNED = 16  # bytes: kernels are compiled for addresses that are multiples of it, and for others
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Products: TypeAlias = Literal["ieee", "tf32"]  # how float32 is multiplied; 16-bit types have one way


@dataclass(frozen=True)
class Launch:
    """One kernel, its grid and its arguments by parameter name; what runs it is also what compiles or times it.

    Attributes:
        kernel: a function under `triton.jit`.
        grid: programs along each axis; nothing is launched where one is 0.
        arguments: tensors, numbers and constants by parameter name.
        options: the compiler's, as `num_warps` and `num_stages`.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    _shared: _Shared = field(default_factory=lambda: _Shared(), init=False, repr=False, compare=False)

    def at(self, grid: tuple[int, ...] | None = None, **integers: int) -> Launch:
        """The same launch with another grid and other integers, for a few microseconds of the host.

        Once one of such launches has run, the others skip what Triton does to find the compiled kernel, which takes the
        host ten times as long.

        Raises:
            ValueError: the kernel is compiled for such a number, or a number has more than 32 bits.
        """
        self._shared.admit(self, integers)
        other = object.__new__(Launch)  # in a third of the time that a frozen dataclass takes
        other.__dict__.update(self.__dict__, arguments={**self.arguments, **integers})
        if grid is not None:
            other.__dict__["grid"] = grid
        return other

    def run(self) -> None:
        """Launch on the tensors' device. The first launch also compiles and loads: do not capture it in a CUDA graph.

        Raises:
            ValueError: a tensor is not on a CUDA device, or not on that of the others.
        """
        if 0 in self.grid:
            return
        if (compiled := self._compiled()) is not None and not _has_hooks(self.kernel):
            compiled.launch(self.grid, self.arguments, self._shared.names)
            return
        device = self._found_device()
        if device.type == "cpu":  # Triton's interpreter
            self.kernel[self.grid](**self.arguments, **self.options)
            return
        with torch.cuda.device(device):
            found = self.kernel[self.grid](**self.arguments, **self.options)
        if self._shared.names:
            _found[(device, *signature(self))] = _Kernel.of(found, self)

    def _compiled(self) -> _Compiled | None:
        """What was compiled for launches like this one, with its arguments; None before one of them has run."""
        shared = self._shared
        if shared.compiled is None and shared.names and (device := self._found_device()).type != "cpu":
            kernel = _found.get((device, *signature(self)))
            shared.compiled = None if kernel is None else kernel.given(self, device)
        return shared.compiled

    def _found_device(self) -> torch.device:
        """The tensors', looked for once for launches that share them."""
        if self._shared.device is None:
            self._shared.device = self._device()
        return self._shared.device

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments, those of descriptors and inside named tuples too, by name."""
        named: dict[str, Tensor] = {}
        for name, value in self.arguments.items():
            members = {name.removesuffix("_ptr").removesuffix("_desc"): value.base if is_descriptor(value) else value}
            if hasattr(value, "_asdict"):
                members = {f"{name}.{key}": member for key, member in value._asdict().items()}
            named |= {key: member for key, member in members.items() if isinstance(member, Tensor)}
        return named

    def _tensors(self) -> Iterator[Tensor]:
        """Without their names, which take time."""
        for value in self.arguments.values():
            for member in value if isinstance(value, tuple) else (value,):
                if _is_tensor(member):
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
    """What launches that differ in their grid and some integers alone have in common.

    Attributes:
        names: of these integers.
        device: the tensors', once one of the launches has run.
        compiled: likewise; None for a launch that has no others.
    """

    names: tuple[str, ...] = ()
    device: torch.device | None = None
    compiled: _Compiled | None = None

    def admit(self, launch: Launch, integers: Mapping[str, int]) -> None:
        """Raise ValueError unless the kernel compiled for the launch serves other integers too."""
        for name, value in integers.items():
            if name not in self.names:
                if name not in _unspecialized(launch.kernel):
                    raise ValueError(f"{name}: expected a parameter that the kernel is not specialized for")
                _check_int32(name, launch.arguments.get(name, 0))
                self.names = (*self.names, name)
            if type(value) is not int or not LEAST <= value <= MOST:
                _check_int32(name, value)


class _Kernel(NamedTuple):
    """What Triton compiled for launches of one signature, and how the launcher that it built is called.

    Attributes:
        launcher: given grid, stream, `head` and values it launches.
        head: the function on the device and how it is launched, without hooks.
        encodes: the launcher encodes descriptors itself.
        maps: of each descriptor, how it is encoded.
        positions: of each parameter, where its first value is among all.
        stream: of a device, the current one.
        in_series: the same for `series.launch`; None where that does not take it.
    """

    launcher: Callable[..., None]
    head: tuple[Any, ...]
    encodes: bool
    maps: tuple[Any, ...]
    positions: Mapping[str, int]
    stream: Callable[[int], int]
    in_series: series.Kernel | None = None

    @classmethod
    def of(cls, found: Any, launch: Launch) -> _Kernel | None:
        """Of what Triton has just launched; None where it was not launched by CUDA's launcher."""
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
        sizes = [len(values) for values in _values(launch, encodes, maps)]
        names = [parameter.name for parameter in launch.kernel.params]
        positions = dict(zip(names, accumulate([0, *sizes[:-1]]), strict=True))
        in_series = None
        if not encodes:
            flags = series.DEPENDENT * bool(how.launch_pdl) | series.AT_ONCE * bool(how.launch_cooperative_grid)
            in_series = series.Kernel.of(found.function, found.packed_metadata, flags, found.src.signature, sizes)
        stream = triton.runtime.driver.active.get_current_stream
        return cls(launcher, head, encodes, maps, positions, stream, in_series)

    def given(self, launch: Launch, device: torch.device) -> _Compiled:
        """With the arguments of a launch."""
        values = list(chain.from_iterable(_values(launch, self.encodes, self.maps)))
        return _Compiled(self, values, device.index, None if self.in_series is None else self.in_series.pack(values))


class _Compiled(NamedTuple):
    """A compiled kernel and all it is given.

    Tensors are pointers and descriptors are encoded, once for all launches: what a launch holds keeps their memory.

    Attributes:
        values: of all parameters in order.
        device: its number.
        packed: the values for `series.launch`.
    """

    kernel: _Kernel
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


def run_in_order(launches: Iterable[Launch]) -> None:
    """Run launches; those that differ from one that ran before in grid and one integer alone are queued together.

    Raises:
        ValueError, RuntimeError: as of `Launch.run`; some launches are queued then.
    """
    waiting: list[Launch] = []
    for launch in launches:
        compiled = launch._compiled()
        if compiled is None or compiled.packed is None or len(launch._shared.names) != 1:
            _run_together(waiting)
            waiting = []
            launch.run()
        else:
            waiting.append(launch)
    _run_together(waiting)


def _run_together(launches: Sequence[Launch]) -> None:
    """Run launches all of which may be queued together, and are on one device."""
    kinds = {id(launch._shared): launch for launch in launches}
    if len(launches) < 2 or any(_has_hooks(launch.kernel) for launch in kinds.values()):
        for launch in launches:
            launch.run()
        return
    parts: list[tuple[series.Kernel, bytes, str]] = []
    numbers, device, stream = dict[int, int](), 0, 0
    for key, launch in kinds.items():
        compiled, (name,) = launch._shared.compiled, launch._shared.names
        assert compiled is not None and compiled.packed is not None and compiled.kernel.in_series is not None
        device, stream, numbers[key] = compiled.device, compiled.kernel.stream(compiled.device), len(parts)
        parts.append((compiled.kernel.in_series, compiled.packed, name))
    which, integers, grids = list[int](), list[int](), list[int]()
    for launch in launches:
        if 0 not in launch.grid:
            which.append(numbers[id(launch._shared)])
            integers.append(launch.arguments[parts[which[-1]][2]])
            grids += (*launch.grid, 1, 1)[:3]
    with torch.cuda.device(device):
        series.launch(parts, array("i", which), array("i", integers), array("i", grids), stream)


_found: dict[Any, _Kernel | None] = {}  # by device and signature


def _values(launch: Launch, encodes: bool, maps: Iterable[Any]) -> Iterator[list[Any]]:
    """Of each parameter: addresses for tensors, several values for a descriptor unless its launcher encodes it."""
    from triton.backends.nvidia.driver import make_tensordesc_arg

    following = iter(maps)
    for name, default, is_constexpr, _ in _parameters(launch.kernel):
        value = launch.arguments.get(name, default)
        if is_constexpr or isinstance(value, tuple) or encodes or not is_descriptor(value):
            yield [value if is_constexpr else _pointers(value)]
        else:
            yield make_tensordesc_arg(value, next(following, None))


def signature(launch: Launch) -> Iterator[Any]:
    """What Triton compiles a kernel for, and perhaps more: launches with one signature have one compiled kernel."""
    yield launch.kernel
    yield tuple(launch.options.items())
    for name, default, is_constexpr, is_plain in _parameters(launch.kernel):
        value = launch.arguments.get(name, default)
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
    """Of an argument, all that a kernel may be specialized for; `plain` integers are any of their size."""
    if _is_tensor(value):
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
    """What launches encoded descriptors, and whether what it was given encodes them itself, being of another make."""
    if not inspect.isfunction(launch):
        return launch, False
    inner = inspect.getclosurevars(launch).nonlocals.get("launcher")
    return (launch, True) if inner is None else (inner, False)


def _is_mapped(tensor: Tensor, kind: str) -> bool:
    """Whether a tensor in the host's memory is one that a card reads and writes by the same address: pinned."""
    return kind == "cuda" and tensor.device.type == "cpu" and tensor.is_pinned()


def is_descriptor(value: Any) -> bool:
    """Whether an argument is a tensor descriptor, of Triton's or of Gluon's kind."""
    return hasattr(value, "block_shape")


def _is_tensor(value: Any) -> bool:
    """As `isinstance`, which PyTorch has made slow for what is none."""
    return type(value) is Tensor or (value is not None and hasattr(value, "data_ptr") and isinstance(value, Tensor))


def _pointers(value: Any) -> Any:
    """An argument with its tensors' addresses in their place."""
    if _is_tensor(value):
        return value.data_ptr()
    return tuple(map(_pointers, value)) if isinstance(value, tuple) else value


def _has_hooks(kernel: Any) -> bool:
    """Whether someone wants to hear of each launch, as profilers do."""
    runtime = triton.knobs.runtime
    hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    return bool(kernel.pre_run_hooks) or any(hook is not None and getattr(hook, "calls", True) for hook in hooks)


def _unspecialized(kernel: Any) -> set[str]:
    """Parameters whose values one compiled kernel serves all of; the interpreter keeps what `triton.jit` was told."""
    told = kernel.kwargs["do_not_specialize"] if hasattr(kernel, "kwargs") else kernel.do_not_specialize
    return {kernel.arg_names[name] if isinstance(name, int) else name for name in told or ()}


def _check_int32(name: str, value: Any) -> None:
    """Raise ValueError unless a number is compiled as one of 32 bits."""
    if type(value) is not int or not LEAST <= value <= MOST:
        raise ValueError(f"{name}: expected an integer of 32 bits, found {value!r}")


@cache
def n_multiprocessors(device: torch.device) -> int:
    """Programs that surely run at once on a device: its multiprocessors; 1 in Triton's interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def cdiv(n: int, size: int) -> int:
    """Blocks of a size that n take; `triton.cdiv` takes the host several microseconds."""
    return -(-n // size)


def check(name: str, tensor: Tensor | None, shape: Sequence[int | None], dtypes: Collection[torch.dtype]) -> None:
    """Raise ValueError, naming the argument, unless a tensor is contiguous and has this shape and one of these types.

    Args:
        shape: None where any size will do.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name}: expected {' or '.join(map(str, dtypes))}, found {tensor.dtype}")
    fits = tensor.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape [{wanted}], found {list(tensor.shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, found strides {tensor.stride()}")


def check_ids(name: str, ids: Tensor, n: int) -> None:
    """Raise ValueError, naming the argument, unless all of the host's ids lie in 0 ... n - 1.

    Kernels read wherever an id points, so that ids are checked before they reach the device.
    """
    if ids.device.type != "cpu":
        raise ValueError(f"{name}: expected ids in the host's memory, where they can be checked, found {ids.device}")
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= n):
        bad = int(ids.max()) if int(ids.min()) >= 0 else int(ids.min())
        raise ValueError(f"{name}: expected ids from 0 to {n - 1}, found {bad}")
