"""Forked processes: threads do not survive a fork, so that waiting for them would take for ever."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakSet

Value = TypeVar("Value")

LONGEST_CALL, POLL = 60.0, 0.001  # seconds


class InEachProcess(Generic[Value]):
    """A value that a forked process can't use, such as a lock or a session with threads: it is made anew there.

    Args:
        make: makes the value, at once; in a forked process, when it is first asked for. It should not hold the object
            that holds this, which would then be freed late.
    """

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._values = [make()]
        _in_this_process.add(self)

    def __call__(self) -> Value:
        """Return this process's value."""
        if not self._values:
            with _making:  # one lock for all threads; `make` may ask for other such values
                self._values = self._values or [self._make()]
        return self._values[0]

    @property
    def is_made(self) -> bool:
        """Whether this process has its value."""
        return bool(self._values)

    def renew(self) -> None:
        """In a forked process, keep the parent's value from ever being freed, which would wait for its threads."""
        for value in self._values:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
        self._values = []


class Uninterrupted:
    """Calls, each a `with` block and none within another, during which this process is not forked.

    A fork waits until no other thread's call is running and until earlier forks are done, and calls wait until no other
    thread's fork is running. No locks are used, because an exception from a signal handler could leave one held: each
    thread registers itself in a dict instead. An entry that an interrupted thread left there is removed at the end of
    its next call or fork, or by whoever has waited for it for `LONGEST_CALL`.

    So a fork can still happen during a call that takes longer than `LONGEST_CALL`; and after Ctrl-C while the fork
    waits, because Python only reports what a hook before a fork raises, and forks all the same.

    Args:
        before: called before a fork, when no call is running.
    """

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        self._begin()
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
            os.register_at_fork(before=self._stop, after_in_parent=self._go_on, after_in_child=self._begin)

    def __enter__(self) -> None:
        thread = threading.get_ident()
        self._calls[thread] = None  # registered before it looks for forks; a fork likewise before it looks for calls
        while _others(self._forks):
            self._calls.pop(thread, None)
            _wait(self._forks, lambda: not _others(self._forks))
            self._calls[thread] = None

    def __exit__(self, *_: object) -> None:
        self._calls.pop(threading.get_ident(), None)

    def _begin(self) -> None:
        """Forget all calls and forks; also in a forked process, where no other thread exists."""
        self._calls, self._forks = dict[int, None](), dict[int, None]()  # threads, in order of arrival

    def _stop(self) -> None:
        thread = threading.get_ident()
        self._forks[thread] = None
        _wait(self._forks, lambda: [*self._forks][:1] in ([thread], []))  # [] if a waiting thread removed all entries
        _wait(self._calls, lambda: not _others(self._calls))
        self._before()

    def _go_on(self) -> None:
        self._forks.pop(threading.get_ident(), None)


def _others(threads: dict[int, None]) -> set[int]:
    """Return the threads except this one."""
    return threads.keys() - {threading.get_ident()}


def _wait(threads: dict[int, None], is_over: Callable[[], bool]) -> None:
    """Wait until `is_over`; after `LONGEST_CALL`, other threads' entries that were there at first are removed."""
    before, begin = _others(threads), time.monotonic()
    while not is_over():
        if time.monotonic() - begin > LONGEST_CALL:
            for thread in before:
                threads.pop(thread, None)
            before, begin = _others(threads), time.monotonic()
        time.sleep(POLL)


def is_forked() -> bool:
    """Whether this process was forked from one that had already loaded this module."""
    return _forked


_forked = False
_making = threading.RLock()
_in_this_process: WeakSet[InEachProcess[Any]] = WeakSet()


def _renew_all() -> None:
    global _forked, _making
    _forked, _making = True, threading.RLock()
    for each in list(_in_this_process):
        each.renew()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_renew_all)
