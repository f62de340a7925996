"""The command `flashelmo`: parses arguments, opens files, prints; the work is the engine's. A file a command."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. See `commands.run`."""
    with _interrupts_end():
        from flashelmo.cli.commands import run
    return run(arguments)


@contextmanager
def _interrupts_end() -> Iterator[None]:
    """Let Ctrl-C end the process without a word, as long as modules are loaded and there is nothing to undo."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
