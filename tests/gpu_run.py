"""A whole run of the engine's GPU benchmark on a tiny model, with invented times, for tests."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tiny_models import BILM, random_model

from flashelmo.benchmarks.gpu import __main__ as gpu
from flashelmo.benchmarks.gpu.accuracy import RELATIVE
from flashelmo.benchmarks.gpu.jobs import Tools
from flashelmo.benchmarks.gpu.run import Run
from flashelmo.benchmarks.gpu.settings import EngineSettings
from flashelmo.benchmarks.gpu.subject import Place
from flashelmo.benchmarks.kernels.model import card_named
from flashelmo.benchmarks.kernels.timing import Task, Timing
from flashelmo.benchmarks.results import Results, Row
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.weights import ElmoModel, ElmoWeights

CONFIG = replace(
    BILM, cell_size=32, projection_size=16, cell_clip=3.0, projection_clip=3.0, filters=((1, 3), (2, 5)), n_highway=1
)
CARD = "NVIDIA H200"
SETTINGS = EngineSettings(
    models=("tiny", "other"),
    precisions=("bf16", "fp32", "int8"),
    real_sentences=3,
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
    limit_seconds=600.0,
)
LITTLE = replace(SETTINGS, models=("tiny",), precisions=("bf16", "fp32"), batches=(2,), sections=("speed",))


@dataclass(frozen=True)
class Switches:
    """Settings of a CUDA runtime: two switches, and a number that is none."""

    graphs: bool = True
    dependent: bool = False
    graph_rows: int = 512


@dataclass
class FakeTimer:
    """Runs each task once and says how long it took: ours 10 µs, a rival 20 times as long; some may fail."""

    failing: tuple[str, ...] = ()
    ran: list[str] = field(default_factory=list)

    def time(self, tasks: Sequence[Task]) -> list[Timing]:
        timings = []
        for task in tasks:
            task.run()
            self.ran.append(task.name)
            once = 200.0 if task.name.startswith(("PyTorch", "torch", "cuDNN", "ONNX")) else 10.0
            if task.name in self.failing:
                timings.append(Timing([], "OutOfMemoryError: CUDA out of memory"))
            else:
                timings.append(Timing([once, once + 1, once + 2]))
        return timings


class StandIn:
    """An engine whose vectors are off by a tenth of what its precision may be.

    Attributes:
        made: options of every one that was made.
    """

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, model: ElmoModel, *, device: str, precision: str, cuda: Any = None, **options: Any) -> None:
        self.made.append({"device": device, "precision": precision, "cuda": cuda, **options})
        self.precision, self.cuda, self.options = precision, cuda, options
        self._inner = ElmoEmbedder(model, device="cpu", runtime="ort", **options)
        self.window_limits = self._inner.window_limits

    def embed(self, sentences: Any, **asked: Any) -> Iterator[Any]:
        return map(self.off, self._inner.embed(sentences, **asked))

    def embed_windows(self, windows: Any, **asked: Any) -> Iterator[Any]:
        for window, vectors in self._inner.embed_windows(windows, **asked):
            yield window, map(self.off, vectors)

    def off(self, vectors: Any) -> Any:
        return vectors if self.precision == "fp32" else vectors * (1 + RELATIVE[self.precision] / 10)


def tiny_model(preset: str = "tiny", seed: int = 0) -> ElmoModel:
    """Random weights like trained ones: not saturated, so that rounding stays rounding."""
    model = random_model(CONFIG, seed=seed)
    tensors = {name: np.float32(0.3) * tensor for name, tensor in model.weights.named_tensors()}
    return replace(model, weights=ElmoWeights.from_named_tensors(tensors, CONFIG))


def start(
    out: Path,
    settings: EngineSettings = SETTINGS,
    make: Callable[..., Any] = StandIn,
    timer: FakeTimer | None = None,
    place: Place | None = None,
    cuda: Any = None,
) -> tuple[bool, Results, list[str]]:
    """Runs the benchmark; whether all went well, the results that were written, and what was said."""
    said: list[str] = []
    timer = timer or FakeTimer()
    run = Run(
        settings,
        gpu.new_results(settings, {"name": CARD, "l2_bytes": 50e6, "multiprocessors": 132}, "abc"),
        place or Place("stand-in", "cpu"),
        Tools(make=make, load=tiny_model, calls=timer, kernels=timer, cuda=cuda or Switches()),
        card=card_named(CARD),
        out=out,
        say=said.append,
    )
    well = run.run()
    return well, Results.read(run.path), said


def find(results: Results, section: str, name: str, detail: str, model: str = "tiny") -> Row:
    """The one row of this name."""
    rows = [row for row in results.section(section, model) if (row.name, row.detail) == (name, detail)]
    assert len(rows) == 1, (section, name, detail, len(rows))
    return rows[0]
