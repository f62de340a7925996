"""When the next checkpoint is due, by a clock that costs nothing in between."""

from __future__ import annotations

import time

from flashelmo.engine.training.processes import Processes

MOST_STEPS, TINY = 1 << 30, 1e-9  # between two looks at the clock; seconds


class SaveClock:
    """Decides after which steps a checkpoint is written.

    A single process looks at its clock after every step. Several use the first one's clock, for which they have to wait
    for each other: all after the same steps, each time after half of the steps that remain at the first one's pace.

    Args:
        seconds: between two checkpoints.
        processes: those of the run.
        taken: steps taken so far.
    """

    def __init__(self, seconds: float, processes: Processes, taken: int) -> None:
        self._seconds, self._processes = seconds, processes
        self._began, self._first = time.monotonic(), taken
        self._saved, self._next_look = self._began, taken

    def is_due(self, taken: int) -> bool:
        """Whether to write a checkpoint after this step; all processes get the same answer."""
        if taken < self._next_look:
            return False
        steps = self._processes.first(lambda: self._steps_left(taken))
        self._next_look = taken + (steps if self._processes.number > 1 else 1)
        return steps == 0

    def restart(self) -> None:
        """Start timing anew, after a checkpoint was written."""
        self._saved = time.monotonic()

    def _steps_left(self, taken: int) -> int:
        """Return half of the steps for which there is time; 0 if time is up."""
        now = time.monotonic()
        left = self._seconds - (now - self._saved)
        pace = (now - self._began) / max(1, taken - self._first)
        return 0 if left <= 0 else max(1, int(min(MOST_STEPS, left / (2 * pace + TINY))))
