"""Forked processes: threads do not come along, so that what waits for them would wait for ever."""

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
    """A value that a forked process can't use, such as a lock or a session that has threads: there it is made anew.

    Args:
        make: makes it, at once; in a forked process where it is first asked for. It should not hold the object that
            holds this, which would then be freed late.
    """

    def __init__(self, make: Callable[[], Value]) -> None:
        self._make = make
        self._values = [make()]
        _in_this_process.add(self)

    def __call__(self) -> Value:
        """The value of this process."""
        if not self._values:
            with _making:  # one for all threads; what is made may ask for other such values
                self._values = self._values or [self._make()]
        return self._values[0]

    @property
    def is_made(self) -> bool:
        """Whether this process has its value."""
        return bool(self._values)

    def renew(self) -> None:
        """In a forked process: the parent's value is never freed, since that would wait for its threads."""
        for value in self._values:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
        self._values = []


class Uninterrupted:
    """Calls, each a `with` block, that no fork comes into the middle of: it waits for them, and later ones for it.

    There are no locks, which an interrupt could leave taken: a thread's entry that one left behind is gone with the
    thread's next call or fork, and nobody waits longer than `LONGEST_CALL`.

    Args:
        before: called before a fork, when no call is under way.
    """

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        self._begin()
        if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
            os.register_at_fork(before=self._stop, after_in_parent=self._go_on, after_in_child=self._begin)

    def __enter__(self) -> None:
        thread = threading.get_ident()
        self._calls.add(thread)  # first said, then looked; a fork does likewise
        while self._forks - {thread}:
            self._calls.discard(thread)
            _wait_for_others(self._forks)
            self._calls.add(thread)

    def __exit__(self, *_: object) -> None:
        self._calls.discard(threading.get_ident())

    def _begin(self) -> None:
        """Also in a forked process, which nobody else's threads come along to."""
        self._calls, self._forks = set[int](), set[int]()  # threads

    def _stop(self) -> None:
        self._forks.add(threading.get_ident())
        _wait_for_others(self._calls)
        self._before()

    def _go_on(self) -> None:
        self._forks.discard(threading.get_ident())


def _wait_for_others(threads: set[int]) -> None:
    """Wait until no other thread is among these; after a time take them out."""
    own, begin = threading.get_ident(), time.monotonic()
    while threads - {own}:
        if time.monotonic() - begin > LONGEST_CALL:
            threads.clear()
        time.sleep(POLL)


def is_forked() -> bool:
    """Whether this process was forked from one in which this module was."""
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
