"""The process of one device: `DevicePool` starts it, sends it windows and gets their results.

A thread reads what the pool sends, so that the pool never waits for a device that computes, and ends the process as
soon as the pool has ended. The pipeline is fed with runs: consecutive windows of one of the pool's streams. A run ends
when the pool says that nothing follows for now, so that a pipeline that reads ahead returns what it holds.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NamedTuple, NoReturn

from flashelmo.engine.arrays import Array
from flashelmo.engine.devices.shared_arrays import ArrayLayout, Pickled, read_object, send_file, write_arrays
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import Statistics, WindowPipeline, renumbered
from flashelmo.engine.system import child
from flashelmo.engine.text.windows import Window


class Start(NamedTuple):
    """The first message: the device's name, which `make` is called with to make the pipeline."""

    device: str
    make: Pickled


class WindowTask(NamedTuple):
    """A window to embed: its stream, and its position there."""

    stream: int
    position: int
    window: Window
    output: Output


class Flush(NamedTuple):
    """No window follows for now."""


class Cancel(NamedTuple):
    """A stream's windows are no longer wanted."""

    stream: int


class Ready(NamedTuple):
    """The pipeline is made; its precision, if it has one."""

    ahead: int
    precision: str


class Done(NamedTuple):
    """A window's results, in a file that is sent next, and what it added to the statistics."""

    stream: int
    position: int
    layout: ArrayLayout
    added: Statistics


class Refused(NamedTuple):
    """A window's FlashElmoError, which numbers its sentences from 0."""

    stream: int
    position: int
    text: str


class Failed(NamedTuple):
    """The last message of a process that cannot go on."""

    text: str


def main(connection_descriptor: int, arrays_file: int) -> NoReturn:
    """Serve the pool at the other end of a connection until it closes."""
    connection = child.connect(connection_descriptor)
    try:
        start: Start = connection.recv()
        inbox = _Inbox(connection)
        make: Callable[[str], WindowPipeline] = read_object(arrays_file, start.make)
        pipeline = make(start.device)
        connection.send(Ready(pipeline.ahead, getattr(pipeline, "precision", "")))
        worker = _Worker(pipeline, connection, inbox)
        while True:
            worker.run()
    except BaseException as error:
        with suppress(OSError):
            connection.send(Failed(child.describe(error)))
    os._exit(1)  # in an orderly exit, a library in an unknown state may hang or write to the terminal


class _Inbox:
    """What the pool has sent, in order."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._messages: SimpleQueue[WindowTask | Flush | Cancel] = SimpleQueue()
        self._held: WindowTask | None = None
        self._cancelled: set[int] = set()
        threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def first(self) -> WindowTask:
        """Return the next window, of any stream."""
        while (task := self._next()) is None:
            pass
        return task

    def rest(self, stream: int) -> Iterator[WindowTask]:
        """Yield a stream's following windows, to the end of the run."""
        while (task := self._next()) is not None and task.stream == stream:
            yield task
        self._held = task

    def is_cancelled(self, stream: int) -> bool:
        """Whether a stream is no longer wanted."""
        return stream in self._cancelled

    def _next(self) -> WindowTask | None:
        """Return the next wanted window, or None if the run ends here."""
        message, self._held = self._held or self._messages.get(), None
        if isinstance(message, Cancel):
            self._cancelled.remove(message.stream)  # none of its windows comes after this
        if isinstance(message, WindowTask) and message.stream not in self._cancelled:
            return message
        return None

    def _read(self, connection: Connection[Any, Any]) -> None:
        try:
            while True:
                message = connection.recv()
                if isinstance(message, Cancel):
                    self._cancelled.add(message.stream)
                self._messages.put(message)
        finally:
            os._exit(1)  # the pool is gone, or has sent something unreadable


class _Worker:
    """Runs the pipeline on the inbox."""

    def __init__(self, pipeline: WindowPipeline, connection: Connection[Any, Any], inbox: _Inbox) -> None:
        self._pipeline = pipeline
        self._connection = connection
        self._inbox = inbox
        self._begun: deque[WindowTask] = deque()  # taken by the pipeline, with results not yet sent

    def run(self) -> None:
        """Embed the windows of one run.

        An error of a pipeline that reads ahead may belong to a later window: each is then embedded alone.
        """
        first = self._inbox.first()
        error = self._embed(first, self._inbox.rest(first.stream))
        if error is not None and len(self._begun) == 1:
            self._refuse(self._begun[0], error)
        elif error is not None:
            for task in self._begun:
                error = self._embed(task, iter(()))
                if error is not None:
                    self._refuse(task, error)

    def _embed(self, first: WindowTask, rest: Iterator[WindowTask]) -> str | None:
        """Embed windows of one stream and send their results; return a FlashElmoError's message, or None.

        It numbers the sentences from that of the oldest window without results.
        """
        before, self._begun = replace(self._pipeline.statistics), deque([first])
        n_given = 0

        def windows() -> Iterator[Window]:
            yield first.window
            for task in rest:
                self._begun.append(task)
                yield task.window

        try:
            for _, results in self._pipeline.stream(windows(), first.output, lambda fraction: None):
                if self._inbox.is_cancelled(first.stream):
                    return None
                before = self._send(self._begun[0], results, before)
                n_given += len(self._begun.popleft().window)
        except FlashElmoError as error:
            if not self._begun:
                raise
            return renumbered(str(error), -n_given)
        return None

    def _send(self, task: WindowTask, results: Iterable[Array], before: Statistics) -> Statistics:
        """Send a window's results; return the statistics after it."""
        descriptor, layout = write_arrays(results)
        try:
            after = replace(self._pipeline.statistics)
            self._connection.send(Done(task.stream, task.position, layout, after - before))
            send_file(self._connection, descriptor)
        finally:
            os.close(descriptor)
        return after

    def _refuse(self, task: WindowTask, error: str) -> None:
        self._connection.send(Refused(task.stream, task.position, error))
