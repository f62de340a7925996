"""Ctrl-C at a chosen moment: an exception wherever Python could handle a signal, one place after the other."""

import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

MOMENTS = ("call", "c_return")  # a function begins, or C code returns: there Python looks for signals


def count_moments(run: Callable[[], Any]) -> int:
    """How many moments a run has in this thread."""
    return _run(run, 0)


def interrupt(run: Callable[[], Any], moment: int) -> None:
    """Run until KeyboardInterrupt is raised at the moment of a number, from 1 on."""
    with suppress(KeyboardInterrupt):
        _run(run, moment)


def _run(run: Callable[[], Any], at: int) -> int:
    n = 0

    def look(frame: FrameType, event: str, argument: object) -> None:
        nonlocal n
        if event in MOMENTS:
            n += 1
            if n == at:
                raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
    return n
