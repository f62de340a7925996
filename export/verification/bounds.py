"""How far an exported file may lie from the reference: one table, by precision, each bound with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flashelmo.export.metadata import Metadata, Precision


@dataclass(frozen=True)
class Bound:
    """Errors must be less, and the least cosine of two vectors more; None where nothing is asked.

    Attributes:
        max_abs: largest absolute difference.
        relative: ||a - b|| / ||b|| over all vectors of a case.
        worst_vector: the same of one vector, so that one wrong token is not lost among many.
        cosine: of a vector and the reference's.
    """

    max_abs: float | None = None
    relative: float | None = None
    worst_vector: float | None = None
    cosine: float | None = None


# What is said of the published sizes was measured in benchmarks/results/onnx/, sections `error`. The worst vector is
# bounded by about what the cosine lets through, in whatever direction: at 0.02 less than 1 it is off by 0.2.
BOUNDS: Mapping[Precision, Bound] = {
    # The same sums in another order: two results, each within 1e-5 of the exact vectors. At the published sizes 2.3e-6
    # and 5.2e-7 of the vectors, where one that is small and the difference of large sums may lose two digits more.
    "fp32": Bound(max_abs=2e-5, relative=1e-4, worst_vector=1e-3, cosine=0.999999),
    # 11 bits of mantissa: 8.2e-4 at the published sizes; one vector may be off by five times what all together may.
    "fp16": Bound(relative=2e-3, worst_vector=0.01, cosine=0.9999),
    # 8-bit weights per channel, inputs by their range: 0.0145 at the published sizes, and up to twice that with 7 bits.
    # One vector may be off by four times what all together may be.
    "int8": Bound(relative=0.05, worst_vector=0.2, cosine=0.98),
}


def bounds_of_outputs(metadata: Metadata, bounds: Mapping[Precision, Bound] = BOUNDS) -> dict[str, Bound]:
    """The bound of every output but the mask, which must be equal."""
    usual = bounds[metadata.precision]
    result = {f"hidden_states.{k}": usual for k in metadata.layers}
    if metadata.precision == "int8" and 0 in metadata.layers:
        result["hidden_states.0"] = bounds["fp32"]  # only the LSTM's weights have 8 bits
    mixed = usual
    if mixed.max_abs is not None:  # what the coefficients multiply, they multiply the error of
        mixed = replace(mixed, max_abs=mixed.max_abs * sum(map(abs, metadata.mix)))
    result |= {"token_embeddings": mixed, "sentence_embedding": mixed}
    if metadata.stateful:
        # a cell without a clip grows with its sentence, and its rounding with it
        cell = usual if metadata.config.cell_clip is not None else replace(usual, max_abs=None)
        result |= {"new_state.hidden": usual, "new_state.cell": cell}
    return result
