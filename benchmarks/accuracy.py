"""How far vectors lie from the exact ones, and the check that stands before every timing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.precision import PRECISIONS, Place


def why_wrong(found: Sequence[Array], expected: Sequence[Array], precision: str, place: Place = "cpu") -> str:
    """Empty if vectors are within their precision's bounds, otherwise what was expected; NaN breaks every bound.

    Args:
        found, expected: of each sentence, [L, T, 2P].
        place: where they were computed.
    """
    bound = PRECISIONS[precision].bounds[place]
    for kind, errors, most in (
        ("absolute", absolute_errors(found, expected), bound.max_abs),
        ("relative", relative_errors(found, expected), bound.relative),
    ):
        if most is not None and not np.max(errors) < most:
            return f"expected vectors within {most:g} of the reference's ({kind}), found {np.max(errors):.2g}"
    return ""


def relative_errors(found: Sequence[Array], expected: Sequence[Array]) -> list[float]:
    """||found - expected|| / ||expected|| of every layer, over all sentences [L, T, 2P]."""
    a, b = (np.concatenate(vectors, axis=1).astype(np.float64) for vectors in (found, expected))
    return [float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]


def absolute_errors(found: Sequence[Array], expected: Sequence[Array]) -> list[float]:
    """Largest absolute difference in every layer."""
    a, b = (np.concatenate(vectors, axis=1).astype(np.float64) for vectors in (found, expected))
    return [float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True)]


def error_rows(model: str, name: str, found: Sequence[Array], exact: Sequence[Array], note: str) -> list[Row]:
    """Largest absolute and relative error of each layer; one row that has failed where a vector is not finite."""
    if not all(np.isfinite(vectors).all() for vectors in found):
        return [Row("error", model, name, "relative error", note=f"{FAILED}: expected finite vectors, found others")]
    units = {"max abs error": absolute_errors(found, exact), "relative error": relative_errors(found, exact)}
    return [
        Row("error", model, name, unit, f"layer {layer}", note=note).with_samples([error])
        for unit, errors in units.items()
        for layer, error in enumerate(errors)
    ]
