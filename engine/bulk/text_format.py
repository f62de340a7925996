"""How records are stored in a text: what every format has, its records before they are decoded, and shared steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np

from flashelmo.engine.arrays import Bool, Int64
from flashelmo.engine.bulk.parts import Place, RecordErrors, Records
from flashelmo.engine.bulk.tokenizers import Tokenizer, Tokens, lines_of, tokens_of_lists
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.lines import NEWLINE

Row = TypeVar("Row")

SPACE = np.array([bytes([byte]).isspace() for byte in range(256)])
NAMED_BY = "field and id_field name others"  # added in errors to the list of existing fields


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
        """Return the input's name, and the line and its byte of a position in `data`, both counted from 1."""
        line = self.place.line + self.data.count(b"\n", 0, position)
        byte = position - self.data.rfind(b"\n", 0, position)
        return f"{self.name}: line {line}, byte {byte}"


class TextFormat(Protocol):
    """How records are stored in a text.

    Attributes:
        kinds: what `kind_of` may take such a text for, the format itself first.
        blank_records: whether white space after the last record is one more.
    """

    kinds: tuple[str, ...]
    blank_records: bool = False

    def begin(self, head: bytes, name: str) -> int:
        """Look at the first bytes of the text; return how many of them precede the first record.

        Raises:
            FlashElmoError: such a text cannot begin like this.
        """
        return 0

    def cut(self, data: bytes) -> Int64:
        """Return where each record ends that is whole whatever follows; a last one without an end does not count."""

    def end_of_first(self, data: bytes) -> int:
        """Return where the first record ends if `cut` finds no whole one, and no more text may belong to it."""
        return len(data)

    def decode(self, raw: RawRecords) -> Records:
        """The records."""


class Fault(Exception):
    """A record that cannot be read.

    Args:
        position: of the first wrong byte in the record.
        expected, found: parts of the message.
    """

    def __init__(self, position: int, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.position = position


def check_column(field: str, names: list[str], name: str, advice: str = "") -> None:
    """Raise FlashElmoError unless a table of this name has exactly one column of the field's."""
    if field not in names:
        found = ", ".join(map(repr, names)) or "none"
        raise FlashElmoError(f"{name}: expected a column {field!r}, found {found}; {NAMED_BY}{advice}")
    if (n := names.count(field)) > 1:
        raise FlashElmoError(f"{name}: expected one column {field!r}, found {n} of that name")


def each_record(
    raw: RawRecords, errors: RecordErrors, read: Callable[[bytes], Row]
) -> tuple[Int64, list[Row], list[str]]:
    """Return `read`'s results for each readable record: numbers, rows, and messages about the others.

    Raises:
        FlashElmoError: a record cannot be read, unless such records are skipped.
    """
    numbers, rows, skipped, start = [], [], [], 0
    for b, end in enumerate(raw.ends.tolist()):
        try:
            rows.append(read(raw.data[start:end]))
            numbers.append(raw.place.record + b)
        except Fault as fault:
            message = str(FlashElmoError(f"{raw.where(start + fault.position)}: {fault}"))
            if errors != "skip":
                raise FlashElmoError(message) from None
            skipped.append(message)
        start = end
    return np.array(numbers, np.int64), rows, skipped


def decode_utf8(data: bytes, errors: RecordErrors, start: int = 0) -> str:
    """Return a text that begins at `start` of its record; Fault if it is not UTF-8 and is not to be repaired."""
    try:
        return data.decode("utf-8", "replace" if errors == "replace" else "strict")
    except UnicodeDecodeError as error:
        raise Fault(start + error.start, "UTF-8", f"0x{data[error.start]:02x} ({error.reason})") from None


def tokens_of(rows: list[str | list[str]], tokenizer: Tokenizer) -> Tokens:
    """Return the tokens of texts, and token lists unchanged."""
    texts = [row for row in rows if isinstance(row, str)]
    if not texts:
        return tokens_of_lists([row for row in rows if not isinstance(row, str)])
    tokens, offsets = tokenizer(lines_of(texts))
    if len(texts) == len(rows):
        return tokens, offsets
    split = (tokens[start:end].to_pylist() for start, end in pairwise(offsets))
    return tokens_of_lists([next(split) if isinstance(row, str) else row for row in rows])


def line_ends(data: bytes) -> Int64:
    r"""Return the positions after each \n."""
    return (np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE) + 1).astype(np.int64)


def lines(data: bytes) -> tuple[Int64, Bool]:
    """Return where each whole line ends, and whether it is only white space [lines]."""
    ends = line_ends(data)
    n_visible = np.cumsum(~SPACE.take(np.frombuffer(data, np.uint8)))
    return ends, np.diff(n_visible[ends - 1], prepend=0) == 0
