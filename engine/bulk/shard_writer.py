"""Writes shards: each a few files that appear completely or not at all; the last says that the shard is complete."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flashelmo.engine.arrays import Array, Int64
from flashelmo.engine.bulk.shards import Rows, Shard, ShardFormat, index_table, shard_name
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.files import sync
from flashelmo.engine.text.windows import last_that_fits

SAFETENSORS_TYPES = {"float32": "F32", "float16": "F16"}
HALF_EXPONENT = np.uint16(0x7C00)  # all its bits are set in infinity and NaN
ALIGNMENT = 64  # bytes, of the first tensor
GROUP_BYTES = 32 << 20  # of vectors per row group of Parquet
INDEX_ROWS = 1 << 16  # per row group of the index


class NewFile:
    """A file under a temporary name, written from beginning to end, with its checksum computed on the way.

    Args:
        path: its name once it is complete.
        mark: part of the temporary name, if several runs may write the same file.
    """

    def __init__(self, path: Path, mark: str = "") -> None:
        self.path, self.temporary = path, path.with_name(f".{path.name}{mark}.tmp")
        self.closed = False
        self._file = open(self.temporary, "wb", buffering=0)  # noqa: SIM115
        self._digest = hashlib.sha256()
        self._n_bytes = 0

    def write(self, data: Any) -> int:
        """Write all of it. OSError: the disk is full, or gone."""
        view = memoryview(data)
        rest = view if view.format == "B" and view.ndim == 1 else view.cast("B")
        n_bytes = len(rest)
        self._digest.update(rest)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._n_bytes += n_bytes
        return n_bytes

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._n_bytes

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Close the file."""
        self.closed = True
        self._file.close()

    def publish(self) -> dict[str, Any]:
        """Give the file its name, once it is safe on disk; return its size and sha256."""
        os.fsync(self._file.fileno())
        self.close()
        os.replace(self.temporary, self.path)
        return {"bytes": self._n_bytes, "sha256": self._digest.hexdigest()}

    def abort(self) -> None:
        """Remove what was written."""
        self.close()
        self.temporary.unlink(missing_ok=True)


class _Values(Protocol):
    """Writes a shard's vectors into files."""

    def begin(self) -> None:
        """Write what comes before them."""

    def write(self, block: Array) -> None:
        """Write the next rows."""

    def publish(self) -> dict[str, Any]:
        """Finish, and return each file's size and sha256, by its name."""

    def abort(self) -> None:
        """Leave nothing behind."""


class _Native:
    """Writes vectors to a safetensors file, with the index beside it."""

    def __init__(self, folder: Path, shard: Shard, rows: Rows, index: pa.Table) -> None:
        self._index, self._index_path = index, folder / f"{shard_name(shard.number)}.parquet"
        self._rows, self._offsets = rows, rows.offsets(shard.records.offsets)
        self._file = NewFile(folder / f"{shard_name(shard.number)}.safetensors")

    def begin(self) -> None:
        """See `_Values`."""
        self._file.write(_header(self._rows, self._offsets))
        self._file.write(self._offsets.astype("<i8").view(np.uint8))

    def write(self, block: Array) -> None:
        """See `_Values`."""
        self._file.write(block.reshape(-1).view(np.uint8))

    def publish(self) -> dict[str, Any]:
        """See `_Values`."""
        found = {self._file.path.name: self._file.publish()}
        file = NewFile(self._index_path)
        try:
            pq.write_table(self._index, file, compression="zstd", row_group_size=INDEX_ROWS)
            return found | {file.path.name: file.publish()}
        except BaseException:
            file.abort()
            raise

    def abort(self) -> None:
        """See `_Values`."""
        self._file.abort()


def _header(rows: Rows, offsets: Int64) -> bytes:
    """Return a safetensors header: offsets first, so that both are aligned."""
    shape = [int(offsets[-1]), *rows.shape]
    end = offsets.nbytes + int(offsets[-1]) * rows.n_bytes
    entries = {
        "offsets": {"dtype": "I64", "shape": [len(offsets)], "data_offsets": [0, offsets.nbytes]},
        "values": {"dtype": SAFETENSORS_TYPES[rows.dtype], "shape": shape, "data_offsets": [offsets.nbytes, end]},
    }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


class _Parquet:
    """Writes index and vectors to one Parquet file, whose row groups are limited in bytes."""

    def __init__(self, folder: Path, shard: Shard, rows: Rows, index: pa.Table) -> None:
        self._rows, self._index = rows, index
        self._offsets = rows.offsets(shard.records.offsets)
        self._groups = _groups(self._offsets, rows)
        self._group = next(self._groups)
        self._blocks: list[Array] = []
        self._n_rows = 0  # in the blocks
        self._file = NewFile(folder / f"{shard_name(shard.number)}.parquet")
        self._writer: Any = None

    def begin(self) -> None:
        """See `_Values`."""
        index, rows = self._index, self._rows
        schema = index.schema.append(
            pa.field("values", self._column(np.empty((0, *rows.shape), rows.dtype), 0, 0).type)
        )
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression="none",  # vectors hardly compress
            use_dictionary=["tokens.list.element"],
            write_statistics=["record", "id", "n_tokens", "row"],
        )

    def write(self, block: Array) -> None:
        """See `_Values`."""
        self._blocks.append(block)
        self._n_rows += len(block)
        self._write_groups()

    def publish(self) -> dict[str, Any]:
        """See `_Values`."""
        self._write_groups()
        self._writer.close()
        return {self._file.path.name: self._file.publish()}

    def abort(self) -> None:
        """See `_Values`."""
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
            values = (
                np.concatenate(self._blocks) if self._blocks else np.empty((0, *self._rows.shape), self._rows.dtype)
            )
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


def _groups(offsets: Int64, rows: Rows) -> Iterator[tuple[int, int] | None]:
    """Yield ranges of records for the row groups: each within GROUP_BYTES, or a single record."""
    start, most = 0, max(1, GROUP_BYTES // rows.n_bytes)
    while start < len(offsets) - 1:
        stop = max(start + 1, last_that_fits(offsets, start, INDEX_ROWS, most))
        yield start, stop
        start = stop
    yield None


class ShardWriter:
    """Writes one shard; its calls may come from any thread, one after the other.

    Args:
        folder: of the shards.
        shard: the shard to write.
        rows: their shape and type.
        shard_format: "native" or "parquet".
        keep_tokens: whether the index contains the tokens.
    """

    def __init__(self, folder: Path, shard: Shard, rows: Rows, shard_format: ShardFormat, keep_tokens: bool) -> None:
        self._folder, self._shard, self._rows = folder, shard, rows
        self._format, self._keep_tokens = shard_format, keep_tokens
        self._values: _Values | None = None
        self._n_rows = 0

    def write(self, block: Array) -> None:
        """Write the next rows [n, *shape].

        Raises:
            OSError: the disk is full, or gone.
            FlashElmoError: a value beyond float16's range.
        """
        if block.dtype == np.float16 and (block.view(np.uint16) & HALF_EXPONENT == HALF_EXPONENT).any():
            records = f"records {self._shard.begin.record} to {self._shard.end.record - 1}"
            raise FlashElmoError(f"{records}: expected values within float16's range, found others; use float32")
        self._open().write(block)
        self._n_rows += len(block)

    def commit(self) -> dict[str, Any]:
        """Finish the shard, its JSON last; return the contents of that.

        Raises:
            OSError: the disk is full, or gone.
            FlashElmoError: the number of rows does not match the records' tokens.
        """
        expected = int(self._rows.offsets(self._shard.records.offsets)[-1])
        if self._n_rows != expected:
            raise FlashElmoError(f"shard {self._shard.number}: expected {expected} rows, found {self._n_rows}")
        path = self._folder / f"{shard_name(self._shard.number)}.json"
        values = self._open()
        meta = {**self._shard.meta, "rows": self._n_rows, "files": values.publish()}
        self._values = None
        sync(self._folder)
        write_json(path, meta)
        return meta

    def abort(self) -> None:
        """Leave nothing of an incomplete shard."""
        if self._values is not None:
            self._values.abort()

    def _open(self) -> _Values:
        if self._values is None:
            index = index_table(self._shard.records, self._rows, self._keep_tokens)
            make = _Native if self._format == "native" else _Parquet
            self._values = make(self._folder, self._shard, self._rows, index)
            self._values.begin()
        return self._values


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a JSON file, completely or not at all."""
    file = NewFile(path)
    try:
        file.write((json.dumps(values, indent=1) + "\n").encode())
        file.publish()
    except BaseException:
        file.abort()
        raise
    sync(path.parent)
