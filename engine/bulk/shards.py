"""What shards are: fixed ranges of records, whose files depend only on their records.

    shard-00000000.safetensors   values [rows, layers, 2P] (without layers if there is only one), offsets int64 [B + 1]
    shard-00000000.parquet       a row for each record: record, id, n_tokens, tokens, row; or the vectors too
    shard-00000000.json          written last: counts, and size and sha256 of the others

A row is a token's vectors, or, if they are pooled, a record's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa

from flashelmo.engine.arrays import Array, Int64
from flashelmo.engine.bulk.parts import Part, Place, Records
from flashelmo.engine.output import Output

ShardFormat: TypeAlias = Literal["native", "parquet"]

FORMATS: tuple[ShardFormat, ...] = ("native", "parquet")
INDEX_ROWS = 1 << 16  # per row group of the index


def shard_name(number: int) -> str:
    """Return the files' name without a suffix."""
    return f"shard-{number:08d}"


@dataclass(frozen=True)
class Rows:
    """What a row of the output is.

    Attributes:
        shape: (L, 2P) for several layers, (2P,) for one.
        dtype: "float32" or "float16".
        pooled: whether there is one row per record, not per token.
        n_extra: rows of a record beyond its tokens: the boundaries, if they are kept.
    """

    shape: tuple[int, ...]
    dtype: str
    pooled: bool
    n_extra: int = 0

    @classmethod
    def of(cls, output: Output, n_layers: int, size: int, keep_boundaries: bool) -> Rows:
        """Return the rows of an output, for a model of n_layers layers (with the characters' one) and 2P = size."""
        shape = output.shape((n_layers, 1, size))
        token_axis = () if output.pool else (len(shape) - 2,)
        kept = tuple(n for axis, n in enumerate(shape) if axis not in token_axis)
        return cls(kept, output.dtype, bool(output.pool), 2 * keep_boundaries)

    @property
    def n_bytes(self) -> int:
        """Bytes of a row."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def offsets(self, token_offsets: Int64) -> Int64:
        """Return where each record's rows begin [B + 1]."""
        n_records = len(token_offsets) - 1
        steps = np.arange(n_records + 1, dtype=np.int64)
        return steps if self.pooled else (token_offsets - token_offsets[0] + self.n_extra * steps).astype(np.int64)

    def of_record(self, vectors: Array) -> Array:
        """Return a record's vectors [L, T, 2P], [T, 2P], pooled [L, 2P] or [2P], as rows [n, *shape]."""
        if self.pooled:
            return vectors[None]
        return vectors if len(self.shape) == 1 else vectors.transpose(1, 0, 2)

    def as_embedded(self, rows: Array) -> Array:
        """Return a record's rows in the shape that an embedder returns."""
        if self.pooled:
            rows = rows[0]
            return rows
        return rows if len(self.shape) == 1 else rows.transpose(1, 0, 2)


@dataclass(frozen=True)
class Target:
    """What is written where; see `embed_corpus`."""

    folder: Path
    output: Output
    rows: Rows
    format: ShardFormat
    keep_tokens: bool


@dataclass(frozen=True)
class Shard:
    """Records that are written together.

    Attributes:
        number: of the shard, from 0.
        begin, end: the records' place in the input, readable or not.
        records: the readable ones.
        input_sha256: of the records' raw bytes.
        last: whether the input ends with it.
    """

    number: int
    begin: Place
    end: Place
    records: Records
    input_sha256: str
    last: bool

    @classmethod
    def of(cls, number: int, part: Part, last: bool) -> Shard:
        """Decode a part of the input. FlashElmoError: a record that cannot be read."""
        return cls(number, part.begin, part.end, part.records(), part.sha256, last)

    @property
    def meta(self) -> dict[str, Any]:
        """Return what is known before it is embedded."""
        return {
            "shard": self.number,
            "begin": asdict(self.begin),
            "end": asdict(self.end),
            "last": self.last,
            "input_sha256": self.input_sha256,
            "records": self.end.record - self.begin.record,
            "embedded": len(self.records),
            "tokens": int(self.records.offsets[-1] - self.records.offsets[0]),
            "skipped": self.records.skipped,
        }


def index_table(records: Records, rows: Rows, keep_tokens: bool) -> pa.Table:
    """Return the index of a shard: a row for each record."""
    offsets = records.offsets - records.offsets[0]
    columns: dict[str, Any] = {
        "record": pa.array(records.numbers, pa.int64()),
        "id": pa.array(list(map(str, records.numbers)) if records.ids is None else records.ids, pa.string()),
        "n_tokens": pa.array(np.diff(offsets), pa.int32()),
    }
    if keep_tokens:
        columns["tokens"] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), records.tokens)
    columns["row"] = pa.array(rows.offsets(offsets)[:-1], pa.int64())
    return pa.table(columns)
