"""When the next checkpoint is due, by a clock that costs nothing between two of them."""

from __future__ import annotations

import time

from flashelmo.engine.training.processes import Processes

MOST_STEPS, TINY = 1 << 30, 1e-9  # between two looks at the clock; seconds


class SaveClock:
    """Tells behind which steps a checkpoint is written.

    One process looks at its clock behind every step. Several ask the first one's, for which they have to wait for each
    other: all behind the same steps, each time behind half of those that the first one's pace leaves.

    Args:
        seconds: between two checkpoints.
        processes: those of the run.
        taken: steps so far.
    """

    def __init__(self, seconds: float, processes: Processes, taken: int) -> None:
        self._seconds, self._processes = seconds, processes
        self._began, self._first = time.monotonic(), taken
        self._saved, self._next_look = self._began, taken

    def is_due(self, taken: int) -> bool:
        """Whether a checkpoint is to be written behind this step; all processes hear the same."""
        if taken < self._next_look:
            return False
        steps = self._processes.first(lambda: self._steps_left(taken))
        self._next_look = taken + (steps if self._processes.number > 1 else 1)
        return steps == 0

    def restart(self) -> None:
        """A checkpoint was written."""
        self._saved = time.monotonic()

    def _steps_left(self, taken: int) -> int:
        """Half of the steps that there is time for; 0 where it is over."""
        now = time.monotonic()
        left = self._seconds - (now - self._saved)
        pace = (now - self._began) / max(1, taken - self._first)
        return 0 if left <= 0 else max(1, int(min(MOST_STEPS, left / (2 * pace + TINY))))
