"""What each precision costs a trained model: nearest neighbours by sense in all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.senses.contest import CHARACTERS, UNIT, Contest
from flashelmo.benchmarks.senses.vectors import Embed
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.choice import has_cuda_card
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import precisions_on

Way: TypeAlias = Callable[[ElmoModel], AbstractContextManager[Embed]]


def measure_precision(contest: Contest) -> list[Row]:
    """Every precision that is at hand, by the models' LSTM layers."""
    rows = []
    for name, model in contest.models.items():
        for way, make in ways(contest.settings).items():
            try:
                with make(model) as embed:
                    scores = contest.of_layers(contest.embedded(embed), apart=False)
            except FlashElmoError as error:
                rows.append(Row("precision", name, way, UNIT, note=str(error)))
                continue
            for layer in [layer for layer in scores if layer != CHARACTERS]:
                rows += contest.rows("precision", f"{way}, {layer}", scores[layer], name)
    return sorted(rows, key=lambda row: (row.model, row.median is None))


def ways(settings: Settings) -> Mapping[str, Way]:
    """Every precision in every place that has it here, by a name that tells both."""
    found: dict[str, Way] = {
        name: partial(_engine, settings, "cpu", name) for name in precisions_on("cpu") if name != "fp64"
    }
    found |= {
        f"{name}, exported": partial(_exported, settings, name) for name in precisions_on("onnx") if name != "fp32"
    }
    if has_cuda_card():
        found |= {f"{name} on a card": partial(_engine, settings, "cuda", name) for name in precisions_on("cuda")}
    return found


@contextmanager
def _engine(settings: Settings, device: str, precision: Any, model: ElmoModel) -> Iterator[Embed]:
    yield ElmoEmbedder(model, device=device, precision=precision, threads=settings.threads).embed


@contextmanager
def _exported(settings: Settings, precision: Any, model: ElmoModel) -> Iterator[Embed]:
    from flashelmo.export.build import build_onnx
    from flashelmo.export.onnx_elmo import OnnxElmo

    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        build_onnx(model, Path(folder) / "model.onnx", precision=precision)
        elmo = OnnxElmo(Path(folder) / "model.onnx", threads=settings.threads)
        yield lambda sentences: iter(elmo.embed(sentences))
