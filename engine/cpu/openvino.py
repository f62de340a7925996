"""OpenVINO on the CPU: the same graph pieces in float32, or in bfloat16 where the processor multiplies it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from flashelmo.engine.arrays import Array, Arrays, Float32, Int32, Int64
from flashelmo.engine.cpu.runtime import Blocks, Kept, LstmSteps
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.graph.builder import Tensors
from flashelmo.engine.graph.pieces import GraphName, all_graphs
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import GATES
from flashelmo.engine.system.forks import InEachProcess, Uninterrupted, is_forked
from flashelmo.engine.system.processor import NO_BF16

TELEMETRY = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let `import openvino` find its telemetry absent, which it tolerates.

    Otherwise it looks up an analytics host, sends it an event and writes an identity into the home folder.
    """
    modules: dict[str, Any] = sys.modules
    present = modules.get(TELEMETRY)
    modules[TELEMETRY] = None  # so that importing it fails
    try:
        yield
    finally:
        del modules[TELEMETRY]
        if present is not None:
            modules[TELEMETRY] = present


try:
    with _without_telemetry():
        import openvino
except ImportError as error:
    raise MissingExtraError("openvino", "openvino", "the OpenVINO runtime") from error

ROW_MULTIPLE = 32  # OpenVINO prepares anew for every new row count, and odd ones run slowly


# Each core calls sigaltstack() and restores the previous stack when it is destroyed. If core A is created before B and
# destroyed before B, then B restores A's stack, which is already freed. So one core is created and never destroyed.
core = InEachProcess(openvino.Core)


def _end_idle_threads() -> None:
    """End idle threads before a fork, in milliseconds: OpenVINO keeps those of released models for others.

    Threads do not survive a fork, yet a forked process would take them and wait for ever. Unloading the plugin makes it
    forget the idle threads of all cores; the plugin of a core whose models are in use stays loaded.
    """
    if not core.is_made:  # in a forked process that has used none
        return
    other = openvino.Core()
    other.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # loads the plugin
    other.unload_plugin("CPU")


uninterrupted = Uninterrupted(before=_end_idle_threads)


def has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor (AVX-512 BF16, AMX)."""
    asked = core()
    with uninterrupted:
        return "BF16" in asked.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoRuntime:
    """Runs the graph's pieces, with their rows rounded up to a multiple of 32.

    Args:
        config: the model's dimensions.
        tensors: the result of `prepare_tensors` for float32.
        values: "float32" or "bfloat16", for products and elementwise operations; values between pieces are float32.
        threads: threads per piece; 0 lets OpenVINO use the machine's cores.

    Raises:
        FlashElmoError: bfloat16 on a processor without it.
    """

    concurrent_directions = False  # OpenVINO's threads serve one request at a time

    def __init__(self, config: ElmoConfig, tensors: Tensors, values: str, threads: int = 0) -> None:
        if values == "bfloat16" and not has_bf16():
            raise FlashElmoError(NO_BF16)
        settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[values],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        self.gates, self.cells = Blocks(len(GATES), config.cell_size), Blocks(1, config.cell_size)
        self._requests = InEachProcess(partial(_make_requests, config, tensors, settings))

    def word_vectors(self, windows: Int32 | None, word_ids: Int64 | None, vectors: Float32) -> None:
        """Run the words graph: windows [W, m, width], word_ids [W] -> vectors [W, P]."""
        inputs = {"windows": windows, "word_ids": word_ids}
        padded = {name: _pad_rows(array) for name, array in inputs.items() if array is not None}
        _run(self._requests()["words"], padded, {"vectors": vectors})

    def input_product(self, layer: int, direction: int, x: Float32, gates: Kept) -> None:
        """Run the input product: x [m, P] -> gates, each [m, C]."""
        _run(self._requests()["product", layer, direction], {"x": _pad_rows(x)}, dict(zip(GATES, gates, strict=True)))

    def steps(self, steps: LstmSteps) -> None:
        """Do T LSTM steps of n rows. Rows added by rounding repeat row 0."""
        by_row = {"parents": 0, **dict.fromkeys(GATES if steps.gate_rows is None else ["gate_rows"], 1)}
        inputs = {
            name: _pad_rows(array, by_row[name]) if name in by_row else array
            for name, array in steps.named_inputs().items()
        }
        outputs = {"new_hidden": steps.new_hidden, "new_cell": steps.new_cell[0]}
        _run(self._requests()["steps", steps.layer, steps.direction], inputs, outputs)


def _make_requests(config: ElmoConfig, tensors: Tensors, settings: dict[str, Any]) -> dict[GraphName, Any]:
    """Return a request for each graph, by name.

    In a forked process they run on one thread, as threads may have been starting or ending there at the fork.
    """
    if is_forked():
        settings = settings | {"INFERENCE_NUM_THREADS": 1}
    requests: dict[GraphName, Any] = {}
    for name, graph in all_graphs(config, "float32").items():
        serialized, compiler = graph.to_model(tensors, embed=True).SerializeToString(), core()
        with uninterrupted:
            model = compiler.read_model(serialized)
            requests[name] = compiler.compile_model(model, "CPU", settings).create_infer_request()
    return requests


def _pad_rows(array: Array, axis: int = 0) -> Array:
    missing = -array.shape[axis] % ROW_MULTIPLE
    return np.pad(array, [(0, missing if a == axis else 0) for a in range(array.ndim)]) if missing else array


def _run(request: Any, inputs: Arrays, outputs: dict[str, Float32]) -> None:
    with uninterrupted:
        request.infer(inputs, share_inputs=True)
    for name, array in outputs.items():
        result = request.get_tensor(name).data
        array[...] = result[tuple(map(slice, array.shape))]
