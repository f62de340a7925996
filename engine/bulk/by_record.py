"""Formats whose records are decoded one by one: JSON lines, CoNLL-U, a token and its tag a line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from flashelmo.engine.arguments import shown
from flashelmo.engine.bulk.parts import RecordErrors, Records
from flashelmo.engine.bulk.text_reader import RawRecords, check_kind, line_ends
from flashelmo.engine.bulk.tokenizers import Tokenizer, Tokens, lines_of, tokenize, tokens_of_lists
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.lines import Int64
from flashelmo.engine.text.tables import CONLLU_COLUMNS, CONLLU_ID

Row = TypeVar("Row")

SPACE = np.array([bytes([byte]).isspace() for byte in range(256)])
SURROGATE = re.compile("[\ud800-\udfff]")


NAMED_BY = "field and id_field name others"


class Fault(Exception):
    """A record that cannot be read.

    Args:
        position: of the first wrong byte in the record.
        expected, found: what a message says.
    """

    def __init__(self, position: int, expected: str, found: str) -> None:
        super().__init__(f"expected {expected}, found {found}")
        self.position = position


def each_record(
    raw: RawRecords, errors: RecordErrors, read: Callable[[bytes], Row]
) -> tuple[Int64, list[Row], list[str]]:
    """What `read` gives for each record that it can read: numbers, rows, and what is said of those it cannot.

    Raises:
        FlashElmoError: one that cannot be read, unless they are skipped.
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


def decode_utf8(data: bytes, errors: RecordErrors) -> str:
    """A record's text; Fault where it is no UTF-8 and not to be repaired."""
    try:
        return data.decode("utf-8", "replace" if errors == "replace" else "strict")
    except UnicodeDecodeError as error:
        raise Fault(error.start, "UTF-8", f"0x{data[error.start]:02x} ({error.reason})") from None


def tokens_of(rows: list[str | list[str]], tokenizer: Tokenizer) -> Tokens:
    """Of texts, and of token lists as they are."""
    texts = [row for row in rows if isinstance(row, str)]
    if not texts:
        return tokens_of_lists([row for row in rows if not isinstance(row, str)])
    tokens, offsets = tokenize(lines_of(texts), tokenizer)
    if len(texts) == len(rows):
        return tokens, offsets
    split = (tokens[start:end].to_pylist() for start, end in pairwise(offsets))
    return tokens_of_lists([next(split) if isinstance(row, str) else row for row in rows])


# ----------------------------------------------------------------------------------------------------------- JSON lines


@dataclass(frozen=True)
class JsonLines:
    """An object a line, empty lines aside; a field of it is a text or a list of tokens. See `TextFormat`."""

    field: str
    id_field: str | None
    tokenizer: Tokenizer
    errors: RecordErrors
    blank_records = False

    def begin(self, head: bytes, name: str) -> int:
        """See `TextFormat`."""
        check_kind(head, name, "JSON lines")
        return 0

    def cut(self, data: bytes) -> Int64:
        """See `TextFormat`."""
        ends, blank = lines(data)
        return ends[~blank]

    def decode(self, raw: RawRecords) -> Records:
        """See `TextFormat`."""
        numbers, rows, skipped = each_record(raw, self.errors, self._read)
        tokens, offsets = tokens_of([value for _, value in rows], self.tokenizer)
        texts = [value.strip() if isinstance(value, str) else " ".join(value) for _, value in rows]
        ids = [own_id for own_id, _ in rows] if self.id_field is not None else None
        return Records(numbers, ids, tokens, offsets, texts, skipped)

    def _read(self, record: bytes) -> tuple[str, str | list[str]]:
        text = decode_utf8(record, self.errors)
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise Fault(
                len(text[: error.pos].encode()), "JSON", f"{shown(text[error.pos :])} ({error.msg.removesuffix(' at')})"
            ) from None
        except (ValueError, RecursionError) as error:
            raise Fault(0, "JSON", str(error)) from None
        first = len(record) - len(record.lstrip())
        if not isinstance(found, dict):
            raise Fault(first, "an object with fields", shown(found))
        value = self._field(found, self.field, first)
        if not (isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))):
            raise Fault(first, f"text or a list of tokens in field {self.field!r}", shown(value))
        own_id = "" if self.id_field is None else self._field(found, self.id_field, first)
        if not isinstance(own_id, str | int) or isinstance(own_id, bool):
            raise Fault(first, f"text or a whole number in field {self.id_field!r}", shown(own_id))
        if b"\\u" in record:
            own_id, *texts = (self._whole(each, first) for each in (str(own_id), *_several(value)))
            value = texts[0] if isinstance(value, str) else texts
        return str(own_id), value

    def _field(self, found: dict[str, Any], field: str, first: int) -> Any:
        if field not in found:
            fields = ", ".join(map(repr, found)) or "none"
            raise Fault(first, f"a field {field!r}", f"{fields}; {NAMED_BY}")
        return found[field]

    def _whole(self, text: str, first: int) -> str:
        """A text without halves of surrogate pairs, which UTF-8 cannot hold."""
        if (half := SURROGATE.search(text)) is None:
            return text
        if self.errors != "replace":
            raise Fault(first, "characters", f"half of a surrogate pair, \\u{ord(half[0]):04x}")
        return SURROGATE.sub("\ufffd", text)


def _several(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


# --------------------------------------------------------------------------------------- blank lines between sentences


def lines(data: bytes) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """Where each whole line ends, and whether it has white space alone [lines]."""
    ends = line_ends(data)
    n_visible = np.cumsum(~SPACE.take(np.frombuffer(data, np.uint8)))
    return ends, np.diff(n_visible[ends - 1], prepend=0) == 0


def cut_at_blank_lines(data: bytes) -> Int64:
    """Behind each blank line that follows another one."""
    ends, blank = lines(data)
    return ends[1:][blank[1:] & ~blank[:-1]]


@dataclass(frozen=True)
class ConllU:
    """Sentences in CoNLL-U: the second columns of words with a number of their own, so no ranges and no empty nodes.

    A sentence's own id is its sent_id, its number where it has none. See `TextFormat`.
    """

    errors: RecordErrors
    blank_records = False

    def begin(self, head: bytes, name: str) -> int:
        """See `TextFormat`."""
        check_kind(head, name, "CoNLL-U", "a table")
        return 0

    def cut(self, data: bytes) -> Int64:
        """See `TextFormat`."""
        return cut_at_blank_lines(data)

    def decode(self, raw: RawRecords) -> Records:
        """See `TextFormat`."""
        numbers, rows, skipped = each_record(raw, self.errors, self._read)
        ids = [own_id or str(number) for number, (own_id, _, _) in zip(numbers, rows, strict=True)]
        tokens, offsets = tokens_of_lists([forms for _, _, forms in rows])
        texts = [text or " ".join(forms) for _, text, forms in rows]
        return Records(numbers, ids, tokens, offsets, texts, skipped)

    def _read(self, record: bytes) -> tuple[str, str, list[str]]:
        comments: dict[str, str] = {}
        forms = []
        for start, line in _visible_lines(record):
            text = _line_text(line, start, self.errors)
            if text.startswith("#"):
                key, _, value = text[1:].partition("=")
                comments.setdefault(key.strip(), value.strip())
                continue
            columns = text.split("\t")
            if len(columns) != CONLLU_COLUMNS:
                raise Fault(start, f"{CONLLU_COLUMNS} columns between tabs", str(len(columns)))
            if not CONLLU_ID.fullmatch(columns[0]) or not columns[1]:
                raise Fault(start, "a word's number and form", f"{shown(columns[0])} and {shown(columns[1])}")
            if columns[0].isdecimal():
                forms.append(columns[1])
        return comments.get("sent_id", ""), comments.get("text", ""), forms


@dataclass(frozen=True)
class Tags:
    """A token and its tag a line, a tab or else white space between them. See `TextFormat`."""

    errors: RecordErrors
    blank_records = False

    def begin(self, head: bytes, name: str) -> int:
        """See `TextFormat`."""
        check_kind(head, name, "tokens with tags", "a table")
        return 0

    def cut(self, data: bytes) -> Int64:
        """See `TextFormat`."""
        return cut_at_blank_lines(data)

    def decode(self, raw: RawRecords) -> Records:
        """See `TextFormat`."""
        numbers, rows, skipped = each_record(raw, self.errors, self._read)
        tokens, offsets = tokens_of_lists(rows)
        return Records(numbers, None, tokens, offsets, None, skipped)

    def _read(self, record: bytes) -> list[str]:
        tokens = []
        for start, line in _visible_lines(record):
            text = _line_text(line, start, self.errors)
            columns = text.split("\t") if "\t" in text else text.split()
            if len(columns) != 2 or not columns[0]:
                raise Fault(start, "a token and its tag", shown(text))
            tokens.append(columns[0])
        return tokens


def _visible_lines(record: bytes) -> Iterator[tuple[int, bytes]]:
    """Where each line that is not blank begins, and the line without its end."""
    start = 0
    for line in record.split(b"\n"):
        if line.strip():
            yield start, line.removesuffix(b"\r")
        start += len(line) + 1


def _line_text(line: bytes, start: int, errors: RecordErrors) -> str:
    try:
        return decode_utf8(line, errors)
    except Fault as fault:
        fault.position += start
        raise
