"""The LSTM states after a sentence's begin (end) boundary: the same for every sentence, so constants of a file."""

from __future__ import annotations

import numpy as np
from onnx.reference import ReferenceEvaluator

from flashelmo.engine.arrays import Arrays, Float32
from flashelmo.engine.graph.builder import Graph, Tensors
from flashelmo.engine.graph.pieces import character_windows, input_product_graph, steps_graph, words_graph
from flashelmo.engine.graph.tensors import prepare_tensors
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, GATES, ElmoWeights
from flashelmo.export.distinct_words import Vocabulary
from flashelmo.export.whole_model import boundary_names


def boundary_states(config: ElmoConfig, weights: ElmoWeights, vocabulary: Vocabulary) -> dict[str, Float32]:
    """Return the states by name, float32: hidden [1, P] and cell [1, C] of each layer and direction, from a fresh
    state.

    The engine's own pieces compute them, run by ONNX's reference implementation: it is one step in each LSTM.
    """
    tensors = prepare_tensors(config, weights, "float32")
    vectors = _run(words_graph(config), tensors, _word_inputs(config, vocabulary))["vectors"]
    states: dict[str, Float32] = {}
    for direction, name in enumerate(DIRECTIONS):
        x = vectors[direction : direction + 1]
        for layer in range(config.n_layers):
            hidden, cell = _step(config, tensors, layer, name, x)
            states |= zip(boundary_names(layer, name), (hidden, cell), strict=True)
            x = hidden + x if layer and config.skip_connections else hidden
    return states


def _word_inputs(config: ElmoConfig, vocabulary: Vocabulary) -> Arrays:
    inputs: Arrays = {}
    if vocabulary.boundary_characters is not None:
        ids = vocabulary.boundary_characters.astype(np.int32)
        inputs["windows"] = character_windows(ids, config.max_characters, config)
    if vocabulary.boundary_words is not None:
        inputs["word_ids"] = vocabulary.boundary_words
    return inputs


def _step(config: ElmoConfig, tensors: Tensors, layer: int, direction: str, x: Float32) -> tuple[Float32, Float32]:
    """Return the state, [1, P] and [1, C], after one input [1, P]."""
    gates = _run(input_product_graph(config, layer, direction, "float32"), tensors, {"x": x})
    inputs: Arrays = {gate: gates[gate] if layer == 0 else gates[gate][None] for gate in GATES}
    if layer == 0:
        inputs["gate_rows"] = np.zeros((1, 1), np.int32)
    inputs["parents"] = np.zeros(1, np.int32)
    inputs["hidden"] = np.zeros((1, config.projection_size), np.float32)
    inputs["cell"] = np.zeros((1, config.cell_size), np.float32)
    after = _run(steps_graph(config, layer, direction, "float32"), tensors, inputs)
    return after["new_hidden"][0], after["new_cell"]


def _run(graph: Graph, tensors: Tensors, inputs: Arrays) -> dict[str, Float32]:
    evaluator = ReferenceEvaluator(graph.to_model(tensors, embed=True))
    # A sigmoid far below zero overflows; on Arm, products may set all flags though nothing is wrong.
    with np.errstate(all="ignore"):
        return dict(zip(evaluator.output_names, evaluator.run(None, inputs), strict=True))
