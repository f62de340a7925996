"""What a run did: counts, speed, and which stage was the bottleneck."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flashelmo.engine.arguments import path_of
from flashelmo.engine.bulk.folder import Meta, read_json, shard_numbers
from flashelmo.engine.bulk.shards import shard_name
from flashelmo.engine.sinks.files import writing


@dataclass
class Report:
    """What a run did.

    Attributes:
        records, skipped, tokens: of the shards that this run wrote; skipped are records that could not be read.
        shards, kept: shards that were written, and that were already finished.
        words_computed, steps, steps_saved: see `Statistics`; of all processes together.
        bytes_written: of all files.
        seconds: from first to last byte; busy: of these, those in which reading, computing and writing worked. These
            run at the same time: the one that waited least is the bottleneck.
    """

    records: int = 0
    skipped: int = 0
    tokens: int = 0
    shards: int = 0
    kept: int = 0
    words_computed: int = 0
    steps: int = 0
    steps_saved: int = 0
    bytes_written: int = 0
    seconds: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Speed from text to files."""
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def bottleneck(self) -> str:
        """The stage that the others waited for: reading, computing or writing."""
        return max(self.busy, key=lambda stage: self.busy[stage], default="computing")

    def add_shard(self, entry: Meta) -> None:
        """Count a shard that is on disk, by its entry."""
        self.shards += 1
        self.records += entry["embedded"]
        self.skipped += len(entry["skipped"])
        self.tokens += entry["tokens"]
        self.bytes_written += sum(file["bytes"] for file in entry["files"].values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report, ready for JSON."""
        waited = {stage: round(max(0.0, self.seconds - busy), 3) for stage, busy in self.busy.items()}
        rounded = {
            "seconds": round(self.seconds, 3),
            "busy": {name: round(busy, 3) for name, busy in self.busy.items()},
        }
        more = {"waited": waited, "bottleneck": self.bottleneck, "tokens_per_second": round(self.tokens_per_second, 1)}
        return {**asdict(self), **rounded, **more}

    @staticmethod
    def check(path: str | Path) -> None:
        """Raise FlashElmoError, before the work is done, if `write` could not write the file."""
        path = path_of("report", path)
        if path.exists() and not path.is_file():
            return  # a pipe's reader would take this for the report
        existed = path.exists()
        with writing(path):
            path.open("ab").close()
            if not existed:
                path.unlink()

    def write(self, path: str | Path, folder: Path, num_shards: int = 1, shard_id: int = 0) -> None:
        """Write it as JSON, with a line for each skipped record of the job's shards.

        Raises:
            FlashElmoError: the file cannot be written.
        """
        path = path_of("report", path)
        skipped = list(skipped_records(folder, num_shards, shard_id))
        with writing(path):
            path.write_text(
                json.dumps({**self.to_dict(), "skipped_records": skipped}, indent=1) + "\n", encoding="utf-8"
            )


def skipped_records(folder: Path, num_shards: int = 1, shard_id: int = 0) -> Iterator[str]:
    """Yield a line for each skipped record of a job's finished shards."""
    for number in shard_numbers(folder, num_shards, shard_id):
        yield from read_json(folder / f"{shard_name(number)}.json")["skipped"]
