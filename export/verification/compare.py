"""Compares outputs with what they should be: errors where there are tokens, exact zeros where there are none.

And how far each may be from it, from its precision's bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flashelmo.engine.arrays import Array, Bool, Float64, Floats
from flashelmo.engine.precision import PRECISIONS, Bound
from flashelmo.export.metadata import Metadata
from flashelmo.export.verification.report import OutputError

TINY = 0.1  # of the root mean square of the lengths; the small model has no vector shorter than a third of it


@dataclass(frozen=True)
class Expected:
    """The correct value of one output.

    Attributes:
        values: [..., D], zero where nothing is present.
        present: bool [...], where there are vectors to compare.
    """

    values: Float64
    present: Bool


def expected_outputs(layers: Sequence[Floats], mask: Bool, metadata: Metadata) -> dict[str, Expected]:
    """Return the outputs for sentences' layers [L, tokens, 2P] and mask [B, T], mixed according to the metadata."""
    padded = np.zeros((len(metadata.mix), *mask.shape, metadata.config.output_size))
    if layers:
        padded[:, mask] = np.concatenate(layers, axis=1)
    mixed = np.tensordot(metadata.mix, padded, axes=1)
    lengths = mask.sum(axis=1)
    means = mixed.sum(axis=1) / np.maximum(lengths, 1)[:, None]
    result = {f"hidden_states.{k}": Expected(padded[k], mask) for k in metadata.layers}
    return result | {"token_embeddings": Expected(mixed, mask), "sentence_embedding": Expected(means, lengths > 0)}


def expected_states(states: Mapping[str, Floats]) -> dict[str, Expected]:
    """Return the states {"hidden": [2 * LSTM layers, B, P], "cell": ...} after a batch, all of whose rows ran."""
    return {
        f"new_state.{name}": Expected(state.astype(np.float64), np.ones(state.shape[:2], bool))
        for name, state in states.items()
    }


class Comparison:
    """Collects one case's vectors, and what no bound allows: a wrong mask or shape, NaN, padding that is not zero.

    Attributes:
        problems: such as "hidden_states.1: padding is not zero".
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._pairs: dict[str, list[tuple[Float64, Float64]]] = {}

    def add(self, found: Mapping[str, Array], expected: Mapping[str, Expected], mask: Bool) -> None:
        """Compare one batch's outputs; missing ones are left to the check of the graph."""
        if "mask" in found and not np.array_equal(found["mask"], mask):
            self.problems.append("mask: differs from where the tokens are")
        for name in expected.keys() & found.keys():
            self._add(name, np.asarray(found[name], np.float64), expected[name])

    def errors(self) -> tuple[OutputError, ...]:
        """Return the errors of all compared outputs, ordered by name."""
        pairs = ((name, zip(*self._pairs[name], strict=True)) for name in sorted(self._pairs))
        return tuple(output_error(name, *map(np.concatenate, both)) for name, both in pairs)

    def _add(self, name: str, found: Float64, expected: Expected) -> None:
        if found.shape != expected.values.shape:
            self.problems.append(f"{name}: shape {list(found.shape)}, expected {list(expected.values.shape)}")
            return
        if not np.isfinite(found).all():
            self.problems.append(f"{name}: holds NaN or infinity")
        if found[~expected.present].any():
            self.problems.append(f"{name}: not zero where there is no token")
        self._pairs.setdefault(name, []).append((found[expected.present], expected.values[expected.present]))


def output_error(name: str, found: Float64, expected: Float64) -> OutputError:
    """Return the errors of vectors [N, D], N >= 0, to four digits."""
    if not np.isfinite(found).all():
        return OutputError(name, len(found), math.inf, math.inf, math.inf, -1.0)
    difference = found - expected
    return OutputError(
        name,
        vectors=len(found),
        max_abs=_rounded(float(np.abs(difference).max(initial=0.0))),
        relative=_rounded(_ratio(float(np.linalg.norm(difference)), float(np.linalg.norm(expected)))),
        worst_vector=_rounded(_worst_vector(difference, expected)),
        cosine=round(_least_cosine(found, expected), 9),
    )


def _ratio(off: float, size: float) -> float:
    return off / size if size else math.inf if off else 0.0


def _worst_vector(difference: Float64, expected: Float64) -> float:
    """Return the largest error of a vector relative to its length, which counts as at least TINY of their RMS."""
    off, sizes = np.linalg.norm(difference, axis=1), np.linalg.norm(expected, axis=1)
    if not sizes.any():
        return _ratio(float(off.max(initial=0.0)), 0.0)
    usual = np.sqrt(np.square(sizes).mean())
    return float((off / np.maximum(sizes, TINY * usual)).max())


def _least_cosine(a: Float64, b: Float64) -> float:
    """Return the least cosine of a row's two vectors: 1 where both are zero, 0 where one is."""
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    cosines = np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    return float(cosines.min(initial=1.0))


def _rounded(value: float) -> float:
    return float(f"{value:.3e}")


def bounds_of_outputs(metadata: Metadata, bounds: Mapping[str, Bound] | None = None) -> dict[str, Bound]:
    """Return the bound of every output except the mask, which must be equal.

    Args:
        bounds: by precision, instead of those of `PRECISIONS`.
    """

    def bound(precision: str) -> Bound:
        return PRECISIONS[precision].on("onnx").bound if bounds is None else bounds[precision]

    usual = bound(metadata.precision)
    result = {f"hidden_states.{k}": usual for k in metadata.layers}
    if metadata.arithmetic.lstm_weights == "int8" and 0 in metadata.layers:
        result["hidden_states.0"] = bound("fp32")  # only the LSTM's weights have 8 bits
    mixed = usual
    if mixed.max_abs is not None:  # coefficients multiply errors as well
        mixed = replace(mixed, max_abs=mixed.max_abs * sum(map(abs, metadata.mix)))
    result |= {"token_embeddings": mixed, "sentence_embedding": mixed}
    if metadata.stateful:
        # without a clip, a cell and its rounding error grow with the sentence
        cell = usual if metadata.config.cell_clip is not None else replace(usual, max_abs=None)
        result |= {"new_state.hidden": usual, "new_state.cell": cell}
    return result
