"""Rows of results on a GPU: their words, and their samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flashelmo.benchmarks.results import Row

UNIT = "tokens/s"
CARD = "card"  # in place of the model where a row is of none; a row's words are never empty


def with_samples(row: Row, samples: Sequence[float]) -> Row:
    """The row with these figures and their quantiles; as it is where there are none."""
    if not samples:
        return row
    found = Row.of(samples, section="", model="", name="", unit="")
    return replace(
        row,
        median=found.median,
        low=found.low,
        p25=found.p25,
        p75=found.p75,
        high=found.high,
        samples=found.samples,
    )


def speeds(tokens: int, samples: Sequence[float]) -> list[float]:
    """Tokens a second of calls that took so many microseconds."""
    return [1e6 * tokens / us for us in samples]
