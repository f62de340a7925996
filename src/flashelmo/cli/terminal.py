"""What the command line does with the terminal and the process: progress, messages, signals."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from flashelmo.engine.embed_file import OnTextProgress
from flashelmo.engine.system.signals import handled, stop_signals

SECONDS_A_LINE, SECONDS_A_BAR = 10.0, 0.2
RECENT_SECONDS = 30.0  # that a rate is measured over
ARGUMENT = re.compile(
    r'\b(resume|overwrite|use_sentence_keys|layers|dtype|pool|format)=(?:True|"(top|float16|mean|native)")'
)


class InterruptedBySignal(BaseException):
    """A signal asks to stop; no Exception, so that only `commands.run` turns it into an exit status."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Make signals that ask to stop raise, once, so that what is half written is removed on the way out."""
    numbers = stop_signals()

    def stop(number: int, frame: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise InterruptedBySignal(number)

    with handled(numbers, stop):
        yield


def file_status(file: IO[Any]) -> os.stat_result | None:
    """What the system knows of an open file; None where it is no file of the system's, such as one in memory."""
    try:
        return os.fstat(file.fileno())
    except (AttributeError, OSError):
        return None


@contextmanager
def progress_bar(total: Callable[[], int | None], quiet: bool, in_lines: bool = False) -> Iterator[OnTextProgress]:
    """A bar of a text's bytes where there is a terminal, or else, or `in_lines`, lines every ten seconds.

    Args:
        total: says each time how many bytes there are; None where nobody knows.
    """
    if quiet:
        yield lambda n_bytes, n_tokens: None
        return
    progress = _Progress(total, in_lines)
    try:
        yield progress.report
    finally:
        progress.line.clear()


class StatusLine:
    """What is going on: a line that is written over on a terminal, or else, or `in_lines`, one every ten seconds."""

    def __init__(self, in_lines: bool, now: float) -> None:
        self._in_lines = in_lines or not sys.stderr.isatty()
        self._interval = SECONDS_A_LINE if self._in_lines else SECONDS_A_BAR
        self._next, self._width = now + self._interval, 0

    def is_due(self, now: float) -> bool:
        """Whether it is time to show the line again, which starts the next interval."""
        due = now >= self._next
        self._next = now + self._interval if due else self._next
        return due

    def show(self, line: str) -> None:
        """Write it."""
        if self._in_lines:
            say(line.strip())
        else:
            write_message("\r" + line.ljust(self._width))
            self._width = len(line)

    def clear(self) -> None:
        """Take it away."""
        if self._width:
            write_message("\r" + " " * self._width + "\r")


class _Progress:
    """What is done of `total` bytes, if that is known, and at which rate of late."""

    def __init__(self, total: Callable[[], int | None], in_lines: bool) -> None:
        self._total, self._started = total, time.monotonic()
        self.line = StatusLine(in_lines, self._started)
        self._recent = deque([(self._started, 0.0, 0.0)])  # times, bytes and tokens that were shown

    def report(self, n_bytes: float, n_tokens: float) -> None:
        """Show it, unless that was done just now."""
        now = time.monotonic()
        if not self.line.is_due(now):
            return
        self._recent.append((now, n_bytes, n_tokens))
        while len(self._recent) > 2 and self._recent[1][0] <= now - RECENT_SECONDS:
            self._recent.popleft()
        then, bytes_then, tokens_then = self._recent[0]
        rate, tokens_rate = (n_bytes - bytes_then) / (now - then), (n_tokens - tokens_then) / (now - then)
        self.line.show(self._text(n_bytes, now, rate, f"{tokens_rate:,.0f} tokens/s"))

    def _text(self, n_bytes: float, now: float, rate: float, speed: str) -> str:
        from tqdm import tqdm

        total = self._total()
        length, left = ("{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}", "<{remaining}") if total else ("{n_fmt}", "")
        text: str = tqdm.format_meter(
            int(n_bytes),
            total,
            now - self._started,
            ncols=_columns() - 1,
            ascii=not str(getattr(sys.stderr, "encoding", None)).lower().startswith("utf"),
            unit_scale=True,
            rate=rate,
            bar_format=f"{length}B [{{elapsed}}{left}{{postfix}}]",
            postfix=speed,
        )
        return text


def _columns() -> int:
    """Width of the terminal."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, OSError, ValueError):
        return 80


def readable_size(n_bytes: int) -> str:
    """Bytes in the unit that reads best."""
    from rich.filesize import decimal

    return decimal(n_bytes)


def counted(n: int, what: str) -> str:
    """A number of things, as "1 shard" or "2 shards"."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def rest_of_summary(done: Any, computed: str) -> str:
    """The end of a first line, and two more, of what a `Summary` or `Report` says; `computed` is what computed."""
    all_steps = done.steps + done.steps_saved
    saved = done.steps_saved / all_steps if all_steps else 0.0
    return (
        (f", {counted(done.skipped, 'record')} skipped\n" if done.skipped else "\n")
        + f"{done.steps:,} of {all_steps:,} LSTM steps, {saved:.1%} saved by sharing\n"
        + f"{done.seconds:,.1f} s, {done.tokens_per_second:,.0f} tokens/s ({computed})\n"
    )


@contextmanager
def messages_to_stderr() -> Iterator[None]:
    """The engine's warnings go to standard error, a line each; `--verbose` and `--quiet` choose what else, or less."""
    handler = _Messages()
    handler.setFormatter(logging.Formatter("flashelmo: %(message)s"))
    logger = logging.getLogger("flashelmo")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logging.getLogger("flashelmo.device").setLevel(logging.NOTSET)


class _Messages(logging.Handler):
    """Says what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def open_streams() -> None:
    """Make the standard streams usable whatever the caller left of them: closed ones, or those of an ASCII terminal.

    The number of a closed one would be given to the next file that is opened, and messages would be written there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Make sure that results reach standard output. OSError: they could not be written, and are dropped."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _drop(sys.stdout)
        raise OSError(error.errno, error.strerror, "standard output") from None


def write_message(text: str) -> None:
    """Write to standard error; where that is full or closed, messages are dropped: the work goes on."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        _drop(sys.stderr)


def _drop(stream: IO[str]) -> None:
    """What is written to the stream, and what waits in its buffer, goes nowhere."""
    with suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def as_options(text: str) -> str:
    """A message of the engine, in which arguments that it advises become the command's options."""
    return ARGUMENT.sub(lambda found: f"--{found[1].replace('_', '-')}" + (f" {found[2]}" if found[2] else ""), text)


def say(text: str) -> None:
    """Print on standard error, which leaves standard output to results."""
    write_message(f"{text}\n")


def fail(message: str, status: int) -> int:
    """Print an error as one line; returns the exit status."""
    say("flashelmo: " + " ".join(as_options(message).splitlines()))
    return status
