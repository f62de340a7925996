"""How far the vectors of each precision lie from the exact ones, and the check that stands before every timing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flashelmo.benchmarks.contestant import start
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings, Subject, precision_of
from flashelmo.benchmarks.text import load_sentences
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.errors import FlashElmoError

MAX_ABSOLUTE = {"fp32": 1e-5}  # hidden states lie in about [-3, 3]; the bound against published vectors
MAX_RELATIVE = {"bf16": 0.02, "int8": 0.08}  # three times what random weights of the original size show


def relative_errors(found: Sequence[Array], expected: Sequence[Array]) -> list[float]:
    """||found - expected|| / ||expected|| of every layer, over all sentences [L, T, 2P]."""
    a, b = (np.concatenate(vectors, axis=1).astype(np.float64) for vectors in (found, expected))
    return [float(np.linalg.norm(x - y) / np.linalg.norm(y)) for x, y in zip(a, b, strict=True)]


def max_error(found: Sequence[Array], expected: Sequence[Array]) -> float:
    """Largest absolute difference."""
    return float(np.max([np.abs(a - b).max(initial=0) for a, b in zip(found, expected, strict=True)]))


def check(name: str, found: Sequence[Array], expected: Sequence[Array]) -> None:
    """Raise FlashElmoError unless a contestant's vectors are right, within its precision's bound.

    NaN fails every bound.
    """
    precision = precision_of(name)
    if precision in MAX_ABSOLUTE:
        error, bound = max_error(found, expected), MAX_ABSOLUTE[precision]
    else:
        error, bound = float(np.max(relative_errors(found, expected))), MAX_RELATIVE[precision]
    if not error <= bound:
        raise FlashElmoError(f"{name}: expected vectors within {bound} of the reference's, found {error:.2g}")


def measure_errors(subject: Subject, settings: Settings) -> list[Row]:
    """Relative error of every layer against float32, and float32 against the reference in float64."""
    text, _ = load_sentences(40 * settings.error_sentences, settings.text, settings.seed)
    sentences = text[: settings.error_sentences]
    with start(subject, settings, "reference", precision="fp64") as worker:
        exact = worker.call("vectors", sentences)
    with start(subject, settings, "fp32") as worker:
        ours = worker.call("vectors", sentences)
    by_layer = [float(np.abs(a - b).max()) for a, b in zip(_layers(ours), _layers(exact), strict=True)]
    rows = _rows(subject, "fp32", "max abs error against fp64", by_layer)
    for name in settings.contestants:
        if precision_of(name) not in MAX_RELATIVE:
            continue
        try:
            with start(subject, settings, name) as worker:
                found = worker.call("vectors", sentences)
        except FlashElmoError as reason:
            rows.append(Row("error", subject.name, name, "relative error", note=str(reason)))
            continue
        rows += _rows(subject, name, "relative error", relative_errors(found, ours))
    return rows


def _rows(subject: Subject, name: str, unit: str, by_layer: Sequence[float]) -> list[Row]:
    common = {"section": "error", "model": subject.name, "name": name, "unit": unit}
    return [Row.of([error], **common, detail=f"layer {layer}") for layer, error in enumerate(by_layer)]


def _layers(vectors: Sequence[Array]) -> Array:
    """All sentences end to end: [L, tokens, 2P]."""
    return np.concatenate(vectors, axis=1)
