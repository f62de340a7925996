"""Compares an exported file's weights with those of the model, including those that no text happens to use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from flashelmo.engine.arrays import Array, Arrays
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import tolerance
from flashelmo.export.build import graph_of, tensors_of
from flashelmo.export.metadata import Metadata
from flashelmo.export.verification.structure import one_line

# The states after the boundaries are computed, and another processor may add up in another order: an error in the last
# bit of float32, which may become one of float16 (2^-10 of the value).
STATE_TOLERANCE = {np.dtype(np.float32): tolerance("fp32", "onnx"), np.dtype(np.float16): tolerance("fp16", "onnx")}


def weight_problems(path: Path, graph: onnx.ModelProto, metadata: Metadata, model: ElmoModel) -> list[str]:
    """Return a line for each weight, clip and coefficient of the mix that is missing from the file or differs.

    Args:
        path: of the file, with its external data beside it.
        graph: of the file, without external data; they are read one tensor at a time.
        metadata: what the file says about itself.
        model: what it was exported from.
    """
    try:
        wanted = _expected_tensors(metadata, model)
    except FlashElmoError as error:  # the precision cannot hold some values
        return [f"weights: {one_line(error, path)}"]
    stored = {tensor.name: tensor for tensor in graph.graph.initializer}
    problems = []
    for name, expected in wanted.items():
        problem = _problem(name, stored.get(name), expected, path)
        problems += [f"weights: {name}: {problem}"] if problem else []
    return problems


def _expected_tensors(metadata: Metadata, model: ElmoModel) -> Arrays:
    graph, tensors = graph_of(model, metadata), tensors_of(model, metadata)
    # the mix, clips, the zero of 8 bits; shapes and places show in every output
    numbers = {name: value for name, value in graph.constants.items() if value.dtype.kind in "fu"}
    return numbers | {name: tensors[name] for name in graph.weights}


def _problem(name: str, stored: onnx.TensorProto | None, expected: Array, path: Path) -> str:
    """Return what is wrong with one tensor; empty if nothing is."""
    if stored is None:
        return "missing"
    try:
        found = _array(stored, path.parent)
    except Exception as error:  # onnx's, protobuf's or the system's
        return f"cannot be read: {one_line(error, path)}"
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return f"found {found.dtype} {list(found.shape)}, expected {expected.dtype} {list(expected.shape)}"
    return "" if _equal(name, found, expected) else "differs from the model's"


def _array(stored: onnx.TensorProto, folder: Path) -> Array:
    """Return the values; external ones are read into a copy, as onnx would keep them in the graph."""
    if stored.data_location == onnx.TensorProto.EXTERNAL:
        copy = onnx.TensorProto()
        copy.CopyFrom(stored)
        stored = copy
    return np.asarray(onnx.numpy_helper.to_array(stored, str(folder)))


def _equal(name: str, found: Array, expected: Array) -> bool:
    if name.endswith((".boundary_hidden", ".boundary_cell")):
        rtol, atol = STATE_TOLERANCE[expected.dtype], tolerance("fp32", "onnx")
        return np.allclose(found.astype(np.float64), expected.astype(np.float64), rtol=rtol, atol=atol)
    return np.array_equal(found, expected)
