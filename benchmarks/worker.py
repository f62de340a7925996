"""A process of its own for each contestant, so that idle ones neither spin on the cores nor share caches and heaps."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from flashelmo.engine.errors import FlashElmoError


class WorkerError(RuntimeError):
    """What went wrong in a worker, in one line; its traceback there is this one's cause."""


class Worker:
    """An object made in a fresh process; its methods are called from here, one at a time.

    Args:
        make: class or function that makes the object; it and its arguments are pickled.

    Raises:
        FlashElmoError: what `make` raised in its process.
        WorkerError: anything else that it raised, or the process ended.
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
        """What the object's method returns; the call waits for it.

        Args:
            give_up: asked while waiting; where it gives a reason, the process is killed.
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
            self.process.join()

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
    """The same face without a process: the object is made and called in this one, as on a card that all share."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self._object = make(*arguments)

    def call(self, method: str, *arguments: Any, give_up: Callable[[], str] = lambda: "") -> Any:
        """What the object's method returns, however long it takes."""
        return getattr(self._object, method)(*arguments)

    def close(self) -> None:
        """Nothing ends."""


class Pool:
    """Workers that are kept until the end: what several sections measure starts once, and idle ones cost nothing."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}

    def worker(self, make: Callable[..., Any], *arguments: Any) -> Worker:
        """The worker that was made so, or a new one."""
        key = repr((make, arguments))
        if key not in self._workers or not self._workers[key].process.is_alive():
            self._workers[key] = Worker(make, *arguments)
        return self._workers[key]

    def close(self) -> None:
        """End them all."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def one_line(error: BaseException) -> str:
    """What went wrong, in one line of at most 200 characters; the kind of error where its words are not ours."""
    line = (str(error).strip().splitlines() or [""])[0].strip()
    return line if isinstance(error, FlashElmoError | WorkerError) else f"{type(error).__name__}: {line}"[:200]


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Make the object and answer calls until the other side closes."""
    target = _answer(pipe, make, arguments, silent=True)
    while target is not None:
        try:
            method, arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        _answer(pipe, getattr(target, method), arguments)


def _answer(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...], silent: bool = False) -> Any:
    """Call, and send the value, unless it is to stay here, with the error and its traceback."""
    try:
        value = function(*arguments)
        pipe.send((None if silent else value, None, ""))
        return value
    except FlashElmoError as error:
        pipe.send((None, FlashElmoError(str(error)), ""))
    except Exception as error:
        pipe.send((None, WorkerError(one_line(error)), traceback.format_exc()))
    return None
