"""What all launchers share: a launch as a value, and the checks of its arguments."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import triton
from torch import Tensor

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
        """The tensors among the arguments, those inside named tuples too, by name."""
        named: dict[str, Tensor] = {}
        for name, value in self.arguments.items():
            members = {name.removesuffix("_ptr"): value}
            if hasattr(value, "_asdict"):
                members = {f"{name}.{key}": member for key, member in value._asdict().items()}
            named |= {key: member for key, member in members.items() if isinstance(member, Tensor)}
        return named

    def _tensors(self) -> Iterator[Tensor]:
        """Without their names, which take time."""
        for value in self.arguments.values():
            for member in value if isinstance(value, tuple) else (value,):
                if isinstance(member, Tensor):
                    yield member

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


def n_multiprocessors(device: torch.device) -> int:
    """Programs that surely run at once on a device: its multiprocessors; 1 in Triton's interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


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
