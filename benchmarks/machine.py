"""What the figures were measured on: processor, memory, versions, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flashelmo.engine.system.processor import cpu_flags, processor_name

# Names of the instruction sets that decide how fast matrices are multiplied.
X86_SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
ARM_SETS = ("asimd", "asimddp", "i8mm", "bf16", "sve", "sme")
PACKAGES = ("flashelmo", "numpy", "onnxruntime", "openvino", "torch")


def machine() -> dict[str, Any]:
    """Return processor, instruction sets, cores this process may use, and memory in GiB."""
    return {
        "processor": processor_name(),
        "instruction_sets": [name for name in X86_SETS + ARM_SETS if name in cpu_flags()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
    }


def card() -> dict[str, Any] | None:
    """Return name, memory, multiprocessors, L2 cache and capability of the current CUDA device; None without one."""
    if find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    from flashelmo.kernels.lstm.proven import driver_version  # which needs Triton, as what runs on a card does

    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": found.name,
        "memory_gib": round(found.total_memory / 2**30),
        "multiprocessors": found.multi_processor_count,
        "l2_bytes": found.L2_cache_size,
        "capability": f"{found.major}.{found.minor}",
        "driver": driver_version(),
    }


def versions() -> dict[str, str | None]:
    """Return versions of Python and of the packages that compute; None for those not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = None
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def commit() -> dict[str, Any] | None:
    """Return the checkout's commit and whether files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    git = partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True)
    try:
        changes = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        return {"id": git(["git", "rev-parse", "HEAD"]).stdout.strip(), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None
