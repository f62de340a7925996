"""Records that follow each other as text: cut out of it whole, decoded later, read from any place on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from flashelmo.engine.bulk.parts import Part, Place, Records
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.lines import NEWLINE, Int64, without_mark
from flashelmo.engine.text.tables import binary_kind_of, kind_of

CHUNK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16  # that tell what a file holds
READ_BY = {  # what a file holds: how it is read
    "FASTA": "format fasta reads it",
    "CoNLL-U": "format conllu reads it",
    "JSON lines": "format jsonl reads them",
    "tokens with tags": "format tags reads them",
    "a table": "format csv or tsv reads a column of it",
    "Parquet": "format parquet reads a column of it",
    "gzip": "a name that ends in .gz is decompressed",
    "Zstandard": "a name that ends in .zst is decompressed",
}


@dataclass(frozen=True)
class RawRecords:
    """Whole records.

    Attributes:
        name: of the input.
        place: where `data` begins.
        data: their bytes.
        ends: [B] where each ends in `data`, the last one at its end.
    """

    name: str
    place: Place
    data: bytes
    ends: Int64

    def where(self, position: int) -> str:
        """The input's name, the line and the byte in it of a position in `data`, both counted from 1."""
        line = self.place.line + self.data.count(b"\n", 0, position)
        byte = position - self.data.rfind(b"\n", 0, position)
        return f"{self.name}: line {line}, byte {byte}"


class TextFormat(Protocol):
    """How records stand in a text.

    Attributes:
        blank_records: whether white space behind the last record is one more.
    """

    blank_records: bool

    def begin(self, head: bytes, name: str) -> int:
        """Look at the first bytes of the text; how many of them stand before the first record.

        Raises:
            FlashElmoError: they are plainly of another format.
        """

    def cut(self, data: bytes) -> Int64:
        """Where each record ends that is whole whatever follows; a last one without an end is none."""

    def decode(self, raw: RawRecords) -> Records:
        """The records."""


class _Block(NamedTuple):
    """Whole records, and where each of them ends."""

    data: bytes
    ends: Int64


class TextReader:
    """Reads records of a text.

    Args:
        name: of the input, for messages.
        open_text: opens the text, decompressed, at its beginning.
        text_format: how records stand in it.
    """

    def __init__(self, name: str, open_text: Callable[[], IO[bytes]], text_format: TextFormat) -> None:
        self._file: IO[bytes] | None = None
        self.name = name
        self.options: dict[str, Any] = {}
        self.n_bytes: int | None = None
        self._open_text = open_text
        self._format = text_format
        self._prefix = b""  # what stands before the first record
        self._place = Place()
        self._blocks: deque[_Block] = deque()  # behind the place
        self._rest = b""  # behind the blocks, not cut yet
        self._at_end = False  # of the file

    def take(self, n: int) -> Part | None:
        """See `Reader`."""
        if n < 1:
            raise FlashElmoError(f"records: expected one or more to take, found {n}")
        if self._file is None:
            place = self._place
            self._begin()
            self._go(place)
        blocks: list[_Block] = []
        while n and self._fill():
            block = self._blocks.popleft()
            if len(block.ends) > n:
                end = int(block.ends[n - 1])
                self._blocks.appendleft(_Block(block.data[end:], block.ends[n:] - end))
                block = _Block(block.data[:end], block.ends[:n])
            blocks.append(block)
            n -= len(block.ends)
        return self._part(blocks) if blocks else None

    def seek(self, place: Place) -> None:
        """See `Reader`."""
        if self._file is not None and place != self._place:
            self._go(place)
        self._place = place

    def close(self) -> None:
        """See `Reader`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()

    def _begin(self) -> None:
        """Open the text and look at its head."""
        self._file, self._blocks, self._at_end, self._place = self._open_text(), deque(), False, Place()
        head = b""
        while len(head) < HEAD_BYTES and (chunk := self._read(HEAD_BYTES - len(head))):
            head += chunk
        if (kind := binary_kind_of(head)) is not None:
            raise FlashElmoError(f"{self.name}: expected text, found {kind}; {READ_BY.get(kind, 'it is not read')}")
        text = without_mark(head, self.name)
        n_before = len(head) - len(text) + self._format.begin(text, self.name)
        self._prefix, self._rest = head[:n_before], head[n_before:]

    def _go(self, place: Place) -> None:
        """From the place on to another: by the file's own means where it has them, else by reading."""
        assert self._file is not None
        here, there = (max(byte, len(self._prefix)) for byte in (self._place.byte, place.byte))
        if here != there and self._file.seekable():
            self._file.seek(there)
            self._blocks, self._rest, self._at_end = deque(), b"", False
        elif there < here:
            self.close()
            self._begin()
            self._skip(there - len(self._prefix))
        else:
            self._skip(there - here)
        self._place = place

    def _skip(self, n_bytes: int) -> None:
        self._rest = b"".join([*(block.data for block in self._blocks), self._rest])
        self._blocks.clear()
        while n_bytes > len(self._rest):
            n_bytes -= len(self._rest)
            self._rest = self._read(CHUNK_BYTES)
            if not self._rest:
                return
        self._rest = self._rest[n_bytes:]

    def _fill(self) -> bool:
        """Whether there is a block, cut out of what follows where there was none."""
        while not self._blocks and not self._at_end:
            chunk = self._read(max(CHUNK_BYTES, len(self._rest)))  # a long record is not looked at again and again
            data, self._at_end = self._rest + chunk, not chunk
            ends = self._format.cut(data)
            n_whole = int(ends[-1]) if len(ends) else 0
            tail = data[n_whole:]
            if self._at_end and (tail if self._format.blank_records else tail.strip()):
                ends, n_whole = np.append(ends, len(data)), len(data)
            if len(ends):
                self._blocks.append(_Block(data[:n_whole], ends))
            self._rest = data[n_whole:]
        return bool(self._blocks)

    def _read(self, n_bytes: int) -> bytes:
        assert self._file is not None
        try:
            return self._file.read(n_bytes)
        except (OSError, EOFError) as error:
            if getattr(error, "errno", None) is not None:
                raise
            raise FlashElmoError(f"{self.name}: expected a file compressed as its name says, found: {error}") from None

    def _part(self, blocks: list[_Block]) -> Part:
        begin = self._place
        before = self._prefix if begin.byte == 0 else b""
        starts = np.cumsum([0, *(len(block.data) for block in blocks)])
        ends = np.concatenate([block.ends + start for block, start in zip(blocks, starts, strict=False)])
        data = b"".join(block.data for block in blocks)
        inner = _behind(begin, 0, before)
        self._place = _behind(inner, len(ends), data)
        decode = partial(self._format.decode, RawRecords(self.name, inner, data, ends))
        return Part(begin, self._place, len(ends), before + data, decode)


def line_ends(data: bytes) -> Int64:
    r"""Behind each \n."""
    return (np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE) + 1).astype(np.int64)


def check_kind(head: bytes, name: str, *allowed: str) -> None:
    """Raise FlashElmoError where the first bytes are plainly of another kind than the first one that is allowed."""
    head = head[: head.rfind(b"\n") + 1] or head
    kind = kind_of(head)
    if kind is not None and kind not in allowed:
        raise FlashElmoError(f"{name}: expected {allowed[0]}, found {kind}; {READ_BY[kind]}")


def _behind(place: Place, n_records: int, data: bytes) -> Place:
    return Place(place.record + n_records, place.line + data.count(b"\n"), place.byte + len(data))
