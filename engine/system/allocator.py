"""What the C library does with freed memory."""

from __future__ import annotations

import ctypes
import sys

LARGE_BYTES = 4 << 20  # from here on NumPy asks for huge pages, with which an array needs only a few page faults
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # numbers of these settings in malloc.h


def return_large_arrays() -> None:
    """Make glibc return arrays of LARGE_BYTES and more to the system when they are freed; no effect elsewhere.

    By default it returns only those of 32 MiB and more, once it has seen smaller ones freed. The others stay in the
    heap they came from, for the next array of that heap. It has several heaps, new threads take any of them, and here
    threads are started for every window: each heap grows until it has held the most that any thread ever needs. Over
    hours of work that is hundreds of MiB of unused memory.

    It changes the whole process: only programs call it, no function of the library does.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE_BYTES)
        # Setting the threshold above stops glibc from adjusting this one, which would stay at its 128 KiB.
        mallopt(TRIM_THRESHOLD, 2 * LARGE_BYTES)
