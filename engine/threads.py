"""Calls in threads of their own, at whatever moment Ctrl-C comes.

A `Future`, an `Event`, a `Condition` or a `ThreadPoolExecutor` takes its locks in functions written in Python. An
interrupt in one of these may leave a lock held for ever, and a thread, the next call or the end of the program waiting
for it. A lock by itself is taken and freed by C code, between whose steps no interrupt is raised.
"""

from __future__ import annotations

import atexit
import os
import threading
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

END_SECONDS = 0.2  # that the end of the program waits for calls that nobody waits for


class Background(Generic[Result]):
    """A call in a thread of its own. Whoever started it may forget it.

    Args:
        call: what is called.
    """

    def __init__(self, call: Callable[[], Result]) -> None:
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()
        start_new_thread(self._run, (call,))

    def result(self) -> Result:
        """Wait for what it gives; what it raises is raised here."""
        with self._running:
            pass
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self, call: Callable[[], Result]) -> None:
        _running[id(self)] = self._running
        try:
            self._results.append(call())
        except BaseException as error:
            self._error = error
        finally:
            del call  # what it holds is not held longer than its result
            self._running.release()
            _running.pop(id(self), None)


def in_order(call: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """As `map`, but with up to `threads` calls running ahead, each in a thread of its own; results are in order."""
    waiting: deque[Background[Result]] = deque()
    for item in items:
        waiting.append(Background(partial(call, item)))
        if len(waiting) >= threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_running: dict[int, Any] = {}  # locks that are held as long as a call runs


def _wait_for_all() -> None:
    """Wait for running calls at the end of the program: a thread that returns from C++ later aborts the process."""
    for lock in list(_running.values()):
        lock.acquire(timeout=END_SECONDS)


atexit.register(_wait_for_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)  # these threads did not come along
