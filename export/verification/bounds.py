"""How far each output of an exported file may be from the reference, from its precision's bound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flashelmo.engine.precision import PRECISIONS, Bound
from flashelmo.export.metadata import Metadata


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
