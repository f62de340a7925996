"""How far vectors are from the exact ones, and the check that precedes every timing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import PRECISIONS, Backend, Bound

ANY = Bound()  # no bound: it is enough that vectors are finite


class Piece(NamedTuple):
    """Vectors [rows, 2P] that should be equal or close; `detail` says which, such as "layer 0"."""

    detail: str
    found: Float32
    expected: Float32
    same_bits: bool = False

    def errors(self, bound: Bound) -> Iterator[tuple[str, float, str]]:
        """Yield unit and value of the largest absolute and the relative error, and what is wrong; NaN always is."""
        difference = np.abs(self.found - self.expected)
        norm = max(float(np.linalg.norm(self.expected)), float(np.finfo(np.float64).tiny))
        for unit, error, limit in (
            ("max abs error", float(difference.max(initial=0)), bound.max_abs),
            ("relative error", float(np.linalg.norm(difference)) / norm, bound.relative),
        ):
            limit = 0.0 if self.same_bits else np.inf if limit is None else limit
            wanted = "the same bits" if self.same_bits else f"less than {limit:g}"
            right = error == 0 if self.same_bits else error < limit
            yield unit, error, "" if right else f"{unit} {error:.2g}, expected {wanted}"


def layers(found: Sequence[Float32], expected: Sequence[Float32]) -> Iterator[Piece]:
    """Yield a piece for each layer of all sentences together, whose vectors are [L, ..., 2P].

    Raises:
        FlashElmoError: the number of sentences or the shape is not as expected.
    """
    if len(found) != len(expected):
        raise FlashElmoError(f"expected vectors of {len(expected)} sentences, found {len(found)}")
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a.shape != b.shape:
            raise FlashElmoError(f"sentence {k}: expected shape {list(b.shape)}, found {list(a.shape)}")
    ends = [
        np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in vectors], axis=1).astype(np.float64)
        for vectors in (found, expected)
    ]
    for k, (a, b) in enumerate(zip(*ends, strict=True)):
        yield Piece(f"layer {k}", a, b)


def error_rows(row: Row, pieces: Iterable[Piece], bound: Bound = ANY) -> list[Row]:
    """Return the row with each piece's errors; those that break the bound fail the run and say so."""
    rows = []
    for piece in pieces:
        for unit, error, wrong in piece.errors(bound):
            each = replace(row, unit=unit, detail=piece.detail, note=f"{FAILED}: {wrong}" if wrong else row.note)
            rows.append(each.with_samples([error] if np.isfinite(error) else []))
    return rows


def why_wrong(found: Sequence[Float32], expected: Sequence[Float32], precision: str, backend: Backend = "cpu") -> str:
    """Return why sentences' vectors [L, T, 2P] break their precision's bounds on their backend; empty if not."""
    return beyond(found, expected, PRECISIONS[precision].bounds[backend])


def beyond(found: Sequence[Float32], expected: Sequence[Float32], bound: Bound) -> str:
    """Return how sentences' vectors [L, T, 2P] break a bound; empty if they do not."""
    rows = error_rows(Row("error"), layers(found, expected), bound)
    return next((f"{row.detail}: {row.note.removeprefix(f'{FAILED}: ')}" for row in rows if row.failed), "")
