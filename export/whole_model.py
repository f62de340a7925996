"""The whole model as one ONNX graph: from padded character ids to layers, their mix and a vector for each sentence.

    distinct_words.py   ids to the vectors of the distinct words of a batch
    placement.py        the row and the steps of the LSTMs that each token takes
    this file           LSTM layers: the input product hoisted out as one product over all steps, then a Scan over the
                        steps; from their states the layers, their mix, and its mean over the tokens

The states after the begin (end) boundary are the same for all sentences: they are constants, which a row of a Scan
takes where a sentence begins, and no step is spent on them. Stateful files run both boundaries, and a mask holds the
states of rows that have ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto, helper

from flashelmo.engine.graph.builder import Graph
from flashelmo.engine.graph.pieces import ScanInputs, ScanOutputs, input_product_nodes, scan_nodes
from flashelmo.engine.model.weights import DIRECTIONS
from flashelmo.engine.precision import NumberType
from flashelmo.export.distinct_words import BATCH, Vocabulary, Words, distinct_words, of_given
from flashelmo.export.metadata import STATES, Metadata
from flashelmo.export.placement import (
    Sentences,
    fresh_rows,
    places_of_tokens,
    running_rows,
    sentences_of,
    words_of_steps,
)


def elmo_graph(metadata: Metadata, vocabulary: Vocabulary, weight_type: NumberType) -> Graph:
    """Return the graph of one file, with the weights of `prepare_tensors`, and `boundary_states` if not stateful."""
    graph = Graph(weight_type)
    words = distinct_words(graph, metadata, vocabulary)
    given = _declare_states(graph, metadata, words) if metadata.stateful else []
    sentences = sentences_of(graph, words.mask, stateful=metadata.stateful)
    directions = [
        _direction(graph, metadata, words, sentences, given, direction) for direction in range(len(DIRECTIONS))
    ]
    lowest = graph.node("Gather", [words.vectors, of_given(graph, words.rows, words)])
    halves = [(lowest, lowest), *zip(*(layers for layers, _ in directions), strict=True)]
    mask = of_given(graph, words.mask, words, "mask")
    present, zero = graph.node("Unsqueeze", [mask, graph.ints(2)]), graph.number("zero_vector", 0)
    layers = [graph.node("Where", [present, graph.node("Concat", pair, axis=2), zero]) for pair in halves]
    _write_outputs(graph, metadata, words, sentences, layers)
    if metadata.stateful:
        _write_states(graph, metadata, words, [states for _, states in directions])
    return graph


def n_lstm_layers(metadata: Metadata) -> int:
    """Return the number of LSTM layers that a file's outputs need."""
    needed = [*metadata.layers, *(layer for layer, coefficient in enumerate(metadata.mix) if coefficient)]
    return metadata.config.n_layers if metadata.stateful else max(needed, default=0)


def _direction(
    graph: Graph, metadata: Metadata, words: Words, sentences: Sentences, given: list[str], direction: int
) -> tuple[list[str], list[ScanOutputs]]:
    """Return the tokens' states of every LSTM layer [B, T, P], and the states in which the layers end."""
    config, name = metadata.config, DIRECTIONS[direction]
    places = places_of_tokens(graph, sentences, direction)
    order = words_of_steps(graph, sentences, words, direction, places)
    places = of_given(graph, places, words)
    marked = (running_rows if metadata.stateful else fresh_rows)(graph, sentences)
    x, layers, ends = "", [], []
    for layer in range(n_lstm_layers(metadata)):
        if layer == 0:
            tables = input_product_nodes(graph, layer, name, words.vectors)
            gates = [graph.node("Gather", [table, order]) for table in tables]
        else:
            products = input_product_nodes(graph, layer, name, _rows(graph, x, config.projection_size))
            shape = graph.node("Concat", [graph.node("Shape", [x], end=2), graph.ints(config.cell_size)], axis=0)
            gates = [graph.node("Reshape", [product, shape]) for product in products]
        steps = _steps(graph, given, sentences, layer, direction, gates, marked)
        states = scan_nodes(graph, config, layer, name, steps)
        skip = layer > 0 and config.skip_connections
        x = graph.node("Add", [states.all_hidden, x]) if skip else states.all_hidden
        layers.append(graph.node("Gather", [_rows(graph, x, config.projection_size), places]))
        ends.append(states)
    return layers, ends


def _rows(graph: Graph, x: str, size: int) -> str:
    """Reshape [S, R, size] to [S * R, size]."""
    return graph.node("Reshape", [x, graph.ints(-1, size)])


def _steps(
    graph: Graph, given: list[str], sentences: Sentences, layer: int, direction: int, gates: list[str], marked: str
) -> ScanInputs:
    """Return what a Scan starts from: the states after the boundary wherever a sentence begins, or the `given` states.

    `marked` are the rows that begin a sentence at a step, or for stateful files those that have not ended.
    """
    if given:
        place = graph.constant(f"place_{layer}_{direction}", 2 * layer + direction)
        hidden, cell = (graph.node("Gather", [state, place]) for state in given)
        return ScanInputs(hidden, cell, gates, running=marked)
    names = boundary_names(layer, DIRECTIONS[direction])
    shape = graph.node("Concat", [sentences.rows, graph.ints(1)], axis=0)
    hidden, cell = (graph.node("Expand", [graph.weight(name), shape]) for name in names)
    return ScanInputs(hidden, cell, gates, marked, names)


def boundary_names(layer: int, direction: str) -> tuple[str, str]:
    """Return the names of the boundary states with which a direction begins: hidden [1, P] and cell [1, C]."""
    prefix = f"lstm.{layer}.{direction}.boundary"
    return f"{prefix}_hidden", f"{prefix}_cell"


def write_layers(graph: Graph, metadata: Metadata, layers: Sequence[str], axes: Sequence[str | int]) -> None:
    """Write the layers that are outputs, and the mix of all, with these axes and the vectors'."""
    shape = [*axes, metadata.config.output_size]
    for layer in metadata.layers:
        graph.node("Identity", [layers[layer]], f"hidden_states.{layer}")
        graph.output(f"hidden_states.{layer}", shape)
    terms = [
        graph.node("Mul", [layers[layer], graph.number(f"mix.{layer}", coefficient)])
        for layer, coefficient in enumerate(metadata.mix)
        if coefficient
    ]
    graph.node("Sum", terms, "token_embeddings")
    graph.output("token_embeddings", shape)


def _write_outputs(graph: Graph, metadata: Metadata, words: Words, sentences: Sentences, layers: list[str]) -> None:
    """Write the outputs that callers read."""
    write_layers(graph, metadata, layers, BATCH)
    columns = graph.node("Slice", [words.missing, graph.ints(1), graph.ints(2)])
    pads = graph.node("Concat", [graph.ints(0, 0, 0, 0), columns, graph.ints(0)], axis=0)
    summed = graph.node("Pad", [graph.to_float32("token_embeddings"), pads])  # older runtimes cannot sum nothing
    total = graph.node("ReduceSum", [summed, graph.ints(1)], keepdims=0)
    lengths = graph.node("Slice", [sentences.lengths, graph.ints(0), _given_rows(graph, words)])
    count = graph.node("Max", [lengths, graph.ints(1)])
    mean = graph.node("Div", [total, graph.node("Cast", [count], to=TensorProto.FLOAT)])
    graph.node("Identity", [graph.to_float16(mean)], "sentence_embedding")
    graph.output("sentence_embedding", [BATCH[0], metadata.config.output_size])
    graph.output("mask", BATCH, TensorProto.BOOL)


def _state_shapes(metadata: Metadata) -> list[tuple[int, str, int]]:
    config = metadata.config
    return [(2 * config.n_layers, BATCH[0], size) for size in (config.projection_size, config.cell_size)]


def _given_rows(graph: Graph, words: Words) -> str:
    """Return the number of sentences in the given batch, int64 [1]."""
    return graph.node("Slice", [words.sizes, graph.ints(0), graph.ints(1)])


def _declare_states(graph: Graph, metadata: Metadata, words: Words) -> list[str]:
    """Declare the initial states as inputs, `state.hidden` and, always float32, `state.cell`; with at least one row."""
    types, states = (graph.float_type, TensorProto.FLOAT), []
    rows = graph.node("Slice", [words.missing, graph.ints(0), graph.ints(1)])
    for name, shape, float_type in zip(STATES, _state_shapes(metadata), types, strict=True):
        graph.input(name, shape, float_type)
        n_states, _, size = shape
        sizes = graph.node("Concat", [graph.ints(n_states), rows, graph.ints(size)], axis=0)
        zero = graph.constant(f"{name}.zero", 0, helper.tensor_dtype_to_np_dtype(float_type))
        states.append(graph.node("Concat", [name, graph.node("Expand", [zero, sizes])], axis=1))
    return states


def _write_states(graph: Graph, metadata: Metadata, words: Words, directions: list[list[ScanOutputs]]) -> None:
    """Write the states of all layers and directions after the batch, as outputs."""
    states = [state for layer in zip(*directions, strict=True) for state in layer]
    parts = [state.hidden for state in states], [state.cell for state in states]
    types = (graph.float_type, TensorProto.FLOAT)
    for name, each, shape, float_type in zip(STATES.values(), parts, _state_shapes(metadata), types, strict=True):
        stacked = [graph.node("Unsqueeze", [part, graph.ints(0)]) for part in each]
        all_rows = graph.node("Concat", stacked, axis=0)
        graph.node("Slice", [all_rows, graph.ints(0), _given_rows(graph, words), graph.ints(1)], name)
        graph.output(name, shape, float_type)
