"""ONNX Runtime on the CPU: the graph's pieces in float32, with 8-bit LSTM weights, or on Arm with bfloat16 products."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from flashelmo.engine.arrays import Array, Arrays, Float32, Int32, Int64
from flashelmo.engine.cpu.runtime import Blocks, Kept, LstmSteps
from flashelmo.engine.cpu.sessions import onnxruntime, session_options
from flashelmo.engine.graph.builder import Graph, Tensors
from flashelmo.engine.graph.pieces import GraphName, all_graphs
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import GATES
from flashelmo.engine.precision import NumberType
from flashelmo.engine.system.forks import InEachProcess
from flashelmo.engine.system.processor import cache_bytes, is_arm, n_cores
from flashelmo.engine.system.threads import in_order

WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}  # as products read them


class OrtRuntime:
    """Runs the graph's pieces; every output is written into an array that the caller provides.

    Args:
        config: the model's dimensions.
        tensors: the result of `prepare_tensors`; kept alive, since ONNX Runtime may read them in place.
        weight_type: "float32", "int8", or "bfloat16", to which products on Arm with BF16 round both factors.
        threads: how many to use; 0 takes all cores.

    Where the weights of a step in both directions fit the cache, each direction has half of the threads and both run at
    once: one's elementwise operations fill the time in which the other waits. Larger weights come from memory again at
    every step of few rows, and two directions would only evict each other's from the cache.
    """

    def __init__(self, config: ElmoConfig, tensors: Tensors, weight_type: NumberType, threads: int = 0) -> None:
        threads = threads or n_cores()
        self.gates, self.cells = Blocks(len(GATES), config.cell_size), Blocks(1, config.cell_size)
        step_weights = 5 * config.projection_size * config.cell_size * WEIGHT_BYTES[weight_type]
        self.concurrent_directions = threads > 1 and 2 * step_weights <= cache_bytes()
        cell_threads = -(-threads // 2) if self.concurrent_directions else threads
        graphs = {
            name: (graph, threads if name == "words" else cell_threads)
            for name, graph in all_graphs(config, weight_type).items()
        }
        self._pieces = InEachProcess(partial(make_pieces, graphs, tensors))

    def word_vectors(self, windows: Int32 | None, word_ids: Int64 | None, vectors: Float32) -> None:
        """Run the words graph: windows [W, m, width], word_ids [W] -> vectors [W, P]."""
        self._pieces()["words"].run_words(windows, word_ids, vectors)

    def input_product(self, layer: int, direction: int, x: Float32, gates: Kept) -> None:
        """Run the input product: x [m, P] -> gates, each [m, C]."""
        self._pieces()["product", layer, direction].run({"x": x}, dict(zip(GATES, gates, strict=True)))

    def steps(self, steps: LstmSteps) -> None:
        """Do T LSTM steps of n rows."""
        inputs = steps.named_inputs()
        outputs = {"new_hidden": steps.new_hidden, "new_cell": steps.new_cell[0]}
        self._pieces()["steps", steps.layer, steps.direction].run(inputs, outputs)


class Piece:
    """A session whose inputs and outputs are bound in place."""

    def __init__(self, session: Any, weights: list[Any]) -> None:
        self._session = session
        self._weights = weights
        self._binding = session.io_binding()

    def run(self, inputs: Arrays, outputs: Mapping[str, Array]) -> None:
        """Run on arrays by name; outputs are float32 and written in place."""
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(self._binding)
        if is_arm():
            for array in outputs.values():
                restore_infinity(array)

    def run_words(self, windows: Int32 | None, word_ids: Int64 | None, vectors: Float32) -> None:
        """Run the words graph; see `Runtime.word_vectors`."""
        inputs = {"windows": windows, "word_ids": word_ids}
        self.run({name: array for name, array in inputs.items() if array is not None}, {"vectors": vectors})


def restore_infinity(values: Array) -> None:
    """Make the largest numbers infinite again: on (emulated) Arm, products that overflow have ended at them."""
    largest = np.abs(values) == np.finfo(values.dtype).max
    if largest.any():
        values[largest] = np.copysign(np.inf, values[largest])


def make_pieces(graphs: Mapping[GraphName, tuple[Graph, int]], tensors: Tensors) -> dict[GraphName, Piece]:
    """Return a session for each graph, by name, each on its number of threads.

    Args:
        tensors: those that the graphs name; sessions may read them in place.
    """
    # Packing the weights takes most of the time, and each session is packed by one core.
    return dict(zip(graphs, in_order(partial(_make_piece, tensors), graphs.values(), n_cores()), strict=True))


def _make_piece(tensors: Tensors, graph_threads: tuple[Graph, int]) -> Piece:
    graph, threads = graph_threads
    options = session_options(threads)
    options.log_severity_level = 3
    unwanted = []
    if graph.weight_type == "bfloat16":
        options.add_session_config_entry("mlas.enable_gemm_fastmath_arm64_bfloat16", "1")
        unwanted = ["MatMulAddFusion"]  # into a Gemm, which stays float32
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensors[name]) for name in graph.weights]
    options.add_external_initializers(graph.weights, values)
    model = graph.to_model(tensors).SerializeToString()
    session = onnxruntime.InferenceSession(
        model, options, providers=["CPUExecutionProvider"], disabled_optimizers=unwanted
    )
    return Piece(session, values)
