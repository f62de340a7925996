"""A token per line, its columns separated by tabs, and a blank line after each sentence: CoNLL-U, and tags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flashelmo.engine.arguments import shown
from flashelmo.engine.arrays import Int64
from flashelmo.engine.bulk.parts import RecordErrors, Records
from flashelmo.engine.bulk.text_format import Fault, RawRecords, TextFormat, decode_utf8, each_record, lines
from flashelmo.engine.bulk.tokenizers import tokens_of_lists
from flashelmo.engine.text.tables import CONLLU_COLUMNS, CONLLU_ID


@dataclass(frozen=True)
class ConllU(TextFormat):
    """Sentences in CoNLL-U: the second columns of words that have their own number, so no ranges and no empty nodes.

    A sentence's own id is its sent_id, or its number if it has none. See `TextFormat`.
    """

    errors: RecordErrors
    kinds = ("CoNLL-U", "a table")

    def cut(self, data: bytes) -> Int64:
        """See `TextFormat`."""
        return _cut(data)

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
        for start, text in _visible_lines(record, self.errors):
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
class Tags(TextFormat):
    """A token and its tag per line, separated by a tab or else white space. See `TextFormat`."""

    errors: RecordErrors
    kinds = ("tokens with tags", "a table")

    def cut(self, data: bytes) -> Int64:
        """See `TextFormat`."""
        return _cut(data)

    def decode(self, raw: RawRecords) -> Records:
        """See `TextFormat`."""
        numbers, rows, skipped = each_record(raw, self.errors, self._read)
        return Records(numbers, None, *tokens_of_lists(rows), None, skipped)

    def _read(self, record: bytes) -> list[str]:
        tokens = []
        for start, text in _visible_lines(record, self.errors):
            columns = text.split("\t") if "\t" in text else text.split()
            if len(columns) != 2 or not columns[0]:
                raise Fault(start, "a token and its tag", shown(text))
            tokens.append(columns[0])
        return tokens


def _cut(data: bytes) -> Int64:
    """Return where each blank line ends that follows a line that is not blank."""
    ends, blank = lines(data)
    return ends[1:][blank[1:] & ~blank[:-1]]


def _visible_lines(record: bytes, errors: RecordErrors) -> Iterator[tuple[int, str]]:
    """Yield where each line that is not blank begins, and the line without its end."""
    start = 0
    for line in record.split(b"\n"):
        if line.strip():
            yield start, decode_utf8(line.removesuffix(b"\r"), errors, start)
        start += len(line) + 1
