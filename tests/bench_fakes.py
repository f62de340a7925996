"""Stand-ins for the tests of the benchmarks: an engine, a card's times, workers; some are made in other processes."""

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from rich.console import Console
from tiny_models import BILM, random_model

from flashelmo.benchmarks.contestant import Way
from flashelmo.benchmarks.gpu import suite
from flashelmo.benchmarks.kernels.card import Card, Device, card_named, results_on
from flashelmo.benchmarks.kernels.graph_timing import Task
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.run import Run
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.timing import Timing
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.weights import ElmoModel, ElmoWeights
from flashelmo.engine.precision import tolerance

CONFIG = replace(
    BILM, cell_size=32, projection_size=16, cell_clip=3.0, projection_clip=3.0, filters=((1, 3), (2, 5)), n_highway=1
)
H200 = {"name": "NVIDIA H200", "l2_bytes": 50e6, "multiprocessors": 132}
STAND_IN, INTERPRETER = Device("stand-in", "cpu"), Device("interpreter", "cpu")
RIVALS = ("PyTorch", "torch", "cuDNN", "cuBLAS")
LITTLE: dict[str, Any] = dict(
    **dict(models=("tiny",), precisions=("bf16", "fp32"), thorough=("bf16",), sentences=3, short_sentences=5),
    **dict(stateful_rows=2, tokens=4, batches=(2,), other_batches=(2,), bulk_tokens=64, short_bulk_tokens=16),
    **dict(eager_batch=2, peak_size=16, copy_bytes=1 << 20, l2_copy_bytes=1 << 20, rounds=3, sample_seconds=0.0),
    **dict(limit_seconds=600.0, commit="abc"),
)
SETTINGS = replace(suite.SUITE.defaults, **LITTLE)


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

    def turns(self, rounds: int, measures: Mapping[Any, Callable[[], float]], pause: float) -> dict[Any, Timing]:
        """As `take_turns`, in seconds."""
        return {key: replace(self, scale=1e-6).time(key[0], measure) for key, measure in measures.items()}


class StandIn:
    """An engine whose vectors are off by a tenth of what its precision may be; `made` has every one's options."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, model: ElmoModel, *, device: str, precision: str, cuda: Any, **options: Any) -> None:
        self.made.append({"device": device, "precision": precision, "cuda": cuda, **options})
        self.precision = precision
        self._inner = ElmoEmbedder(model, device="cpu", runtime="ort", **options)
        self.window_limits, self.reads_ahead = self._inner.window_limits, self._inner.reads_ahead

    def embed(self, sentences: Any, **asked: Any) -> Iterator[Any]:
        return map(self.off, self._inner.embed(sentences, **asked))

    def embed_windows(self, windows: Any, **asked: Any) -> Iterator[Any]:
        for window, vectors in self._inner.embed_windows(windows, **asked):
            yield window, map(self.off, vectors)

    def off(self, vectors: Any) -> Any:
        return vectors if self.precision == "fp32" else vectors * (1 + tolerance(self.precision, "cuda") / 10)


def tiny_model(preset: str = "tiny", seed: int = 0) -> ElmoModel:
    """Random weights like trained ones: not saturated, so that rounding stays rounding."""
    model = random_model(CONFIG, seed=seed)
    tensors = {name: np.float32(0.3) * tensor for name, tensor in model.weights.named_tensors()}
    return replace(model, weights=ElmoWeights.from_named_tensors(tensors, CONFIG))


def text_file(folder: Path, lines: str = "a cat sat\non\nthe mat and the other mat\nit sat there\n" * 6) -> Path:
    """Short ragged sentences."""
    (folder / "input.txt").write_text(lines, encoding="utf-8")
    return folder / "input.txt"


def started(settings: Settings, name: str, device: Device = STAND_IN) -> tuple[Run, Device, Card]:
    """A run as if on an H200."""
    run = Run(
        settings, Console(file=io.StringIO(), width=300), results_on(H200, settings, name), "a.json", device.is_lost
    )
    return run, device, card_named("H200")


def said(run: Run) -> str:
    """What was printed."""
    file: Any = run.console.file
    text: str = file.getvalue()
    return text


def find(results: Results, section: str, name: str, detail: str, model: str = "tiny") -> Row:
    """The one row of this name."""
    rows = [row for row in results.section(section, model) if (row.name, row.detail) == (name, detail)]
    assert len(rows) == 1, (section, name, detail, len(rows))
    return rows[0]


# ------------------------------------------------------------------------------------------------- in other processes


class Hanging:
    """Does jobs as `check.Parts`: one hangs, one ends its process, and one loses the device."""

    def names(self, part: str) -> list[tuple[str, str, str]]:
        return [(part, "m", job) for job in ("first", "second")]

    def do(self, part: str, name: tuple[str, str, str], seconds: float) -> tuple[list[Row], bool]:
        if name[::2] == ("steps", "second"):
            time.sleep(60)
        if name[::2] == ("bulk", "first"):
            os._exit(7)
        return [Row(*name, unit=str(os.getpid()))], name[::2] == ("sentence", "first")


def failing_record(part: str) -> Any:
    raise RuntimeError(f"no {part}")


def nan_in_fp16(folder: Path, precision: str) -> Way:
    """A contestant's way to embed whose vectors are no numbers in fp16; the others are all 2."""
    value = np.nan if precision == "fp16" else 2.0
    return Way(lambda batch: [np.full((3, len(sentence), 8), value, np.float32) for sentence in batch], len)
