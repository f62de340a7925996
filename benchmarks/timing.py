"""Times what is compared in turns: every round measures each once, so that a change of speed meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from flashelmo.benchmarks.worker import one_line

Key = TypeVar("Key")
PAUSE = 0.1  # seconds in which other processes' threads go to sleep


class Timing(NamedTuple):
    """A figure for each round, and anything to say: what failed has no samples, and says why."""

    samples: list[float]
    note: str = ""


class Deadline:
    """So many seconds from now on; None is no limit."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = float("inf") if seconds is None else seconds
        self._begin = time.monotonic()
        self.over = f"skipped, as the {self._seconds:.0f} seconds were over"

    @property
    def taken(self) -> float:
        """Seconds until now."""
        return time.monotonic() - self._begin

    @property
    def left(self) -> float:
        """Seconds."""
        return self._seconds - self.taken


def take_turns(
    rounds: int, measures: Mapping[Key, Callable[[], float]], pause: float | None = None
) -> dict[Key, Timing]:
    """Every measure once in each round, A B C A B C; one that raises has no samples, and the others go on.

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
            except Exception as error:  # out of memory, a kernel that breaks: one contestant's failure is its own
                timings[name] = Timing([], one_line(error))
    return timings
