"""A process that embeds units of a corpus: `workers.py` starts it, gives it units and hears of finished shards."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, NoReturn

from flashelmo.engine.bulk.locks import locked
from flashelmo.engine.bulk.source import Unit
from flashelmo.engine.bulk.units import EmbedUnit
from flashelmo.engine.system import child
from flashelmo.engine.system.allocator import return_large_arrays

# Its messages: it wants a unit; a shard is finished; all of its shards are, with its report; it cannot go on.
WANTS, FINISHED, REPORT, FAILED = "wants", "finished", "report", "failed"


def main(descriptor: int) -> NoReturn:
    """Embed the units that arrive over a connection, until that closes."""
    return_large_arrays()
    worker = _Worker(child.connect(descriptor))
    status = 1
    try:
        worker.run()
        status = 0
    except BaseException as error:
        with suppress(OSError):
            worker.send(FAILED, child.describe(error))
    os._exit(status)  # in an orderly exit, a library in an unknown state may hang


class _Worker:
    """Takes units as they arrive, and reports on them."""

    def __init__(self, connection: Connection[Any, Any]) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._inbox: SimpleQueue[Unit | None] = SimpleQueue()

    def send(self, kind: str, value: Any = None) -> None:
        """Send one of the messages above; callable in any thread."""
        with self._sending:
            self._connection.send((kind, value))

    def run(self) -> None:
        """Embed units until there are no more, then send the report."""
        corpus, n_workers, number = self._connection.recv()
        threading.Thread(target=self._receive, daemon=True).start()
        with locked(corpus.folder, n_workers, number):
            embed = EmbedUnit(corpus)
            report = embed.run(self._units(embed), lambda meta: self.send(FINISHED, meta))
        self.send(REPORT, asdict(report))

    def _units(self, embed: EmbedUnit) -> Iterator[Unit]:
        """Yield the units to embed; one that a killed process has finished is reported as finished."""
        self.send(WANTS)
        while (unit := self._inbox.get()) is not None:
            meta = embed.finished(unit)
            if meta is None:
                yield unit
            else:
                self.send(FINISHED, meta)
            self.send(WANTS)

    def _receive(self) -> None:
        """Take units as they arrive; the process ends when the pool has."""
        try:
            while True:
                self._inbox.put(self._connection.recv())
        finally:
            os._exit(1)
