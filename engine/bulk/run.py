"""A corpus into a folder of shards, none of which is lost once it is finished."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from flashelmo.engine.arguments import check, expect_no_state, flag, is_one_of, utf8_path_of, whole_number
from flashelmo.engine.bulk import folder as folders
from flashelmo.engine.bulk.attempt import Attempt
from flashelmo.engine.bulk.locks import begin_writing
from flashelmo.engine.bulk.parts import Reader
from flashelmo.engine.bulk.report import Report
from flashelmo.engine.bulk.shards import FORMATS, Rows, Shard, ShardFormat, Target, shard_name
from flashelmo.engine.bulk.source import Source, UnitSource, default_shard_records, describe_input, first_records
from flashelmo.engine.embed_file import Embedder, OnTextProgress
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.engine.sinks.files import check_space

logger = logging.getLogger("flashelmo")

RETRY_SECONDS = (1.0, 10.0)  # before a shard is tried again
NOT_LOST = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
INDEX_BYTES = 16  # of a record in the index, without its tokens


def embed_corpus(
    embedder: Embedder,
    reader: Reader,
    folder: str | Path,
    output: Output | None = None,
    *,
    format: ShardFormat = "native",
    shard_records: int | None = None,
    keep_tokens: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    num_shards: int = 1,
    shard_id: int = 0,
    on_progress: OnTextProgress = lambda n_bytes, n_tokens: None,
) -> Report:
    """Embed an input into a folder of shards that `open_embeddings` reads.

    However it ends, finished shards stay, and `resume` goes on with the others. A shard's files depend only on its
    records: however often a run was interrupted, they are those of an uninterrupted one.

    Args:
        embedder: one that forgets each sentence before the next, as all do that are not `stateful`.
        reader: of the input; see `open_reader`.
        folder: a new or empty one.
        output: what to keep of a record.
        format: "native", safetensors with an index beside them, or "parquet".
        shard_records: records per shard; None makes shards of about 1 GiB.
        keep_tokens: keep the tokens in the index.
        resume: go on with what is there; finished shards are checked, and damaged ones rewritten.
        overwrite: remove existing shards.
        num_shards, shard_id: in an array of num_shards jobs, this one's number; it writes every shard whose number is
            shard_id more than a multiple of num_shards.
        on_progress: called repeatedly with the place in the input in bytes and the tokens embedded so far.

    Raises:
        FlashElmoError: arguments that don't go together; another model, option or input than the folder was begun with;
            another run at work there; a record that cannot be read; a disk that is full or was lost.
    """
    folder, output = utf8_path_of("folder", folder), output or Output()
    check(is_one_of(format, *FORMATS), "format", "native or parquet", format)
    num_shards = whole_number("num_shards", num_shards, 1)
    shard_id = whole_number("shard_id", shard_id, 0, num_shards - 1)
    resume, overwrite = flag("resume", resume), flag("overwrite", overwrite)
    target, fingerprint = describe_run(embedder, reader, folder, output, format, shard_records, keep_tokens)
    if overwrite:  # errors should come before shards are removed
        first_records(reader)
    with begin_writing(folder, resume, overwrite, num_shards, shard_id):
        n = folders.start(folder, fingerprint, partial(default_shard_records, reader, target.rows))
        run = Run(embedder, reader, target, on_progress)
        return run.run(Source(reader, n, run.kept(resume, num_shards, shard_id), num_shards, shard_id))


def describe_run(
    embedder: Embedder,
    reader: Reader,
    folder: Path,
    output: Output,
    format: ShardFormat,
    shard_records: int | None,
    keep_tokens: bool,
) -> tuple[Target, folders.Meta]:
    """Return what is written where, and what must not change while the folder is being written.

    Raises:
        FlashElmoError: the embedder carries a state, the model lacks a layer, or an argument has the wrong type.
    """
    output.check(embedder.config.n_layers + 1)
    model = embedder.fingerprint()
    expect_no_state(model["stateful"], "shards are embedded one by one")
    size, keep_boundaries = embedder.config.output_size, model["keep_sentence_boundaries"]
    rows = Rows.of(output, embedder.config.n_layers + 1, size, keep_boundaries)
    fingerprint = {
        "model": model,
        "output": asdict(output),
        "rows": asdict(rows),
        "format": format,
        "tokens": flag("keep_tokens", keep_tokens),
        "input": describe_input(reader),
        "shard_records": None if shard_records is None else whole_number("shard_records", shard_records, 1),
    }
    return Target(folder, output, rows, format, keep_tokens), fingerprint


class Run:
    """One call of `embed_corpus`, or of the functions that share its work.

    Args:
        embedder, reader, on_progress: see `embed_corpus`.
        target: what is written where.
        on_finish: called with a shard's entry once it is on disk, in a thread.
    """

    def __init__(
        self,
        embedder: Embedder,
        reader: Reader,
        target: Target,
        on_progress: OnTextProgress = lambda n_bytes, n_tokens: None,
        on_finish: Callable[[folders.Meta], None] = lambda meta: None,
    ) -> None:
        self._embedder, self._reader, self._target = embedder, reader, target
        self._on_progress, self._on_finish = on_progress, on_finish
        self._report = Report()
        self._undone: deque[Shard] = deque()  # under way: read and not yet finished, in order
        self._again: deque[Shard] = deque()  # undone when an attempt failed, in order

    def run(self, source: Source | UnitSource) -> Report:
        """Embed the source's shards."""
        started, before = time.perf_counter(), replace(self._embedder.statistics)
        failed, n_failed = -1, 0
        while True:
            try:
                self._attempt(self._shards(source, check_disk=n_failed == 0))
                break
            except OSError as error:
                self._again.extendleft(reversed(self._undone))
                self._undone.clear()
                number = self._again[0].number if self._again else source.number
                failed, n_failed = number, n_failed + 1 if failed == number else 1
                self._wait_or_give_up(error, number, n_failed)
        added, report = self._embedder.statistics - before, self._report
        report.words_computed, report.steps, report.steps_saved = added.words_computed, added.steps, added.steps_saved
        report.seconds = time.perf_counter() - started
        return report

    def kept(self, resume: bool, num_shards: int, shard_id: int) -> dict[int, folders.Meta]:
        """Return the entries of this job's finished, undamaged shards."""
        folder = self._target.folder
        numbers = folders.shard_numbers(folder, num_shards, shard_id)
        if numbers and not resume:
            raise FlashElmoError(f"{folder}: exists already; resume=True goes on with it")
        kept = folders.kept_shards(folder, numbers)
        self._report.kept = len(kept)
        return kept

    def _attempt(self, shards: Iterator[Shard]) -> None:
        """Embed shards until all are finished or an error is raised; unfinished ones stay undone."""
        before = self._report.tokens  # of earlier attempts

        def on_progress(n_bytes: float, n_tokens: float) -> None:
            self._on_progress(n_bytes, before + n_tokens)

        attempt = Attempt(self._embedder, self._target, self._finish, on_progress)
        try:
            attempt.run(shards)
        finally:
            for stage, seconds in attempt.busy().items():
                self._report.busy[stage] = self._report.busy.get(stage, 0.0) + seconds

    def _finish(self, meta: folders.Meta) -> None:
        """Count the oldest undone shard as finished, as it is on disk."""
        self._undone.popleft()
        self._report.add_shard(meta)
        self._on_finish(meta)

    def _shards(self, source: Source | UnitSource, check_disk: bool) -> Iterator[Shard]:
        """Yield the shards that are not finished, each under way from then on; optionally check the room for them."""
        while self._again:
            self._undone.append(self._again.popleft())
            yield self._undone[-1]
        for shard in source.shards():
            self._undone.append(shard)
            if check_disk:
                check_space(self._target.folder, self._bytes_needed(shard), self._target.output)
                check_disk = False
            yield shard

    def _bytes_needed(self, shard: Shard) -> float:
        """Return the bytes that are still to be written, estimated from a shard's records."""
        records, rows = shard.records, self._target.rows
        n_bytes = int(rows.offsets(records.offsets)[-1]) * rows.n_bytes + len(records) * INDEX_BYTES
        if self._target.keep_tokens:
            n_bytes += records.tokens.nbytes
        begin, end = shard.begin.byte, shard.end.byte
        input_bytes = self._reader.n_bytes
        if input_bytes is None or end <= begin:
            return n_bytes
        folder = self._target.folder
        written = sum((folder / name).stat().st_size for name in os.listdir(folder) if folders.OURS.fullmatch(name))
        return max(n_bytes, n_bytes / (end - begin) * float(input_bytes) - written)

    def _wait_or_give_up(self, error: OSError, number: int, n_failed: int) -> None:
        """Wait before a shard is tried again; or raise FlashElmoError, or an error that waiting cannot cure."""
        if isinstance(error, NOT_LOST):
            raise error
        reason = error.strerror or str(error)
        what = f"{error.filename or self._target.folder}: {shard_name(number)}: {reason}"
        if n_failed > len(RETRY_SECONDS):
            kept = self._report.kept + self._report.shards
            advice = f"resume=True goes on: finished shards are kept, {kept}"
            raise FlashElmoError(f"{what}; tried {n_failed} times. {advice}")
        seconds = RETRY_SECONDS[n_failed - 1]
        logger.warning("%s; trying again in %g s", what, seconds)
        time.sleep(seconds)
