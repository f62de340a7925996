"""The streamlined inference graph as ONNX pieces: words to vectors, an LSTM's input product, its steps.

The published network runs in three pieces, each an ONNX model without weights: its initializers are named, and
`prepare_tensors` provides an array for every name, a view of the model's own memory wherever possible.

    words          character ids (and word ids) -> word vectors          once per distinct word
    input product  word vectors or hidden states -> gates' input part    no recurrence: any number of rows at once
    steps          gates' input part, parents' states -> new states      once per depth of a forest

Gates are four separate products (input, forget, candidate, output), so that nothing is split or copied afterwards.
The functions `*_nodes` append a piece's nodes to a larger graph, as the export of a whole model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from onnx import TensorProto

from flashelmo.engine.arrays import Int32
from flashelmo.engine.graph.builder import Graph
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, GATES, expected_shapes
from flashelmo.engine.precision import NumberType

GraphName: TypeAlias = str | tuple[str, int, int]


def all_graphs(config: ElmoConfig, weight_type: NumberType) -> dict[GraphName, Graph]:
    """Return a model's graphs by name: "words", and ("product" or "steps", layer, direction), with 0 forward."""
    graphs: dict[GraphName, Graph] = {"words": words_graph(config, weight_type)}
    for layer in range(config.n_layers):
        for d, direction in enumerate(DIRECTIONS):
            graphs["product", layer, d] = input_product_graph(config, layer, direction, weight_type)
            graphs["steps", layer, d] = steps_graph(config, layer, direction, weight_type)
    return graphs


def words_graph(config: ElmoConfig, weight_type: NumberType = "float32") -> Graph:
    """Return the words graph: `windows` (see `character_windows`) and `word_ids` [W], if used -> `vectors` [W, P]."""
    graph = Graph(weight_type)
    word_ids = graph.input("word_ids", ["W"], TensorProto.INT64) if config.word_size else ""
    maxima = ""
    if config.character_size:
        windows = graph.input("windows", ["W", "positions", widest(config)], TensorProto.INT32)
        maxima = maxima_nodes(graph, config, windows)
    graph.node("Identity", [vector_nodes(graph, config, maxima, word_ids)], "vectors")
    graph.output("vectors", ["W", config.projection_size])
    return graph


def maxima_nodes(graph: Graph, config: ElmoConfig, windows: str) -> str:
    """Append character embeddings, convolutions and their maximum over positions: windows [W, m, width] -> [W, F].

    The convolutions of all widths are one product over the characters of each window of the widest. The maximum over
    positions comes before bias and activation, which preserve order.
    """
    embedded = graph.node("Gather", [graph.weight("characters"), windows])  # [W, m, width, E + 1]
    flat = graph.ints(0, 0, widest(config) * (config.character_size + 1))
    sums = graph.node("MatMul", [graph.node("Reshape", [embedded, flat]), graph.weight("convolutions")])
    return graph.node("ReduceMax", [sums, graph.ints(1)], keepdims=0)


def vector_nodes(graph: Graph, config: ElmoConfig, maxima: str, word_ids: str) -> str:
    """Append words' vectors [W, P] from maxima [W, F] and word_ids [W], whichever of these the model uses."""
    parts = []
    if config.word_size:
        parts.append(graph.node("Gather", [graph.weight("word_embedding"), word_ids]))
    if config.character_size:
        parts.append(highway_nodes(graph, config, maxima))
    token = parts[0] if len(parts) == 1 else graph.node("Concat", parts, axis=1)
    return graph.dense(token, "projection") if "projection.weight" in expected_shapes(config) else token


def highway_nodes(graph: Graph, config: ElmoConfig, maxima: str) -> str:
    """Append bias, activation and highways: [W, F] -> [W, F]."""
    x = graph.node("Add", [maxima, graph.weight("convolutions.bias")])
    x = graph.node("Relu" if config.activation == "relu" else "Tanh", [x])
    one = graph.number("one", 1)
    for k in range(config.n_highway):
        name = f"highways.{k}"
        new = graph.node("Relu", [graph.dense(x, f"{name}.transform")])
        gate = graph.node("Sigmoid", [graph.dense(x, f"{name}.gate")])
        new = graph.node("Mul", [gate, new])
        old = graph.node("Mul", [graph.node("Sub", [one, gate]), x])
        x = graph.node("Add", [new, old])
    return x


def input_product_graph(config: ElmoConfig, layer: int, direction: str, weight_type: NumberType) -> Graph:
    """Return the gates' non-recurrent part: `x` [m, P] -> `input`, `forget`, `candidate`, `output`, each [m, C]."""
    graph = Graph(weight_type)
    x = graph.input("x", ["m", config.projection_size])
    for gate, part in zip(GATES, input_product_nodes(graph, layer, direction, x), strict=True):
        graph.node("Identity", [part], gate)
        graph.output(gate, ["m", config.cell_size])
    return graph


def input_product_nodes(graph: Graph, layer: int, direction: str, x: str) -> list[str]:
    """Append the gates' non-recurrent part, including the bias: x [m, P] -> four of [m, C]."""
    name = f"lstm.{layer}.{direction}"
    return [
        graph.lstm_matmul(x, f"{name}.input_weight.{gate}", add=graph.weight(f"{name}.bias.{gate}")) for gate in GATES
    ]


def steps_graph(config: ElmoConfig, layer: int, direction: str, weight_type: NumberType) -> Graph:
    """Return T LSTM steps of the same n rows, as one Scan; T is 1 where rows branch or end.

    Inputs: `input`, `forget`, `candidate`, `output` from the input product: in layer 0 [m, C], one row per distinct
    word, with `gate_rows` [T, n] int32 as indices into them, in the others [T, n, C]; the states of the previous depth,
    `hidden` [p, P] and `cell` [p, C], and `parents` [n] int32 as indices into those.
    Outputs: `new_hidden` [T, n, P], and `new_cell` [n, C] after the last step.
    """
    graph = Graph(weight_type)
    parents = graph.input("parents", ["n"], TensorProto.INT32)
    hidden = graph.node("Gather", [graph.input("hidden", ["p", config.projection_size]), parents])
    cell = graph.node("Gather", [graph.input("cell", ["p", config.cell_size]), parents])
    if layer == 0:
        rows = graph.input("gate_rows", ["T", "n"], TensorProto.INT32)
        tables = [graph.input(gate, ["m", config.cell_size]) for gate in GATES]
        gates = [graph.node("Gather", [table, rows]) for table in tables]
    else:
        gates = [graph.input(gate, ["T", "n", config.cell_size]) for gate in GATES]
    states = scan_nodes(graph, config, layer, direction, ScanInputs(hidden, cell, gates))
    graph.node("Identity", [states.cell], "new_cell")
    graph.node("Identity", [states.all_hidden], "new_hidden")
    graph.output("new_hidden", ["T", "n", config.projection_size])
    graph.output("new_cell", ["n", config.cell_size])
    return graph


@dataclass(frozen=True)
class ScanInputs:
    """What LSTM steps start from, by names of a graph's values.

    Attributes:
        hidden, cell: states before the first step, [n, P] and [n, C].
        gates: the four gates' input parts, [T, n, C] each.
        fresh: bool [T, n, 1]: rows that restart at a step, from `fresh_states`; empty if none does.
        fresh_states: weights of the graph, hidden [1, P] and cell [1, C].
        running: bool [T, n, 1]: rows that take part in a step, while others keep their states; empty if all do.
    """

    hidden: str
    cell: str
    gates: Sequence[str]
    fresh: str = ""
    fresh_states: tuple[str, str] = ("", "")
    running: str = ""


@dataclass(frozen=True)
class ScanOutputs:
    """The results of LSTM steps: hidden [n, P] and cell [n, C] after the last one, all_hidden [T, n, P] after each."""

    hidden: str
    cell: str
    all_hidden: str


def scan_nodes(graph: Graph, config: ElmoConfig, layer: int, direction: str, steps: ScanInputs) -> ScanOutputs:
    """Append LSTM steps as one Scan, whose body holds only the recurrent products, the cell, the clips and the
    projection.

    ONNX's own LSTM has neither a projection nor a clipped cell. float16 graphs keep the cell in float32.
    """
    prefix = f"lstm.{layer}.{direction}."
    body = _step_graph(config, prefix, steps, graph.weight_type)
    over_steps = [*steps.gates, *(mask for mask in (steps.fresh, steps.running) if mask)]
    states = ScanOutputs(f"{prefix}last_hidden", f"{prefix}last_cell", f"{prefix}all_hidden")
    outputs = (states.hidden, states.cell, states.all_hidden)
    graph.scan([steps.hidden, steps.cell], over_steps, outputs, body)
    return states


def _step_graph(config: ElmoConfig, prefix: str, steps: ScanInputs, weight_type: NumberType) -> Graph:
    """Return one step: states [n, P] and [n, C] and the gates' input parts -> states, and again the hidden state.

    The cell is bilm-tf's LSTMCell with projection, cell_clip and proj_clip (Sak et al. 2014).
    """
    body = Graph(weight_type, prefix)
    hidden = body.input(f"{prefix}hidden_before", ["n", config.projection_size])
    cell = body.input(f"{prefix}cell_before", ["n", config.cell_size], TensorProto.FLOAT)
    parts = [body.input(f"{prefix}{gate}_part", ["n", config.cell_size]) for gate in GATES]
    if steps.fresh:
        fresh = body.input(f"{prefix}fresh", ["n", 1], TensorProto.BOOL)
        hidden, cell = (
            body.node("Where", [fresh, body.weight(name), state])
            for name, state in zip(steps.fresh_states, (hidden, cell), strict=True)
        )

    def gate_node(gate: str, part: str) -> str:
        total = body.lstm_matmul(hidden, f"{prefix}recurrent_weight.{gate}", add=part)
        return body.node("Tanh" if gate == "candidate" else "Sigmoid", [total])

    input_gate, forget_gate, candidate, output_gate = map(gate_node, GATES, parts)
    kept = body.node("Mul", [body.to_float32(forget_gate), cell])
    new = body.to_float32(body.node("Mul", [input_gate, candidate]))
    after = [f"{prefix}hidden_after", f"{prefix}cell_after"]
    computed = [f"{prefix}hidden", f"{prefix}cell"] if steps.running else after
    body.clip(body.node("Add", [kept, new]), config.cell_clip, computed[1], np.float32)
    unprojected = body.node("Mul", [output_gate, body.node("Tanh", [body.to_float16(computed[1])])])
    if config.cell_size != config.projection_size:
        float_type = np.float16 if weight_type == "float16" else np.float32
        body.clip(body.lstm_matmul(unprojected, f"{prefix}projection"), config.projection_clip, computed[0], float_type)
    else:
        body.node("Identity", [unprojected], computed[0])
    if steps.running:
        running = body.input(f"{prefix}running", ["n", 1], TensorProto.BOOL)
        for name, value, before in zip(after, computed, (hidden, cell), strict=True):
            body.node("Where", [running, value, before], name)
    body.node("Identity", [after[0]], f"{prefix}hidden_of_step")
    body.output(after[0], ["n", config.projection_size])
    body.output(after[1], ["n", config.cell_size], TensorProto.FLOAT)
    body.output(f"{prefix}hidden_of_step", ["n", config.projection_size])
    return body


def widest(config: ElmoConfig) -> int:
    """Return the width of the widest convolution."""
    return max(width for width, _ in config.filters)


def character_windows(character_ids: Int32, longest: int, config: ElmoConfig) -> Int32:
    """Convert ids [W, M] of words of at most `longest` characters to [W, m, width], the windows that matter.

    These are all windows that touch a character of some word, and one that is only padding, since the published maximum
    includes padding. Windows that would reach beyond position M do not exist: their last ids are `n_characters`, whose
    embedding keeps them from ever being the maximum.
    """
    n_words, n_positions = character_ids.shape
    width = widest(config)
    positions = min(longest + 1, n_positions)
    padded = np.full((n_words, positions + width - 1), config.n_characters, np.int32)
    known = min(padded.shape[1], n_positions)
    padded[:, :known] = character_ids[:, :known]
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(padded, width, axis=1))
