"""How far an exported file may lie from the reference: one table, by precision, each bound with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flashelmo.export.metadata import Metadata, Precision


@dataclass(frozen=True)
class Bound:
    """Errors must be less, and the least cosine of two vectors more; None where nothing is asked.

    Attributes:
        max_abs: largest absolute difference.
        relative: ||a - b|| / ||b|| over all vectors of a case.
        cosine: of a vector and the reference's, which one wrong token among many breaks.
    """

    max_abs: float | None = None
    relative: float | None = None
    cosine: float | None = None


BOUNDS: Mapping[Precision, Bound] = {
    # The same sums in another order: two results, each within 1e-5 of the exact vectors. 2.6e-6 at the published sizes.
    "fp32": Bound(max_abs=2e-5),
    # 11 bits of mantissa: 8e-4 at the published sizes. A vector of 0.9999 is off by 0.014 of its length.
    "fp16": Bound(relative=2e-3, cosine=0.9999),
    # 8-bit weights per channel, inputs by their range: 0.014 at the published sizes, 0.024 with 7 bits. A vector of
    # 0.98 is off by 0.2 of its length, four times what all together may be.
    "int8": Bound(relative=0.05, cosine=0.98),
}


def bounds_of_outputs(metadata: Metadata, bounds: Mapping[Precision, Bound] = BOUNDS) -> dict[str, Bound]:
    """The bound of every output but the mask, which must be equal."""
    precision = metadata.precision
    result = {f"hidden_states.{k}": bounds[precision] for k in metadata.layers}
    if precision == "int8" and 0 in metadata.layers:
        result["hidden_states.0"] = bounds["fp32"]  # only the LSTM's weights have 8 bits
    mixed = bounds[precision]
    if mixed.max_abs is not None:  # what the coefficients multiply, they multiply the error of
        scale = max(1.0, sum(map(abs, metadata.mix)))
        mixed = Bound(mixed.max_abs * scale, mixed.relative, mixed.cosine)
    result |= {"token_embeddings": mixed, "sentence_embedding": mixed}
    if metadata.stateful:
        result |= {"new_state.hidden": bounds[precision], "new_state.cell": bounds[precision]}
    return result
