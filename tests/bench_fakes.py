"""Stand-ins for the tests of the benchmarks: an engine, a card's times, a whole run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from tiny_models import BILM, random_model

from flashelmo.benchmarks import __main__ as bench
from flashelmo.benchmarks import contestant
from flashelmo.benchmarks.gpu import speed, suite
from flashelmo.benchmarks.kernels import kernels
from flashelmo.benchmarks.kernels import suite as kernel_suite
from flashelmo.benchmarks.kernels.card import Device
from flashelmo.benchmarks.kernels.kernels import Kernels
from flashelmo.benchmarks.results import Results, Row, new_results
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.worker import Here, Timing
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import tolerance

CONFIG = replace(
    BILM, cell_size=32, projection_size=16, cell_clip=3.0, projection_clip=3.0, filters=((1, 3), (2, 5)), n_highway=1
)
H200 = {"name": "NVIDIA H200", "l2_bytes": 50e6}
STAND_IN, INTERPRETER = Device("stand-in", "cpu"), Device("interpreter", "cpu")
RIVALS = ("PyTorch", "torch", "cuDNN", "cuBLAS")
LITTLE: dict[str, Any] = dict(
    **dict(models=("tiny",), sentences=3, short_sentences=5, stateful_rows=2, tokens=4, batches=(2,)),
    **dict(other_batches=(2,), bulk_tokens=64, short_bulk_tokens=16, eager_batches=(2, 3), peak_size=16),
    **dict(copy_bytes=1 << 20, l2_copy_bytes=1 << 20, rounds=3, sample_seconds=0.0, limit_seconds=600.0, commit="abc"),
)


@dataclass
class FakeTimes:
    """Runs everything once and says how long it took: ours 10 µs and more, a rival 20 times as long; some may fail."""

    failing: tuple[str, ...] = ()
    ran: list[str] = field(default_factory=list)

    def turns(self, rounds: int, measures: Mapping[Any, Callable[[], float]], pause: object) -> dict[Any, Timing]:
        """As `take_turns`."""
        return {key: self.time(key[0], measure) for key, measure in measures.items()}

    def time(self, name: str, run: Callable[[], object]) -> Timing:
        run()
        self.ran.append(name)
        if name in self.failing:
            return Timing([], "OutOfMemoryError: CUDA out of memory")
        return Timing([1e-6 * ((200.0 if name.startswith(RIVALS) else 10.0) + k) for k in range(3)])


class StandIn:
    """An engine whose vectors are off by a tenth of what its precision may be; `made` has every one's options."""

    made: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, model: ElmoModel, *, device: str, precision: str, cuda: Any, **options: Any) -> None:
        self.made.append({"device": device, "precision": precision, "cuda": cuda, **options})
        self.precision = precision
        self._inner = ElmoEmbedder(model, device="cpu", runtime="ort", **options)
        self.window_limits, self.first_tokens = self._inner.window_limits, self._inner.first_tokens
        self.reads_ahead = self._inner.reads_ahead

    def embed(self, sentences: Any, **asked: Any) -> Iterator[Any]:
        return map(self.off, self._inner.embed(sentences, **asked))

    def embed_windows(self, windows: Any, **asked: Any) -> Iterator[Any]:
        for window, vectors in self._inner.embed_windows(windows, **asked):
            yield window, map(self.off, vectors)

    def off(self, vectors: Any) -> Any:
        return vectors if self.precision == "fp32" else vectors * (1 + tolerance(self.precision, "cuda") / 10)


def tiny_model(preset: str = "tiny", seed: int = 0) -> ElmoModel:
    """Random weights like trained ones: not saturated, so that rounding stays rounding."""
    return random_model(CONFIG, seed=seed, deviation=0.2)


def text_file(folder: Path, lines: str = "a cat sat\non\nthe mat and the other mat\nit sat there\n" * 6) -> Path:
    """Short ragged sentences."""
    (folder / "input.txt").write_text(lines, encoding="utf-8")
    return folder / "input.txt"


def results_of(settings: Settings) -> Results:
    """Without rows, as if of an H200."""
    return new_results(settings, "gpu", H200)


def without_card(patch: pytest.MonkeyPatch, make: Callable[..., Any] = StandIn, device: Device = STAND_IN) -> None:
    """A run works with this in the place of a card."""
    patch.setattr(suite, "ElmoEmbedder", make)
    patch.setattr(suite, "load", tiny_model)
    patch.setattr(suite, "begin", lambda settings: (settings, device, results_of(settings)))
    patch.setattr(suite, "Kernels", partial(Kernels, depths=1))


@dataclass
class Bench:
    """The command line with the suites of a card, as if there were one: whoever asks for a process gets an object."""

    folder: Path
    patch: pytest.MonkeyPatch
    times: FakeTimes = field(default_factory=FakeTimes)
    compiled: list[Any] = field(default_factory=list)

    def run(self, command: str, make: Callable[..., Any] = StandIn, device: Device = STAND_IN, **less: Any) -> Results:
        """The results that a command wrote; `status` has its exit status."""
        patch = self.patch
        without_card(patch, make, device)
        given = LITTLE | {"text": text_file(self.folder)} | less
        for each in (suite, kernel_suite):
            less_still = {"rows": (1, 3), "words": (1, 4), "nodes": (3,), "other_rows": (3,)}
            defaults = replace(each.SUITE.defaults, **given | (less_still if each is kernel_suite else {}))
            patch.setattr(each, "SUITE", replace(each.SUITE, defaults=defaults))
        patch.setattr(suite, "Worker", Here)
        patch.setattr(suite, "Ahead", self._ahead)
        patch.setattr(suite, "suited", lambda settings, device: replace(settings, thorough=settings.precisions[:1]))
        patch.setattr(suite, "COMMITTED_FOLDER", self.folder / "committed")
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(contestant, "take_turns", self.times.turns)
        patch.setattr(speed, "WARM_UPS", 1)
        patch.setattr(kernels, "SIZES", (7,))
        patch.setenv("TRITON_DISABLE_LINE_INFO", "0")
        out = self.folder / "out.json"
        self.status = bench.main([*command.split(), "--out", str(out)])
        return Results.read(out)

    def _ahead(self, share: Any, n: int, *given: Any) -> Any:
        self.compiled.append((share, *given))
        return SimpleNamespace(finish=lambda seconds: ["not compiled ahead: gates"])


def find(results: Results, section: str, name: str, detail: str, model: str = "tiny") -> Row:
    """The one row of this name."""
    rows = [row for row in results.section(section, model) if (row.name, row.detail) == (name, detail)]
    assert len(rows) == 1, (section, name, detail, len(rows))
    return rows[0]
