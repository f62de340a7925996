"""Reading vectors back from a folder of shards, memory-mapped."""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from operator import index
from pathlib import Path
from typing import Any, SupportsIndex, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flashelmo.engine.arguments import shown
from flashelmo.engine.arrays import Array, Int64
from flashelmo.engine.bulk.folder import entry_of, folder_of, read_json, shard_numbers
from flashelmo.engine.bulk.native_shard import NativeValues
from flashelmo.engine.bulk.parquet_shard import ParquetValues
from flashelmo.engine.bulk.shards import Rows, shard_name
from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.sinks.files import RUN

logger = logging.getLogger("flashelmo")

OPEN_SHARDS = 64  # that stay open: their files are mapped
OPEN_PARQUET_SHARDS = 8  # each has a group of rows in memory


class Embeddings:
    """The output of `flashelmo embed`: each record's vectors, by number or id, with the shapes of `ElmoEmbedder.embed`.

    `e[7]` and `e["P12345"]` are a record's vectors, as read-only views of the file; `e[10:20]` is a list of those of
    these records; iteration yields all in order, and `len(e)` is their number. The number of a skipped record raises
    an IndexError. An id that occurs several times refers to its first record. Each thread needs its own object.
    Pickling keeps only the folder's path: other processes open it themselves.

    Attributes:
        run: the run's settings: the model, the requested output, the input.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.run = read_json(folder / RUN)
        try:
            rows = self.run["rows"]
            self._rows = Rows(tuple(rows["shape"]), rows["dtype"], rows["pooled"], rows["n_extra"])
            self._is_native = self.run["format"] == "native"
            np.empty((0, *self._rows.shape), self._rows.dtype)
        except (KeyError, TypeError, ValueError):
            raise FlashElmoError(f"{folder / RUN}: expected a run's settings, found something else") from None
        self._metas = [entry_of(folder, number) for number in shard_numbers(folder)]
        self._begins = [meta["begin"]["record"] for meta in self._metas]
        self._open: OrderedDict[int, _Shard] = OrderedDict()
        numbers = [meta["shard"] for meta in self._metas]
        if numbers != list(range(len(numbers))) or not (self._metas and self._metas[-1]["last"]):
            logger.warning("%s: not finished: %d shards are there, and records are missing", folder, len(numbers))

    def __reduce__(self) -> tuple[Any, ...]:
        return open_embeddings, (os.path.abspath(self._folder),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._folder)!r}, {len(self)} records)"

    def __len__(self) -> int:
        """Records that have vectors."""
        return sum(meta["embedded"] for meta in self._metas)

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> Array: ...
    @overload
    def __getitem__(self, key: slice) -> list[Array]: ...
    def __getitem__(self, key: SupportsIndex | str | slice) -> Array | list[Array]:
        """Vectors [L, T, 2P] of a record, or what of them was kept; of a slice's records a list.

        Raises:
            KeyError, IndexError: there is no such record.
            FlashElmoError: a key that is neither number nor id, or files that are damaged.
        """
        if isinstance(key, slice):
            numbers = range(*key.indices(self._end))
            return [self[number] for number in numbers if self._find(number) is not None]
        shard, b = self._place(key)
        return self._rows.as_embedded(shard.rows(b))

    def __iter__(self) -> Iterator[Array]:
        for k in range(len(self._metas)):
            shard = self._shard(k)
            for b in range(len(shard.numbers)):
                yield self._rows.as_embedded(shard.rows(b))

    def __contains__(self, key: object) -> bool:
        """Whether the record with this number (from the end if negative) or id has vectors."""
        number = self._by_id.get(key) if isinstance(key, str) else self._number(key)
        return number is not None and self._find(number) is not None

    def ids(self) -> Iterator[str]:
        """The id of every record, in order; its number if it has no id."""
        for k in range(len(self._metas)):
            yield from self._shard(k).column("id").to_pylist()

    def tokens(self, key: SupportsIndex | str) -> list[str]:
        """A record's tokens.

        Raises:
            KeyError, IndexError: there is no such record.
            FlashElmoError: they were not kept.
        """
        shard, b = self._place(key)
        tokens: list[str] = shard.column("tokens")[b].as_py()
        return tokens

    @property
    def _end(self) -> int:
        """Behind the last record's number."""
        return self._metas[-1]["end"]["record"] if self._metas else 0

    @cached_property
    def _by_id(self) -> dict[str, int]:
        """Number of each id; made when the first one is asked for."""
        found: dict[str, int] = {}
        for k in reversed(range(len(self._metas))):  # of equal ids the first one stays
            shard = self._shard(k)
            found.update(zip(shard.column("id").to_pylist()[::-1], shard.numbers[::-1].tolist(), strict=True))
        return found

    def _place(self, key: SupportsIndex | str) -> tuple[_Shard, int]:
        number = self._by_id[key] if isinstance(key, str) else self._number(key)
        if number is None:
            raise FlashElmoError(f"record: expected its number or its id, found {shown(key)}")
        found = self._find(number)
        if found is None:
            raise IndexError(f"{self._folder}: there is no record {key}")
        return found

    def _number(self, key: object) -> int | None:
        """A record's number by one that may count from the end; None where it is none."""
        if isinstance(key, bool):
            return None
        try:
            number = index(key)  # type: ignore[arg-type]
        except TypeError:
            return None
        return number + self._end if number < 0 else number

    def _find(self, number: int) -> tuple[_Shard, int] | None:
        """The shard and the position in it of a record."""
        k = bisect_right(self._begins, number) - 1
        if k < 0:
            return None
        shard = self._shard(k)
        b = int(np.searchsorted(shard.numbers, number))
        return (shard, b) if b < len(shard.numbers) and shard.numbers[b] == number else None

    def _shard(self, k: int) -> _Shard:
        if k not in self._open:
            make, most = (NativeValues, OPEN_SHARDS) if self._is_native else (ParquetValues, OPEN_PARQUET_SHARDS)
            if len(self._open) >= most:
                self._open.popitem(last=False)
            path = self._folder / shard_name(self._metas[k]["shard"])
            self._open[k] = _Shard(path, partial(make, rows=self._rows))
        self._open.move_to_end(k)
        return self._open[k]


class _Shard:
    """An open shard, by the path of its files without their suffixes."""

    def __init__(self, path: Path, open_values: Callable[[Path], NativeValues | ParquetValues]) -> None:
        self.path, self._open_values = path, open_values
        self._columns: dict[str, Any] = {}  # of its index, those that were read

    @cached_property
    def numbers(self) -> Int64:
        """Its records' numbers [B], ascending."""
        numbers: Int64 = self.column("record").to_numpy()
        return numbers

    @cached_property
    def _values(self) -> NativeValues | ParquetValues:
        return self._open_values(self.path)

    def rows(self, b: int) -> Array:
        """The vectors of its record b."""
        with _reading(self.path):
            return self._values.rows(b)

    def column(self, name: str) -> Any:
        """A column of its index."""
        if name not in self._columns:
            path = self.path.with_suffix(".parquet")
            with _reading(path):
                schema = pq.read_schema(path, memory_map=True)
                if name not in schema.names:
                    raise FlashElmoError(f"{path}: expected a column {name}, found {', '.join(schema.names)}")
                column = pq.read_table(path, columns=[name], memory_map=True)[name]
                column.validate(full=True)
                self._columns[name] = column
        return self._columns[name]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of a shard's files as one line that names them."""
    try:
        yield
    except FlashElmoError:
        raise
    except (pa.ArrowException, OSError, ValueError, IndexError) as error:
        raise FlashElmoError(f"{path}: cannot be read: {reason_of(error)}; `flashelmo verify` tells more") from None


def open_embeddings(path: str | Path) -> Embeddings:
    """Open a folder of shards that `flashelmo embed` wrote; warns if it is not finished.

    Raises:
        FlashElmoError: `path` is not a folder of shards.
    """
    return Embeddings(folder_of("path", path))
