"""The host's part of a window, made ahead of its turn: its distinct words and its schedule. Without PyTorch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from flashelmo.engine.processor import n_cores
from flashelmo.engine.text.schedule import Boundaries, Schedule, build_schedule
from flashelmo.engine.text.windows import Window

MAX_THREADS = 4  # that make schedules: one makes millions of tokens a second
SMALL_WINDOW = 1 << 12  # tokens: its schedule takes less time than handing it to a thread is worth


@dataclass(frozen=True)
class Plan:
    """A window, its distinct words with the boundaries as the last two, and its schedule."""

    window: Window
    words: pa.StringArray
    schedule: Schedule


class Planner:
    """Makes schedules.

    Args:
        boundary_words: the tokens that stand for the begin and the end of a sentence.
        keep_boundaries: their vectors are asked for too.
        share: compute equal prefixes and suffixes once.
        complete: run every sentence through its far boundary, as stateful runs must.
        threads: that work ahead; None takes a core less than there are, at most 4.
    """

    def __init__(
        self,
        boundary_words: tuple[str, str],
        *,
        keep_boundaries: bool = False,
        share: bool = True,
        complete: bool = False,
        threads: int | None = None,
    ) -> None:
        self._boundary_words = pa.array(boundary_words, pa.string())
        self._keep_boundaries = keep_boundaries
        self._share = share
        self._complete = complete
        self.threads = threads or max(1, min(MAX_THREADS, n_cores() - 1))
        self._pool = ThreadPoolExecutor(self.threads, "flashelmo")

    def plan(self, window: Window) -> Plan:
        """A window's schedule."""
        n_words = len(window.words)
        schedule = build_schedule(
            window.word_ids,
            window.offsets,
            Boundaries(begin=n_words, end=n_words + 1, keep=self._keep_boundaries),
            share=self._share,
            complete=self._complete,
        )
        return Plan(window, pa.concat_arrays([window.words, self._boundary_words]), schedule)

    def plan_ahead(self, windows: Iterable[Window]) -> Iterator[Plan]:
        """Plans in order; large windows' are made by threads, one for each thread and one more ahead of their turn."""
        waiting: deque[Future[Plan]] = deque()
        for window in windows:
            if len(window.word_ids) < SMALL_WINDOW:
                while waiting:
                    yield waiting.popleft().result()
                yield self.plan(window)
                continue
            waiting.append(self._pool.submit(self.plan, window))
            if len(waiting) > self.threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
