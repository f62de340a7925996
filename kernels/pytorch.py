"""PyTorch's own products of float32, and its errors where a card has no memory. Needs only torch."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from flashelmo.kernels.arguments import Products

# As the driver, PyTorch's allocator and Triton say it, and cuBLAS, cuDNN and others, whose status it is.
NO_MEMORY = re.compile(r"out of memory|_ALLOC(ATION)?_FAILED\b", re.IGNORECASE)

_float32 = threading.RLock()  # the setting is the whole process's, and several embedders may compute at once


@contextmanager
def float32_products(precision: Products, convolutions: bool = False) -> Iterator[None]:
    """Products of float32 on a card, and convolutions if wanted, are computed so; a program's settings are restored.

    PyTorch's older functions and flags raise in programs that have set the newer attributes, and are not used
    where these exist.
    """
    places: list[Any] = [torch.backends.cuda.matmul]
    cudnn: Any = torch.backends.cudnn
    name: str = "allow_tf32"
    value: str | bool = precision == "tf32"
    if hasattr(cudnn, "conv"):  # since PyTorch 2.9
        cudnn, name, value = cudnn.conv, "fp32_precision", precision
    if convolutions:
        places.append(cudnn)
    with _float32:
        before = [getattr(place, name) for place in places]
        try:
            for place in places:
                setattr(place, name, value)
            yield
        finally:
            for place, own in zip(places, before, strict=True):
                setattr(place, name, own)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, PyTorch's, Triton's or that of a library of NVIDIA's, says that the device has no memory."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
