"""A toy of an exported file: the contract's inputs and outputs, with sums for values, which a test does in its head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_models import BILM

from flashelmo.engine.text.characters import WordEncoder
from flashelmo.export.metadata import STATES, Metadata

METADATA = Metadata(BILM, None, "fp32", (0, 2), (0.2, 0.5, 0.3), characters=12)
SIZE = BILM.output_size


def toy_model(path: Path, metadata: Metadata = METADATA, *, external: bool = False) -> Path:
    """A file whose layer K is (K + 1) times the sum of a token's ids, plus the state's first value of its row.

    token_embeddings are 10 times the sum and sentence_embedding 100 times that of all tokens, all of them 2P times.
    The new states are the old ones plus the sentence's sum, or plus 1 for the cell.
    """
    element = TensorProto.FLOAT16 if metadata.precision == "fp16" else TensorProto.FLOAT
    number_type = np.float16 if metadata.precision == "fp16" else np.float32
    config, nodes, weights = metadata.config, [], {}

    def node(kind: str, output: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def weight(name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        weights[name] = np.asarray(value, dtype)
        return name

    axes = {"character_ids": [2], "word_ids": []}
    ids = [name for name, size in zip(axes, (config.character_size, config.word_size), strict=True) if size]
    axes_of_ids: list[str | int | None] = ["batch_size", "sequence_length", metadata.characters or "characters"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, axes_of_ids[: 2 + len(axes[name])]) for name in ids
    ]
    sums = [
        node("ReduceSum", f"sum.{name}", name, weight(f"axes.{name}", axes[name]), keepdims=0, noop_with_empty_axes=1)
        for name in ids
    ]
    flat = sums[0] if len(sums) == 1 else node("Add", "sum", *sums)
    total = node("Cast", "total", node("Unsqueeze", "column", flat, weight("last", [2])), to=element)
    outputs = [helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch_size", "sequence_length"])]
    node("Greater", "mask", flat, weight("zero", 0))
    per_sentence = node("ReduceSum", "per sentence", total, weight("1", [1]), keepdims=0)
    state = None
    if metadata.stateful:
        for name, size in (("state.hidden", config.projection_size), ("state.cell", config.cell_size)):
            kind = element if name == "state.hidden" else TensorProto.FLOAT
            shape: list[str | int | None] = [2 * config.n_layers, "batch_size", size]
            inputs.append(helper.make_tensor_value_info(name, kind, shape))
            outputs.append(helper.make_tensor_value_info(STATES[name], kind, shape))
        node("Add", "new_state.hidden", "state.hidden", per_sentence)
        node("Add", "new_state.cell", "state.cell", weight("one", 1, np.float32))
        first = node("Gather", "first layer", "state.hidden", weight("first", 0), axis=0)
        state = node("Unsqueeze", "state", node("Slice", "first value", first, "first.", "1", "1"), weight("u", [1]))
        weight("first.", [0])
    layers = {f"hidden_states.{layer}": layer + 1 for layer in metadata.layers}
    for name, factor in (layers | {"token_embeddings": 10}).items():
        vectors = node("Mul", f"{name}.", total, weight(f"{name}.factor", np.full(SIZE, factor), number_type))
        node("Identity" if state is None else "Add", name, *([vectors] if state is None else [vectors, state]))
        outputs.append(helper.make_tensor_value_info(name, element, ["batch_size", "sequence_length", SIZE]))
    node("Mul", "sentence_embedding", per_sentence, weight("hundred", np.full(SIZE, 100), number_type))
    outputs.append(helper.make_tensor_value_info("sentence_embedding", element, ["batch_size", SIZE]))
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "toy", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata.to_properties())
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.checker.check_model(model)
    if external:
        onnx.save(
            model,
            path,
            save_as_external_data=True,
            location=f"{path.name}_data",
            size_threshold=60,
            convert_attribute=False,
        )
    else:
        onnx.save(model, path)
    return path


def sums(sentence: list[str]) -> list[int]:
    """Sum of every token's ids, with the padding of a whole row."""
    ids = WordEncoder(BILM, None).character_ids(sentence)
    assert ids is not None
    return [int(row.sum()) for row in ids]


def spread(values: list[int] | list[float], factor: float) -> npt.NDArray[np.float32]:
    """What the toy gives for these sums."""
    return np.repeat(np.asarray(values, np.float32)[:, None] * np.float32(factor), SIZE, axis=1)
