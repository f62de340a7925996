"""A token and its tag per line, and a blank line after each sentence."""

from __future__ import annotations

from dataclasses import dataclass

from flashelmo.engine.arguments import shown
from flashelmo.engine.arrays import Int64
from flashelmo.engine.bulk.by_record import Fault, cut_at_blank_lines, decode_utf8, each_record, visible_lines
from flashelmo.engine.bulk.parts import RecordErrors, Records
from flashelmo.engine.bulk.text_format import RawRecords, TextFormat
from flashelmo.engine.bulk.tokenizers import tokens_of_lists


@dataclass(frozen=True)
class Tags(TextFormat):
    """A token and its tag per line, separated by a tab or else white space. See `TextFormat`."""

    errors: RecordErrors
    kinds = ("tokens with tags", "a table")
    blank_records = False

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
        for start, line in visible_lines(record):
            text = decode_utf8(line, self.errors, start)
            columns = text.split("\t") if "\t" in text else text.split()
            if len(columns) != 2 or not columns[0]:
                raise Fault(start, "a token and its tag", shown(text))
            tokens.append(columns[0])
        return tokens
