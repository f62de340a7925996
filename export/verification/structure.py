"""What can be checked in an exported file without running it: its graph, its inputs and outputs, its metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import onnx
from onnx import TensorProto

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.graph.builder import IR_VERSION, OPSET
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.export.metadata import STATES, Metadata

Values: TypeAlias = dict[str, tuple[int, list[str | int]]]  # name -> element type, axes


def read_graph(path: Path) -> tuple[onnx.ModelProto, Metadata]:
    """Return the graph without its external data, and what the file says about itself.

    Raises:
        FlashElmoError: the file is missing, not ONNX, or not exported by this package.
    """
    try:
        graph = onnx.load(path, load_external_data=False)
    except FileNotFoundError:
        raise FlashElmoError(f"{path}: expected an exported model, found no file") from None
    except Exception as error:  # the class of protobuf's error depends on its version
        raise FlashElmoError(f"{path}: expected an ONNX model, found {one_line(error, path)}") from None
    return graph, Metadata.from_properties({entry.key: entry.value for entry in graph.metadata_props}, path.name)


def graph_problems(path: Path, graph: onnx.ModelProto, metadata: Metadata) -> list[str]:
    """Return what the ONNX checker finds, wrong versions, and every input and output that differs from the contract."""
    problems = []
    try:
        onnx.checker.check_model(path, full_check=True)
    except Exception as error:  # ValidationError, InferenceError, or protobuf's own
        problems.append(f"onnx.checker: {one_line(error, path)}")
    opsets = {entry.domain: entry.version for entry in graph.opset_import}
    if opsets.get("", opsets.get("ai.onnx")) != OPSET:
        problems.append(f"opset: found {opsets.get('', opsets.get('ai.onnx'))}, expected {OPSET}")
    if graph.ir_version > IR_VERSION:
        problems.append(f"ir_version: found {graph.ir_version}, expected at most {IR_VERSION}")
    inputs, outputs = expected_values(metadata)
    stored = {tensor.name for tensor in graph.graph.initializer}
    problems += _differences("input", [value for value in graph.graph.input if value.name not in stored], inputs)
    return problems + _differences("output", graph.graph.output, outputs)


def expected_values(metadata: Metadata) -> tuple[Values, Values]:
    """Return the inputs and outputs of a file with this metadata."""
    config, (batch, length) = metadata.config, metadata.bucket or ("batch_size", "sequence_length")
    floats = TensorProto.FLOAT16 if metadata.arithmetic.dtype == "float16" else TensorProto.FLOAT
    tokens: list[str | int] = [batch, length]
    inputs: Values = {}
    if config.character_size:
        inputs["character_ids"] = TensorProto.INT64, [*tokens, metadata.characters or "characters"]
    if config.word_size:
        inputs["word_ids"] = TensorProto.INT64, tokens
    outputs: Values = {f"hidden_states.{k}": (floats, [*tokens, config.output_size]) for k in metadata.layers}
    outputs["token_embeddings"] = floats, [*tokens, config.output_size]
    outputs["sentence_embedding"] = floats, [batch, config.output_size]
    outputs["mask"] = TensorProto.BOOL, tokens
    if metadata.stateful:
        states: Values = {
            "state.hidden": (floats, [2 * config.n_layers, batch, config.projection_size]),
            "state.cell": (TensorProto.FLOAT, [2 * config.n_layers, batch, config.cell_size]),
        }
        for name, (element_type, axes) in states.items():
            inputs[name] = outputs[STATES[name]] = element_type, axes
    return inputs, outputs


def metadata_problems(metadata: Metadata, model: ElmoModel, expected: Metadata | None) -> list[str]:
    """Return where the metadata differ from the model, from themselves, or from what the caller meant to export."""
    of_model = {
        "config": model.config,
        "lexicon": model.lexicon,
        "weights_sha256": model.sha256,
    }
    wanted: dict[str, Any] = {} if expected is None else {f.name: getattr(expected, f.name) for f in fields(Metadata)}
    wanted.pop("report_sha256", None)  # added last
    return [
        f"metadata: {name}: {_shown(getattr(metadata, name), value)}"
        for name, value in {**wanted, **of_model}.items()
        if getattr(metadata, name) != value
    ]


def report_problems(path: Path, metadata: Metadata) -> list[str]:
    """Return a problem if there is a report beside the file and it is not the one that the metadata refer to."""
    report = path.with_suffix(".report.json")
    if not metadata.report_sha256 or not report.is_file():
        return []
    digest = hashlib.sha256(report.read_bytes()).hexdigest()
    if digest == metadata.report_sha256:
        return []
    return [f"metadata: report_sha256: found {metadata.report_sha256}, expected {digest}, that of {report.name}"]


def one_line(error: Exception, path: Path) -> str:
    """Return an error's first line, without the machine's paths."""
    lines = str(error).replace(f"{path.parent}/", "").split("\n")
    return " ".join(lines[0].split())[:300] or type(error).__name__


def _differences(kind: str, found: Iterable[onnx.ValueInfoProto], expected: Values) -> list[str]:
    values = {value.name: (value.type.tensor_type.elem_type, _axes(value)) for value in found}
    problems = [f"{kind} {name}: missing" for name in expected.keys() - values.keys()]
    problems += [f"{kind} {name}: unexpected" for name in values.keys() - expected.keys()]
    for name in expected.keys() & values.keys():
        if values[name] != expected[name]:
            problems.append(f"{kind} {name}: found {value_text(*values[name])}, expected {value_text(*expected[name])}")
    return sorted(problems)


def _axes(value: onnx.ValueInfoProto) -> list[str | int]:
    axes = value.type.tensor_type.shape.dim
    return [axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in axes]


def value_text(element_type: int, axes: list[str | int]) -> str:
    """Return a value as text, such as "int64 [batch_size, sequence_length, 50]"."""
    name = "float32" if element_type == TensorProto.FLOAT else TensorProto.DataType.Name(element_type).lower()
    return f"{name} [{', '.join(map(str, axes))}]"


def _shown(found: Any, expected: Any) -> str:
    text = f"found {found}, expected {expected}"
    return text if len(text) < 200 else "differs from what was expected"
