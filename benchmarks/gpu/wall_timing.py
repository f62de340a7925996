"""Times whole calls by the host's clock, the device's work included: what an embedding costs who asks for it.

What is compared takes turns: every round calls each task for a while, and the device is idle before the clock starts
and when it is read. Calls of one sample are queued one after the other, so that the host prepares one while the device
computes the one before, as it does in use; a task that should be waited for waits in its own `run`.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flashelmo.benchmarks.kernels.timing import Task, Timing, one_line

WARM_UPS = 4  # the first compiles, the second may capture a graph, the third replays it; the last is timed
SLOW_SECONDS = 0.5  # of a call: two of them warm up enough
MAX_CALLS = 1000


class WallTimer:
    """Times tasks by a clock.

    Args:
        rounds: samples of each task.
        seconds: that a sample lasts at least, in whole calls.
        synchronize: waits until the device has done what was queued.
        clock: seconds.
    """

    def __init__(
        self,
        rounds: int,
        seconds: float,
        synchronize: Callable[[], object],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._rounds, self._seconds = rounds, seconds
        self._synchronize, self._clock = synchronize, clock

    def time(self, tasks: Sequence[Task]) -> list[Timing]:
        """The tasks' timings, in order, in microseconds a call; a task that raises has none, and the others go on."""
        calls = [self._attempt(self._prepare, task) for task in tasks]
        samples: list[list[float]] = [[] for _ in tasks]
        for _ in range(self._rounds):
            for k, task in enumerate(tasks):
                if isinstance(calls[k], str):
                    continue
                took = self._attempt(self._sample, task, calls[k])
                if isinstance(took, str):
                    calls[k] = took
                else:
                    samples[k].append(1e6 * took / (calls[k] * task.calls))
        return [
            Timing([], found) if isinstance(found, str) else Timing(taken)
            for found, taken in zip(calls, samples, strict=True)
        ]

    def _attempt(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The result, or in one line why there is none."""
        try:
            return function(*arguments)
        except Exception as error:  # one contestant's failure is its own
            return one_line(error)

    def _prepare(self, task: Task) -> int:
        """How many calls make a sample, once the task is warm."""
        for done in range(1, WARM_UPS + 1):
            took = self._sample(task, 1)
            if done > 1 and took > SLOW_SECONDS:
                break
        return min(MAX_CALLS, max(1, math.ceil(self._seconds / max(took, 1e-6))))

    def _sample(self, task: Task, calls: int) -> float:
        self._synchronize()
        start = self._clock()
        for _ in range(calls):
            task.run()
        self._synchronize()
        return self._clock() - start


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer; in the main thread alone, elsewhere it may take what it likes."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*arguments: object) -> None:
        raise TimeoutError(f"expected an end within {seconds:.0f} seconds, found none")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 5.0)  # again, where somebody swallowed the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
