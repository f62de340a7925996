"""What the C library does with memory that was freed."""

from __future__ import annotations

import ctypes
import sys

LARGE_BYTES = 4 << 20  # NumPy asks for huge pages from here on: such an array is there after a few page faults
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # as malloc.h numbers what can be set


def return_large_arrays() -> None:
    """Let glibc give arrays of LARGE_BYTES and more back to the system when they are freed; without effect elsewhere.

    By default it gives back only those of 32 MiB and more, once it has seen smaller ones freed. The others stay in the
    heap they came from, for the next array of that heap. It has several heaps, threads that begin take any of them, and
    here threads begin with every window: each heap grows until it has held the most that any of them ever does. Over
    hours of work that is hundreds of MiB that nobody uses.

    It changes the whole process: programs call this, no function of the library.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGE_BYTES)
        # Setting the threshold above ends glibc's own adjustment of this one, which would stay at its 128 KiB.
        mallopt(TRIM_THRESHOLD, 2 * LARGE_BYTES)
