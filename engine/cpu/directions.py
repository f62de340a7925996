"""Both directions of the biLSTM at once: the backward one in its own thread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flashelmo.engine.arrays import Float32


class Directions:
    """Two directions at once, the backward one in its own thread, until either fails.

    Ctrl-C may come at any moment. The locks of a `Future`, an `Event` or a `Condition`, which Python functions take,
    could then stay held for ever; a plain lock is safe.

    Attributes:
        stopped: both directions must end after their current step.
        error: the exception with which the backward direction failed.
    """

    def __init__(self, on_nodes: Callable[[int], None]) -> None:
        self.stopped = False
        self.error: BaseException | None = None
        self._on_nodes = on_nodes
        self._backward: list[Float32] = []
        self._done = threading.Lock()
        self._done.acquire()

    def count(self, nodes: int) -> None:
        """Count a step of so many nodes; called by both directions."""
        if self.stopped:
            raise InterruptedError
        self._on_nodes(nodes)

    def run_backward(self, run_direction: Callable[[int], list[Float32]]) -> None:
        """Run the backward direction: the thread's work."""
        try:
            self._backward = run_direction(1)
        except BaseException as error:
            if not self.stopped:
                self.error, self.stopped = error, True
        self._done.release()

    def backward(self) -> list[Float32]:
        """Wait for the thread, and return its outputs."""
        self._done.acquire()
        if self.error is not None:
            raise self.error
        return self._backward
