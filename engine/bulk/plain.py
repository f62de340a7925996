"""Plain lines: one record each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashelmo.engine.arrays import Int64
from flashelmo.engine.bulk.parts import RecordErrors, Records
from flashelmo.engine.bulk.text_format import RawRecords, TextFormat, decode_utf8, each_record, line_ends
from flashelmo.engine.bulk.tokenizers import Tokenizer
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.lines import check_utf8


@dataclass(frozen=True)
class PlainLines(TextFormat):
    """One record per line. See `TextFormat`."""

    tokenizer: Tokenizer
    errors: RecordErrors
    kinds = ("a sentence a line",)
    blank_records = True

    def cut(self, data: bytes) -> Int64:
        """See `TextFormat`."""
        return line_ends(data)

    def decode(self, raw: RawRecords) -> Records:
        """See `TextFormat`."""
        numbers = np.arange(len(raw.ends), dtype=np.int64) + raw.place.record
        skipped: list[str] = []
        text = raw.data if raw.data.endswith(b"\n") else raw.data + b"\n"
        try:
            text = check_utf8(text, "replace" if self.errors == "replace" else "strict", raw.name, raw.place.line - 1)
        except FlashElmoError:
            numbers, lines, skipped = each_record(raw, self.errors, _line)
            text = b"".join(lines)
        tokens, offsets = self.tokenizer(text)
        texts = [line.strip() for line in text.decode().split("\n")[:-1]]
        return Records(numbers, None, tokens, offsets, texts, skipped)


def _line(record: bytes) -> bytes:
    """Return a line with its end; Fault if it is not UTF-8."""
    line = record.removesuffix(b"\n") + b"\n"
    decode_utf8(line, "strict")
    return line
