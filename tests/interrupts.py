"""Ctrl-C at a chosen moment: an exception wherever Python could handle a signal, one place after the other."""

import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

MOMENTS = ("call", "c_return")  # a function begins, or C code returns: there Python looks for signals


def _enters(event: str, argument: object) -> bool:
    """Whether a block's lock was taken just now: Python 3.14 can be interrupted there, and then the lock stays taken.

    Whatever has a lock suffers from it (python/cpython#148874); earlier versions and 3.15 do not.
    """
    return event == "c_return" and getattr(argument, "__name__", "") == "__enter__"


def count_moments(run: Callable[[], Any], within: str = "") -> int:
    """How many moments a run has in this thread, in functions of files whose path has `within`."""
    return _run(run, 0, within)


def interrupt(run: Callable[[], Any], moment: int, within: str = "") -> None:
    """Run until KeyboardInterrupt is raised at the moment of a number, from 1 on."""
    with suppress(KeyboardInterrupt):
        _run(run, moment, within)


def _run(run: Callable[[], Any], at: int, within: str) -> int:
    n = 0

    def look(frame: FrameType, event: str, argument: object) -> None:
        nonlocal n
        if event in MOMENTS and within in frame.f_code.co_filename and not _enters(event, argument):
            n += 1
            if n == at:
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
    return n
