"""Calls in their own threads that stay safe whenever Ctrl-C comes.

A `Future`, an `Event`, a `Condition` or a `ThreadPoolExecutor` takes its locks in functions written in Python. An
interrupt in one of these may leave a lock held for ever, with a thread, the next call or the end of the program waiting
for it. A plain lock is taken and freed by C code, which no interrupt can split.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

OPENMP_POLLS = 10_000  # some 0.1 to 0.5 ms; by default it is 300,000
END_SECONDS = 0.2  # that the end of the program waits for calls that were abandoned


class Background(Generic[Result]):
    """A call in its own thread. Whoever started it may forget it.

    Args:
        call: the function to call.
    """

    def __init__(self, call: Callable[[], Result]) -> None:
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()
        start_new_thread(self._run, (call,))

    def result(self) -> Result:
        """Wait for the call and return its result; what it raised is raised here."""
        with self._running:
            pass
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self, call: Callable[[], Result]) -> None:
        _running[id(self)] = self._running
        _stdin = sys.stdin  # whose end, at that of the program, aborts the process if a call still reads from it
        try:
            self._results.append(call())
        except BaseException as error:
            self._error = error
        finally:
            del call  # so that what it holds does not outlive its result
            self._running.release()
            _running.pop(id(self), None)


def in_order(call: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Do as `map`, with up to `threads` calls running ahead, each in its own thread; results are in order."""
    waiting: deque[Background[Result]] = deque()
    for item in items:
        waiting.append(Background(partial(call, item)))
        if len(waiting) >= threads:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def openmp_polls_briefly() -> None:
    """Let PyTorch's threads on the CPU, GNU OpenMP's, poll for work briefly and then sleep, unless the user chose.

    By default they poll for milliseconds, on cores that other threads need as soon as the machine does anything else.
    This is the environment of the whole process, read when PyTorch is first imported: so it is for commands alone.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(OPENMP_POLLS))


_running: dict[int, Any] = {}  # locks that are held while a call runs


def _wait_for_all() -> None:
    """Wait for running calls at the end of the program: a thread that returns from C++ later aborts the process."""
    for lock in list(_running.values()):
        lock.acquire(timeout=END_SECONDS)


atexit.register(_wait_for_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)  # these threads do not survive a fork
