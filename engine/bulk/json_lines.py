"""JSON lines: one object per line, with the text and the id as fields."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from flashelmo.engine.arguments import shown
from flashelmo.engine.arrays import Int64
from flashelmo.engine.bulk.parts import RecordErrors, Records
from flashelmo.engine.bulk.text_format import (
    NAMED_BY,
    Fault,
    RawRecords,
    TextFormat,
    decode_utf8,
    each_record,
    lines,
    tokens_of,
)
from flashelmo.engine.bulk.tokenizers import Tokenizer
from flashelmo.engine.text.sentences import SURROGATE


@dataclass(frozen=True)
class JsonLines(TextFormat):
    """One object per line, except empty lines; a field of it is a text or a list of tokens. See `TextFormat`."""

    field: str
    id_field: str | None
    tokenizer: Tokenizer
    errors: RecordErrors
    kinds = ("JSON lines",)

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
        text = decode_utf8(record, self.errors).rstrip(" \t\r\n")  # what is missing at its end is not on the next line
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
        own_id = str(own_id)
        if b"\\u" in record:
            own_id = self._whole(own_id, first)
            whole = [self._whole(each, first) for each in ([value] if isinstance(value, str) else value)]
            value = whole[0] if isinstance(value, str) else whole
        return own_id, value

    def _field(self, found: dict[str, Any], field: str, first: int) -> Any:
        if field not in found:
            fields = ", ".join(map(repr, found)) or "none"
            raise Fault(first, f"a field {field!r}", f"{fields}; {NAMED_BY}")
        return found[field]

    def _whole(self, text: str, first: int) -> str:
        """Return a text without halves of surrogate pairs, which UTF-8 cannot represent."""
        if (half := SURROGATE.search(text)) is None:
            return text
        if self.errors != "replace":
            raise Fault(first, "characters", f"half of a surrogate pair, \\u{ord(half[0]):04x}")
        return SURROGATE.sub("\ufffd", text)
