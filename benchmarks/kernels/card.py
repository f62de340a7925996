"""A card, and what it can do at best, as measured in the run that uses it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

import torch
import triton

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.results import Results, Row, new_results
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.errors import FlashElmoError

CARD = "card"  # in place of the model where a row is of none
RUN_OPTIONS = ("out", "models", "rounds", "seed", "limit_seconds", "commit")  # of every run on a card
# What is measured of a card -> the limit that it is; fp16's products are as fast as bf16's.
LIMITS = {
    "torch.mm bf16": "half",
    "torch.mm fp32": "fp32",
    "torch.mm tf32": "tf32",
    "copy": "memory",
    "copy in L2": "l2",
}
SCALES = {"TFLOP/s": 1e12, "GB/s": 1e9}


@dataclass(frozen=True)
class Card:
    """What a GPU can do at best; what was not measured limits nothing.

    Attributes:
        half, tf32, fp32: floating-point operations a second of dense products of 16 bits, in TF32, and by FFMA.
        memory, l2: bytes a second.
        l2_bytes: size of the L2 cache.
    """

    half: float = inf
    tf32: float = inf
    fp32: float = inf
    memory: float = inf
    l2: float = inf
    l2_bytes: float = 0

    def peak(self, precision: str) -> float:
        """Operations a second in a precision; 8-bit products are counted as 16-bit ones, which take twice as long."""
        if precision in ("fp32", "tf32"):
            return self.fp32 if precision == "fp32" else self.tf32
        return self.half

    @classmethod
    def of(cls, results: Results, rows: Iterable[Row] | None = None) -> Card:
        """The card of some results, by their ceilings, or by those among some rows."""
        found = [row for row in (results.rows if rows is None else rows) if row.section == "ceiling" and row.median]
        limits = {LIMITS[row.name]: SCALES[row.unit] * (row.median or inf) for row in found if row.name in LIMITS}
        return cls(l2_bytes=results.machine["gpu"]["l2_bytes"], **limits)


class Device(NamedTuple):
    """Where a run computes: what `ElmoEmbedder` is told, as "cuda", and PyTorch's name of the same, as "cuda:0"."""

    engine: str
    torch: str

    @property
    def is_cuda(self) -> bool:
        """Whether there is a card."""
        return self.torch.startswith("cuda")

    def synchronize(self) -> None:
        """Wait until the device has done what was queued; also raises what went wrong there."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def is_lost(self) -> bool:
        """Whether work on the device no longer ends well: some errors of a kernel end its process's CUDA context."""
        try:
            self.synchronize()
        except Exception:
            return True
        return False

    def free_memory(self) -> None:
        """Give memory back that nobody uses."""
        if self.is_cuda:
            torch.cuda.empty_cache()


def begin(settings: Settings) -> tuple[Settings, Device, Results]:
    """The current CUDA device, results without rows, and the settings as they suit it.

    Raises:
        FlashElmoError: there is no device.
    """
    found = machine.card()
    if found is None:
        raise FlashElmoError("no CUDA device: this benchmark needs one")
    device = Device("cuda", f"cuda:{torch.cuda.current_device()}")
    free, _ = torch.cuda.mem_get_info(device.torch)
    settings = replace(settings, copy_bytes=min(settings.copy_bytes, free // 8))
    results = new_results(settings, "kernels" if settings.sections == ("kernels",) else "gpu", found)
    versions = results.versions | {"triton": triton.__version__, "cuda": torch.version.cuda}
    return settings, device, replace(results, versions=versions)
