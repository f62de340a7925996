"""Both directions of the biLSTM at once: one in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flashelmo.engine.arrays import Float32


class Directions:
    """Two directions at once, the backward one in a thread of its own, until either fails.

    Ctrl-C may come at any moment. It would leave the locks of a `Future`, an `Event` or a `Condition` held for ever,
    which are taken by functions in Python; a lock by itself is safe.

    Attributes:
        stopped: both directions are to end after their step.
        error: what the backward direction failed with.
    """

    def __init__(self, on_nodes: Callable[[int], None]) -> None:
        self.stopped = False
        self.error: BaseException | None = None
        self._on_nodes = on_nodes
        self._backward: list[Float32] = []
        self._done = threading.Lock()
        self._done.acquire()

    def count(self, nodes: int) -> None:
        """Called by either after a step of so many nodes."""
        if self.stopped:
            raise InterruptedError
        self._on_nodes(nodes)

    def run_backward(self, run_direction: Callable[[int], list[Float32]]) -> None:
        """What the thread does."""
        try:
            self._backward = run_direction(1)
        except BaseException as error:
            if not self.stopped:
                self.error, self.stopped = error, True
        self._done.release()

    def backward(self) -> list[Float32]:
        """Wait for the thread's outputs."""
        self._done.acquire()
        if self.error is not None:
            raise self.error
        return self._backward
