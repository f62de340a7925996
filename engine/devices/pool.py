"""Several devices embed one stream of windows, each in its own process.

A window goes to the device that has the fewest, and its results come back through memory that both processes share. The
program that starts the processes needs no main guard: they run `worker.py`, never the program's own file.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from flashelmo.engine.devices.process import DeviceProcess, Result
from flashelmo.engine.devices.shared_arrays import write_object
from flashelmo.engine.devices.stream import Arrived, Lost, WindowStream
from flashelmo.engine.devices.worker import Cancel, Start
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import OnProgress, Statistics, Stream, WindowPipeline
from flashelmo.engine.text.windows import Window

logger = logging.getLogger("flashelmo")


class DevicePool:
    """A pipeline made of one on each of several devices, with the interface of `WindowPipeline`.

    Windows are returned in the order they came in. Several threads may use a pool, and a thread several streams, at
    once. A device whose process ends is reported once as a warning, and the others take over its windows. No state is
    carried from window to window, as neighbours go to different devices.

    Args:
        make: makes a device's pipeline; called with its name in its process. It must be picklable, from an importable
            module; arrays that it holds are copied once for all processes, which share them.
        devices: names of the devices, without repetition.

    Attributes:
        precision: what the pipelines compute in; "" if they do not say.

    Raises:
        FlashElmoError: no device, a repeated one, one whose pipeline cannot be made (with the message of `make`), or
            pipelines that compute in different precisions.
    """

    def __init__(self, make: Callable[[str], WindowPipeline], devices: Sequence[str]) -> None:
        _check_names(devices)
        self.statistics = Statistics()
        self._lock = threading.Lock()
        self._dispatcher = _Dispatcher()
        self._processes: list[DeviceProcess] = []
        self._end = weakref.finalize(self, _end, self._processes)
        try:
            self._start(make, devices)
            self.precision = _one_precision(self._processes)
        except BaseException:
            self.close()
            raise
        self.ahead = sum(process.max_windows + 1 for process in self._processes) - 1

    def _start(self, make: Callable[[str], WindowPipeline], devices: Sequence[str]) -> None:
        arrays_file, pickled = write_object(make)
        try:
            for name in devices:
                process = DeviceProcess(name, arrays_file, self._dispatcher)
                self._processes.append(process)
                self._dispatcher.processes.append(process)
                process.send(Start(name, pickled))
        finally:
            os.close(arrays_file)
        for process in self._processes:
            process.settled.get()
            if not process.max_windows:
                cause = str(process.cause)
                raise FlashElmoError(cause if process.name in cause else f"device {process.name}: {cause}")

    def reset_state(self) -> None:
        """Do nothing: there is no state."""

    def stream(
        self, windows: Iterable[Window], output: Output, on_progress: OnProgress, *, as_numpy: bool = True
    ) -> Stream:
        """See `WindowPipeline`; `on_progress` is called when a window is given. Each result array owns its memory.

        Raises:
            FlashElmoError: tensors are requested; or, from the iterator, a window's own error in its place, or that no
                device is left.
        """
        if not as_numpy:
            raise FlashElmoError("convert_to_numpy: expected True with several devices, found False")
        return self._stream(windows, output, on_progress)

    def _stream(self, windows: Iterable[Window], output: Output, on_progress: OnProgress) -> Stream:
        stream = self._dispatcher.open(windows, output, self.ahead + 1)
        try:
            for window, embedded in stream.results():
                with self._lock:
                    self.statistics += embedded.added
                on_progress(1.0)
                yield window, embedded.arrays
        finally:
            self._dispatcher.close(stream)

    def close(self) -> None:
        """End the processes. They also end with the program, and with the pool's last reference."""
        self._end()


def _check_names(devices: Sequence[str]) -> None:
    if not devices:
        raise FlashElmoError("device: expected at least one, found none")
    for name in devices:
        if list(devices).count(name) > 1:
            raise FlashElmoError(f"device: expected each device once, found {name!r} {list(devices).count(name)} times")


def _one_precision(processes: list[DeviceProcess]) -> str:
    """Return the precision that all share: a sentence's vectors must not depend on the device that it goes to."""
    if len({process.precision for process in processes}) == 1:
        return processes[0].precision
    *most, last = [f"{process.precision} on {process.name}" for process in processes]
    raise FlashElmoError(
        f"precision: expected one for all devices, found {', '.join(most)} and {last}; "
        f"pass one that {'both' if len(processes) == 2 else 'all'} have"
    )


def _end(processes: list[DeviceProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


class _Dispatcher:
    """Hands what processes send to the stream that waits for it.

    It holds no reference to the pool, so that the pool can be freed.
    """

    def __init__(self) -> None:
        self.processes: list[DeviceProcess] = []
        self._lock = threading.RLock()  # a stream may be freed, and so closed, at any time, even here
        self._streams: dict[int, WindowStream] = {}
        self._numbers = count()
        self._cause = ""

    def open(self, windows: Iterable[Window], output: Output, bound: int) -> WindowStream:
        """Return a new stream on all running processes."""
        with self._lock:
            stream = WindowStream(next(self._numbers), self.processes, windows, output, bound, self._cause)
            self._streams[stream.number] = stream
            return stream

    def close(self, stream: WindowStream) -> None:
        """Forget a stream and drop what it waits for."""
        with self._lock:
            del self._streams[stream.number]
        for process, held in stream.sent.items():
            if held:
                process.send(Cancel(stream.number))
        stream.clear()

    def deliver(self, process: DeviceProcess, number: int, position: int, result: Result) -> None:
        """Hand over a finished window."""
        with self._lock:
            stream = self._streams.get(number)
            if stream is not None:
                stream.sent[process].remove(position)
                stream.events.put(Arrived(position, result))

    def lose(self, process: DeviceProcess) -> None:
        """Record that a process has ended."""
        with self._lock:
            self.processes.remove(process)
            self._cause = f"{process.name}: {process.cause}"
            streams = list(self._streams.values())
        if process.max_windows and not process.closed:
            lost = sum(len(stream.sent.get(process, ())) for stream in streams)
            logger.warning("device %s: %s; windows done again: %d", process.name, process.cause, lost)
        for stream in streams:
            stream.events.put(Lost(process))
