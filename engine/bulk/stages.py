"""Stages that run at the same time: calls in the background, one after the other, with a limit on their weight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

from flashelmo.engine.system.threads import Background

Result = TypeVar("Result")


class StoppedError(Exception):
    """A call that was not begun, as its stage was stopped."""


class Stage(Generic[Result]):
    """Calls one after the other, in their own threads; after one fails, no more are begun.

    Args:
        most: total weight of pending calls; whoever adds more waits for the oldest.

    Attributes:
        busy, waited: seconds during which a call ran, and during which a caller waited for one.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._under_way: deque[tuple[Background[Result], int]] = deque()
        self._weight = 0
        self._error: BaseException | None = None  # which keeps further calls from beginning
        self.busy = self.waited = 0.0

    def __len__(self) -> int:
        """Return the number of calls whose results have not been taken."""
        return len(self._under_way)

    def add(self, call: Callable[[], Result], weight: int = 0) -> None:
        """Call this after those before it. An earlier call's error may be raised here."""
        while self._under_way and self._most and self._weight + weight > self._most:
            self.oldest()
        previous = self._under_way[-1][0] if self._under_way else None
        self._under_way.append((Background(partial(self._run, previous, call)), weight))
        self._weight += weight

    def check(self) -> None:
        """Raise a call's error, without waiting for those before it."""
        if self._error is not None:
            raise self._error

    def oldest(self) -> Result:
        """Wait for the oldest call's result, and return it."""
        started = time.perf_counter()
        call, weight = self._under_way[0]
        try:
            result = call.result()
        finally:
            self.waited += time.perf_counter() - started
        self._under_way.popleft()
        self._weight -= weight
        return result

    def finish(self) -> None:
        """Wait for all calls."""
        while self._under_way:
            self.oldest()

    def stop(self, wait: bool = True) -> None:
        """Let no further call begin; optionally wait for the one that runs."""
        self._error = self._error or StoppedError()
        while wait and self._under_way:
            with suppress(Exception):
                self._under_way.popleft()[0].result()
        self._under_way.clear()

    def _run(self, previous: Background[Result] | None, call: Callable[[], Result]) -> Result:
        if previous is not None:
            with suppress(BaseException):
                previous.result()
            del previous  # and its result
        if self._error is not None:
            raise StoppedError
        started = time.perf_counter()
        try:
            return call()
        except BaseException as error:
            self._error = error
            raise
        finally:
            self.busy += time.perf_counter() - started
