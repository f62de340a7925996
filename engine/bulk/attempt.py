"""Shards through the three stages, until all are finished or an error is raised.

One thread reads, cuts out and decodes records some windows ahead; the caller's thread computes; another writes. A
shard's vectors stream into its files, so that memory holds a few windows and blocks, whatever the size of a shard or
corpus.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np

from flashelmo.engine.arrays import Array
from flashelmo.engine.bulk.folder import Meta
from flashelmo.engine.bulk.shard_writer import ShardWriter
from flashelmo.engine.bulk.shards import Shard, Target
from flashelmo.engine.bulk.stages import Stage
from flashelmo.engine.embed_file import Embedder, OnTextProgress, TextProgress
from flashelmo.engine.text.windows import Window

WINDOWS_AHEAD = 4  # read before they are asked for
BLOCK_BYTES = 8 << 20  # of vectors written at once
QUEUE_BYTES = 128 << 20  # of vectors waiting to be written


class _Item(NamedTuple):
    """A window, and where it begins and ends in the input, in bytes."""

    window: Window
    begin: float
    end: float


class Attempt:
    """The three stages.

    Args:
        embedder: computes the vectors.
        target: what is written where.
        finish: called with each shard's entry once it is on disk, by the thread that writes.
        on_progress: see `embed_corpus`.
    """

    def __init__(
        self,
        embedder: Embedder,
        target: Target,
        finish: Callable[[Meta], None],
        on_progress: OnTextProgress,
    ) -> None:
        self._embedder, self._target = embedder, target
        self._reading: Stage[_Item | None] = Stage()
        self._writing: Stage[None] = Stage(QUEUE_BYTES)
        self._read: deque[Shard] = deque()  # whose first vectors are still to come
        self._writer = _Writer(target, self._writing, self._read, finish)
        self._progress = TextProgress(on_progress)
        self._started = time.perf_counter()

    def run(self, shards: Iterator[Shard]) -> None:
        """Embed shards.

        Raises:
            OSError: as reading or writing raises it.
            FlashElmoError: a record cannot be read, or vectors cannot be written.
        """
        windows = self._windows(shards)
        try:
            stream = self._embedder.embed_windows(self._ahead(windows), self._progress.window, self._target.output)
            with np.errstate(over="ignore"):  # the writer reports it with details
                for _, results in stream:
                    for vectors in results:
                        self._writer.add(vectors)
                    self._progress.finish_window()
            self._writer.finish()
            self._writing.finish()
        except BaseException as error:
            self._reading.stop(wait=isinstance(error, OSError))  # an abort does not wait for standard input
            with suppress(Exception):
                self._writing.finish()  # finishes the shards whose vectors are all there
            raise
        finally:
            self._writing.stop()
            self._writer.abort()

    def busy(self) -> dict[str, float]:
        """Return the seconds during which each stage worked."""
        seconds = time.perf_counter() - self._started
        computing = seconds - self._reading.waited - self._writing.waited
        return {"reading": self._reading.busy, "computing": computing, "writing": self._writing.busy}

    def _windows(self, shards: Iterator[Shard]) -> Iterator[_Item]:
        """Yield the shards' windows in order; each shard's end ends a window. Runs in the reading stage."""
        for shard in shards:
            self._read.append(shard)
            offsets, begin = shard.records.offsets, float(shard.begin.byte)
            step = (shard.end.byte - shard.begin.byte) / max(1, int(offsets[-1] - offsets[0]))
            for window in shard.records.windows(*self._embedder.window_limits):
                end = begin + step * len(window.word_ids)
                yield _Item(window, begin, end)
                begin = end

    def _ahead(self, windows: Iterator[_Item]) -> Iterator[Window]:
        """Yield the windows, reading ahead."""
        for _ in range(WINDOWS_AHEAD):
            self._reading.add(partial(next, windows, None))
        while (item := self._reading.oldest()) is not None:
            self._reading.add(partial(next, windows, None))
            self._progress.add(item.begin, item.end, len(item.window.word_ids))
            yield item.window
            del item


class _Writer:
    """Collects records' vectors in blocks, and has the blocks written.

    Args:
        target: what is written where.
        stage: runs the writing.
        shards: those that are read, in order; taken from here.
        finish: see `Attempt`.
    """

    def __init__(
        self, target: Target, stage: Stage[None], shards: deque[Shard], finish: Callable[[Meta], None]
    ) -> None:
        self._target, self._stage, self._shards, self._finish = target, stage, shards, finish
        self._block_rows = max(1, BLOCK_BYTES // target.rows.n_bytes)
        self._block = np.empty((0, *target.rows.shape), target.rows.dtype)  # of the current shard
        self._n_rows = 0  # in the block
        self._n_left = 0  # records of the shard
        self._writers: deque[ShardWriter] = deque()  # those not yet finished

    def add(self, vectors: Array) -> None:
        """Add the vectors of the next record."""
        while not self._n_left:
            self._begin_shard()
        rows = self._target.rows.of_record(vectors)
        while len(rows):
            if self._n_rows == len(self._block):
                self._write_block()
                self._block = self._new_block()
            n = min(len(rows), len(self._block) - self._n_rows)
            self._block[self._n_rows : self._n_rows + n] = rows[:n]
            self._n_rows += n
            rows = rows[n:]
        self._n_left -= 1
        if not self._n_left:
            self._end_shard()

    def finish(self) -> None:
        """Finish, as there are no more records; shards without any may be left."""
        while self._shards:
            self._begin_shard()

    def abort(self) -> None:
        """Remove what was written of unfinished shards."""
        while self._writers:
            with suppress(Exception):
                self._writers.pop().abort()

    def _begin_shard(self) -> None:
        shard = self._shards.popleft()
        self._writers.append(ShardWriter(self._target, shard))
        self._n_left = len(shard.records)
        if self._n_left:
            self._block = self._new_block()
        else:
            self._end_shard()

    def _end_shard(self) -> None:
        self._write_block()
        self._stage.add(partial(self._commit, self._writers[-1]))

    def _write_block(self) -> None:
        """Have the block's rows written; it no longer changes. Errors of earlier writes are raised here."""
        self._stage.check()
        n_rows, self._n_rows = self._n_rows, 0
        if n_rows:
            self._stage.add(partial(self._writers[-1].write, self._block[:n_rows]), self._block.nbytes)

    def _new_block(self) -> Array:
        return np.empty((self._block_rows, *self._target.rows.shape), self._target.rows.dtype)

    def _commit(self, writer: ShardWriter) -> None:
        meta = writer.commit()
        self._writers.popleft()
        self._finish(meta)
