"""One stream of windows over several devices: which windows are where, and which comes next.

A device holds as many windows as its pipeline reads ahead and two more, so that it always has the next one at hand. The
number taken from the input before the first of them is returned is limited too: a device that falls behind makes the
others wait, instead of letting memory grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from queue import SimpleQueue
from typing import NamedTuple

from flashelmo.engine.devices.process import DeviceProcess, Embedded, Result
from flashelmo.engine.devices.worker import Flush, WindowTask
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import renumbered
from flashelmo.engine.text.windows import Window


class Arrived(NamedTuple):
    """A window is finished."""

    position: int
    result: Result


class Lost(NamedTuple):
    """A process has ended."""

    process: DeviceProcess


class WindowStream:
    """One call of `DevicePool.stream`: where each of its windows is.

    Attributes:
        sent: the windows that each process holds.
        events: finished windows and ended processes, as the processes' reader threads report them.
    """

    def __init__(
        self,
        number: int,
        processes: Iterable[DeviceProcess],
        windows: Iterable[Window],
        output: Output,
        bound: int,
        cause: str,
    ) -> None:
        self.number = number
        self.sent: dict[DeviceProcess, set[int]] = {process: set() for process in processes}
        self.events: SimpleQueue[Arrived | Lost] = SimpleQueue()
        self._input = enumerate(windows)
        self._output = output
        self._bound = bound
        self._cause = cause
        self._taken: dict[int, Window] = {}  # and not yet returned
        self._finished: dict[int, Result] = {}
        self._to_resend: list[int] = []  # taken, and lost with a process
        self._unflushed: set[DeviceProcess] = set()  # sent windows since their last flush; may hold back results
        self._end: Exception | None = None  # what the input raised; StopIteration for its regular end

    def results(self) -> Iterator[tuple[Window, Embedded]]:
        """Yield every window with its results, in order."""
        first = 0  # the number of the window's first sentence among all
        for position in count():
            self._fill()
            while position not in self._finished:
                self._flush(position)
                if self._end is not None and position not in self._taken:
                    if isinstance(self._end, StopIteration):
                        return
                    raise self._end
                if not self.sent:
                    raise FlashElmoError(f"device: none is still running; {self._cause}")
                self._handle(self.events.get())
                self._fill()
            window, result = self._taken.pop(position), self._finished.pop(position)
            if isinstance(result, FlashElmoError):
                raise FlashElmoError(renumbered(str(result), first))
            yield window, result
            first += len(window)

    def clear(self) -> None:
        """Free all results, so that an error's traceback does not keep them alive; and the input's, which keeps the
        frames of all callers alive.
        """
        self.events, self._end = SimpleQueue(), None
        self._finished.clear()
        self._taken.clear()

    def _handle(self, event: Arrived | Lost) -> None:
        if isinstance(event, Arrived):
            self._finished[event.position] = event.result
        else:
            self._cause = f"{event.process.name}: {event.process.cause}"
            self._to_resend = sorted([*self._to_resend, *self.sent.pop(event.process)])

    def _fill(self) -> None:
        """Send windows to processes that have room."""
        while (process := self._least_busy()) is not None and (position := self._next()) is not None:
            self.sent[process].add(position)
            self._unflushed.add(process)
            window = replace(self._taken[position], text=None)
            process.send(WindowTask(self.number, position, window, self._output))

    def _flush(self, position: int) -> None:
        """Flush processes whose look-ahead holds back the awaited window.

        Processes that hold as many windows as they may are left out: no pipeline reads further ahead.
        """
        for process in self._unflushed & self.sent.keys():
            needed = position in self.sent[process] and len(self.sent[process]) < process.max_windows
            if self._end is not None or needed:
                process.send(Flush())
                self._unflushed.remove(process)

    def _least_busy(self) -> DeviceProcess | None:
        """Return the process with the fewest windows if it has room."""
        with_room = [process for process in self.sent if len(self.sent[process]) < process.max_windows]
        return min(with_room, key=lambda process: len(self.sent[process]), default=None)

    def _next(self) -> int | None:
        """Return the next window to send, if there is one and it may be taken before the first is returned."""
        if self._to_resend:
            return self._to_resend.pop(0)
        if self._end is not None or len(self._taken) >= self._bound:
            return None
        try:
            position, self._taken[position] = next(self._input)
        except Exception as error:
            self._end = error
            return None
        return position
