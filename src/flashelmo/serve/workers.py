"""A process a device, restarted when it dies, seen from the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from flashelmo.engine.devices.process import DeviceProcess, Result
from flashelmo.engine.devices.shared_arrays import write_object
from flashelmo.engine.devices.worker import Flush, Start, WindowTask
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import OnProgress, Statistics, Stream, WindowPipeline
from flashelmo.engine.text.windows import Window

logger = logging.getLogger("flashelmo")

LONGEST_PAUSE = 30.0  # seconds between attempts to start a process that ends before it is ready


class Owner(Protocol):
    """Hears of the workers, in the event loop."""

    def on_done(self, number: int, result: Result) -> None:
        """A window is done: its results, or its error."""

    def on_lost(self, numbers: Iterable[int]) -> None:
        """A worker's process ended, and with it these windows."""

    def on_ready(self) -> None:
        """A worker takes windows."""


class Worker:
    """A device's process, and its successors.

    Args:
        device: its name.
        make: makes the pipeline in the process, called with the name.
        windows: that it may hold at once; a card has its next one at hand.
        owner: hears of it.

    Attributes:
        is_ready: its process takes windows.
        held: numbers of the windows that it has.
        precision: what it computes in, once it is ready.
        pid: of its process, once there is one.
    """

    def __init__(self, device: str, make: Callable[[str], WindowPipeline], windows: int, owner: Owner) -> None:
        self.device, self.is_ready, self.precision = device, False, ""
        self.held: set[int] = set()
        self.pid = 0
        self._make, self._windows, self._owner = make, windows, owner
        self._process: DeviceProcess | None = None
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None

    @property
    def has_room(self) -> bool:
        """Whether it takes a window now."""
        return self.is_ready and len(self.held) < self._windows

    def send(self, number: int, window: Window, output: Output) -> None:
        """Let it embed a window."""
        assert self._process is not None
        self.held.add(number)
        self._process.send(WindowTask(number, 0, window, output))
        self._process.send(Flush())  # no pipeline waits for a further one

    async def start(self) -> None:
        """Start it, and keep it alive from then on.

        Raises:
            FlashElmoError: it cannot start; the message says why.
        """
        self._loop = asyncio.get_running_loop()
        started = self._loop.create_future()
        self._task = asyncio.create_task(self._keep(started))
        await started

    async def close(self) -> None:
        """End it."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.join)

    async def _keep(self, started: asyncio.Future[None]) -> None:
        pause = 0.0
        while True:
            self._over = asyncio.Event()
            try:
                process = await asyncio.to_thread(self._spawn)
            except FlashElmoError as error:  # on a system that it cannot be started on
                cause = str(error)
            except (OSError, RuntimeError, MemoryError) as error:  # no memory, or too many threads or files
                cause = f"its process cannot be started: {reason_of(error)}"
            else:
                self.pid = process.pid
                await asyncio.to_thread(process.settled.get)
                if process.max_windows:
                    self.precision, self.is_ready, pause = process.precision, True, 0.0
                    if not started.done():
                        started.set_result(None)
                    self._owner.on_ready()
                await self._over.wait()
                self.is_ready, cause = False, str(process.cause)
            if not started.done():
                started.set_exception(FlashElmoError(cause))
                return
            lost, self.held = self.held, set()
            logger.warning("device %s: %s; it is started anew, windows lost: %d", self.device, cause, len(lost))
            self._owner.on_lost(lost)
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, 2 * pause or 1.0)

    def _spawn(self) -> DeviceProcess:
        arrays_file, pickled = write_object(self._make)
        try:
            process = DeviceProcess(self.device, arrays_file, self)
            process.send(Start(self.device, pickled))
        finally:
            os.close(arrays_file)
        self._process = process
        if self._is_closed:  # meanwhile
            process.kill()
        return process

    # What the process's reader thread calls.

    def deliver(self, process: DeviceProcess, stream: int, position: int, result: Result) -> None:
        """See `Listener`."""
        self._call(self._done, stream, result)

    def lose(self, process: DeviceProcess) -> None:
        """See `Listener`."""
        self._call(self._over.set)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(function, *arguments)

    def _done(self, number: int, result: Result) -> None:
        self.held.discard(number)
        self._owner.on_done(number, result)


class EmbedderPipeline:
    """An embedder with the face of `WindowPipeline`."""

    def __init__(self, embedder: ElmoEmbedder) -> None:
        self._embedder = embedder
        self.precision, self.ahead = embedder.precision, 0
        self.statistics: Statistics = embedder.statistics

    def reset_state(self) -> None:
        """Does nothing: there is no state."""

    def stream(
        self, windows: Iterable[Window], output: Output, on_progress: OnProgress, *, as_numpy: bool = True
    ) -> Stream:
        """See `WindowPipeline`."""
        return self._embedder.embed_windows(windows, on_progress, output)


def load_pipeline(device: str, model: Path, options: dict[str, Any]) -> EmbedderPipeline:
    """What runs in a worker's process."""
    return EmbedderPipeline(ElmoEmbedder.load(model, device=device, **options))


def make_workers(model: Path, options: dict[str, Any], devices: Sequence[str], owner: Owner) -> list[Worker]:
    """One worker for each device, in their order; none is started.

    Args:
        model: folder, archive or weights file.
        options: keywords of `ElmoEmbedder.load`, but for the device.
        devices: their names. A worker on the CPU holds one window at a time; on a card two, so that the next one is at
            hand.
        owner: hears of all workers.
    """
    make = partial(load_pipeline, model=model, options=options)
    return [Worker(device, make, 1 if device == "cpu" else 2, owner) for device in devices]
