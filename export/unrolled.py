"""The whole model as one ONNX graph of one shape, for ONNX Runtime's CUDA provider: no loop, nothing on the host.

unrolled_words.py has its inputs and the words' vectors.

A bucket is a number of sentences B and of steps T. Every step of the LSTMs is in the graph, so that its nodes are all
there is to launch, and ONNX Runtime captures them once in a CUDA graph and replays that. This requires:

- Every operator and type must have a CUDA kernel, and no shape or size may be computed: they are constants. A single
  node on the processor would prevent the capture.
- Split and Concat have equal parts, and at most `PARTS` of them. For others, ONNX Runtime's kernels copy from host
  memory that is free for other uses when the graph is replayed.
- Both directions are side by side in every step, forward first: half as many nodes. In each, a sentence begins at its
  first step, in the backward direction with its last token, and so from the states after the boundary, which are
  constants. What follows its end is computed and never read, so no step needs a mask.

A step has few nodes: one sigmoid for all four gates, since tanh(x) = 2 sigmoid(2x) - 1, with the candidate's weights
doubled where they are stored (exact); Sum adds twice the term that one sigmoid leaves out. Apart from rounding, it is
the published cell. Files of float16 multiply in it; sums and cells are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from flashelmo.engine.arrays import Array, Arrays, Int64
from flashelmo.engine.graph.builder import Graph, Tensors
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, GATES
from flashelmo.export.distinct_words import Vocabulary
from flashelmo.export.metadata import Metadata
from flashelmo.export.unrolled_words import convolution_tensors, int32, most_values_of_words, words_of_places
from flashelmo.export.whole_model import boundary_names, n_lstm_layers, write_layers

PARTS = 32  # that ONNX Runtime's Split and Concat take without a copy from the host
BOTH = len(DIRECTIONS)


def unrolled_graph(metadata: Metadata, vocabulary: Vocabulary) -> Graph:
    """Return the graph of one bucket, with the weights of `unrolled_tensors` and the outputs of `elmo_graph`."""
    assert metadata.bucket is not None and not metadata.stateful
    graph, (batch, steps) = Graph(metadata.arithmetic.lstm_weights), metadata.bucket
    mask, vectors = words_of_places(graph, metadata, vocabulary)
    lengths = graph.node("ReduceSum", [int32(graph, mask), graph.ints(1)])  # [B, 1]
    lowest = graph.node("Reshape", [vectors, graph.ints(batch, steps, metadata.config.projection_size)])
    layers = [graph.node("Concat", [lowest, lowest], axis=2)]
    layers += _lstm_layers(graph, metadata, vectors, lengths)
    present, zero = graph.node("Unsqueeze", [mask, graph.ints(2)]), graph.number("zero_vector", 0)
    layers = [graph.node("Where", [present, layer, zero]) for layer in layers]
    _write_outputs(graph, metadata, layers, lengths)
    return graph


def unrolled_tensors(config: ElmoConfig, tensors: Tensors) -> Arrays:
    """Return the weights of every bucket, from those of `prepare_tensors` and `boundary_states`.

    Both directions are stacked, [2, K, 4C], with the gates side by side in the order of GATES, the candidate's doubled.
    A projection of words and characters is split in two, one for each.
    """
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("lstm.")}
    for layer in range(config.n_layers):
        for name in ("input_weight", "recurrent_weight", "bias"):
            each = [_gates_of(tensors, f"lstm.{layer}.{direction}.{name}") for direction in DIRECTIONS]
            found[f"lstm.{layer}.{name}"] = np.stack([gates.reshape(-1, 4 * config.cell_size) for gates in each])
        names = [f"lstm.{layer}.{direction}.projection" for direction in DIRECTIONS]
        if names[0] in tensors:
            found[f"lstm.{layer}.projection"] = np.stack([tensors[name] for name in names])
        for state, name in enumerate(_boundary(layer)):
            found[name] = np.stack([tensors[boundary_names(layer, direction)[state]] for direction in DIRECTIONS])
    if config.character_size:
        found |= convolution_tensors(config, tensors)
    if config.word_size and config.character_size:
        size, dtype = config.projection_size, tensors["word_embedding"].dtype
        weight = found.pop("projection.weight", np.eye(size, dtype=dtype))
        found.setdefault("projection.bias", np.zeros(size, dtype))
        found["projection.weight.words"] = np.ascontiguousarray(weight[: config.word_size])
        found["projection.weight.characters"] = np.ascontiguousarray(weight[config.word_size :])
    return found


def _gates_of(tensors: Tensors, name: str) -> Array:
    parts = {gate: tensors[f"{name}.{gate}"] for gate in GATES}
    with np.errstate(over="ignore"):  # float16 overflow is checked by the caller
        parts["candidate"] = 2 * parts["candidate"]
    return np.concatenate([*parts.values()], axis=-1)


def _boundary(layer: int) -> tuple[str, str]:
    """Return the names of both directions' states after the boundary: hidden [2, 1, P] and cell [2, 1, C]."""
    return f"lstm.{layer}.boundary_hidden", f"lstm.{layer}.boundary_cell"


# --------------------------------------------------------------------------------------------------------------- LSTMs


def _lstm_layers(graph: Graph, metadata: Metadata, vectors: str, lengths: str) -> list[str]:
    """Return the states [B, T, 2P] of every needed LSTM layer, of both directions, in the order of the tokens."""
    config, (batch, steps) = metadata.config, metadata.bucket or (0, 0)
    groups = -(-steps // PARTS)  # of equally many steps, some of which may follow the last token
    size = -(-steps // groups)
    n_steps, state = groups * size, config.projection_size
    layers: list[str] = []
    if not (n_layers := n_lstm_layers(metadata)):
        return layers
    order = _words_of_steps(graph, lengths, batch, steps, n_steps)
    places = _places_of_tokens(graph, lengths, batch, steps, n_steps)
    x = graph.node("Gather", [vectors, order])  # [2, S, B, P]
    x = graph.node("Reshape", [x, graph.ints(BOTH, n_steps * batch, state)])
    for layer in range(n_layers):
        product = graph.node("MatMul", [x, graph.weight(f"lstm.{layer}.input_weight")])
        product = graph.node("Add", [product, graph.weight(f"lstm.{layer}.bias")])  # [2, S * B, 4C]
        parts = [part for group in _split(graph, product, groups, axis=1) for part in _split(graph, group, size, 1)]
        states = _steps(graph, config, layer, parts)
        joined = [_joined(graph, states[k : k + size], axis=1) for k in range(0, n_steps, size)]
        hidden = _joined(graph, joined, axis=1)  # [2, S * B, P]
        x = graph.node("Add", [hidden, x]) if layer and config.skip_connections else hidden
        rows = graph.node("Reshape", [x, graph.ints(-1, state)])
        both = graph.node("Gather", [rows, places])  # [B, T, 2, P]
        layers.append(graph.node("Reshape", [both, graph.ints(batch, steps, config.output_size)]))
    return layers


def _steps(graph: Graph, config: ElmoConfig, layer: int, parts: Sequence[str]) -> list[str]:
    """Return the hidden states [2, B, P] after each step, from the gates' input parts [2, B, 4C]."""
    hidden, cell = map(graph.weight, _boundary(layer))
    states = []
    for part in parts:
        product = graph.node("MatMul", [hidden, graph.weight(f"lstm.{layer}.recurrent_weight")])
        gates = graph.node("Sigmoid", [graph.to_float32(graph.node("Add", [part, product]))])
        input_gate, forget_gate, candidate, output_gate = _split(graph, gates, len(GATES), axis=2)
        kept = graph.node("Mul", [forget_gate, cell])
        new = graph.node("Mul", [input_gate, candidate])  # i tanh(x) = 2 i sigmoid(2x) - i
        total = graph.node("Sub", [graph.node("Sum", [kept, new, new]), input_gate])
        cell = total if config.cell_clip is None else _clip(graph, total, "cell", config.cell_clip, np.float32)
        after = graph.to_float16(graph.node("Mul", [output_gate, graph.node("Tanh", [cell])]))
        if config.cell_size != config.projection_size:
            after = graph.node("MatMul", [after, graph.weight(f"lstm.{layer}.projection")])
            if config.projection_clip is not None:
                dtype = np.float16 if graph.weight_type == "float16" else np.float32
                after = _clip(graph, after, "projection", config.projection_clip, dtype)
        hidden = after
        states.append(hidden)
    return states


def _clip(graph: Graph, x: str, name: str, bound: float, dtype: npt.DTypeLike) -> str:
    ends = [graph.constant(f"{name}_{end}", sign * bound, dtype) for end, sign in (("low", -1), ("high", 1))]
    return graph.node("Clip", [x, *ends])


def _words_of_steps(graph: Graph, lengths: str, batch: int, steps: int, n_steps: int) -> str:
    """Return rows of the words' vectors for each step, int32 [2, S, B]; any row where a sentence has ended."""
    first, number = np.arange(batch) * steps, np.arange(n_steps)[:, None]
    forward = graph.constant("words_of_steps", (first + np.minimum(number, steps - 1))[None], np.int32)
    own = _from_the_end(graph, graph.node("Reshape", [lengths, graph.ints(1, 1, -1)]), number[None], "steps")
    backward = graph.node("Add", [own, graph.constant("first_words", first, np.int32)])
    return graph.node("Concat", [forward, backward], axis=0)


def _places_of_tokens(graph: Graph, lengths: str, batch: int, steps: int, n_steps: int) -> str:
    """Return each token's row in both directions' states [2 * S * B], int32 [B, T, 2]; any row without a token."""
    sentence, number = np.arange(batch)[:, None, None], np.arange(steps)[None, :, None]
    forward = graph.constant("places_of_tokens", number * batch + sentence, np.int32)
    own = _from_the_end(graph, graph.node("Unsqueeze", [lengths, graph.ints(2)]), number, "tokens")
    own = graph.node("Mul", [own, graph.constant("rows", batch, np.int32)])
    first = graph.constant("first_places", n_steps * batch + sentence, np.int32)
    return graph.node("Concat", [forward, graph.node("Add", [own, first])], axis=2)


def _from_the_end(graph: Graph, lengths: str, number: Int64, name: str) -> str:
    """Return len - 1 - number, but at least 0: int32."""
    counted = graph.node("Sub", [lengths, graph.constant(f"counted_{name}", 1 + number, np.int32)])
    return graph.node("Max", [counted, graph.constant("first", 0, np.int32)])


def _split(graph: Graph, x: str, parts: int, axis: int) -> list[str]:
    """Return equal parts of a value along an axis, at most PARTS."""
    assert parts <= PARTS
    if parts == 1:
        return [x]
    names = [f"{x}.{part}" for part in range(parts)]
    return graph.add("Split", [x], names, axis=axis, num_outputs=parts)


def _joined(graph: Graph, parts: Sequence[str], axis: int) -> str:
    """Undo `_split`."""
    assert len(parts) <= PARTS
    return graph.node("Concat", parts, axis=axis) if len(parts) > 1 else parts[0]


# ------------------------------------------------------------------------------------------------------------- outputs


def _write_outputs(graph: Graph, metadata: Metadata, layers: Sequence[str], lengths: str) -> None:
    """Write what callers read: the layers, their mix, its mean over the tokens, and the mask."""
    bucket = metadata.bucket or (0, 0)
    write_layers(graph, metadata, layers, bucket)
    total = graph.node("ReduceSum", [graph.to_float32("token_embeddings"), graph.ints(1)], keepdims=0)
    count = graph.node("Max", [lengths, graph.constant("least_count", 1, np.int32)])
    mean = graph.node("Div", [total, graph.node("Cast", [count], to=TensorProto.FLOAT)])
    graph.node("Identity", [graph.to_float16(mean)], "sentence_embedding")
    graph.output("sentence_embedding", [bucket[0], metadata.config.output_size])
    graph.output("mask", bucket, TensorProto.BOOL)


def most_values(metadata: Metadata) -> int:
    """Return the number of values of the largest array that a bucket computes, which must be less than 2^31."""
    config, (batch, steps) = metadata.config, metadata.bucket or (0, 0)
    gates = BOTH * batch * (steps + PARTS) * len(GATES) * config.cell_size
    return max(gates, most_values_of_words(config, batch * steps))
