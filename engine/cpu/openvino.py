"""OpenVINO on the CPU: the same graph pieces in float32, or in bfloat16 where the processor multiplies it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flashelmo.engine.cpu.runtime import Array, Int32, Int64, LstmSteps
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.forks import InEachProcess
from flashelmo.engine.graph.builder import Graph, Tensors
from flashelmo.engine.graph.pieces import input_product_graph, steps_graph, words_graph
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, GATES
from flashelmo.engine.precision import NumberType

TELEMETRY = "openvino_telemetry"


@contextmanager
def _without_telemetry() -> Iterator[None]:
    """Let `import openvino` find its telemetry absent, which it allows for.

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

ROW_MULTIPLE = 32  # OpenVINO prepares every new row count anew, and odd ones run slowly


def core() -> Any:
    """OpenVINO's core, one for all and never freed.

    With AMX, a core's plugin gives the thread that makes it another stack for signals, and puts the one before back
    when it is freed. Of two cores the later one would put back the earlier one's stack, which may be gone by then: the
    next signal, Ctrl-C among them, would end the process by a segmentation fault.
    """
    return _core()()


@cache
def _core() -> InEachProcess[Any]:
    return InEachProcess(openvino.Core)


def has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this processor (AVX-512 BF16, AMX)."""
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoRuntime:
    """Runs the graph's pieces, their rows rounded up to a multiple of 32.

    Args:
        config: the model's dimensions.
        tensors: what `prepare_tensors` made for float32.
        values: "float32" or "bfloat16", of products and elementwise operations; what passes between pieces is float32.
        threads: threads of one piece; 0 lets OpenVINO take the machine's cores.

    Raises:
        FlashElmoError: bfloat16 on a processor without it.
    """

    concurrent_directions = False  # OpenVINO's threads serve one request after the other

    def __init__(self, config: ElmoConfig, tensors: Tensors, values: str, threads: int = 0) -> None:
        if values == "bfloat16" and not has_bf16():
            raise FlashElmoError(
                "precision 'bf16': this processor has no bfloat16 products (AVX-512 BF16 or AMX); pass 'fp32' or 'int8'"
            )
        settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[values],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        self._pieces = InEachProcess(partial(_Pieces.of, config, tensors, settings))

    def word_vectors(self, windows: Int32 | None, word_ids: Int64 | None, vectors: Array) -> None:
        """Words graph: windows [W, m, width], word_ids [W] -> vectors [W, P]."""
        inputs = {"windows": windows, "word_ids": word_ids}
        padded = {name: _pad_rows(array) for name, array in inputs.items() if array is not None}
        _run(self._pieces().words, padded, {"vectors": vectors})

    def input_product(self, layer: int, direction: int, x: Array, gates: Array) -> None:
        """Input product: x [m, P] -> gates [4, m, C]."""
        _run(self._pieces().products[layer][direction], {"x": _pad_rows(x)}, dict(zip(GATES, gates, strict=True)))

    def steps(self, steps: LstmSteps) -> None:
        """T LSTM steps of n rows. Rows added by rounding repeat row 0."""
        inputs = {"parents": _pad_rows(steps.parents), "hidden": steps.hidden, "cell": steps.cell}
        if steps.gate_rows is not None:
            inputs |= {"gate_rows": _pad_rows(steps.gate_rows, axis=1), **dict(zip(GATES, steps.gates, strict=True))}
        else:
            inputs |= {name: _pad_rows(gate, axis=1) for name, gate in zip(GATES, steps.gates, strict=True)}
        outputs = {"new_hidden": steps.new_hidden, "new_cell": steps.new_cell}
        _run(self._pieces().steps[steps.layer][steps.direction], inputs, outputs)


class _Pieces(NamedTuple):
    """The requests that run the pieces, those of the cells by layer and direction, and the core that they live by."""

    core: Any
    words: Any
    products: list[list[Any]]
    steps: list[list[Any]]

    @classmethod
    def of(cls, config: ElmoConfig, tensors: Tensors, settings: dict[str, Any]) -> _Pieces:
        ours = core()

        def piece(graph: Graph) -> Any:
            model = ours.read_model(graph.to_model(tensors, embed=True).SerializeToString())
            return ours.compile_model(model, "CPU", settings).create_infer_request()

        def cells(make: Callable[[ElmoConfig, int, str, NumberType], Graph]) -> list[list[Any]]:
            layers = range(config.n_layers)
            return [[piece(make(config, layer, name, "float32")) for name in DIRECTIONS] for layer in layers]

        return cls(ours, piece(words_graph(config)), cells(input_product_graph), cells(steps_graph))


def _pad_rows(array: npt.NDArray[Any], axis: int = 0) -> npt.NDArray[Any]:
    missing = -array.shape[axis] % ROW_MULTIPLE
    return np.pad(array, [(0, missing if a == axis else 0) for a in range(array.ndim)]) if missing else array


def _run(request: Any, inputs: dict[str, npt.NDArray[Any]], outputs: dict[str, Array]) -> None:
    request.infer(inputs, share_inputs=True)
    for name, array in outputs.items():
        result = request.get_tensor(name).data
        array[...] = result[tuple(map(slice, array.shape))]
