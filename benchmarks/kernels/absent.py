"""An absent card: its driver accepts everything, so that all is done except the card's work.

Kernels are compiled for sm_90 and launched, by Triton's own launchers and by ours, with tensors in host memory.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils

from flashelmo.engine.cuda import cuda_graphs
from flashelmo.engine.errors import FlashElmoError
from flashelmo.kernels import tuning
from flashelmo.kernels.launch import Launch

LIBRARY = "libcuda.so.1"


class Driver:
    """Stands in for Triton's driver."""

    def __init__(self) -> None:
        self.utils, self.launcher_cls = CudaUtils(), CudaLauncher

    def get_current_device(self) -> int:
        """Return the device's number."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return a dummy address."""
        return 1000 + device

    def get_current_target(self) -> GPUTarget:
        """Return what to compile for."""
        return GPUTarget("cuda", 90, 32)


class Guard:
    """Stands in for `torch.cuda.device`."""

    current = 0

    def __init__(self, device: Any) -> None:
        self.index = device if isinstance(device, int) else device.index

    def __enter__(self) -> None:
        self.before, Guard.current = Guard.current, self.index

    def __exit__(self, *_: object) -> None:
        Guard.current = self.before


def pretend(folder: Path) -> ctypes.CDLL:
    """Give this process an H200 that does nothing from now on; return its driver, built in a folder.

    Raises:
        FlashElmoError: there is no C compiler, or it fails.
    """
    library = build(folder)
    driver = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    triton.knobs.nvidia.libcuda_path = str(folder)
    triton.runtime.driver.set_active(Driver())
    triton.set_allocator(lambda size, alignment, stream: torch.zeros(size, dtype=torch.int8))
    torch.cuda.device, torch.cuda.current_device = Guard, lambda: Guard.current  # type: ignore[assignment, misc]
    Launch._device = lambda self: torch.device("cuda", 0)  # type: ignore[method-assign]
    tuning.capability = lambda device: (9, 0)  # type: ignore[assignment]
    cuda_graphs._rerun = _replay_nothing
    return driver


def _replay_nothing(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Return a graph's replay that launches nothing."""
    out = run()
    return lambda: out


def build(folder: Path) -> Path:
    """Build the driver's library, and return its path.

    Raises:
        FlashElmoError: there is no C compiler, or it fails.
    """
    compiler = shlex.split(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "cc")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    library, source = folder / LIBRARY, Path(__file__).with_name("absent_driver.c")
    flags = ["-shared", "-fPIC", f"-I{headers}", f"-Wl,-soname,{LIBRARY}"]
    try:
        subprocess.run([*compiler, *flags, "-o", str(library), str(source)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise FlashElmoError(f"the absent card's driver: expected a C compiler, found none: {compiler[0]}") from None
    return library
