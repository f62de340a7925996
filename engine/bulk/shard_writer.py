"""Writes shards: each a few files that appear completely or not at all; the last says that the shard is complete."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashelmo.engine.arrays import Array
from flashelmo.engine.bulk.native_shard import NativeWriter
from flashelmo.engine.bulk.parquet_shard import ParquetWriter
from flashelmo.engine.bulk.shards import Shard, Target, index_table, shard_name
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.sinks.files import write_json
from flashelmo.engine.system.files import sync

HALF_EXPONENT = np.uint16(0x7C00)  # all its bits are set in infinity and NaN


class ShardWriter:
    """Writes one shard; its calls may come from any thread, one after the other.

    Args:
        target: what is written where.
        shard: the shard to write.
    """

    def __init__(self, target: Target, shard: Shard) -> None:
        self._target, self._shard = target, shard
        self._values: NativeWriter | ParquetWriter | None = None
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
        expected = int(self._target.rows.offsets(self._shard.records.offsets)[-1])
        if self._n_rows != expected:
            raise FlashElmoError(f"shard {self._shard.number}: expected {expected} rows, found {self._n_rows}")
        path = self._target.folder / f"{shard_name(self._shard.number)}.json"
        values = self._open()
        meta = {**self._shard.meta, "rows": self._n_rows, "files": values.publish()}
        self._values = None
        sync(path.parent)
        write_json(path, meta)
        return meta

    def abort(self) -> None:
        """Leave nothing of an incomplete shard."""
        if self._values is not None:
            self._values.abort()

    def _open(self) -> NativeWriter | ParquetWriter:
        if self._values is None:
            target, shard = self._target, self._shard
            index = index_table(shard.records, target.rows, target.keep_tokens)
            make = NativeWriter if target.format == "native" else ParquetWriter
            self._values = make(target.folder, shard, target.rows, index)
            self._values.begin()
        return self._values
