"""Consecutive records in a text: cut out of it whole, decoded later, read from any place on."""

from __future__ import annotations

from collections import deque
from functools import partial
from io import BytesIO
from typing import IO, Any, NamedTuple

import numpy as np

from flashelmo.engine.arrays import Int64
from flashelmo.engine.bulk.inputs import Decompressed, Input
from flashelmo.engine.bulk.parts import Part, Place, Records
from flashelmo.engine.bulk.text_format import RawRecords, TextFormat
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.lines import without_mark
from flashelmo.engine.text.tables import KINDS, MARKUP, RETURNS, binary_kind_of, kind_of

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 20  # that show what a file holds
MAX_RECORD_BYTES = 1 << 28  # how far to search for a closing quote
MAX_PART_BYTES = (1 << 31) - 1  # Arrow's strings count their bytes in 31 bits
READ_BY = {  # what a file holds: how to read it
    "FASTA": "format fasta reads it",
    "CoNLL-U": "format conllu reads it",
    "JSON lines": "format jsonl reads them",
    "tokens with tags": "format tags reads them",
    "a table": "format csv or tsv reads a column of it",
    **{kind: KINDS[kind] for kind in ("JSON", RETURNS, *MARKUP.values())},
    "Parquet": "format parquet reads a column of it",
    "gzip": "a name that ends in .gz is decompressed",
    "Zstandard": "a name that ends in .zst is decompressed",
}


class _Block(NamedTuple):
    """Whole records, where each of them ends, and how many of them were taken."""

    data: bytes
    ends: Int64
    n_taken: int = 0

    def part(self, n: int) -> _Block:
        """Return this many of the next records, or all that are left."""
        start, ends = self.start, self.ends[self.n_taken : self.n_taken + n]
        return _Block(self.data[start : ends[-1]], ends - start)

    @property
    def start(self) -> int:
        """Where the next record begins."""
        return int(self.ends[self.n_taken - 1]) if self.n_taken else 0


class TextReader:
    """Reads records of a text.

    Args:
        source: the input.
        options: see `Reader`.
        text_format: how records are stored in it.
        trusted: whether to read it in this format whatever it looks like.
    """

    def __init__(self, source: Input, options: dict[str, Any], text_format: TextFormat, trusted: bool = False) -> None:
        self._file: IO[bytes] | None = None
        self.name, self.options, self.n_bytes = source.name, options, source.n_bytes
        self._open = source.open
        self._format, self._trusted = text_format, trusted
        self._prefix = b""  # what precedes the first record
        self._place = Place()
        self._blocks: deque[_Block] = deque()  # following the current place
        self._rest = b""  # after the blocks, not cut yet
        self._put_back: IO[bytes] = BytesIO()  # after the rest: read from the file, to be read again
        self._at_end = False  # of the file

    def take(self, n: int) -> Part | None:
        """See `Reader`."""
        if n < 1:
            raise FlashElmoError(f"records: expected one or more to take, found {n}")
        place = self._place
        try:
            if self._file is None:
                self._begin()
                self._go(place)
            blocks = self._take(n)
        except BaseException:
            self.close()  # what was read of it is lost; it will be read again
            self._place = place
            raise
        return self._part(blocks) if blocks else None

    def seek(self, place: Place) -> None:
        """See `Reader`."""
        try:
            if self._file is not None and place != self._place:
                self._go(place)
        except BaseException:
            self.close()
            raise
        finally:
            self._place = place

    def close(self) -> None:
        """See `Reader`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()

    def _take(self, n: int) -> list[_Block]:
        blocks: list[_Block] = []
        while n and self._fill():
            if not self._blocks:  # the next record is longer than allowed
                line = self._part(blocks).end.line if blocks else self._place.line
                expected = f"expected records of at most {MAX_RECORD_BYTES} bytes, found a longer one"
                raise FlashElmoError(f"{self.name}: line {line}, byte 1: {expected}")
            block = self._blocks[0]
            blocks.append(block.part(n))
            n_taken = block.n_taken + len(blocks[-1].ends)
            n -= len(blocks[-1].ends)
            if n_taken == len(block.ends):
                self._blocks.popleft()
            else:
                self._blocks[0] = block._replace(n_taken=n_taken)
        return blocks

    def _begin(self) -> None:
        """Open the text and look at its head."""
        self._file, self._blocks, self._at_end, self._place = self._open(), deque(), False, Place()
        head, self._put_back = b"", BytesIO()
        while len(head) < HEAD_BYTES and (chunk := self._read(HEAD_BYTES - len(head))):
            head += chunk
        if (kind := binary_kind_of(head)) is not None:
            raise FlashElmoError(f"{self.name}: expected text, found {kind}; {READ_BY.get(kind, 'it is not read')}")
        text = without_mark(head, self.name)
        if not self._trusted:
            _check_kind(text, self.name, self._format.kinds)
        n_before = len(head) - len(text) + self._format.begin(text, self.name)
        self._prefix, self._rest = head[:n_before], head[n_before:]

    def _go(self, place: Place) -> None:
        """Move to another place: by seeking if the file can, else by reading, from the beginning if necessary."""
        assert self._file is not None
        here, there = (max(byte, len(self._prefix)) for byte in (self._place.byte, place.byte))
        if here != there and self._file.seekable():
            self._file.seek(there)
            self._blocks, self._rest, self._put_back, self._at_end = deque(), b"", BytesIO(), False
        elif there < here:
            self.close()
            self._begin()
            self._skip(there - len(self._prefix))
        else:
            self._skip(there - here)
        self._place = place

    def _skip(self, n_bytes: int) -> None:
        self._rest = b"".join([*(block.data[block.start :] for block in self._blocks), self._rest])
        self._blocks.clear()
        self._at_end = False  # what was cut will be cut again
        while n_bytes > len(self._rest):
            n_bytes -= len(self._rest)
            self._rest = self._read(CHUNK_BYTES)
            if not self._rest:
                return
        self._rest = self._rest[n_bytes:]

    def _fill(self) -> bool:
        """Cut the next block of whole records out of the text, if none is left; return whether there are records.

        A record of more than `MAX_RECORD_BYTES` is not cut out, but counts as present. Where one ends depends on the
        text from its beginning on, never on where reading began.
        """
        while not self._blocks and not self._at_end and len(self._rest) <= MAX_RECORD_BYTES:
            # A long record is not scanned repeatedly; none is scanned further than the longest may reach.
            chunk = self._read(min(max(CHUNK_BYTES, len(self._rest)), MAX_RECORD_BYTES + 1 - len(self._rest)))
            self._rest += chunk
            ends = self._format.cut(self._rest)
            if len(ends):
                self._blocks.append(self._cut_off(ends))
            elif not chunk and not (self._rest if self._format.blank_records else self._rest.strip()):
                self._at_end = True
            elif not chunk or len(self._rest) > MAX_RECORD_BYTES:
                self._cut_one(self._format.end_of_first(self._rest), at_end=not chunk)
        return bool(self._blocks) or len(self._rest) > MAX_RECORD_BYTES

    def _cut_off(self, ends: Int64) -> _Block:
        """Take the records that end there from the rest."""
        n_whole = int(ends[-1])
        block, self._rest = _Block(self._rest[:n_whole], ends), self._rest[n_whole:]
        return block

    def _cut_one(self, end: int, at_end: bool) -> None:
        """Take a record that is not whole from the rest, and read again what follows it, piece by piece.

        If all of the rest belongs to it, it is only taken at the end of the text.
        """
        if at_end or end < len(self._rest):
            self._blocks.append(self._cut_off(np.array([end], np.int64)))
            self._put_back, self._rest = BytesIO(self._rest + self._put_back.read()), b""

    def _read(self, n_bytes: int) -> bytes:
        if data := self._put_back.read(n_bytes):
            return data
        assert self._file is not None
        try:
            data = self._file.read(n_bytes)
        except (OSError, EOFError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise FlashElmoError(f"{self.name}: expected a file compressed as its name says, found: {error}") from None
        if isinstance(self._file, Decompressed):
            self.n_bytes = self._file.n_bytes
        return data

    def _part(self, blocks: list[_Block]) -> Part:
        begin = self._place
        before = self._prefix if begin.byte == 0 else b""
        starts = np.cumsum([0, *(len(block.data) for block in blocks)])
        ends = np.concatenate([block.ends + start for block, start in zip(blocks, starts, strict=False)])
        data = b"".join(block.data for block in blocks)
        inner = _behind(begin, 0, before)
        self._place = _behind(inner, len(ends), data)
        decode = partial(_decode, self._format, RawRecords(self.name, inner, data, ends))
        return Part(begin, self._place, len(ends), before + data, decode)


def _decode(text_format: TextFormat, raw: RawRecords) -> Records:
    if len(raw.data) > MAX_PART_BYTES:
        expected = (
            f"expected less than 2 GiB of records at a time, found {len(raw.data)} bytes in {len(raw.ends)} records"
        )
        raise FlashElmoError(f"{raw.name}: line {raw.place.line}: {expected}; take fewer")
    return text_format.decode(raw)


def _check_kind(head: bytes, name: str, allowed: tuple[str, ...]) -> None:
    """Raise FlashElmoError if the first bytes are clearly of another kind than the first allowed one."""
    head = head[: head.rfind(b"\n") + 1] or head
    kind = kind_of(head)
    if kind is not None and kind not in allowed:
        raise FlashElmoError(f"{name}: expected {allowed[0]}, found {kind}; {READ_BY[kind]}")


def _behind(place: Place, n_records: int, data: bytes) -> Place:
    return Place(place.record + n_records, place.line + data.count(b"\n"), place.byte + len(data))
