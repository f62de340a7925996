"""Plain lines: a record each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from flashelmo.engine.bulk.parts import RecordErrors, Records
from flashelmo.engine.bulk.text_reader import RawRecords
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.lines import NEWLINE, Int64, check_utf8, split_lines
from flashelmo.engine.text.tables import check_is_text

# Of whole lines of UTF-8: the tokens of all, and where each line's begin among them [lines + 1].
Tokenizer: TypeAlias = Callable[[bytes], tuple[pa.StringArray, Int64]]


def whitespace(text: bytes) -> tuple[pa.StringArray, Int64]:
    """Tokens between white space."""
    block = split_lines(text)
    return block.tokens, block.token_offsets


def line_ends(data: bytes) -> Int64:
    r"""Behind each \n."""
    return (np.flatnonzero(np.frombuffer(data, np.uint8) == NEWLINE) + 1).astype(np.int64)


@dataclass(frozen=True)
class PlainLines:
    """See `TextFormat`."""

    tokenizer: Tokenizer = whitespace
    errors: RecordErrors = "strict"
    blank_records = True

    def begin(self, head: bytes, name: str) -> int:
        """See `TextFormat`."""
        check_is_text(head, name)
        return 0

    def cut(self, data: bytes) -> Int64:
        """See `TextFormat`."""
        return line_ends(data)

    def decode(self, raw: RawRecords) -> Records:
        """See `TextFormat`."""
        numbers = np.arange(len(raw.ends), dtype=np.int64) + raw.place.record
        skipped: list[str] = []
        data = raw.data if raw.data.endswith(b"\n") else raw.data + b"\n"
        if self.errors == "skip" and not _is_utf8(data):
            kept, lines, skipped = _readable(raw)
            numbers, data = numbers[kept], b"".join(lines)
        text = check_utf8(data, "replace" if self.errors == "replace" else "strict", raw.name, raw.place.line - 1)
        tokens, offsets = self.tokenizer(text) if text else (pa.array([], pa.string()), np.zeros(1, np.int64))
        texts = [line.strip() for line in text.decode().split("\n")[:-1]]
        return Records(numbers, None, tokens, offsets, texts, skipped)


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _readable(raw: RawRecords) -> tuple[list[int], list[bytes], list[str]]:
    """Of lines of which some are no UTF-8: which are, their bytes, and what is said of the others."""
    kept, lines, skipped, line = [], [], [], raw.place.line - 1
    for b, (start, end) in enumerate(zip([0, *raw.ends], raw.ends, strict=False)):
        try:
            lines.append(check_utf8(raw.data[start:end].removesuffix(b"\n") + b"\n", "strict", raw.name, line + b))
            kept.append(b)
        except FlashElmoError as error:
            skipped.append(str(error))
    return kept, lines, skipped
