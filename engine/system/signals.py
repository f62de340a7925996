"""Signals that ask to stop: Ctrl-C, kill and hanging up. A program's main thread alone gets them and handles them."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def stop_signals() -> list[int]:
    """Numbers of those that are not ignored, as under nohup, and that Python can set back; none in other threads."""
    in_main = threading.current_thread() is threading.main_thread()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if in_main and hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) not in (None, signal.SIG_IGN)]


@contextmanager
def handled(numbers: Sequence[int], handler: Callable[[int, Any], None] | signal.Handlers) -> Iterator[dict[int, Any]]:
    """Handle them this way during the block, which gets the handlers that they had, by number."""
    handlers: dict[int, Any] = {}
    try:
        for number in numbers:
            handlers[number] = signal.getsignal(number)
            signal.signal(number, handler)
        yield handlers
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)


@contextmanager
def signals_wait() -> Iterator[None]:
    """Delay them until the end of the block, if it ends without an error.

    One that would end the process at once raises SystemExit there, with a shell's status.
    """
    came: list[tuple[int, Any]] = []
    with handled(stop_signals(), lambda *arguments: came.append(arguments)) as handlers:
        yield
    for number, frame in came[:1]:
        if not callable(handlers[number]):
            sys.exit(128 + number)
        handlers[number](number, frame)
