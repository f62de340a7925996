"""A whole run of the engine's suite on a card, on a tiny model and with invented times, for tests."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from rich.console import Console
from tiny_models import BILM, random_model

from flashelmo.benchmarks.gpu import speed, suite
from flashelmo.benchmarks.gpu.engine import Engine, Tools
from flashelmo.benchmarks.kernels.card import Device, card_named, results_on
from flashelmo.benchmarks.kernels.graph_timing import Task
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.run import Run
from flashelmo.benchmarks.timing import Timing
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.weights import ElmoModel, ElmoWeights
from flashelmo.engine.precision import PRECISIONS

CONFIG = replace(
    BILM, cell_size=32, projection_size=16, cell_clip=3.0, projection_clip=3.0, filters=((1, 3), (2, 5)), n_highway=1
)
H200 = {"name": "NVIDIA H200", "l2_bytes": 50e6, "multiprocessors": 132}
STAND_IN = Device("stand-in", "cpu")
RIVALS = ("PyTorch", "torch", "cuDNN", "ONNX", "cuBLAS")
SETTINGS = replace(
    suite.SUITE.defaults,
    models=("tiny", "other"),
    precisions=("bf16", "fp32", "int8"),
    thorough=("bf16", "fp32"),
    sentences=3,
    short_sentences=5,
    stateful_rows=2,
    tokens=4,
    batches=(2, 3),
    other_batches=(2,),
    bulk_tokens=64,
    short_bulk_tokens=16,
    eager_batch=2,
    peak_size=16,
    copy_bytes=1 << 20,
    l2_copy_bytes=1 << 20,
    rounds=3,
    sample_seconds=0.0,
    limit_seconds=600.0,
    commit="abc",
)
LITTLE = replace(
    SETTINGS, models=("tiny",), precisions=("bf16", "fp32"), batches=(2,), sections=("speed",), golden=None
)


def bound(precision: str) -> float:
    """The relative bound on a card."""
    return PRECISIONS[precision].bounds["cuda"].relative or 0.0


@dataclass
class FakeTimes:
    """Runs each task once and says how long it took: ours 10 µs, a rival 20 times as long; some may fail."""

    failing: tuple[str, ...] = ()
    ran: list[str] = field(default_factory=list)
    scale: float = 1.0
    rival: float = 200.0

    def time(self, name: str, run: Callable[[], object]) -> Timing:
        run()
        self.ran.append(name)
        once = self.rival if name.startswith(RIVALS) else 10.0
        if name in self.failing:
            return Timing([], "OutOfMemoryError: CUDA out of memory")
        return Timing([self.scale * (once + k) for k in range(3)])

    def tasks(self, rounds: int, tasks: Sequence[Task]) -> list[Timing]:
        """As `time_graphs`."""
        return [self.time(task.name, task.run) for task in tasks]

    def turns(self, rounds: int, measures: Mapping[str, Callable[[], float]], pause: float) -> dict[str, Timing]:
        """As `take_turns`, in seconds."""
        return {name: replace(self, scale=1e-6).time(name, measure) for name, measure in measures.items()}


class StandIn:
    """An engine whose vectors are off by a tenth of what its precision may be.

    Attributes:
        made: options of every one that was made.
    """

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, model: ElmoModel, *, device: str, precision: str, cuda: Any, **options: Any) -> None:
        self.made.append({"device": device, "precision": precision, "cuda": cuda, **options})
        self.precision = precision
        self._inner = ElmoEmbedder(model, device="cpu", runtime="ort", **options)
        self.window_limits = self._inner.window_limits
        self.reads_ahead = self._inner.reads_ahead

    def embed(self, sentences: Any, **asked: Any) -> Iterator[Any]:
        return map(self.off, self._inner.embed(sentences, **asked))

    def embed_windows(self, windows: Any, **asked: Any) -> Iterator[Any]:
        for window, vectors in self._inner.embed_windows(windows, **asked):
            yield window, map(self.off, vectors)

    def off(self, vectors: Any) -> Any:
        return vectors if self.precision == "fp32" else vectors * (1 + bound(self.precision) / 10)


def tiny_model(preset: str = "tiny", seed: int = 0) -> ElmoModel:
    """Random weights like trained ones: not saturated, so that rounding stays rounding."""
    model = random_model(CONFIG, seed=seed)
    tensors = {name: np.float32(0.3) * tensor for name, tensor in model.weights.named_tensors()}
    return replace(model, weights=ElmoWeights.from_named_tensors(tensors, CONFIG))


def start(
    out: Path,
    settings: Any = SETTINGS,
    make: Callable[..., Any] = StandIn,
    times: FakeTimes | None = None,
    device: Device = STAND_IN,
) -> tuple[int, Results, str]:
    """Runs the suite; its exit status, the results that were written, and what was printed."""
    said, times = io.StringIO(), times or FakeTimes()
    settings = replace(settings, out=out)
    run = Run(
        settings, Console(file=said, width=300), results_on(H200, settings, "gpu"), "gpu-h200.json", device.is_lost
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "take_turns", times.turns)
        patch.setattr(speed, "WARM_UPS", 1)
        tools = Tools(make=make, load=tiny_model, timer=times.tasks)
        status = suite.measure(run, Engine(settings, device, card_named("H200"), run, tools))
    return status, Results.read(out / "gpu-h200.json"), said.getvalue()


def find(results: Results, section: str, name: str, detail: str, model: str = "tiny") -> Row:
    """The one row of this name."""
    rows = [row for row in results.section(section, model) if (row.name, row.detail) == (name, detail)]
    assert len(rows) == 1, (section, name, detail, len(rows))
    return rows[0]
