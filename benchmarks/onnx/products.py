"""The products of a model's LSTM alone, as a graph: how fast ONNX Runtime computes just these, at these shapes.

Every weight of every layer and direction is there, so that it streams from memory as in the model:

    layer 0           distinct words [W, P] @ input weights, for each gate
    layers above      all states [T * n, P] of the layer below @ input weights
    each step         n hidden states @ recurrent weights, for each gate; one gate's products @ projection

There are no sums of input and recurrent parts, no gates and no cells: what a step feeds to the next are products.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from flashelmo.engine.graph.builder import Graph
from flashelmo.engine.graph.pieces import input_product_nodes
from flashelmo.engine.graph.tensors import prepare_tensors
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, GATES, ElmoModel
from flashelmo.engine.precision import PRECISIONS, NumberType, PrecisionName


def write_products(model: ElmoModel, precision: PrecisionName, words: int, rows: int, path: Path) -> None:
    """Write the graph for W distinct words and n rows; its input says how many steps there are."""
    weight_type = PRECISIONS[precision].on("onnx").lstm_weights
    tensors = prepare_tensors(model.config, model.weights, weight_type)
    proto = products_graph(model.config, weight_type, words, rows).to_model(tensors, embed=True, name="products")
    onnx.save_model(proto, path)


def products_graph(config: ElmoConfig, weight_type: NumberType, words: int, rows: int) -> Graph:
    """Inputs: words [W, P], hidden [n, P], gate [n, C] of zeros, ticks [T, 1], of which only the number counts.

    Outputs are what would be thrown away otherwise: every input product and each direction's last states.
    """
    graph = Graph(weight_type)
    graph.input("words", [words, config.projection_size])
    graph.input("hidden", [rows, config.projection_size])
    graph.input("gate", [rows, config.cell_size])
    graph.input("ticks", ["T", 1])
    for direction in DIRECTIONS:
        x = "words"
        for layer in range(config.n_layers):
            for part in input_product_nodes(graph, layer, direction, x):
                graph.output(part, ["m", config.cell_size])
            x = _steps(graph, config, f"lstm.{layer}.{direction}.")
        graph.output(x, ["m", config.projection_size])
    return graph


def _steps(graph: Graph, config: ElmoConfig, prefix: str) -> str:
    """A Scan over a layer's recurrent products; its hidden states [T * n, P]."""
    body = Graph(graph.weight_type, prefix)
    before = body.input(f"{prefix}hidden_before", ["n", config.projection_size])
    for gate in GATES:
        body.input(f"{prefix}{gate}_before", ["n", config.cell_size])
    body.input(f"{prefix}tick", [1])
    products = [body.lstm_matmul(before, f"{prefix}recurrent_weight.{gate}") for gate in GATES]
    hidden = products[-1]
    if config.cell_size != config.projection_size:
        hidden = body.lstm_matmul(hidden, f"{prefix}projection")
    body.output(body.node("Identity", [hidden], f"{prefix}hidden_after"), ["n", config.projection_size])
    for product in products:
        body.output(product, ["n", config.cell_size])
    body.output(body.node("Identity", [hidden], f"{prefix}hidden_of_step"), ["n", config.projection_size])
    ends = [f"{prefix}last_{value}" for value in ("hidden", *GATES)]
    graph.scan(["hidden", *["gate"] * len(GATES)], ["ticks"], [*ends, f"{prefix}all_hidden"], body)
    return graph.node("Reshape", [f"{prefix}all_hidden", graph.ints(-1, config.projection_size)])


def feeds(config: ElmoConfig, words: int, rows: int, steps: int) -> dict[str, Any]:
    """Inputs of the graph."""
    shapes = {
        "words": (words, config.projection_size),
        "hidden": (rows, config.projection_size),
        "gate": (rows, config.cell_size),
        "ticks": (steps, 1),
    }
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
