"""Records of an input, raw and decoded, and where in it they stand."""

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
        record: its number in the input, from 0.
        line: its line, from 1; in Parquet its row, from 1.
        byte: its first byte, from 0, of the decompressed text; in Parquet its row's share of the file's.
    """

    record: int = 0
    line: int = 1
    byte: int = 0


@dataclass(frozen=True)
class Part:
    """Consecutive records as they stand in the input, not yet decoded.

    Attributes:
        begin: place of the first record; the beginning of the input where a header stands before it.
        end: place behind the last one.
        n_records: how many there are, readable or not.
        raw: their bytes; of Parquet's rows their used columns in Arrow's stream format.
        decode: gives the records; called by `records`.
    """

    begin: Place
    end: Place
    n_records: int
    raw: bytes = field(repr=False)
    decode: Callable[[], Records] = field(repr=False)

    @cached_property
    def sha256(self) -> str:
        """Of the raw bytes, as hexadecimal digits."""
        return hashlib.sha256(self.raw).hexdigest()

    def records(self) -> Records:
        """Decode the records. It may be called in any thread.

        Raises:
            FlashElmoError: one that cannot be read, unless they are skipped.
        """
        return self.decode()


@dataclass(frozen=True)
class Records:
    """Tokenized records of which each is a sentence.

    Attributes:
        numbers: [B] the number in the input of each record that could be read.
        ids: their own ids [B]; None where they have none, and are known by their numbers.
        tokens: sentences end to end.
        offsets: [B + 1]; record b is tokens[offsets[b]:offsets[b + 1]].
        texts: original text of each [B], without white space around it; None where the input has tokens alone.
        skipped: one line for each record that could not be read.
    """

    numbers: Int64
    ids: list[str] | None
    tokens: pa.StringArray
    offsets: Int64
    texts: list[str] | None = None
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """B."""
        return len(self.numbers)

    def windows(self, max_sentences: int, max_tokens: int) -> Iterator[Window]:
        """The records in windows of these bounds, in order; a record of more tokens is a window by itself."""
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
    n_bytes: int | None  # of the text, as places count them; of a compressed one judged by what was read, None before

    def take(self, n: int) -> Part | None:
        """The next n records, fewer at the end; None behind the last one.

        Raises:
            FlashElmoError: the input is plainly of another format, or cannot be read.
        """

    def seek(self, place: Place) -> None:
        """Go on from a place that a part began or ended at."""

    def close(self) -> None:
        """Free what is open; a place stays, and reading may go on."""
