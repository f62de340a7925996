"""The processor: instruction sets, cores, cache."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path

from flashelmo.engine.arguments import whole_number

ALWAYS_ALLOWED = 64  # threads: so that the same settings suit a large and a small machine
NO_BF16 = (
    "precision 'bf16': this processor has no bfloat16 products that a runtime uses (AVX-512 BF16, AMX, or on Linux "
    "Arm's BF16); pass 'fp32' or 'int8'"
)


@cache
def cpu_flags() -> frozenset[str]:
    """Return instruction sets by their Linux names; empty if the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(word for line in lines if line.startswith(("flags", "Features")) for word in line.split())


def processor_name() -> str:
    """Return the processor's name as Linux or macOS gives it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or _name_on_macos() or platform.processor() or platform.machine()


def _name_on_macos() -> str:
    if sys.platform != "darwin":
        return ""
    name, size = ctypes.create_string_buffer(128), ctypes.c_size_t(128)
    ask = ctypes.CDLL(None).sysctlbyname
    failed = ask(b"machdep.cpu.brand_string", name, ctypes.byref(size), None, ctypes.c_size_t(0))
    return "" if failed else name.value.decode()


def n_cores() -> int:
    """Return the number of usable cores; hardware threads that share a core, and so its units, count once."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        shared = Path("/sys/devices/system/cpu/smt/active").read_text(encoding="utf-8").strip() == "1"
    except OSError:
        shared = False
    return max(1, usable // 2) if shared else usable


def cache_bytes() -> int:
    """Return the size of the last-level cache; 32 MiB if the system does not say."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="utf-8").strip()
        return int(size.removesuffix("K")) << 10
    except (OSError, ValueError):
        return 32 << 20


def int8_levels() -> int:
    """Return the largest magnitude of 8-bit weights whose products with unsigned 8-bit inputs add up exactly.

    It is 127 with 8-bit dot products (VNNI, or Arm's). Without them x86 adds pairs of products in saturating 16 bits,
    which only weights of 7 bits never overflow: 2 * 255 * 63 < 2**15.
    """
    dot_products = {"avx512_vnni", "avx_vnni", "asimddp"} & cpu_flags()
    return 127 if dot_products or platform.machine().lower() == "arm64" else 63  # as macOS and Windows call Arm


def is_arm() -> bool:
    """Whether this is a 64-bit Arm processor, by the name that Linux, macOS or Windows has for it."""
    return platform.machine().lower() in ("aarch64", "arm64")


def multiplies_bf16() -> bool:
    """Whether the processor has instructions for products of bfloat16 (AVX-512 BF16, AMX, Arm's BF16 on Linux)."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags())


def check_threads(threads: int | None) -> int | None:
    """Return a number of threads; FlashElmoError if it is invalid, or so large that libraries abort the process.

    More threads than processors only cost time: with 256 on two processors, ONNX Runtime takes 24 seconds to start.
    """
    return None if threads is None else whole_number("threads", threads, 1, max(ALWAYS_ALLOWED, os.cpu_count() or 1))
