"""Builds ONNX files of a model, unverified: the graph, the weights in the requested precision, and metadata.

One file takes batches of any shape; unrolled files take one shape each, for ONNX Runtime on CUDA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.engine.arguments import check, finite_numbers, flag, is_one_of, shown, utf8_path_of, whole_number
from flashelmo.engine.arrays import Arrays
from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.graph.builder import Graph, Tensors
from flashelmo.engine.graph.tensors import prepare_tensors
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import PrecisionName, precisions_on
from flashelmo.engine.system.processor import int8_levels
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.text.sentences import several
from flashelmo.export.boundaries import boundary_states
from flashelmo.export.distinct_words import Vocabulary
from flashelmo.export.external_data import Place, places_of, refer, write_data
from flashelmo.export.metadata import BUCKET_DATA, Metadata, bucket_name
from flashelmo.export.unrolled import most_values, unrolled_graph, unrolled_tensors
from flashelmo.export.whole_model import elmo_graph

# isort: split
import onnx  # after the graph's builder, whose error says how to install it

INT8_LEVELS, REDUCED_LEVELS = 127, 63
LARGEST_HALF = float(np.finfo(np.float16).max)
LARGEST_FILE = 2_000_000_000  # bytes of weights in one file; protobuf's own limit is 2 GiB


def build_onnx(
    model: ElmoModel,
    path: str | Path,
    *,
    external_data: bool = False,
    **options: Any,
) -> Metadata:
    """Write a model as one ONNX file; `export_onnx` also verifies it.

    Args:
        model: of any format.
        path: the file; external data, if there are any, go beside it under its name with `_data`.
        external_data: put weights in their own file, as always happens beyond 2 GB.
        **options: those of `metadata_of`.

    Raises:
        FlashElmoError: an argument is none of these, the precision cannot hold the weights, or a file cannot be
            written.
    """
    external_data = flag("external_data", external_data)
    metadata = metadata_of(model, **options)
    graph, tensors = graph_of(model, metadata), tensors_of(model, metadata)
    tensors = {name: tensors[name] for name in graph.weights}
    large = sum(tensor.nbytes for tensor in tensors.values()) > LARGEST_FILE
    path = utf8_path_of("path", path)
    places = places_of(tensors, f"{path.name}_data") if external_data or large else None
    if places is not None:
        write_data(tensors, places, path.parent)
    _save(graph, tensors, metadata, path, places)
    return metadata


def build_buckets(
    model: ElmoModel,
    folder: str | Path,
    buckets: Sequence[tuple[int, int]],
    **options: Any,
) -> dict[Path, Metadata]:
    """Write a model as unrolled files in an existing folder, one for each (sentences, tokens), and their weights.

    Args:
        buckets: one or more.
        **options: those of `metadata_of`, except int8, which has no kernels on CUDA, states and "dynamic".

    Returns:
        Each file's metadata.

    Raises:
        FlashElmoError: as for `build_onnx`; or CUDA lacks the precision, or a bucket is too large.
    """
    metadata = metadata_of(model, **options)
    if metadata.arithmetic.lstm_weights == "int8":
        raise FlashElmoError("precision: expected fp32 or fp16 in files for CUDA, found 'int8'")
    folder = utf8_path_of("folder", folder)
    each = {folder / bucket_name(bucket): replace(metadata, bucket=bucket) for bucket in buckets}
    for path, one in each.items():
        if most_values(one) >= 2**31:
            raise FlashElmoError(f"{path.name}: expected arrays of less than 2^31 values")
    graphs = {path: graph_of(model, one) for path, one in each.items()}
    names = dict.fromkeys(name for graph in graphs.values() for name in graph.weights)
    tensors = tensors_of(model, next(iter(each.values())))
    shared = {name: tensors[name] for name in names}
    places = places_of(shared, BUCKET_DATA)
    write_data(shared, places, folder)
    for path, one in each.items():
        _save(graphs[path], shared, one, path, places)
    return each


def graph_of(model: ElmoModel, metadata: Metadata) -> Graph:
    """Return the graph of a file with this metadata."""
    if metadata.bucket is not None:
        return unrolled_graph(metadata, vocabulary_of(model))
    return elmo_graph(metadata, vocabulary_of(model), metadata.arithmetic.lstm_weights)


def metadata_of(
    model: ElmoModel,
    precision: str = "fp32",
    *,
    layers: Sequence[int] | None = None,
    mix: Sequence[float] | None = None,
    stateful: bool = False,
    characters: int | str | None = None,
    reduce_range: bool | None = None,
    license: str = "unknown",
) -> Metadata:
    """Return a file's metadata.

    Args:
        model: of any format.
        precision: "fp32", "fp16" (weights and products; cells are float32) or "int8" (the LSTM's matrices).
        layers: numbers of the hidden states to output; None for all.
        mix: coefficient of each layer in the token embeddings; None for their average.
        stateful: take the rows' LSTM states as inputs and return them as outputs.
        characters: positions of a word in `character_ids`: the model's number, or "dynamic" for any up to it; None is
            the model's number.
        reduce_range: limit 8-bit weights to 7 bits, as x86 processors without VNNI need; None if this processor does.
        license: of the weights.

    Raises:
        FlashElmoError: an argument is invalid.
    """
    check_is_model(model)
    check(isinstance(license, str), "license", "text", license)
    metadata = Metadata(
        config=model.config,
        lexicon=model.lexicon,
        precision=_precision(precision),
        layers=_layers(model.config.n_layers + 1, layers),
        mix=_mix(model.config.n_layers + 1, mix),
        weights_sha256=model.sha256,
        source_format=model.source_format or model.format,
        license=license,
        stateful=flag("stateful", stateful),
        characters=_characters(model.config, characters),
    )
    levels = _levels(reduce_range)
    return replace(metadata, int8_levels=levels if metadata.arithmetic.lstm_weights == "int8" else None)


def tensors_of(model: ElmoModel, metadata: Metadata) -> Tensors:
    """Return every weight that a file with this metadata may refer to, in the type that its graph takes.

    Raises:
        FlashElmoError: float16 cannot hold a value.
    """
    weight_type = metadata.arithmetic.lstm_weights
    if weight_type == "float16":
        _check_range(model)
    tensors = dict(prepare_tensors(model.config, model.weights, weight_type, metadata.int8_levels))
    if metadata.stateful:
        return tensors
    states: Arrays = dict(boundary_states(model.config, model.weights, vocabulary_of(model)))
    if weight_type == "float16":  # cells are always float32
        states |= {name: state.astype(np.float16) for name, state in states.items() if name.endswith("hidden")}
    if metadata.bucket is None:
        return tensors | states
    unrolled = unrolled_tensors(model.config, tensors | states)
    for name, tensor in unrolled.items():
        if not np.isfinite(tensor).all():  # doubled
            raise FlashElmoError(f"{model.path}: tensor {name}: expected gates within half of {tensor.dtype}'s range")
    return unrolled


def vocabulary_of(model: ElmoModel) -> Vocabulary:
    """Return the ids of the boundaries and of padding."""
    encoder = WordEncoder(model.config, model.lexicon)
    characters, words = encoder.character_ids(encoder.boundary_words), encoder.word_ids(encoder.boundary_words)
    return Vocabulary(None if characters is None else characters.astype(np.int64), words, encoder.padding_id)


def _precision(precision: str) -> PrecisionName:
    names = precisions_on("onnx")
    for name in names:
        if is_one_of(precision, name):
            return name
    raise FlashElmoError(f"precision: expected {', '.join(names)}, found {shown(precision)}")


def check_is_model(model: object) -> None:
    """Raise FlashElmoError if this is not a model, but a path for example."""
    check(isinstance(model, ElmoModel), "model", "one from load_model", model)


def _layers(n_layers: int, layers: Sequence[int] | None) -> tuple[int, ...]:
    if layers is None:
        return tuple(range(n_layers))
    found = [whole_number("layers", layer, 0) for layer in several("layers", layers)]
    if any(layer >= n_layers for layer in found) or len(set(found)) < len(found):
        raise FlashElmoError(f"layers: expected different numbers from 0 to {n_layers - 1}, found {found}")
    return tuple(sorted(found))


def _mix(n_layers: int, mix: Sequence[float] | None) -> tuple[float, ...]:
    if mix is None:
        return (1 / n_layers,) * n_layers
    found = finite_numbers("mix", mix)
    if len(found) != n_layers or not any(found):
        raise FlashElmoError(f"mix: expected {n_layers} finite coefficients, not all 0, found {list(found)}")
    return found


def _characters(config: ElmoConfig, characters: int | str | None) -> int | None:
    if is_one_of(characters, "dynamic") or not config.character_size:
        return None
    most = config.max_characters
    check(characters is None or str(characters) == str(most), "characters", f"{most} or 'dynamic'", characters)
    return most


def _levels(reduce_range: bool | None) -> int:
    if reduce_range is None:
        return int8_levels()
    return REDUCED_LEVELS if flag("reduce_range", reduce_range) else INT8_LEVELS


def _check_range(model: ElmoModel) -> None:
    for name, tensor in model.weights.named_tensors():
        largest = float(np.abs(tensor).max(initial=0))
        if largest > LARGEST_HALF:
            raise FlashElmoError(
                f"{model.path}: tensor {name}: expected values within float16's range, found {largest:g}"
            )


def _save(graph: Graph, tensors: Tensors, metadata: Metadata, path: Path, places: Mapping[str, Place] | None) -> None:
    """Write a file, with its weights inside, or with their places in a file beside it."""
    proto = graph.to_model(tensors, embed=places is None, name="elmo")
    onnx.helper.set_model_props(proto, metadata.to_properties())
    if places is not None:
        refer(proto, places)
    try:
        onnx.save_model(proto, path)
    except OSError as error:
        raise FlashElmoError(f"{path}: cannot be written: {reason_of(error)}") from None
