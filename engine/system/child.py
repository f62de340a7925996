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

KILLED_SECONDS = 10.0  # that the system may take to kill a process


def start(module: str, *descriptors: int) -> subprocess.Popen[bytes]:
    """Start a module's `main` in its own process, passing it descriptors of open files.

    It imports from where this process does, and does not receive keys pressed in the terminal.

    Raises:
        FlashElmoError: on Windows, whose processes are not given descriptors.
    """
    if sys.platform == "win32":
        raise FlashElmoError("expected Linux or macOS for a service, workers or several devices, found Windows")
    path = [str(entry) for entry in sys.path]
    code = f"import sys; sys.path[:] = {path!r}; from {module} import main; main{descriptors!r}"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=descriptors, start_new_session=True
    )


def connect(descriptor: int) -> Connection[Any, Any]:
    """Return, in a child, the connection to its parent, which decides when it ends; Ctrl-C does not end it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    return Connection(descriptor)


def end(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a process, kill it after this many seconds, and return why it ended."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    code = process.poll()
    if code is None:
        process.kill()
        with suppress(subprocess.TimeoutExpired):  # the system does not let it go, as while it waits for a disk
            code = process.wait(KILLED_SECONDS)
    if code is not None and code < 0:
        with suppress(ValueError):  # a signal without a name
            return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def describe(error: BaseException) -> str:
    """Return an error as one line, with its class unless the text is written for users."""
    return str(error) if isinstance(error, FlashElmoError) else f"{type(error).__name__}: {first_line(error)}"
