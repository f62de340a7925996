"""Records of an input, raw and decoded, and their places in it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, TypeAlias

import pyarrow as pa

from flashelmo.engine.arrays import Int64
from flashelmo.engine.text.windows import Window, check_bounds, last_that_fits

RecordErrors: TypeAlias = Literal["strict", "replace", "skip"]


@dataclass(frozen=True)
class Place:
    """Where a record begins.

    Attributes:
        record: its index in the input, from 0.
        line: its line, from 1; in Parquet its row, from 1.
        byte: its first byte, from 0, of the decompressed text; in Parquet its row's share of the file's bytes.
    """

    record: int = 0
    line: int = 1
    byte: int = 0


@dataclass(frozen=True)
class Part:
    """Consecutive records as stored in the input, not yet decoded.

    Attributes:
        begin: place of the first record; the beginning of the input if a header precedes it.
        end: place after the last one.
        n_records: how many there are, readable or not.
        raw: their bytes; for Parquet, the rows' used columns in Arrow's stream format.
        records: decodes them, in any thread; FlashElmoError if one cannot be read, unless such records are skipped.
    """

    begin: Place
    end: Place
    n_records: int
    raw: bytes = field(repr=False)
    records: Callable[[], Records] = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """The sha256 of the raw bytes, in hexadecimal digits."""
        return hashlib.sha256(self.raw).hexdigest()


@dataclass(frozen=True)
class Records:
    """Tokenized records, each of which is a sentence.

    Attributes:
        numbers: [B] the index in the input of each readable record.
        ids: their own ids [B]; None if they have none, and are known by their numbers.
        tokens: sentences end to end.
        offsets: [B + 1]; record b is tokens[offsets[b]:offsets[b + 1]].
        texts: original text of each [B], without surrounding white space; None if the input has only tokens.
        skipped: one line for each record that could not be read.
    """

    numbers: Int64
    ids: list[str] | None
    tokens: pa.StringArray
    offsets: Int64
    texts: list[str] | None = None
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Return B, the number of records."""
        return len(self.numbers)

    def windows(self, max_sentences: int, max_tokens: int) -> Iterator[Window]:
        """Yield the records in windows within these limits, in order; a record of more tokens is its own window."""
        check_bounds(max_sentences, max_tokens)
        start, offsets = 0, self.offsets
        while start < len(self):
            stop = max(start + 1, last_that_fits(offsets, start, max_sentences, max_tokens))
            tokens = self.tokens.slice(offsets[start], offsets[stop] - offsets[start])
            yield Window.encode(tokens, offsets[start : stop + 1] - offsets[start])
            start = stop


class Reader(Protocol):
    """Reads an input's records in order, from any place on."""

    name: str  # of the input, for messages
    options: dict[str, Any]  # how it is read, ready for JSON
    n_bytes: int | None  # of the text, as places count them; an estimate if compressed, None before reading

    def take(self, n: int) -> Part | None:
        """Return the next n records, fewer at the end; None after the last one.

        Raises:
            FlashElmoError: the input is clearly of another format, or cannot be read.
        """

    def seek(self, place: Place) -> None:
        """Continue from a place where a part began or ended."""

    def close(self) -> None:
        """Close what is open; the place is kept, and reading may go on."""
