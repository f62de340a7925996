"""What still has to be written: shards, cut out of the input; all of a job, or single ones that are asked for."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flashelmo.engine.arguments import is_stream
from flashelmo.engine.bulk.folder import Meta
from flashelmo.engine.bulk.parts import Part, Place, Reader, Records
from flashelmo.engine.bulk.shards import Rows, Shard
from flashelmo.engine.errors import FlashElmoError

# The default number of records per shard aims at these: its bytes, and its tokens, which are read at once.
SHARD_BYTES, SHARD_TOKENS = 1 << 30, 1 << 22
FEWEST_RECORDS, MOST_RECORDS = 1 << 6, 1 << 16
SAMPLE_RECORDS, TOKENS_A_RECORD = 256, 25  # records that are sampled, and their assumed length if none can be
END_BYTES = 1 << 20  # at either end of an input, which identify it


def default_shard_records(reader: Reader, rows: Rows) -> int:
    """Return records per shard of about 1 GiB and at most some million tokens, a power of two, from the first records.

    Standard input or a pipe cannot be read again: its records are assumed to be sentences.

    Raises:
        FlashElmoError: the first records cannot be read.
    """
    n_tokens = float(TOKENS_A_RECORD)
    if (records := first_records(reader)) is not None:
        offsets = records.offsets
        n_tokens = max(1.0, float(offsets[-1] - offsets[0]) / max(1, len(offsets) - 1))
    n_records = min(SHARD_BYTES / (rows.n_bytes * (1 if rows.pooled else n_tokens)), SHARD_TOKENS / n_tokens)
    return min(MOST_RECORDS, max(FEWEST_RECORDS, 1 << max(0, round(math.log2(max(1.0, n_records))))))


def first_records(reader: Reader) -> Records | None:
    """Return the first records, which are read again afterwards; None if there are none, or rereading is impossible.

    Raises:
        FlashElmoError: they cannot be read.
    """
    part = None if is_stream(reader.name) else reader.take(SAMPLE_RECORDS)
    if part is None:
        return None
    reader.seek(part.begin)
    return part.records()


def describe_input(reader: Reader) -> dict[str, Any]:
    """Return what identifies an input: how it is read, and for a file its name, size, first and last bytes."""
    described: dict[str, Any] = {"name": os.path.basename(reader.name), **reader.options}
    path = Path(os.path.expanduser(reader.name))
    if path.is_file() and not is_stream(path):
        with path.open("rb") as file:
            described["bytes"] = size = path.stat().st_size
            described["sha256_of_first_mib"] = hashlib.sha256(file.read(END_BYTES)).hexdigest()
            file.seek(max(0, size - END_BYTES))
            described["sha256_of_last_mib"] = hashlib.sha256(file.read(END_BYTES)).hexdigest()
    return described


@dataclass(frozen=True)
class Unit:
    """A shard's number, the place of its first record (see `Place`), and whether the input ends with it."""

    shard: int
    record: int
    line: int
    byte: int
    last: bool


class Source:
    """The unfinished shards of a job, in order.

    Args:
        reader: of the input.
        n: records per shard.
        kept: entries of the finished shards, by number; their records are compared and skipped.
        num_shards, shard_id: see `embed_corpus`; other jobs' shards are skipped.
    """

    def __init__(
        self, reader: Reader, n: int, kept: Mapping[int, Meta], num_shards: int = 1, shard_id: int = 0
    ) -> None:
        self._reader, self._n, self._kept = reader, n, kept
        self._num_shards, self._shard_id = num_shards, shard_id
        self._part: Part | None = None  # the one that comes next, once it is read
        self._place = Place()  # where it begins
        self._at_end = False

    @property
    def number(self) -> int:
        """The number of the shard that comes next."""
        return self._place.record // self._n

    def shards(self) -> Iterator[Shard]:
        """Yield shards from where the last call left off: it may be called again after an error."""
        for number, part, last in self.parts():
            yield Shard.of(number, part, last)
            del part

    def parts(self) -> Iterator[tuple[int, Part, bool]]:
        """Yield, as `shards` does, a shard's number, its part of the input, and whether the input ends with it."""
        while not self._at_end:
            part = self._part = self._part or self._take(self._place) or _no_part()
            following = self._take(part.end) if part.n_records == self._n else None
            number, last = self.number, following is None
            if number in self._kept:
                _check_kept(self._reader.name, part, last, self._kept[number])
            self._part, self._place, self._at_end = following, part.end, last
            if number not in self._kept and number % self._num_shards == self._shard_id:
                yield number, part, last
            del part, following

    def _take(self, place: Place) -> Part | None:
        """Return the records of a shard, which begin at this place."""
        self._reader.seek(place)
        return self._reader.take(self._n)


class UnitSource:
    """The shards of units, read from where each begins.

    Args:
        reader: of the input.
        n: records per shard.
        units: those to do.
    """

    def __init__(self, reader: Reader, n: int, units: Iterable[Unit]) -> None:
        self._reader, self._n, self._units = reader, n, iter(units)
        self._unit: Unit | None = None  # the one being read
        self.number = 0

    def shards(self) -> Iterator[Shard]:
        """Do as `Source.shards`."""
        n = self._n
        while (unit := self._unit or next(self._units, None)) is not None:
            self._unit, self.number = unit, unit.shard
            self._reader.seek(Place(unit.record, unit.line, unit.byte))
            part = self._reader.take(n)
            if part is None:
                if unit.record:
                    raise FlashElmoError(f"{self._reader.name}: expected record {unit.record}, found the end")
                part = _no_part()
            if part.n_records < n and not unit.last:
                found = f"expected {n} records from record {unit.record} on, found {part.n_records}"
                raise FlashElmoError(f"{self._reader.name}: {found}; the input has changed: overwrite=True starts over")
            self._unit = None
            yield Shard.of(unit.shard, part, unit.last)


def _check_kept(name: str, part: Part, last: bool, meta: Meta) -> None:
    """Raise FlashElmoError if the input, of this name, is not the one from which a shard was made."""
    found = (part.sha256, asdict(part.end), last)
    if found != (meta["input_sha256"], meta["end"], meta["last"]):
        records = f"records {part.begin.record} to {part.end.record - 1}"
        what = f"{records} are not those of shard {meta['shard']}"
        raise FlashElmoError(f"{name}: {what}; the input has changed: overwrite=True starts over")


def _no_part() -> Part:
    """Return the part of an input without records: a shard without any."""
    none = Records(np.zeros(0, np.int64), None, pa.array([], pa.string()), np.zeros(1, np.int64))
    return Part(Place(), Place(), 0, b"", lambda: none)
