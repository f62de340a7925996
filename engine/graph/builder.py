"""Graph: an ONNX graph under construction, whose weights stay outside, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flashelmo.engine.arrays import Array, Arrays
from flashelmo.engine.errors import MissingExtraError
from flashelmo.engine.precision import NumberType

try:
    import onnx
    from onnx import TensorProto, helper
except ImportError as error:
    raise MissingExtraError("onnx", "cpu", "running ELMo on the CPU, or exporting it,") from error

OPSET = 18
IR_VERSION = 8  # that of opset 18, read by ONNX Runtime from 1.14 on; by default onnx writes a newer one

Tensors = Mapping[str, Array]


@dataclass
class Graph:
    """An ONNX graph under construction; weights stay outside, by name.

    Attributes:
        weight_type: of the LSTM's matrices. With "float16" everything is float16 except what `to_float32` makes; with
            "int8" the rest is float32. With "bfloat16" all is float32, but for what the runtime rounds.
        prefix: begins the names of its nodes' outputs, as the body of a Scan needs its own names.
    """

    weight_type: NumberType = "float32"
    prefix: str = ""
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: Arrays = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    quantized: dict[str, list[str]] = field(default_factory=dict)

    @property
    def float_type(self) -> int:
        """ONNX's number for the type in which the graph computes."""
        return int(TensorProto.FLOAT16 if self.weight_type == "float16" else TensorProto.FLOAT)

    def input(self, name: str, shape: Iterable[int | str], data_type: int | None = None) -> str:
        """Declare an input, by default of the graph's float type; names in `shape` are free dimensions."""
        data_type = self.float_type if data_type is None else data_type
        self.inputs.append(helper.make_tensor_value_info(name, data_type, list(shape)))
        return name

    def output(self, name: str, shape: Iterable[int | str], data_type: int | None = None) -> None:
        """Declare an output that some node makes."""
        data_type = self.float_type if data_type is None else data_type
        self.outputs.append(helper.make_tensor_value_info(name, data_type, list(shape)))

    def node(self, operator: str, inputs: Iterable[str], output: str = "", **attributes: Any) -> str:
        """Append a node with one output, and return the output's name, made up unless given."""
        output = output or f"{self.prefix}{operator.lower()}_{len(self.nodes)}"
        return self.add(operator, inputs, [output], **attributes)[0]

    def add(self, operator: str, inputs: Iterable[str], outputs: Iterable[str], **attributes: Any) -> list[str]:
        """Append a node with these outputs, and return them; an empty name is an output that is not wanted."""
        wanted = [name for name in outputs if name]
        # ONNX Runtime before 1.22 fails on nodes without their own names
        self.nodes.append(helper.make_node(operator, list(inputs), list(outputs), name=wanted[0], **attributes))
        return wanted

    def scan(self, states: Sequence[str], over: Sequence[str], outputs: Sequence[str], body: Graph) -> None:
        """Append a Scan: the body's inputs are the states, then a slice of each of `over` along their first axis."""
        self.constants |= body.constants  # the body can use the initializers of the graph around it
        for name in body.weights:
            self.weight(name)
        step = helper.make_graph(body.nodes, f"{body.prefix}step", body.inputs, body.outputs)
        self.add("Scan", [*states, *over], outputs, body=step, num_scan_inputs=len(over))

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """Add a small array inside the graph; return its name."""
        with np.errstate(over="ignore"):  # infinity is detected when the file is compared
            array = np.asarray(value, dtype)
        known = self.constants.setdefault(name, array)
        assert known.dtype == array.dtype and np.array_equal(known, array), f"two constants of the name {name}"
        return name

    def ints(self, *values: int) -> str:
        """Add an array of these int64 numbers, [n]; return its name."""
        return self.constant(f"{self.prefix}int64 {' '.join(map(str, values))}", values)

    def number(self, name: str, value: npt.ArrayLike) -> str:
        """Add a small array of the graph's float type; return its name."""
        return self.constant(name, value, helper.tensor_dtype_to_np_dtype(self.float_type))

    def weight(self, name: str) -> str:
        """Return the name of one of `prepare_tensors`' tensors, and add it to the graph."""
        if name not in self.weights:
            self.weights.append(name)
        return name

    def to_float32(self, x: str) -> str:
        """Convert a float16 graph's value to float32; leave others as they are."""
        return self.node("Cast", [x], to=TensorProto.FLOAT) if self.weight_type == "float16" else x

    def to_float16(self, x: str) -> str:
        """Do the inverse of `to_float32`."""
        return self.node("Cast", [x], to=TensorProto.FLOAT16) if self.weight_type == "float16" else x

    def clip(self, name: str, bound: float | None, output: str, dtype: npt.DTypeLike) -> str:
        """Clip values of a type to [-bound, bound]; with no bound, do not clip."""
        if bound is None:
            return self.node("Identity", [name], output)
        low = self.constant(f"{output}_low", -bound, dtype)
        high = self.constant(f"{output}_high", bound, dtype)
        return self.node("Clip", [name, low, high], output)

    def dense(self, x: str, name: str) -> str:
        """Append x @ NAME.weight + NAME.bias."""
        return self._matmul(x, f"{name}.weight", self.weight(f"{name}.bias"))

    def lstm_matmul(self, x: str, weight: str, *, add: str = "") -> str:
        """Append x @ weight (+ add), where `add` has the product's shape or is a bias; in 8 bits if the weights are."""
        if self.weight_type == "int8":
            product = self._int8_matmul(x, weight)
            return self.node("Add", [product, add]) if add else product
        return self._matmul(x, weight, add)

    def _matmul(self, x: str, weight: str, add: str) -> str:
        if add and self.weight_type != "bfloat16":  # which ONNX Runtime multiplies in MatMul alone
            return self.node("Gemm", [x, self.weight(weight), add])
        product = self.node("MatMul", [x, self.weight(weight)])
        return self.node("Add", [product, add]) if add else product

    def _int8_matmul(self, x: str, weight: str) -> str:
        """Append x [n, K] times 8-bit weights: each row is quantized by its own largest magnitude, once for all
        products.

        So a row's product does not depend on the rows beside it: sums of integers are exact in any order.
        """
        if x not in self.quantized:
            self.quantized[x] = self._quantize_rows(x)
        integers, zero, one, scale = self.quantized[x]
        product = self.node("MatMulInteger", [integers, self.weight(weight), zero])
        columns = self.node("Mul", [one, self.weight(f"{weight}.scale")])
        scaled = self.node("Mul", [self.node("Cast", [product], to=TensorProto.FLOAT), columns])
        return self.node("Mul", [scaled, scale])

    def _quantize_rows(self, x: str) -> list[str]:
        """Return x [n, K] quantized by row: unsigned integers, their zero point, the number 1, and the rows' scales [n,
        1].

        ONNX Runtime fuses an integer product with the multiplication that follows if the factor is a computed scalar,
        the scale of x, times the weight's scales. Here the scalar is 1, and the rows' scales are multiplied afterwards.
        """
        ends = [self.node(f"Reduce{end}", [x, self.ints(1)], keepdims=0) for end in ("Max", "Min")]
        largest = self.node("Max", [ends[0], self.node("Neg", [ends[1]])])
        scale = self.node("Mul", [largest, self.number("1 / 127", 1 / 127)])
        scale = self.node("Max", [scale, self.number("least scale", np.finfo(np.float32).tiny)])  # for rows of zeros
        rows = self.node("Shape", [scale])
        zero = self.constant("zero of 8 bits", 128, np.uint8)
        integers = self.node("QuantizeLinear", [x, scale, self.node("Expand", [zero, rows])], axis=0)
        one = self.node("Cast", [self.node("Equal", [rows, rows])], to=TensorProto.FLOAT)
        return [integers, zero, one, self.node("Unsqueeze", [scale, self.ints(1)])]

    def to_model(self, tensors: Tensors, *, embed: bool = False, name: str = "flashelmo") -> onnx.ModelProto:
        """Return the ONNX model; its weights are placeholders for external data unless `embed` puts them inside."""
        initializers = [onnx.numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        for weight in self.weights:
            make = onnx.numpy_helper.from_array if embed else _placeholder
            initializers.append(make(tensors[weight], weight))
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="flashelmo")


def _placeholder(array: Array, name: str) -> TensorProto:
    tensor = TensorProto(name=name, dims=array.shape, data_location=TensorProto.EXTERNAL)
    tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.external_data.add(key="location", value="given in memory")
    return tensor
