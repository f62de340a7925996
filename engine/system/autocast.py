"""PyTorch's autocast, which a program may have turned on around calls into this package."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def autocast_type(device: torch.device) -> torch.dtype | None:
    """Return the type in which a device computes products; None if autocast is off or the device has none."""
    import torch

    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return None


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which products on a device have their operands' types."""
    import torch

    return nullcontext() if autocast_type(device) is None else torch.autocast(device.type, enabled=False)
