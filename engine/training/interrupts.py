"""Lets Ctrl-C and other signals take effect only between steps: within one, parameters would be half updated."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextmanager
def signals_wait() -> Iterator[None]:
    """Delay signals that ask to stop until the end of the block, if it ends without an error.

    One that would end the process at once raises SystemExit there, with a shell's status. This only works in a
    program's main thread, which gets the signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, Any]] = []
    handlers: dict[int, Any] = {}
    try:
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            handler = signal.getsignal(number)
            if handler not in (None, signal.SIG_IGN):
                handlers[number] = handler
                signal.signal(number, lambda *arguments: came.append(arguments))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for number, frame in came[:1]:
        if not callable(handlers[number]):
            sys.exit(128 + number)
        handlers[number](number, frame)
