"""Several processes on this machine embed one corpus: each takes the next shard that is free.

A process has its own threads, a share of the cores, and maps the model's file, so that all share its memory. One that
is killed is no loss: its shards are handed out again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any

from flashelmo.engine.arguments import whole_number
from flashelmo.engine.bulk import folder as folders
from flashelmo.engine.bulk.locks import locked, removed_if_unused
from flashelmo.engine.bulk.report import Report
from flashelmo.engine.bulk.source import Unit
from flashelmo.engine.bulk.units import Corpus, CorpusPlan, make_plan
from flashelmo.engine.bulk.worker_process import FINISHED, REPORT, WANTS
from flashelmo.engine.embed_file import OnTextProgress
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.system import child
from flashelmo.engine.system.processor import n_cores

logger = logging.getLogger("flashelmo")

MOST_WORKERS = 1024
END_SECONDS, BUSY_SECONDS = 10.0, 0.2  # for a process to end, and for one that still has units
WORKER = "flashelmo.engine.bulk.worker_process"


def embed_with_workers(
    corpus: Corpus,
    n_workers: int,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: OnTextProgress = lambda n_bytes, n_tokens: None,
) -> Report:
    """Do as `embed_corpus`, with several processes; the files are the same.

    Args:
        corpus: its option `threads` is each process's; by default cores / n_workers.
        n_workers: number of processes, on the CPU.
        resume, overwrite: see `embed_corpus`.
        on_progress: called with each finished shard's bytes of the input, and tokens.

    Raises:
        FlashElmoError: see `embed_corpus`; or all processes were killed, one after the other.
    """
    started = time.perf_counter()
    n_workers = whole_number("workers", n_workers, 1, MOST_WORKERS)
    device = corpus.options.get("device", "auto")
    if device not in ("auto", "cpu"):
        raise FlashElmoError(f"workers: expected device cpu, found {device}; several devices have a process each")
    corpus = replace(corpus, options={**corpus.options, "device": "cpu"})
    with removed_if_unused(corpus.folder):
        plan = make_plan(corpus, resume=resume, overwrite=overwrite)
        threads = plan.corpus.options.get("threads") or max(1, n_cores() // n_workers)
        corpus = replace(plan.corpus, options={**plan.corpus.options, "threads": threads})
        pool = _Pool(replace(plan, corpus=corpus), n_workers, on_progress)
        try:
            pool.run()
        finally:
            pool.end()
    report = pool.report
    report.kept, report.seconds = len(plan.kept), time.perf_counter() - started
    return report


class _Worker:
    """A process as the pool sees it, and the units that it has."""

    def __init__(self, corpus: Corpus, n_workers: int, number: int) -> None:
        self.units: dict[int, Unit] = {}
        self.connection, theirs = Pipe()
        with theirs:
            self.process = child.start(WORKER, theirs.fileno())
        with suppress(OSError):  # it has already ended; `recv` will report that
            self.connection.send((corpus, n_workers, number))

    def give(self, unit: Unit | None) -> None:
        """Give it a unit, or None if there are no more."""
        if unit is not None:
            self.units[unit.shard] = unit
        with suppress(OSError):
            self.connection.send(unit)

    def end(self) -> str:
        """End it; return why it ended, if it did by itself."""
        self.connection.close()
        return child.end(self.process, BUSY_SECONDS if self.units else END_SECONDS)


class _Pool:
    """Hands out units to processes until all are finished."""

    def __init__(self, plan: CorpusPlan, n_workers: int, on_progress: OnTextProgress) -> None:
        self.report = Report()
        self._plan, self._units, self._on_progress = plan, plan.units, on_progress
        self._again: deque[Unit] = deque()  # of processes that were killed
        self._n_workers = n_workers
        self._cause = ""  # why a process was lost
        self._n_bytes = 0
        self._workers: list[_Worker] = []

    def run(self) -> None:
        """Run until all units are finished.

        Raises:
            FlashElmoError: all processes ended by themselves, and none of them had finished a shard.
        """
        n_finished = -1
        while (unit := self._next()) is not None or n_finished < 0:
            if n_finished == self.report.shards:
                kept = "finished shards are kept, resume=True goes on"
                raise FlashElmoError(f"{self._plan.corpus.folder}: all processes ended: {self._cause}; {kept}")
            if unit is not None:
                self._again.append(unit)
            n_finished = self.report.shards
            self._workers = [_Worker(self._plan.corpus, self._n_workers, number) for number in range(self._n_workers)]
            self._round()

    def end(self) -> None:
        """End the processes, and remove their half-written files."""
        left = bool(self._workers)
        while self._workers:
            self._workers.pop().end()
        if left:
            folder = self._plan.corpus.folder
            with suppress(FlashElmoError), locked(folder, 1, 0):  # by now it may be another run's
                folders.remove_leftovers(folder, 1, 0)

    def _next(self) -> Unit | None:
        """Return the next unit, if there is one."""
        return self._again.popleft() if self._again else next(self._units, None)

    def _round(self) -> None:
        """Serve the processes until each has ended."""
        idle: list[_Worker] = []
        while self._workers:
            by_connection = {worker.connection: worker for worker in self._workers}
            for connection in wait(list(by_connection)):
                worker = by_connection[connection]  # type: ignore[index]
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    self._lose(worker, idle)
                    continue
                if kind == WANTS:
                    idle.append(worker)
                elif kind == FINISHED:
                    self._finish(worker, value)
                elif kind == REPORT:
                    self._workers.remove(worker)
                    self._add(value)
                    worker.end()
                else:
                    raise FlashElmoError(value)
            self._serve(idle)

    def _serve(self, idle: list[_Worker]) -> None:
        """Give idle processes the available units; if there are none and no process is working, they are done.

        While one is working, the others wait: it may be killed.
        """
        while idle and (unit := self._next()) is not None:
            idle.pop(0).give(unit)
        if len(idle) == len(self._workers):
            while idle:
                idle.pop().give(None)

    def _finish(self, worker: _Worker, meta: folders.Meta) -> None:
        """Count a shard that is on disk."""
        worker.units.pop(meta["shard"], None)
        if meta["shard"] in self._plan.kept:
            return
        self._n_bytes += meta["end"]["byte"] - meta["begin"]["byte"]
        self.report.add_shard(meta)
        self._on_progress(float(self._n_bytes), float(self.report.tokens))

    def _lose(self, worker: _Worker, idle: list[_Worker]) -> None:
        """Give the units of a process that has ended by itself to others."""
        self._workers.remove(worker)
        if worker in idle:
            idle.remove(worker)
        self._again.extend(worker.units.values())
        worker.units.clear()
        self._cause = worker.end()
        logger.warning("process %d: %s; its shards are done again", worker.process.pid, self._cause)

    def _add(self, values: dict[str, Any]) -> None:
        """Add a process's report, except its shards, which were counted when finished, as it may have been killed."""
        for stage, seconds in values["busy"].items():
            self.report.busy[stage] = self.report.busy.get(stage, 0.0) + seconds / self._n_workers
        for name in ("words_computed", "steps", "steps_saved"):
            setattr(self.report, name, getattr(self.report, name) + values[name])
