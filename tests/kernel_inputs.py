"""What kernels are given in tests, and how far their results are rounded."""

from typing import Any

import torch

# A result's own rounding to nearest: half a unit in the last place of the mantissa, relative.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: Any = "cpu") -> Any:
    """A tensor of values about as large as activations, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def poisoned(*shape: int, dtype: torch.dtype, device: Any) -> Any:
    """A tensor filled with NaN, for results."""
    return torch.full(shape, float("nan"), dtype=dtype, device=device)
