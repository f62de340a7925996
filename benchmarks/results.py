"""The results of one run: rows of figures with what they were measured on, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.errors import FlashElmoError

FAILED = "FAILED"  # prefix of the note of a row that makes a run fail


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        section, model: the kind of figure, such as "bulk" or "single", and the model.
        name, detail: who was measured, such as "int8", and on what, such as "cold cache".
        unit: of the figures; a speed if it ends in "/s", otherwise less is better.
        median, low, p25, p75, high, samples: over the rounds; None if there is no figure: `note` says why.
        interval: the 95% confidence interval, if it is given: two numbers.
        ceiling, ceiling_both: what the machine's measured limits allow, for the LSTM alone, and with the characters.
        ratios: how many times faster than others: by their name, the median of the rounds' own ratios.
        note: any remark on the figure.
    """

    section: str
    model: str = ""
    name: str = ""
    unit: str = ""
    detail: str = ""
    median: float | None = None
    low: float | None = None
    p25: float | None = None
    p75: float | None = None
    high: float | None = None
    samples: list[float] = field(default_factory=list)
    interval: list[float] = field(default_factory=list)
    ceiling: float | None = None
    ceiling_both: float | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def of(cls, samples: Sequence[float], **values: Any) -> Row:
        """Return a row with the quantiles of its samples."""
        return cls(**values).with_samples(samples)

    def with_samples(self, samples: Sequence[float]) -> Row:
        """Return the row with these figures and their quantiles; unchanged if there are none."""
        if not len(samples):
            return self
        low, p25, median, p75, high = map(rounded, np.quantile(samples, [0, 0.25, 0.5, 0.75, 1]))
        kept = list(map(rounded, samples))
        return replace(self, median=median, low=low, p25=p25, p75=p75, high=high, samples=kept)

    @property
    def failed(self) -> bool:
        """Whether it makes a run fail."""
        return self.note.startswith(FAILED)

    @property
    def label(self) -> str:
        """Name and detail in one."""
        return f"{self.name}, {self.detail}" if self.detail else self.name

    @property
    def line(self) -> str:
        """The row in one line, for a list of failures."""
        return ", ".join(filter(None, (self.model, self.section, self.label, self.note)))

    @property
    def utilisation(self) -> float | None:
        """The share of the LSTM's ceiling that the median reaches; sharing can take it above 1."""
        return self._share_of(self.ceiling)

    @property
    def utilisation_both(self) -> float | None:
        """The share of the ceiling of both parts."""
        return self._share_of(self.ceiling_both)

    def _share_of(self, ceiling: float | None) -> float | None:
        if not self.median or not ceiling:
            return None
        return self.median / ceiling if self.unit.endswith("/s") else ceiling / self.median


@dataclass(frozen=True)
class Results:
    """All rows of one run and what they were measured on (see `machine.py`)."""

    machine: dict[str, Any]
    versions: dict[str, Any]
    commit: dict[str, Any] | None
    date: str
    settings: dict[str, Any]
    rows: list[Row]

    def section(self, section: str, model: str | None = None) -> list[Row]:
        """Return the rows of one section, of one model if it is given."""
        return [row for row in self.rows if row.section == section and model in (None, row.model)]

    @property
    def models(self) -> list[str]:
        """Names of the models measured, in order."""
        return list(dict.fromkeys(row.model for row in self.rows if row.model))

    def write(self, path: Path) -> None:
        """Write as JSON, one row per line."""
        path.parent.mkdir(parents=True, exist_ok=True)
        values = asdict(self)
        rows = [{k: v for k, v in row.items() if v not in (None, "", [], {})} for row in values.pop("rows")]
        lines = ",\n".join(map(json.dumps, rows))
        beside = path.with_suffix(".tmp")  # an interrupted run leaves the file unchanged
        beside.write_text(f'{json.dumps(values, indent=1)[:-2]},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")
        beside.replace(path)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what `write` wrote.

        Raises:
            FlashElmoError: the file is something else.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**values, "rows": [Row(**row) for row in values["rows"]]})
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FlashElmoError(f"{path}: expected results of the benchmark: {error}") from None


def new_results(settings: Settings, suite: str, card: Mapping[str, Any] | None = None) -> Results:
    """Return new results of this machine, without rows; also of a card, if one takes part (`machine.card`)."""
    return Results(
        machine=machine.machine() | ({"gpu": card} if card else {}),
        versions=machine.versions(),
        commit={"id": settings.commit, "dirty": False} if settings.commit else machine.commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings={"suite": suite, **settings.to_dict()},
        rows=[],
    )


def median_ratio(ours: Sequence[float], theirs: Sequence[float], unit: str) -> float:
    """Return how many times faster: the median of the ratios of figures that were measured in the same round."""
    speed = unit.endswith("/s")
    return rounded(np.median([a / b if speed else b / a for a, b in zip(ours, theirs, strict=True)]))


def rounded(value: Any) -> float:
    """Round to five significant digits."""
    return float(f"{value:.5g}")
