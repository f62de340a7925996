"""A shard as a single Parquet file of index and vectors: how it is written, and read back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flashelmo.engine.arrays import Array, Int64
from flashelmo.engine.bulk.shards import INDEX_ROWS, Rows, Shard, shard_name
from flashelmo.engine.sinks.files import NewFile
from flashelmo.engine.text.windows import last_that_fits

GROUP_BYTES = 32 << 20  # of vectors per row group


class ParquetWriter:
    """Writes index and vectors to one Parquet file, whose row groups are limited in bytes."""

    def __init__(self, folder: Path, shard: Shard, rows: Rows, index: pa.Table) -> None:
        self._rows, self._index = rows, index
        self._offsets = rows.offsets(shard.records.offsets)
        self._groups = _groups(self._offsets, rows)
        self._group = next(self._groups, None)
        self._blocks = [np.empty((0, *rows.shape), rows.dtype)]  # of rows that are in no group yet
        self._n_rows = 0  # in the blocks
        self._file = NewFile(folder / f"{shard_name(shard.number)}.parquet")
        self._writer: Any = None

    def begin(self) -> None:
        """Write what comes before the vectors."""
        values = self._column(self._blocks[0], 0, 0)
        self._writer = pq.ParquetWriter(
            self._file,
            self._index.schema.append(pa.field("values", values.type)),
            compression="none",  # vectors hardly compress
            use_dictionary=["tokens.list.element"],
            write_statistics=["record", "id", "n_tokens", "row"],
        )

    def write(self, block: Array) -> None:
        """Write the next rows."""
        self._blocks.append(block)
        self._n_rows += len(block)
        self._write_groups()

    def publish(self) -> dict[str, Any]:
        """Finish, and return each file's size and sha256, by its name."""
        self._write_groups()
        self._writer.close()
        return {self._file.path.name: self._file.publish()}

    def abort(self) -> None:
        """Leave nothing behind."""
        if self._writer is not None:
            self._writer.is_open = False  # it would write its end when it is freed
        self._file.abort()

    def _write_groups(self) -> None:
        """Write the groups whose rows are all there."""
        while self._group is not None:
            start, stop = self._group
            n_rows = int(self._offsets[stop] - self._offsets[start])
            if self._n_rows < n_rows:
                return
            values = np.concatenate(self._blocks)
            column = self._column(values[:n_rows], start, stop)
            table = self._index.slice(start, stop - start).append_column("values", column)
            self._writer.write_table(table, row_group_size=max(1, stop - start))
            self._blocks, self._n_rows = [values[n_rows:].copy()], self._n_rows - n_rows
            self._group = next(self._groups, None)

    def _column(self, values: Array, start: int, stop: int) -> pa.Array:
        """Return rows of the records from start to stop."""
        column = pa.array(values.reshape(-1))
        for size in reversed(self._rows.shape):
            column = pa.FixedSizeListArray.from_arrays(column, size)
        if self._rows.pooled:
            return column
        offsets = self._offsets[start : stop + 1]
        return pa.ListArray.from_arrays(pa.array(offsets - offsets[0], pa.int32()), column)


class ParquetValues:
    """Rows in a column of Parquet; the row group that was read last is kept."""

    def __init__(self, path: Path, rows: Rows) -> None:
        self._file = pq.ParquetFile(path.with_suffix(".parquet"), memory_map=True)
        self._shape = rows
        sizes = [self._file.metadata.row_group(k).num_rows for k in range(self._file.metadata.num_row_groups)]
        self._starts = np.cumsum([0, *sizes])
        self._group = -1
        self._read: tuple[Array, Int64] = (np.empty(0), np.zeros(1, np.int64))

    def rows(self, b: int) -> Array:
        """Those of record b."""
        group = int(np.searchsorted(self._starts, b, side="right")) - 1
        if group != self._group:
            self._read, self._group = self._read_group(group), group
        values, offsets = self._read
        b -= int(self._starts[group])
        return values[offsets[b] : offsets[b + 1]]

    def _read_group(self, group: int) -> tuple[Array, Int64]:
        column = self._file.read_row_group(group, columns=["values"])["values"].combine_chunks()
        column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
        offsets: Int64 = np.arange(len(column) + 1, dtype=np.int64)
        if not self._shape.pooled:
            offsets = column.offsets.to_numpy().astype(np.int64)
            offsets, column = offsets - offsets[0], column.flatten()
        for _ in self._shape.shape:
            column = column.flatten()
        return column.to_numpy(zero_copy_only=False).reshape(-1, *self._shape.shape), offsets


def _groups(offsets: Int64, rows: Rows) -> Iterator[tuple[int, int]]:
    """Yield ranges of records for the row groups: each within GROUP_BYTES, or a single record."""
    start, most = 0, max(1, GROUP_BYTES // rows.n_bytes)
    while start < len(offsets) - 1:
        stop = max(start + 1, last_that_fits(offsets, start, INDEX_ROWS, most))
        yield start, stop
        start = stop
