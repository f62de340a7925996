"""What the command line does with the terminal and the process: progress, messages, signals."""

from __future__ import annotations

import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from flashelmo.engine.embed_file import OnTextProgress


class InterruptedBySignal(BaseException):
    """A signal asks to stop; no Exception, so that only `main` turns it into an exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Make Ctrl-C and kill raise, once, so that what is half written is removed on the way out."""
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise InterruptedBySignal(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def file_status(file: IO[Any]) -> os.stat_result | None:
    """What the system knows of an open file; None where it is no file of the system's, such as one in memory."""
    try:
        return os.fstat(file.fileno())
    except (AttributeError, OSError):
        return None


@contextmanager
def progress_bar(file: IO[bytes], quiet: bool, in_lines: bool) -> Iterator[OnTextProgress]:
    """A bar of the text's bytes where there is a terminal, or lines every ten seconds."""
    from tqdm import tqdm

    status = file_status(file)
    total = status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None
    length = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}" if total else "{n_fmt}"
    left = "<{remaining}" if total else ""
    with tqdm(
        total=total,
        unit="B",
        unit_scale=True,
        bar_format=f"{length}B [{{elapsed}}{left}{{postfix}}]",
        disable=True if quiet else (False if in_lines else None),
        file=_Lines() if in_lines else sys.stderr,
        mininterval=10 if in_lines else 0.2,
        leave=in_lines,
    ) as bar:

        def on_progress(n_bytes: float, n_tokens: float) -> None:
            if bar.disable:
                return
            elapsed = max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{n_tokens / elapsed:,.0f} tokens/s", refresh=False)
            bar.update(int(n_bytes) - bar.n)

        yield on_progress


class _Lines:
    """Standard error, with lines in place of a bar that is redrawn."""

    def write(self, text: str) -> None:
        if text.strip():
            sys.stderr.write(text.strip() + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def readable_size(n_bytes: float) -> str:
    """Bytes in the unit that reads best."""
    for unit in ("B", "KB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:,.1f} {unit}" if unit != "B" else f"{n_bytes} B"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"


@contextmanager
def warnings_to_stderr(quiet: bool) -> Iterator[None]:
    """The engine's warnings go to standard error, a line each; with `quiet`, none about the choice of a device."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("flashelmo: %(message)s"))
    logger, device = logging.getLogger("flashelmo"), logging.getLogger("flashelmo.device")
    logger.addHandler(handler)
    device.setLevel(logging.ERROR if quiet else logging.WARNING)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        device.setLevel(logging.NOTSET)


def say(text: str) -> None:
    """Print on standard error, which leaves standard output to results."""
    print(text, file=sys.stderr)


def fail(message: str, status: int) -> int:
    """Print an error as one line; returns the exit status."""
    say("flashelmo: " + " ".join(message.splitlines()))
    return status
