"""A separate process for each contestant, so that idle ones neither spin on the cores nor share caches and heaps; and
turns: every round measures each contestant once, so that a change of speed affects all equally.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

from flashelmo.engine.errors import FlashElmoError


class WorkerError(RuntimeError):
    """What went wrong in a worker, in one line; its cause is the traceback there."""


class Worker:
    """An object made in a fresh process; its methods are called from here, one at a time.

    Args:
        make: class or function that makes the object; it and its arguments are pickled.

    Raises:
        FlashElmoError: as raised by `make` in its process.
        WorkerError: `make` raised anything else, or the process ended.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self._result()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any, give_up: Callable[[], str] = lambda: "") -> Any:
        """Return the result of the object's method, waiting for it.

        Args:
            give_up: asked while waiting; if it returns a reason, the process is killed.
        """
        try:
            self._pipe.send((method, arguments))
        except BrokenPipeError:
            raise self._ended() from None
        while not self._pipe.poll(0.5):
            if reason := give_up():
                self.process.kill()
                self.process.join(timeout=5)  # one that waits for a card's driver may not end
                raise WorkerError(reason)
        return self._result()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(timeout=5)  # see `call`

    def _result(self) -> Any:
        try:
            value, error, trace = self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._ended() from None
        if error is not None:
            raise error from (RuntimeError(f"\n{trace}") if trace else None)
        return value

    def _ended(self) -> WorkerError:
        self.process.join()
        return WorkerError(f"a worker ended with exit code {self.process.exitcode}")


class Here:
    """The same interface without a process: the object is made and called here, as on a card that all share."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._object = make(*arguments)

    def call(self, method: str, *arguments: Any, give_up: Callable[[], str] = lambda: "") -> Any:
        """Return the result of the object's method, however long it takes."""
        return getattr(self._object, method)(*arguments)

    def close(self) -> None:
        """Do nothing: there is no process."""


class Pool:
    """Workers that are kept until the end: those that several sections measure start once; idle ones cost nothing."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def worker(self, make: Callable[..., Any], *arguments: Any) -> Worker:
        """Return the worker that was made like this, or a new one."""
        key = repr((make, arguments))
        if key not in self._workers or not self._workers[key].process.is_alive():
            self._workers[key] = Worker(make, *arguments)
        return self._workers[key]

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def one_line(error: BaseException) -> str:
    """Return what went wrong, in at most 200 characters on one line; with the error's type unless the text is ours."""
    line = (str(error).strip().splitlines() or [""])[0].strip()
    return line if isinstance(error, FlashElmoError | WorkerError) else f"{type(error).__name__}: {line}"[:200]


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Make the object, which stays here, and answer calls until the other side closes."""
    method, target = "", None
    while True:
        try:
            if method:
                value = getattr(target, method)(*arguments)
            else:
                target, value = make(*arguments), None
            pipe.send((value, None, ""))
        except FlashElmoError as error:
            pipe.send((None, FlashElmoError(str(error)), ""))
        except Exception as error:
            pipe.send((None, WorkerError(one_line(error)), traceback.format_exc()))
        try:
            method, arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return


# ---------------------------------------------------------------------------------------------------------------- turns


Key = TypeVar("Key")
PAUSE = 0.1  # seconds in which other processes' threads go to sleep


class Timing(NamedTuple):
    """A figure for each round, and any remark: what failed has no samples, and says why."""

    samples: list[float]
    note: str = ""


class Deadline:
    """A deadline this many seconds from now; None is no limit."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = float("inf") if seconds is None else seconds
        self._begin = time.monotonic()
        self.over = f"skipped, as the {self._seconds:.0f} seconds were over"

    @property
    def taken(self) -> float:
        """Return the seconds until now."""
        return time.monotonic() - self._begin

    @property
    def left(self) -> float:
        """Return the remaining seconds."""
        return self._seconds - self.taken


def take_turns(
    rounds: int, measures: Mapping[Key, Callable[[], float]], pause: float | None = None
) -> dict[Key, Timing]:
    """Take every measure once in each round, A B C A B C; one that raises has no samples, and the others go on.

    Args:
        pause: seconds before each.
    """
    timings = {name: Timing([]) for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            if timings[name].note:
                continue
            time.sleep(PAUSE if pause is None else pause)
            try:
                timings[name].samples.append(measure())
            except Exception as error:  # out of memory, a broken kernel: others are not affected
                timings[name] = Timing([], one_line(error))
    return timings
