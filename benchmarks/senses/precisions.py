"""What each precision costs a trained model: nearest neighbours by sense, and perplexity."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from flashelmo.benchmarks.corpus import HELDOUT, sentences_of
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.senses.contest import CHARACTERS, UNIT, Contest
from flashelmo.benchmarks.senses.perplexity import Softmax, perplexity_rows
from flashelmo.benchmarks.senses.vectors import embed_with
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tasks import Embed
from flashelmo.engine.choice import has_cuda_card
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


def measure_perplexity(contest: Contest) -> list[Row]:
    """Of held-out text, in every precision of the engine; exported files give no boundaries."""
    settings = contest.settings
    if settings.corpus is None:
        raise FlashElmoError("--corpus: expected the folder of the held-out text, found none")
    sentences = list(islice(sentences_of([settings.corpus / HELDOUT]), settings.heldout))
    sentences = [tokens for tokens in sentences if tokens]
    rows = []
    for (name, model), path in zip(contest.models.items(), settings.models, strict=True):
        softmax = Softmax.beside(Path(path))
        n_known = sum(token in softmax.row_of for tokens in sentences for token in tokens)
        n = sum(map(len, sentences))
        note = f"{n + len(sentences):,} predictions, of which {n - n_known:,} of <UNK>; {len(softmax.bias):,} words"
        for way, make in ways(settings, keep_sentence_boundaries=True).items():
            row = Row("perplexity", name, way, "perplexity", note=note)
            try:
                with make(model) as embed:
                    rows += perplexity_rows(row, embed, sentences, softmax)
            except FlashElmoError as error:
                rows.append(replace(row, note=str(error)))
    return sorted(rows, key=lambda row: (row.model, row.median is None))


def ways(settings: Settings, **options: Any) -> Mapping[str, Way]:
    """Every precision in every place that has it here, by a name that tells both; files where there are no options."""
    found: dict[str, Way] = {
        name: partial(_engine, settings, "cpu", name, options) for name in precisions_on("cpu") if name != "fp64"
    }
    if not options:
        found |= {
            f"{name}, exported": partial(_exported, settings, name) for name in precisions_on("onnx") if name != "fp32"
        }
    if has_cuda_card():
        on_card = precisions_on("cuda")
        found |= {f"{name} on a card": partial(_engine, settings, "cuda", name, options) for name in on_card}
    return found


@contextmanager
def _engine(
    settings: Settings, device: str, precision: Any, options: Mapping[str, Any], model: ElmoModel
) -> Iterator[Embed]:
    yield embed_with(model, settings, device=device, precision=precision, **options)


@contextmanager
def _exported(settings: Settings, precision: Any, model: ElmoModel) -> Iterator[Embed]:
    from flashelmo.export.build import build_onnx
    from flashelmo.export.onnx_elmo import OnnxElmo

    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        build_onnx(model, Path(folder) / "model.onnx", precision=precision)
        elmo = OnnxElmo(Path(folder) / "model.onnx", threads=settings.threads)
        yield lambda sentences: iter(elmo.embed(sentences))
