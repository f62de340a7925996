"""Requests that wait together become one window.

A worker that is free takes a window of what waits: of every request in turn an equal share, up to `max_batch_tokens`,
so that a small request waits for the windows under way, however large the others are. One whose sentences are not all
taken goes to the end of the line.

A window goes when at least half as many requests wait as the last one had, or when one has waited `max_wait_ms`: a
client by itself never waits for others, and clients who ask anew as soon as they are answered stay together.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, NamedTuple

from flashelmo.engine.arrays import Array
from flashelmo.engine.devices.process import Result
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import renumbered
from flashelmo.engine.text.sentences import Sentence
from flashelmo.engine.text.windows import Window
from flashelmo.serve.errors import Refused
from flashelmo.serve.metrics import Metrics
from flashelmo.serve.workers import Worker

MAX_DEATHS = 2  # a window that was lost so often may be what kills the workers


@dataclass(eq=False)
class Job:
    """A request's sentences on their way.

    Attributes:
        taken: how many of its sentences are in windows.
        sent: whether any of them has been sent.
        left: how many have no result.
    """

    sentences: Sequence[Sentence]
    output: Output
    answer: asyncio.Future[list[Array]]
    arrived: float = field(default_factory=time.monotonic)
    taken: int = 0
    sent: bool = False

    def __post_init__(self) -> None:
        self.left = len(self.sentences)
        self.results: list[Any] = [None] * self.left

    def fitting(self, tokens: int) -> int:
        """How many of the next sentences have so many tokens together, an empty one counting as one."""
        n = 0
        for sentence in islice(self.sentences, self.taken, None):
            tokens -= max(1, len(sentence))
            if tokens < 0:
                break
            n += 1
        return n


class Part(NamedTuple):
    """Sentences of a job in a window."""

    job: Job
    start: int
    stop: int

    @property
    def n_tokens(self) -> int:
        """Their tokens, an empty sentence counting as one."""
        return sum(max(1, len(sentence)) for sentence in self.job.sentences[self.start : self.stop])


class Batch(NamedTuple):
    """A window of parts, and how often a worker died of it."""

    parts: list[Part]
    deaths: int = 0
    sent: float = 0.0


class Batcher:
    """Makes windows of requests for workers. All of it runs in the event loop; it is the workers' `Owner`.

    Args:
        max_batch_tokens: of a window; a sentence of more is one by itself.
        max_wait_ms: that a request waits for others while a worker is free.
        metrics: are kept up to date.

    Attributes:
        workers: to be set before the first request.
    """

    def __init__(self, max_batch_tokens: int, max_wait_ms: float, metrics: Metrics) -> None:
        self.workers: list[Worker] = []
        self._max_tokens, self._max_wait, self._metrics = max_batch_tokens, max_wait_ms / 1000, metrics
        self._waiting: deque[Job] = deque()
        self._again: deque[Batch] = deque()
        self._sent: dict[int, Batch] = {}
        self._numbers = count()
        self._recent = 0  # requests of the last window
        self._timer: asyncio.TimerHandle | None = None
        metrics.queue_size.set_function(lambda: len(self._waiting))
        metrics.workers.set_function(lambda: sum(worker.is_ready for worker in self.workers))

    async def embed(self, sentences: Sequence[Sentence], output: Output) -> list[Array]:
        """The results of a request's sentences. Whoever cancels it takes it out of the line.

        Raises:
            Refused: workers died of it, or the model overflows on it.
        """
        if not sentences:
            return []
        job = Job(sentences, output, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._pump()
        try:
            return await job.answer
        finally:
            if job in self._waiting:
                self._waiting.remove(job)
            job.results = []

    def on_done(self, number: int, result: Result) -> None:
        """See `Owner`."""
        batch = self._sent.pop(number)
        if isinstance(result, FlashElmoError):
            self._fail(batch, result)
        else:
            self._metrics.window_seconds.observe(time.monotonic() - batch.sent)
            self._metrics.words_computed.inc(result.added.words_computed)
            for job, start, stop in batch.parts:
                arrays = list(islice(result.arrays, stop - start))
                if not job.answer.done():
                    job.results[start:stop] = arrays
                    job.left -= stop - start
                    if not job.left:
                        job.answer.set_result(job.results)
        self._pump()

    def on_lost(self, numbers: Iterable[int]) -> None:
        """See `Owner`: what their windows had of each request is done anew by itself, unless workers die of it."""
        self._metrics.deaths.inc()
        for number in numbers:
            batch = self._sent.pop(number)
            if batch.deaths + 1 < MAX_DEATHS:
                self._again.extend(Batch([part], batch.deaths + 1) for part in batch.parts)
            else:
                _refuse(batch, Refused(503, "worker: died twice on this request", retry=True))
        self._pump()

    def on_ready(self) -> None:
        """See `Owner`."""
        self._pump()

    def _fail(self, batch: Batch, error: FlashElmoError) -> None:
        """An error is that of one request: each of several is tried by itself."""
        if len(batch.parts) > 1:
            self._again.extend(Batch([part]) for part in batch.parts)
        else:
            _refuse(batch, Refused(424, renumbered(str(error), batch.parts[0].start)))

    def _pump(self) -> None:
        """Send windows to workers that have room."""
        while (worker := self._free()) is not None and (self._again or self._is_due()):
            if self._again and self._again[0].deaths and worker.held:
                break  # what a worker may have died of goes to one that has nothing else to lose
            batch = self._again.popleft() if self._again else self._fill()
            parts = [part for part in batch.parts if not part.job.answer.done()]
            if parts:
                self._send(worker, Batch(parts, batch.deaths, time.monotonic()))

    def _free(self) -> Worker | None:
        with_room = [worker for worker in self.workers if worker.has_room]
        return min(with_room, key=lambda worker: len(worker.held), default=None)

    def _is_due(self) -> bool:
        """Whether a window is sent now; if not, it is looked at again in time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._waiting:
            return False
        rest = min(job.arrived for job in self._waiting) + self._max_wait - time.monotonic()
        if rest <= 0 or 2 * len(self._waiting) >= self._recent:
            return True
        self._timer = asyncio.get_running_loop().call_later(rest, self._pump)
        return False

    def _fill(self) -> Batch:
        """A window of the oldest request and of all that want the same vectors."""
        output, budget, parts = self._waiting[0].output, self._max_tokens, list[Part]()
        line = deque(job for job in self._waiting if job.output == output)
        self._recent = len(line)
        while line and budget > 0:
            job = line.popleft()
            n = job.fitting(budget // (len(line) + 1)) or (job.fitting(budget) and 1) or int(not parts)
            if not n:
                continue
            part = Part(job, job.taken, job.taken + n)
            parts.append(part)
            budget -= part.n_tokens
            job.taken = part.stop
            if job.taken < len(job.sentences):
                line.append(job)
        for job in {part.job: None for part in parts}:
            self._waiting.remove(job)
            if job.taken < len(job.sentences):
                self._waiting.append(job)
        return Batch(parts)

    def _send(self, worker: Worker, batch: Batch) -> None:
        number, metrics = next(self._numbers), self._metrics
        sentences = [sentence for job, start, stop in batch.parts for sentence in job.sentences[start:stop]]
        self._sent[number] = batch
        worker.send(number, Window.from_sentences(sentences), batch.parts[0].job.output)
        n_tokens = sum(map(len, sentences))
        metrics.tokens.inc(n_tokens)
        metrics.window_tokens.observe(n_tokens)
        metrics.window_requests.observe(len({part.job for part in batch.parts}))
        for job, *_ in batch.parts:
            if not job.sent:  # what is sent again waited once
                job.sent = True
                metrics.queue_seconds.observe(batch.sent - job.arrived)


def _refuse(batch: Batch, error: Refused) -> None:
    for part in batch.parts:
        if not part.job.answer.done():
            part.job.answer.set_exception(error)
