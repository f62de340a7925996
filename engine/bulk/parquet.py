"""Parquet: one record per row, of which one column is embedded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashelmo.engine.bulk.inputs import Input
from flashelmo.engine.bulk.parts import Part, Place, RecordErrors, Records
from flashelmo.engine.bulk.text_format import check_column
from flashelmo.engine.bulk.tokenizers import Tokenizer, Tokens, lines_of
from flashelmo.engine.errors import FlashElmoError

BATCH_ROWS = 1 << 13
# Arrow's names of types for texts, and for lists. Some writers leave texts as binary, which is read as UTF-8.
TEXTS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
LISTS = ("list", "large_list", "fixed_size_list")


class ParquetReader:
    """Reads rows. See `Reader`.

    Args:
        source: the input, seekable.
        options: see `Reader`.
        field: the column to embed: of texts, or of lists of tokens; of any of Arrow's types for these.
        id_field: the column of the records' own ids: texts or whole numbers.
        tokenizer: of texts.
        errors: as in `open_reader`.

    Raises:
        FlashElmoError: it is not Parquet, or lacks such columns.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        source: Input,
        options: dict[str, Any],
        field: str,
        id_field: str | None,
        tokenizer: Tokenizer,
        errors: RecordErrors,
    ) -> None:
        self._source: IO[bytes] | None = None
        self._file: Any = None
        self.name, self.options, self.n_bytes = source.name, options, source.n_bytes
        self._n_rows = 0
        self._open_file = source.open
        self._fields = [field] if id_field is None else [field, id_field]
        self._decode = partial(_decode, name=source.name, fields=self._fields, tokenizer=tokenizer, errors=errors)
        self._place = Place()
        self._batches: Iterator[Any] = iter(())  # those that follow
        self._rows: Any = None  # read, and following the current place

    def take(self, n: int) -> Part | None:
        """See `Reader`."""
        if n < 1:
            raise FlashElmoError(f"records: expected one or more to take, found {n}")
        try:
            if self._file is None:
                self._open()
            found = self._take(n)
            raw = _to_bytes(found) if found else b""
        except BaseException as error:
            self.close()  # what was read of it is lost; it will be read again
            if isinstance(error, pa.ArrowException) or (isinstance(error, OSError) and error.errno is None):
                raise FlashElmoError(f"{self.name}: row {self._place.line}: expected Parquet, found: {error}") from None
            raise
        if not found:
            return None
        n_found = sum(map(len, found))
        begin, self._place = self._place, self._row(self._place.record + n_found)
        return Part(begin, self._place, n_found, raw, partial(self._decode, raw, begin.record))

    def _take(self, n: int) -> list[Any]:
        found = []
        while n and self._fill():
            found.append(self._rows[:n])
            self._rows = self._rows[n:]
            n -= len(found[-1])
        return found

    def seek(self, place: Place) -> None:
        """See `Reader`."""
        if place != self._place:
            self.close()
            self._place = place

    def close(self) -> None:
        """See `Reader`."""
        if self._source is not None:
            self._source.close()
        self._source, self._file, self._batches, self._rows = None, None, iter(()), None

    def __del__(self) -> None:
        self.close()

    def _open(self) -> None:
        """Go to the current place: to its row group, then to its row."""
        import pyarrow.parquet

        self._source = self._open_file()
        if not self._source.seekable():
            expected = "expected a Parquet file, not compressed as a whole and not standard input"
            raise FlashElmoError(f"{self.name}: {expected}, found an input that can only be read from the beginning")
        try:
            self._file = pyarrow.parquet.ParquetFile(self._source)
        except pa.ArrowInvalid as error:
            raise FlashElmoError(f"{self.name}: expected Parquet, found something else: {error}") from None
        self._check(self._file.schema_arrow)
        groups, self._n_rows = self._file.metadata.num_row_groups, self._file.metadata.num_rows
        starts = np.cumsum([0, *(self._file.metadata.row_group(i).num_rows for i in range(groups))])
        first = int(np.searchsorted(starts, self._place.record, side="right")) - 1
        self._batches = _batches(self._file, range(first, groups), self._fields)
        n_before = self._place.record - int(starts[first])
        while n_before > 0 and self._fill():
            rows = self._rows
            self._rows = rows[n_before:]
            n_before -= len(rows)

    def _row(self, record: int) -> Place:
        """Return where a row begins; its byte is its share of the file's, as rows are stored column by column."""
        return Place(record, record + 1, record * (self.n_bytes or 0) // max(1, self._n_rows))

    def _fill(self) -> bool:
        """Read rows if none are left; return whether there are any."""
        while self._rows is None or not len(self._rows):
            batch = next(self._batches, None)
            if batch is None:
                return False
            self._rows = batch
        return True

    def _check(self, schema: Any) -> None:
        field, *id_field = self._fields
        for name in self._fields:
            check_column(name, schema.names, self.name)
        kind = _values(schema.field(field).type)
        if not _is_text(kind) and not (_is_list(kind) and _is_text(_values(kind.value_type))):
            raise FlashElmoError(f"{self.name}: expected a column {field!r} of texts or lists of texts, found {kind}")
        kinds = [_values(schema.field(name).type) for name in id_field]
        if not all(_is_text(kind) or pa.types.is_integer(kind) for kind in kinds):
            expected = f"a column {id_field[0]!r} of texts or whole numbers"
            raise FlashElmoError(f"{self.name}: expected {expected}, found {kinds[0]}")


def _values(kind: Any) -> Any:
    """Return the type of values, which may be in a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: Any) -> bool:
    return str(kind) in TEXTS


def _is_list(kind: Any) -> bool:
    return str(kind).partition("<")[0] in LISTS


def _batches(file: Any, groups: Iterable[int], fields: Sequence[str]) -> Iterator[Any]:
    """Yield columns of row groups as the types that `_plain` gives.

    A batch has rows of only one group: Arrow cannot join dictionaries in lists.
    """
    for group in groups:
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=fields):
            columns = [_plain(batch.column(field)) for field in fields]
            yield pa.RecordBatch.from_arrays(columns, list(map(str, range(len(fields)))))


def _to_bytes(batches: Sequence[Any]) -> bytes:
    """Return the same bytes for the same rows, however they were split into batches."""
    sink = pa.BufferOutputStream()
    rows = pa.Table.from_batches(batches).combine_chunks()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return bytes(sink.getvalue())


def _plain(array: Any) -> Any:
    """Convert texts to binary, lists of them to large lists, and whole numbers to texts."""
    if _is_list(array.type):
        return array.cast(pa.large_list(pa.binary()))
    return (array if _is_text(_values(array.type)) else array.cast(pa.string())).cast(pa.binary())


def _decode(
    raw: bytes, first: int, *, name: str, fields: Sequence[str], tokenizer: Tokenizer, errors: RecordErrors
) -> Records:
    """Return the records of a part; see `Part.records`."""
    table = pa.ipc.open_stream(raw).read_all().combine_chunks()
    columns = [column.combine_chunks() for column in table.columns]
    numbers, skipped = np.arange(first, first + len(table), dtype=np.int64), []
    try:
        values, *ids = map(_as_text, columns)
    except (ValueError, pa.ArrowInvalid):
        rows, kept = [], []
        for b in range(len(table)):
            try:
                found = zip(columns, fields, strict=True)
                rows.append([_one(column[b].as_py(), field, errors) for column, field in found])
                kept.append(b)
            except ValueError as error:
                message = str(FlashElmoError(f"{name}: row {first + b + 1}, {error}"))
                if errors != "skip":
                    raise FlashElmoError(message) from None
                skipped.append(message)
        numbers = numbers[kept]
        kinds = [pa.large_list(pa.string()) if _is_list(column.type) else pa.string() for column in columns]
        values, *ids = (pa.array([row[i] for row in rows], kind) for i, kind in enumerate(kinds))
    own_ids = ids[0].to_pylist() if ids else None
    if _is_list(values.type):
        return Records(numbers, own_ids, *_tokens(values), None, skipped)
    texts = values.to_pylist()
    tokens, offsets = tokenizer(lines_of(texts))
    return Records(numbers, own_ids, tokens, offsets, [text.strip() for text in texts], skipped)


def _as_text(column: Any) -> Any:
    """Return a column of UTF-8 as texts; ValueError if a row is empty or not UTF-8."""
    kind = pa.large_list(pa.string()) if _is_list(column.type) else pa.string()
    if column.null_count or (_is_list(column.type) and column.flatten().null_count):
        raise ValueError
    return column.cast(kind)


def _one(value: Any, field: str, errors: RecordErrors) -> Any:
    """Return a row's value of a column as text; ValueError says what was expected and found."""
    if isinstance(value, list):
        return [_one(each, field, errors) for each in value]
    if value is None:
        raise ValueError(f"column {field!r}: expected text, found nothing")
    try:
        return value.decode("utf-8", "replace" if errors == "replace" else "strict")
    except UnicodeDecodeError as error:
        found = f"0x{value[error.start]:02x} ({error.reason}) at byte {error.start + 1}"
        raise ValueError(f"column {field!r}: expected UTF-8, found {found}") from None


def _tokens(lists: Any) -> Tokens:
    tokens = lists.flatten().cast(pa.string())
    offsets = np.zeros(len(lists) + 1, np.int64)
    np.cumsum(pc.list_value_length(lists).to_numpy(zero_copy_only=False), out=offsets[1:])
    return (tokens.combine_chunks() if isinstance(tokens, pa.ChunkedArray) else tokens), offsets
