"""A device's process as the pool sees it: how it is started, written to and read from, and why it ended."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import Pipe
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeAlias

from flashelmo.engine.arrays import Array
from flashelmo.engine.devices.shared_arrays import read_arrays, receive_file
from flashelmo.engine.devices.worker import Done, Failed, Ready, Refused
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.pipeline import Statistics
from flashelmo.engine.system import child

WORKER = "flashelmo.engine.devices.worker"
END_SECONDS = 10.0  # a driver may take its time to free a device


class Embedded(NamedTuple):
    """A window's results, and what it added to the statistics."""

    arrays: Iterator[Array]
    added: Statistics


Result: TypeAlias = Embedded | FlashElmoError


class Listener(Protocol):
    """Receives what processes send; called by each process's reader thread."""

    def deliver(self, process: DeviceProcess, stream: int, position: int, result: Result) -> None:
        """Take a stream's finished window: its results, or its error."""

    def lose(self, process: DeviceProcess) -> None:
        """Take notice that the process has ended."""


class DeviceProcess:
    """Starts `worker.py` for a device. One thread writes to it and another reads from it, so that `send` never blocks,
    results are taken as they come, and an interrupt of the program leaves no message half sent.

    Args:
        name: of the device.
        arrays_file: descriptor of the open file that holds the arrays of `Start.make`.
        listener: receives what the process sends.

    Attributes:
        max_windows: how many windows of one stream it may hold at once; 0 until it is ready.
        precision: what its pipeline computes in, if it says so.
        settled: gets an item when the process is ready or has ended.
        cause: why it ended; None while it runs.
        closed: whether it was ended on purpose.
    """

    def __init__(self, name: str, arrays_file: int, listener: Listener) -> None:
        self.name = name
        self.max_windows = 0
        self.precision = ""
        self.settled: SimpleQueue[None] = SimpleQueue()  # an Event's lock might stay held after Ctrl-C
        self.cause: str | None = None
        self.closed = False
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._connection, theirs = Pipe()
        with theirs:
            self._process = child.start(WORKER, theirs.fileno(), arrays_file)
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._reader = threading.Thread(target=self._read, args=(listener,), daemon=True)
        try:
            self._writer.start()
            self._reader.start()
        except RuntimeError:  # there are too many threads
            self._process.kill()
            child.end(self._process, END_SECONDS)
            raise

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: object) -> None:
        """Send a message as soon as possible; it is lost if the process has ended."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End the process; nothing is reported."""
        self.closed = True
        self._process.kill()

    def join(self) -> None:
        """Wait until the process has ended, and all that it sent has been read."""
        if self._reader is not threading.current_thread():
            self._reader.join(END_SECONDS)

    def _write(self) -> None:
        with suppress(Exception):
            while (message := self._outbox.get()) is not None:
                self._connection.send(message)
        self._process.kill()  # it cannot be reached; the other thread will notice that it has ended

    def _read(self, listener: Listener) -> None:
        failure: str | None = None
        try:
            while failure is None:
                failure = self._handle(self._connection.recv(), listener)
        except (EOFError, ConnectionError):
            pass
        except Exception as error:
            failure = child.describe(error)
        self._process.kill()
        ended = child.end(self._process, END_SECONDS)
        self.cause = failure or ended
        listener.lose(self)
        self.settled.put(None)
        self._outbox.put(None)
        self._writer.join(END_SECONDS)
        self._connection.close()

    def _handle(self, message: Ready | Done | Refused | Failed, listener: Listener) -> str | None:
        """Act on a message; return why the process cannot go on, or None."""
        if isinstance(message, Failed):
            return message.text
        if isinstance(message, Ready):
            self.precision, self.max_windows = message.precision, message.ahead + 2
            self.settled.put(None)
        elif isinstance(message, Refused):
            listener.deliver(self, message.stream, message.position, FlashElmoError(message.text))
        else:
            arrays = read_arrays(receive_file(self._connection), message.layout)
            listener.deliver(self, message.stream, message.position, Embedded(arrays, message.added))
        return None
