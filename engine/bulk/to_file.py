"""Records of any input into a single file of vectors, or into SeqVec's files."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from flashelmo.engine.arrays import Array
from flashelmo.engine.bulk.parts import Reader, Records
from flashelmo.engine.embed_file import Embedder, OnTextProgress, Summary, check_disk, write_all
from flashelmo.engine.sinks import Record, Sink
from flashelmo.engine.sinks.seqvec import SeqVecSink
from flashelmo.engine.text.windows import Window, read_ahead

RecordSink: TypeAlias = "Sink | SeqVecSink"

RECORDS = 1 << 13  # read at once
SHOWN = 10  # skipped records that are logged

logger = logging.getLogger("flashelmo")


def embed_records(
    embedder: Embedder,
    reader: Reader,
    sink: RecordSink,
    *,
    on_progress: OnTextProgress = lambda n_bytes, n_tokens: None,
) -> Summary:
    """Embed an input's records, window by window in bounded memory, into an open sink, under their own ids.

    Args:
        reader: of the input; see `open_reader`. The first records that it skips are logged.
        on_progress: called repeatedly with the bytes of the input and the tokens done so far.

    Raises:
        FlashElmoError: a record cannot be read, the model lacks a layer, or a file cannot be written.
        OSError: the input cannot be read.
    """
    if isinstance(sink, SeqVecSink):
        sink.begin(embedder.config.n_layers + 1)
    source = _Source(embedder, reader, sink)
    windows = source.windows()
    if embedder.reads_ahead:
        windows = read_ahead(windows)
    summary = write_all(embedder, windows, source.write, sink.output, on_progress)
    summary.skipped = source.n_skipped
    log_unnamed(reader.name, summary.skipped)
    return summary


def log_skipped(lines: Sequence[str], n_before: int = 0) -> None:
    """Warn of records that could not be read, of which n_before came before: the first are named."""
    for line in lines[: max(0, SHOWN - n_before)]:
        logger.warning("%s; it is skipped", line)


def log_unnamed(name: str, n_skipped: int) -> None:
    """Warn that so many records of an input were skipped, if that is more than are named."""
    if n_skipped > SHOWN:
        logger.warning("%s: %d records were skipped, the first %d are named", name, n_skipped, SHOWN)


class _Source:
    """The windows of an input, and the records whose vectors are still to come."""

    def __init__(self, embedder: Embedder, reader: Reader, sink: RecordSink) -> None:
        self._embedder, self._reader, self._sink = embedder, reader, sink
        self._read: deque[Records] = deque()
        self._b = 0  # of the first record, whose vectors come next
        self.n_skipped = 0

    def windows(self) -> Iterator[tuple[Window, float]]:
        """Yield each window with its records' bytes, estimated by its share of the tokens that were read with it."""
        max_sentences, max_tokens = self._embedder.window_limits
        n = RECORDS // max_sentences * max_sentences or RECORDS
        is_first = True
        while (part := self._reader.take(n)) is not None:
            records = part.records()
            log_skipped(records.skipped, self.n_skipped)
            self.n_skipped += len(records.skipped)
            n_bytes, n_tokens = float(part.end.byte - part.begin.byte), int(records.offsets[-1])
            if is_first:
                check_disk(self._embedder, self._sink, n_tokens, len(records), n_bytes, self._reader.n_bytes)
                is_first = False
            self._read.append(records)
            for window in records.windows(max_sentences, max_tokens):
                yield window, n_bytes * len(window.word_ids) / max(1, n_tokens)

    def write(self, window: Window, b: int, vectors: Array) -> None:
        """Write the vectors of the next record, sentence b of a window."""
        while self._b == len(self._read[0]):
            self._read.popleft()
            self._b = 0
        records, k = self._read[0], self._b
        self._b += 1
        text = ""
        if self._sink.needs_sentences:
            text = window.sentence_text(b) if records.texts is None else records.texts[k]
        n_tokens = int(records.offsets[k + 1] - records.offsets[k])
        record = Record(int(records.numbers[k]), None if records.ids is None else records.ids[k], n_tokens)
        self._sink.write(vectors, text, record)
