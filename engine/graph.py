"""The streamlined inference graph as ONNX pieces: words to vectors, an LSTM's input product, its steps.

The published network runs in three pieces, each an ONNX model without weights: its initializers are named, and
`prepare_tensors` gives an array for every name, a view of the model's own memory wherever that is possible.

    words          character ids (and word ids) -> word vectors          once per distinct word
    input product  word vectors or hidden states -> gates' input part    no recurrence: any number of rows at once
    steps          gates' input part, parents' states -> new states      once per depth of a forest

Gates are four separate products (input, forget, candidate, output), so that nothing is split or copied afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from flashelmo.engine.config import ElmoConfig
from flashelmo.engine.cpu import int8_levels
from flashelmo.engine.weights import GATES, ElmoWeights, expected_shapes

OPSET = 18
IR_VERSION = 10  # onnx writes a newer one by default than ONNX Runtime releases read
MASKED = np.float32(-1e30)  # a window that reaches beyond the word's last position can never be the maximum

WeightType = Literal["float32", "int8"]
Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass
class Graph:
    """An ONNX graph under construction; weights stay outside, by name."""

    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)

    def input(self, name: str, shape: Iterable[int | str], data_type: int = TensorProto.FLOAT) -> str:
        """Declare an input; names in `shape` are free dimensions."""
        self.inputs.append(helper.make_tensor_value_info(name, data_type, list(shape)))
        return name

    def output(self, name: str, shape: Iterable[int | str]) -> None:
        """Declare a float32 output that some node makes."""
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))

    def node(self, operator: str, inputs: Iterable[str], output: str = "", domain: str = "", **attributes: Any) -> str:
        """Append a node with one output; its name is made up where none is given."""
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """A small array inside the graph."""
        self.constants[name] = np.asarray(value, dtype)
        return name

    def weight(self, name: str) -> str:
        """A named tensor of `prepare_tensors`."""
        self.weights.append(name)
        return name

    def clip(self, name: str, bound: float | None, output: str) -> str:
        """Clip to [-bound, bound]; no bound, no clip."""
        if bound is None:
            return self.node("Identity", [name], output)
        low = self.constant(f"{output}_low", -bound, np.float32)
        high = self.constant(f"{output}_high", bound, np.float32)
        return self.node("Clip", [name, low, high], output)

    def matmul(self, x: str, weight: str, weight_type: WeightType, *, add: str = "") -> str:
        """x @ weight (+ add), where `add` has the product's shape or is a bias."""
        if weight_type == "int8":
            inputs = [x, self.weight(weight), self.weight(f"{weight}.scale")]
            product = self.node("DynamicQuantizeMatMul", inputs, domain="com.microsoft")
            return self.node("Add", [product, add]) if add else product
        if add:
            return self.node("Gemm", [x, self.weight(weight), add])
        return self.node("MatMul", [x, self.weight(weight)])

    def dense(self, x: str, name: str) -> str:
        """x @ NAME.weight + NAME.bias."""
        return self.matmul(x, f"{name}.weight", "float32", add=self.weight(f"{name}.bias"))

    def to_model(self, tensors: Tensors, *, embed: bool = False) -> onnx.ModelProto:
        """The ONNX model; its weights are placeholders for external data unless `embed` puts them inside."""
        initializers = [onnx.numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        for name in self.weights:
            make = onnx.numpy_helper.from_array if embed else _placeholder
            initializers.append(make(tensors[name], name))
        graph = helper.make_graph(self.nodes, "flashelmo", self.inputs, self.outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="flashelmo")


def _placeholder(array: npt.NDArray[Any], name: str) -> TensorProto:
    tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.external_data.add(key="location", value="given in memory")
    return tensor


def words_graph(config: ElmoConfig) -> Graph:
    """Words to vectors: `windows` (see `character_windows`), `word_ids` [W], those the model has -> `vectors` [W, P].

    The convolutions of all widths are one product over the characters of each window of the widest. The maximum over
    positions comes before bias and activation: both keep its order.
    """
    graph = Graph()
    parts = []
    if config.word_size:
        word_ids = graph.input("word_ids", ["W"], TensorProto.INT64)
        parts.append(graph.node("Gather", [graph.weight("word_embedding"), word_ids]))
    if config.character_size:
        parts.append(_character_nodes(graph, config))
    token = parts[0] if len(parts) == 1 else graph.node("Concat", parts, axis=1)
    if "projection.weight" in expected_shapes(config):
        token = graph.dense(token, "projection")
    graph.node("Identity", [token], "vectors")
    graph.output("vectors", ["W", config.projection_size])
    return graph


def _character_nodes(graph: Graph, config: ElmoConfig) -> str:
    """Character embeddings, convolutions, maximum over positions, activation and highways: [W, F]."""
    width = widest(config)
    windows = graph.input("windows", ["W", "positions", width], TensorProto.INT32)
    embedded = graph.node("Gather", [graph.weight("characters"), windows])  # [W, positions, width, E + 1]
    flat = graph.constant("flat", [0, 0, width * (config.character_size + 1)])
    sums = graph.matmul(graph.node("Reshape", [embedded, flat]), "convolutions", "float32")
    maximum = graph.node("ReduceMax", [sums, graph.constant("positions", [1])], keepdims=0)
    x = graph.node("Add", [maximum, graph.weight("convolutions.bias")])
    x = graph.node("Relu" if config.activation == "relu" else "Tanh", [x])
    one = graph.constant("one", 1, np.float32)
    for k in range(config.n_highway):
        name = f"highways.{k}"
        new = graph.node("Relu", [graph.dense(x, f"{name}.transform")])
        gate = graph.node("Sigmoid", [graph.dense(x, f"{name}.gate")])
        new = graph.node("Mul", [gate, new])
        old = graph.node("Mul", [graph.node("Sub", [one, gate]), x])
        x = graph.node("Add", [new, old])
    return x


def input_product_graph(config: ElmoConfig, layer: int, direction: str, weight_type: WeightType) -> Graph:
    """The gates' part that does not recur: `x` [m, P] -> `input`, `forget`, `candidate`, `output`, each [m, C]."""
    graph = Graph()
    x = graph.input("x", ["m", config.projection_size])
    for gate in GATES:
        name = f"lstm.{layer}.{direction}"
        bias = graph.weight(f"{name}.bias.{gate}")
        graph.node("Identity", [graph.matmul(x, f"{name}.input_weight.{gate}", weight_type, add=bias)], gate)
        graph.output(gate, ["m", config.cell_size])
    return graph


def steps_graph(config: ElmoConfig, layer: int, direction: str, weight_type: WeightType) -> Graph:
    """T LSTM steps of the same n rows, as one Scan; T is 1 where rows branch or end.

    Inputs: `input`, `forget`, `candidate`, `output` from the input product: in layer 0 [m, C], one row per distinct
    word, with `gate_rows` [T, n] int32 into them, in the others [T, n, C]; the states of the depth before, `hidden`
    [p, P] and `cell` [p, C], and `parents` [n] int32 into those.
    Outputs: `new_hidden` [T, n, P], and `new_cell` [n, C] after the last step.
    """
    graph = Graph()
    parents = graph.input("parents", ["n"], TensorProto.INT32)
    hidden = graph.node("Gather", [graph.input("hidden", ["p", config.projection_size]), parents])
    cell = graph.node("Gather", [graph.input("cell", ["p", config.cell_size]), parents])
    if layer == 0:
        gate_rows = graph.input("gate_rows", ["T", "n"], TensorProto.INT32)
        tables = [graph.input(gate, ["m", config.cell_size]) for gate in GATES]
        gates = [graph.node("Gather", [table, gate_rows]) for table in tables]
    else:
        gates = [graph.input(gate, ["T", "n", config.cell_size]) for gate in GATES]
    body = _step_graph(config, layer, direction, weight_type)
    graph.weights, graph.constants = body.weights, body.constants  # the body sees its surroundings' initializers
    scan = helper.make_node(
        "Scan",
        [hidden, cell, *gates],
        ["last_hidden", "new_cell", "new_hidden"],
        body=helper.make_graph(body.nodes, "step", body.inputs, body.outputs),
        num_scan_inputs=len(gates),
    )
    graph.nodes.append(scan)
    graph.output("new_hidden", ["T", "n", config.projection_size])
    graph.output("new_cell", ["n", config.cell_size])
    return graph


def _step_graph(config: ElmoConfig, layer: int, direction: str, weight_type: WeightType) -> Graph:
    """One step: states [n, P] and [n, C], gates' input parts [n, C] -> states, and the hidden state once more.

    The cell is bilm-tf's LSTMCell with projection, cell_clip and proj_clip (Sak et al. 2014).
    """
    graph = Graph()
    name = f"lstm.{layer}.{direction}"
    graph.input("hidden_before", ["n", config.projection_size])
    graph.input("cell_before", ["n", config.cell_size])
    for gate in GATES:
        graph.input(f"{gate}_part", ["n", config.cell_size])

    def gate_node(gate: str) -> str:
        weight = f"{name}.recurrent_weight.{gate}"
        total = graph.matmul("hidden_before", weight, weight_type, add=f"{gate}_part")
        return graph.node("Tanh" if gate == "candidate" else "Sigmoid", [total])

    keep, admit, candidate = (gate_node(gate) for gate in ("forget", "input", "candidate"))
    cell = graph.node("Add", [graph.node("Mul", [keep, "cell_before"]), graph.node("Mul", [admit, candidate])])
    graph.clip(cell, config.cell_clip, "cell_after")
    exposed = graph.node("Mul", [gate_node("output"), graph.node("Tanh", ["cell_after"])])
    if config.cell_size != config.projection_size:
        projected = graph.matmul(exposed, f"{name}.projection", weight_type)
        graph.clip(projected, config.projection_clip, "hidden_after")
    else:
        graph.node("Identity", [exposed], "hidden_after")
    graph.node("Identity", ["hidden_after"], "hidden_of_step")
    graph.output("hidden_after", ["n", config.projection_size])
    graph.output("cell_after", ["n", config.cell_size])
    graph.output("hidden_of_step", ["n", config.projection_size])
    return graph


def widest(config: ElmoConfig) -> int:
    """Width of the widest convolution."""
    return max(width for width, _ in config.filters)


def character_windows(character_ids: npt.NDArray[np.int32], longest: int, config: ElmoConfig) -> npt.NDArray[np.int32]:
    """[W, M] ids of words of at most `longest` characters -> [W, m, width], the windows that matter.

    Every window that touches a character of some word is there, and one of padding alone, since the published maximum
    runs over padding too. Windows that reach beyond position M do not exist: their last ids are `n_characters`, whose
    embedding keeps them from ever being the maximum.
    """
    n_words, n_positions = character_ids.shape
    width = widest(config)
    positions = min(longest + 1, n_positions)
    padded = np.full((n_words, positions + width - 1), config.n_characters, np.int32)
    known = min(padded.shape[1], n_positions)
    padded[:, :known] = character_ids[:, :known]
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(padded, width, axis=1))


def prepare_tensors(config: ElmoConfig, weights: ElmoWeights, weight_type: WeightType) -> Tensors:
    """An array for every weight the graphs name, in the order of `weights`.

    float32: views of the model's own tensors, but for the small convolutions. int8: the LSTM's matrices, quantized
    symmetrically by column, with `NAME.scale`; the characters' matrices stay float32, as they run
    once per distinct word and their error would reach every layer.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    if config.character_size:
        tensors |= _prepare_convolutions(config, weights)
    for name, tensor in weights.named_tensors():
        if name.startswith("lstm.") and not name.endswith(".projection"):
            tensors |= {f"{name}.{gate}": part for gate, part in zip(GATES, tensor, strict=True)}
        elif not name.startswith(("character_embedding", "convolutions.")):
            tensors[name] = tensor
    if weight_type == "int8":
        matrices = {name: tensor for name, tensor in tensors.items() if name.startswith("lstm.") and tensor.ndim == 2}
        levels = int8_levels()
        with ThreadPoolExecutor() as pool:
            quantized = pool.map(lambda matrix: quantize(matrix, levels), matrices.values())
        for name, (integers, scale) in zip(matrices, quantized, strict=True):
            tensors[name], tensors[f"{name}.scale"] = integers, scale
    return tensors


def _prepare_convolutions(config: ElmoConfig, weights: ElmoWeights) -> dict[str, npt.NDArray[Any]]:
    """All widths as one matrix [width * (E + 1), F]; the embedding [n_characters + 1, E + 1] with its mask column."""
    assert weights.character_embedding is not None
    size = config.character_size
    table = np.zeros((config.n_characters + 1, size + 1), np.float32)
    table[:-1, :-1] = weights.character_embedding
    table[-1, -1] = 1.0
    matrix = np.zeros((widest(config), size + 1, config.n_filters), np.float32)
    first = 0
    for convolution in weights.convolutions:
        width, _, number = convolution.weight.shape
        matrix[:width, :-1, first : first + number] = convolution.weight
        matrix[:width, -1, first : first + number] = MASKED
        first += number
    bias = np.concatenate([convolution.bias for convolution in weights.convolutions])
    return {"characters": table, "convolutions": matrix.reshape(-1, config.n_filters), "convolutions.bias": bias}


def quantize(weight: npt.NDArray[np.float32], levels: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric quantization by column: weight [K, N] ~ int8 [K, N] * scale [N], integers in [-levels, levels]."""
    scale = np.maximum(np.abs(weight).max(axis=0) / levels, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale
