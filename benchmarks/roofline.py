"""The machine's limits, measured: matrix peaks and bandwidths, and what they allow a model at most.

    bulk      tokens/s <= peak / operations of a token          (every token's LSTM steps, nothing shared)
    single    time     >= bytes of weights streamed / bandwidth (the recurrent ones again for every token)

The peak of a precision is the best that any library here reaches on large products.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from itertools import chain
from typing import Any

import numpy as np

from flashelmo.benchmarks.contestant import Way
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.cpu.sessions import onnxruntime, session_options
from flashelmo.engine.errors import MissingExtraError
from flashelmo.engine.graph.builder import Graph
from flashelmo.engine.graph.tensors import quantize
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import expected_shapes
from flashelmo.engine.precision import NumberType
from flashelmo.engine.system.processor import cpu_flags, int8_levels, multiplies_bf16, n_cores

SHAPES = ((256, 512, 16384), (512, 1024, 4096), (1024, 2048, 2048))  # rows, K, columns
STREAM_K = 1024
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # per weight
KINDS: dict[str, NumberType] = {"fp32": "float32", "int8": "int8"}  # those that ONNX Runtime multiplies
DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8"}  # required by oneDNN's products of 8 bits
PEAK, STREAM = "matrix peak", "weights streamed"
UNITS = {PEAK: "GFLOP/s", STREAM: "GB/s"}


class Roofline:
    """Measures peaks with products on `threads` threads (None: all cores), for `seconds` each."""

    def __init__(self, threads: int | None = None, seconds: float = 0.3) -> None:
        self._threads, self._seconds = threads or 0, seconds
        self._products = [(shape, *product) for shape in SHAPES for product in self._of(shape)]
        self._stream = cache(partial(_onnx_product, threads=self._threads))

    def peaks(self) -> dict[str, float]:
        """Return operations per second by precision, of the best shape in the best library."""
        peaks: dict[str, float] = {}
        for shape, precision, run in self._products:
            found = 2 * math.prod(shape) / best_seconds(run, self._seconds)
            peaks[precision] = max(peaks.get(precision, 0.0), found)
        return peaks

    def bandwidths(self, n_weights: int) -> dict[str, float]:
        """Return bytes per second at which one-row products read this many weights; a small model's may be cached."""
        columns, found = max(1, n_weights // STREAM_K), dict[str, float]()
        for precision, kind in KINDS.items():
            took = best_seconds(self._stream(1, STREAM_K, columns, kind), self._seconds)
            found[precision] = STREAM_K * columns * BYTES[precision] / took
        return found

    def _of(self, shape: tuple[int, int, int]) -> Iterator[tuple[str, Callable[[], object]]]:
        """Yield each library's product of one shape, by precision."""
        yield from ((precision, _onnx_product(*shape, kind, self._threads)) for precision, kind in KINDS.items())
        if find_spec("torch") is not None:
            import torch

            if self._threads:
                torch.set_num_threads(self._threads)
            yield "fp32", _torch_product(*shape, torch.float32)
            yield from ((name, _packed_product(*shape, name)) for name in ("int8", "bf16") if has_products(name))


class Limits:
    """The machine's limits as one more contestant: measured in every round; the best counts."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._worker = pool.worker(Roofline, settings.threads, settings.peak_seconds)
        self.samples: dict[tuple[str, str], list[float]] = {}

    def measure_peaks(self) -> float:
        """Measure matrix peaks of all precisions, in operations per second."""
        return self._measured(PEAK, self._worker.call("peaks"))

    def measure_streams(self, n_weights: int) -> float:
        """Measure bytes of weights read per second by products of one row."""
        return self._measured(STREAM, self._worker.call("bandwidths", n_weights))

    def _measured(self, what: str, found: dict[str, float]) -> float:
        for precision, figure in found.items():
            self.samples.setdefault((precision, what), []).append(figure)
        return found["fp32"]

    def peak(self, precision: str) -> float | None:
        """Return the best matrix peak; None if there is none in this precision."""
        return max(self.samples.get((precision, PEAK), []), default=None)

    def stream(self, precision: str) -> float:
        """Return the best bandwidth of streamed weights; bf16 moves no faster than float32."""
        return max(self.samples.get((precision, STREAM)) or self.samples["fp32", STREAM])

    def rows(self, model: str, section: str) -> list[Row]:
        """Return rows of what was measured along with a section of a model."""
        return [
            Row("limits", model, f"{precision} {what}", UNITS[what], section).with_samples(
                [each / 1e9 for each in found]
            )
            for (precision, what), found in self.samples.items()
        ]


def best_seconds(run: Callable[[], object], seconds: float) -> float:
    """Return the fastest of the calls that fit into `seconds`, at least two, after a first one that prepares."""
    run()
    end = time.perf_counter() + seconds
    times: list[float] = []
    while len(times) < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _onnx_product(rows: int, k: int, columns: int, weight_type: NumberType, threads: int) -> Callable[[], object]:
    """Return x [rows, k] @ constant weight [k, columns], with the nodes of the engine's graph."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, k), np.float32), np.empty((rows, columns), np.float32)
    tensors: dict[str, Any] = {"weight": rng.standard_normal((k, columns), np.float32)}
    if weight_type == "int8":
        tensors["weight"], tensors["weight.scale"] = quantize(tensors["weight"], int8_levels())
    graph = Graph(weight_type)
    product = graph.lstm_matmul(graph.input("x", [rows, k]), "weight")
    graph.node("Identity", [product], "y")
    graph.output("y", [rows, columns])
    model = graph.to_model(tensors, embed=True).SerializeToString()
    session = onnxruntime.InferenceSession(model, session_options(threads), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)

    def run(arrays: object = (x, y)) -> None:  # the binding only has addresses, so the arrays must stay alive
        session.run_with_iobinding(binding)

    return run


def _torch_product(rows: int, k: int, columns: int, dtype: Any) -> Callable[[], object]:
    import torch

    x, weight = torch.randn(rows, k).to(dtype), torch.randn(columns, k).to(dtype)
    return torch.inference_mode()(lambda: torch.nn.functional.linear(x, weight))


def packed_products(config: ElmoConfig, threads: int | None) -> Way:
    """Return a model's LSTM without its cells: only the products, by oneDNN on weights that it has packed.

    The work is a precision, rows, and passes: each pass multiplies this many rows by every matrix of every layer and
    direction, so that each is read anew; results are bfloat16.

    Raises:
        MissingExtraError: PyTorch, which brings oneDNN, is not installed.
    """
    if find_spec("torch") is None:
        raise MissingExtraError("torch", "torch", "oneDNN's products")
    import torch

    torch.set_num_threads(threads or n_cores())
    P, C = config.projection_size, config.cell_size
    shapes = [(P, 4 * C), (P, 4 * C), *([(C, P)] if C != P else [])] * (2 * config.n_layers)
    products = cache(lambda precision, n_rows: [_packed_product(n_rows, *shape, precision) for shape in shapes])

    def run(work: tuple[str, int, int]) -> None:
        precision, n_rows, passes = work
        for product in products(precision, n_rows) * passes:
            product()

    return Way(lambda sentences: [], run)


def has_products(precision: str) -> bool:
    """Whether oneDNN multiplies packed weights of a precision on this processor."""
    return {"bf16": multiplies_bf16(), "int8": bool(DOT_PRODUCTS & cpu_flags())}.get(precision, False)


def _packed_product(n_rows: int, k: int, columns: int, precision: str) -> Callable[[], object]:
    """Return rows [n, k] @ a packed weight [k, columns] of random numbers."""
    import torch

    if precision == "bf16":
        x = torch.randn(n_rows, k).bfloat16()
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(columns, k).bfloat16(), n_rows)
        return partial(torch.ops.mkldnn._linear_pointwise.default, x, packed, None, "none", [], "")
    # Without AMX oneDNN has no fast product of signed rows; it would take minutes.
    kind, least = (torch.int8, -127) if "amx_int8" in cpu_flags() else (torch.uint8, 0)
    x = torch.randint(least, 128, (n_rows, k), dtype=kind)
    weight = torch.randint(-127, 128, (columns, k), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, list(x.shape))
    scales, zeros = torch.ones(columns), torch.zeros(columns, dtype=torch.int32)
    multiply = torch.ops.onednn.qlinear_pointwise.default
    return partial(multiply, x, 1.0, 0, packed, scales, zeros, None, 1.0, 0, torch.bfloat16, "none", [], "")


@dataclass(frozen=True)
class Work:
    """The least that embedding a text costs, if every token's LSTM steps are computed and every word's vector once.

    Operations are floating-point ones, those of distinct words only at the positions of their characters.
    """

    tokens: int
    lstm: int
    characters: int

    @classmethod
    def of(cls, config: ElmoConfig, sentences: Sequence[Sequence[str]]) -> Work:
        """Return the work of embedding these sentences."""
        tokens = sum(map(len, sentences))
        characters = sum(_word_operations(config, word) for word in set(chain.from_iterable(sentences)))
        return cls(tokens, tokens * config.lstm_flops_per_token, characters)

    def ceilings(self, limits: Limits, precision: str) -> tuple[float | None, float | None]:
        """Return the most tokens per second, of the LSTM and of both parts; None if the machine lacks such products."""
        peak, characters_peak = limits.peak(precision), limits.peak("fp32")
        if not (peak and characters_peak):
            return None, None
        return self.tokens * peak / self.lstm, self.tokens / (self.lstm / peak + self.characters / characters_peak)


def _word_operations(config: ElmoConfig, word: str) -> int:
    """Return the operations of a word's vector: windows that touch its characters or marks, highways, projection."""
    units = len(word.encode("utf-8", "replace")) if config.family == "bilm" else len(word)
    positions = min(units + 2, config.max_characters)
    operations = 0
    for width, number in config.filters:
        windows = min(positions, config.max_characters - width + 1)
        operations += 2 * width * config.character_size * number * windows
    operations += config.n_highway * 2 * 2 * config.n_filters**2
    if "projection.weight" in expected_shapes(config):
        operations += 2 * (config.word_size + config.n_filters) * config.projection_size
    return operations


def streamed_weights(config: ElmoConfig, n_tokens: int) -> int:
    """Return the number of weights that one sentence's LSTM reads: recurrent ones for every token, the input's once."""
    square = 4 * config.projection_size * config.cell_size
    return n_tokens * recurrent_weights(config) + 2 * config.n_layers * square


def recurrent_weights(config: ElmoConfig) -> int:
    """Return the number of weights that are read again for every token."""
    P, C = config.projection_size, config.cell_size
    return 2 * config.n_layers * (4 * P * C + (C * P if C != P else 0))
