"""Types of kernels' arguments, and the checks that all launchers share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
Products: TypeAlias = Literal["ieee", "tf32"]  # how float32 is multiplied; 16-bit types have only one way


def check(name: str, tensor: Tensor | None, shape: Sequence[int | None], dtypes: Collection[torch.dtype]) -> None:
    """Raise ValueError, naming the argument, unless a tensor is contiguous and has this shape and one of these types.

    Args:
        shape: None where any size is allowed.
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
