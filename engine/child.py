"""Child processes: how one is started and reached, and why it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from flashelmo.engine.errors import FlashElmoError, first_line

KILLED_SECONDS = 10.0  # that the system may take to end a process


def start(module: str, *descriptors: int) -> subprocess.Popen[bytes]:
    """Start `main` of a module in a process of its own, with descriptors of open files that it is given.

    It imports from where this process does, and no key pressed in the terminal reaches it.
    """
    path = [str(entry) for entry in sys.path]
    code = f"import sys; sys.path[:] = {path!r}; from {module} import main; main{descriptors!r}"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=descriptors, start_new_session=True
    )


def connect(descriptor: int) -> Connection[Any, Any]:
    """In a child: the connection to its parent, who decides when to end; Ctrl-C does not."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    return Connection(descriptor)


def end(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process, kill it after so many seconds, and say why it ended."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    code = process.poll()
    if code is None:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # the system does not let it go, as while a disk is waited for
            code = process.wait(KILLED_SECONDS)
    if code is not None and code < 0:
        with suppress(ValueError):  # a signal without a name
            return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def describe(error: BaseException) -> str:
    """One line; the class too where the text is not written for users."""
    return str(error) if isinstance(error, FlashElmoError) else f"{type(error).__name__}: {first_line(error)}"
