"""CSV and TSV: one record per row, of which one column is embedded."""

from __future__ import annotations

import csv
import re
from contextlib import suppress
from functools import cache
from io import StringIO
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from flashelmo.engine.arguments import is_decimal
from flashelmo.engine.arrays import Int64
from flashelmo.engine.bulk.parts import RecordErrors, Records
from flashelmo.engine.bulk.text_format import (
    Fault,
    RawRecords,
    TextFormat,
    check_column,
    decode_utf8,
    each_record,
    line_ends,
)
from flashelmo.engine.bulk.tokenizers import Tokenizer, lines_of
from flashelmo.engine.errors import FlashElmoError

EMPTY_LINES = rb"(?:\r?\n)*(?!\r?\n)"
FIRST_LINE = re.compile(EMPTY_LINES + rb"[^\n]*\n")
# Up to the last quote, which is left out. Each run of other characters precedes a quote, for which `re` backtracks fast
# over it: a run may be all the rest of the text.
QUOTED = rb'"(?:[^"]*"")*[^"]*'

HEADER_BYTES = (1 << 20) - 3  # of the first row, which are in the head even if a byte order mark precedes them
FOUND_COLUMNS = re.compile(r"Expected \d+ columns, got (\d+)")


class Delimited(TextFormat):
    """Rows below a header of names, except empty lines. See `TextFormat`.

    Args:
        delimiter: between columns; for a comma see `begin`.
        quoted: whether columns may be quoted, and may then contain delimiters, line ends and doubled quotes. Otherwise
            a quote is an ordinary character.
        field: the column to embed, by name; or its number, from 1, in a table without a header.
        id_field: the column of the records' own ids, in the same way.
        tokenizer: of the column.
        errors: as in `open_reader`.
    """

    kinds = ("a table", "tokens with tags")

    def __init__(
        self,
        delimiter: str,
        quoted: bool,
        field: str,
        id_field: str | None,
        tokenizer: Tokenizer,
        errors: RecordErrors,
    ) -> None:
        self._delimiter = delimiter
        self._quoted = quoted
        self._fields = [field] if id_field is None else [field, id_field]
        self._tokenizer = tokenizer
        self._errors = errors
        self._n_columns = 0
        self._columns: list[int] = []  # indices of the fields

    def begin(self, head: bytes, name: str) -> int:
        """See `TextFormat`. Where commas don't give the fields, semicolons may: Excel's in much of Europe."""
        try:
            return self._begin(head, name)
        except FlashElmoError:
            if self._delimiter != ",":
                raise
            self._delimiter = ";"
            with suppress(FlashElmoError):
                return self._begin(head, name)
            self._delimiter = ","
            raise

    def _begin(self, head: bytes, name: str) -> int:
        ends = self.cut(head)
        first = head[: ends[0] if len(ends) else self.end_of_first(head)]
        if not first.strip():
            raise FlashElmoError(f"{name}: expected a header with the names of columns, found an empty table")
        if len(first) >= HEADER_BYTES:
            raise FlashElmoError(f"{name}: expected a header of less than 1 MiB, found a longer one")
        names = self._names(first, name)
        self._n_columns = len(names)
        numbered = all(is_decimal(field) and field not in names for field in self._fields)
        self._columns = [self._column(field, names, numbered, name) for field in self._fields]
        return 0 if numbered else len(first)

    def cut(self, data: bytes) -> Int64:
        """See `TextFormat`."""
        if self._quoted and b'"' in data:
            return np.array(self._quoted_ends(data), np.int64)
        ends = line_ends(data)
        lengths = np.diff(ends, prepend=0)
        befores = np.frombuffer(data, np.uint8)[np.maximum(ends - 2, 0)]
        visible: Int64 = ends[(lengths > 2) | ((lengths == 2) & (befores != ord("\r")))]
        return visible

    def end_of_first(self, data: bytes) -> int:
        """See `TextFormat`."""
        if not self._quoted or _patterns(self._delimiter)[0].fullmatch(data.rstrip()):
            return len(data)
        return _line_end(data, 0) or len(data)

    def decode(self, raw: RawRecords) -> Records:
        """See `TextFormat`."""
        numbers = np.arange(len(raw.ends), dtype=np.int64) + raw.place.record
        skipped: list[str] = []
        try:
            columns = self._parse(raw.data, raw.ends)
        except Fault:
            numbers, rows, skipped = each_record(raw, self._errors, lambda row: self._parse(row, np.array([len(row)])))
            columns = [[value for row in rows for value in row[i]] for i in range(len(self._fields))]
        tokens, offsets = self._tokenizer(lines_of(columns[0]))
        ids = columns[1] if len(columns) > 1 else None
        return Records(numbers, ids, tokens, offsets, [text.strip() for text in columns[0]], skipped)

    def _quoted_ends(self, data: bytes) -> list[int]:
        """Return where each whole row ends, given quotes. A row whose quotes are wrong ends with its line."""
        _, row, beginning = _patterns(self._delimiter)
        ends, start = [], 0
        while start < len(data):
            match = row.match(data, start)
            if match is not None:
                start = match.end()
            elif beginning.match(data, start) or not (end := _line_end(data, start)):
                break
            else:
                start = end
            ends.append(start)
        return ends

    def _parse(self, data: bytes, ends: Int64) -> list[list[str]]:
        """Return the wanted columns of the rows that end at `ends`. Fault: rows end elsewhere, or cannot be read."""
        if self._quoted and b'"' in data:
            row, starts = _patterns(self._delimiter)[0], [0, *ends.tolist()]
            if not all(row.fullmatch(data, start, end) for start, end in pairwise(starts)):
                raise self._fault(data, f"a quote that is not closed, or something between it and {self._delimiter!r}")
        try:
            table = pa.csv.read_csv(
                pa.BufferReader(data),
                pa.csv.ReadOptions(
                    use_threads=False, block_size=len(data) + 1, column_names=[str(i) for i in range(self._n_columns)]
                ),
                pa.csv.ParseOptions(
                    delimiter=self._delimiter, quote_char='"' if self._quoted else False, newlines_in_values=True
                ),
                pa.csv.ConvertOptions(
                    include_columns=[str(i) for i in dict.fromkeys(self._columns)],
                    column_types={str(i): pa.binary() for i in self._columns},
                    check_utf8=False,
                ),
            )
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            found = FOUND_COLUMNS.search(str(error))
            raise self._fault(data, found[1] if found else str(error)) from None
        if table.num_rows != len(ends):
            raise self._fault(data, f"{table.num_rows} rows")
        return [self._texts(table[str(i)], data) for i in self._columns]

    def _texts(self, column: Any, data: bytes) -> list[str]:
        if self._errors == "replace":
            return [value.decode("utf-8", "replace") for value in column.to_pylist()]
        try:
            texts: list[str] = column.cast(pa.string()).to_pylist()
        except pa.ArrowInvalid:
            decode_utf8(data, self._errors)
            raise
        return texts

    def _fault(self, data: bytes, found: str) -> Fault:
        advice = "; format tsv-quoted reads columns between quotes" if b'"' in data and not self._quoted else ""
        expected = f"a row of {self._n_columns} column{'s' if self._n_columns > 1 else ''}"
        return Fault(len(data) - len(data.lstrip(b"\r\n")), expected, found + advice)

    def _names(self, header: bytes, name: str) -> list[str]:
        """Return the columns' names, from the first row of the table of this name."""
        rows = StringIO(header.decode("utf-8", "replace").lstrip("\r\n"), newline="")
        try:
            names, *others = csv.reader(
                rows, delimiter=self._delimiter, quoting=csv.QUOTE_MINIMAL if self._quoted else csv.QUOTE_NONE
            )
        except csv.Error as error:
            raise FlashElmoError(f"{name}: expected a header with the names of columns, found: {error}") from None
        if others:
            raise FlashElmoError(f"{name}: expected rows that end with \\n, found a header that ends with \\r alone")
        return names

    def _column(self, field: str, names: list[str], numbered: bool, name: str) -> int:
        if numbered and 1 <= int(field) <= len(names):
            return int(field) - 1
        advice = ", or number them where there is no header"
        if len(names) == 1 and re.search("[,;\t]", names[0]):
            separators = "',' or ';'" if self._delimiter == "," else repr(self._delimiter)
            advice += f"; columns are separated by {separators}"
        check_column(field, names, name, advice)
        return names.index(field)


@cache
def _patterns(separator: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes], re.Pattern[bytes]]:
    """Return three patterns: a row; a row with its line end; the beginning of a row that the data cuts off."""
    delimiter = re.escape(separator.encode())
    plain = rb'[^"\n' + delimiter + rb"][^\n" + delimiter + rb"]*|"
    column = rb"(?:" + QUOTED + rb'"(?=' + delimiter + rb"|\r?\n|\Z)|" + plain + rb")"
    before = EMPTY_LINES + rb"(?:" + column + delimiter + rb")*"
    unfinished = rb"(?:" + QUOTED + rb'"?\r?|' + plain + rb")\Z"
    row = before + column
    return re.compile(row + rb"(?:\r?\n)?"), re.compile(row + rb"\r?\n"), re.compile(before + unfinished)


def _line_end(data: bytes, start: int) -> int:
    """Return where the first non-empty line from `start` on ends; 0 if there is no end."""
    line = FIRST_LINE.match(data, start)
    return 0 if line is None else line.end()
