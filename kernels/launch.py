"""What all launchers share: a launch as a value, the checks of its arguments, and where its programs may meet."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Products: TypeAlias = Literal["ieee", "tf32"]  # how float32 is multiplied; 16-bit types have one way


class Launch(NamedTuple):
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

    def run(self) -> None:
        """Launch on the tensors' device. The first launch also compiles and loads: do not capture it in a CUDA graph.

        Raises:
            ValueError: a tensor is not on a CUDA device, or not on that of the others.
        """
        if 0 in self.grid:
            return
        device = self._device()
        if device.type == "cpu":  # Triton's interpreter
            self.kernel[self.grid](**self.arguments, **self.options)
            return
        with torch.cuda.device(device):
            self.kernel[self.grid](**self.arguments, **self.options)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments, those inside named tuples and descriptors too, by name."""
        named: dict[str, Tensor] = {}
        for name, value in self.arguments.items():
            members = {name.removesuffix("_ptr"): value}
            if hasattr(value, "_asdict"):
                members = {f"{name}.{key}": member for key, member in value._asdict().items()}
            elif isinstance(value, TensorDescriptor):
                members = {name.removesuffix("_desc"): value.base}
            named |= {key: member for key, member in members.items() if isinstance(member, Tensor)}
        return named

    def _tensors(self) -> Iterator[Tensor]:
        """Without their names, which take time."""
        for value in self.arguments.values():
            for member in value if isinstance(value, tuple) else (value,):
                if isinstance(member, Tensor):
                    yield member
                elif isinstance(member, TensorDescriptor):
                    yield member.base

    def _device(self) -> torch.device:
        kind = "cpu" if triton.knobs.runtime.interpret else "cuda"
        devices = {tensor.device for tensor in self._tensors()}
        if len(devices) == 1 and next(iter(devices)).type == kind:
            return devices.pop()
        tensors = self.tensors
        first, device = next((name, tensor.device) for name, tensor in tensors.items())
        for name, tensor in tensors.items():
            if tensor.device.type != kind:
                raise ValueError(f"{name}: expected a tensor on a {kind} device, found {tensor.device}")
            if tensor.device != device:
                raise ValueError(f"{name}: expected a tensor on {device} as {first}, found {tensor.device}")
        return device


class Barrier(NamedTuple):
    """Where the programs of a launch wait for each other: all must run at once, as a cooperative launch's do.

    A grid of one program is legal and never waits, so that Triton's interpreter runs it.

    Attributes:
        arrivals: int64 [1], how many programs have ever arrived; each launch adds a multiple of its programs.
        timed_out: int32 [1], not 0 once a wait has been given up.
        programs: of every launch that meets here; one launch at a time.
    """

    arrivals: Any
    timed_out: Any
    programs: int

    @classmethod
    def on(cls, device: torch.device | str, programs: int | None = None) -> Barrier:
        """A barrier on a device, for as many programs as it has multiprocessors where no number is given."""
        device = torch.device(device)
        most = n_multiprocessors(device)
        if programs is not None and (programs < 1 or (device.type == "cuda" and programs > most)):
            raise ValueError(f"programs: expected 1 to {most}, all of which run at once, found {programs}")
        arrivals, timed_out = (torch.zeros(1, dtype=dtype, device=device) for dtype in (torch.int64, torch.int32))
        return cls(arrivals, timed_out, programs or most)

    def check(self) -> None:
        """Raise RuntimeError if a wait of a launch so far was given up: its results are wrong. Waits for the device."""
        if int(self.timed_out):
            raise RuntimeError("barrier: expected all programs of a launch to arrive, found some missing after seconds")


def n_multiprocessors(device: torch.device) -> int:
    """Programs that surely run at once on a device: its multiprocessors; 1 in Triton's interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def can_depend(device: torch.device) -> bool:
    """Whether a launch on a device may begin before the one before it ends: from compute capability 9.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def check_dependent(device: torch.device) -> None:
    """Raise ValueError where launches on a CUDA device cannot depend on each other."""
    if device.type == "cuda" and not can_depend(device):
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise ValueError(f"dependent: expected a device of compute capability 9.0 or more, found {found}")


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
