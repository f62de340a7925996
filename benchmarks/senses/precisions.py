"""What each precision costs a trained model: nearest neighbours by sense, and perplexity on held-out text.

The softmax is float32, as stored beside the weights that `flashelmo train` wrote; the states are what is judged. Each
sentence is read from a fresh state; in it every word and the end are predicted (backward the begin and every word).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from flashelmo.benchmarks.corpus import HELDOUT, sentences_of
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.senses.contest import CHARACTERS, UNIT, Contest
from flashelmo.benchmarks.senses.vectors import embed_with
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tasks import Embed
from flashelmo.engine.arrays import Float32, Float64, Int64
from flashelmo.engine.choice import has_cuda_card
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import precisions_on
from flashelmo.engine.training.corpus import BEGIN, END, UNKNOWN
from flashelmo.engine.training.softmax_files import SOFTMAX_FILE, VOCABULARY_FILE, Softmax, find_softmax

DIRECTIONS = ("forward", "backward")
AT_ONCE = 1 << 25  # logits that are in memory
Way: TypeAlias = Callable[[ElmoModel], AbstractContextManager[Embed]]


def measure_precision(contest: Contest) -> list[Row]:
    """Measure every available precision, by the models' LSTM layers."""
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
    """Measure perplexity of held-out text, in every precision of the engine; exported files give no boundaries."""
    settings = contest.settings
    if settings.corpus is None:
        raise FlashElmoError("--corpus: expected the folder of the held-out text, found none")
    sentences = list(islice(sentences_of([settings.corpus / HELDOUT]), settings.heldout))
    sentences = [tokens for tokens in sentences if tokens]
    rows = []
    for name, model in contest.models.items():
        softmax = softmax_of(model)
        known = set(softmax.words)
        n_known = sum(token in known for tokens in sentences for token in tokens)
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
    """Return every available precision and place, by a name for both; also files, unless there are options."""
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


# ------------------------------------------------------------------------------------------------------- perplexity


def softmax_of(model: ElmoModel) -> Softmax:
    """Return the softmax of a trained model; FlashElmoError if there is none."""
    if (found := find_softmax(model)) is None:
        expected = f"expected {SOFTMAX_FILE} with {VOCABULARY_FILE} beside it for perplexity"
        raise FlashElmoError(f"{model.path}: {expected}, found none")
    return found


def perplexity_rows(row: Row, embed: Embed, sentences: Sequence[list[str]], softmax: Softmax) -> list[Row]:
    """Return the row with each direction's perplexity; `embed` also gives the boundaries' vectors, [L, T + 2, 2P]."""
    both = zip(DIRECTIONS, losses(embed, sentences, softmax), strict=True)
    return [replace(row, detail=name).with_samples([float(np.exp(each.mean()))]) for name, each in both]


def losses(embed: Embed, sentences: Sequence[list[str]], softmax: Softmax) -> tuple[Float64, Float64]:
    """Return every prediction's negative log-probability, forward and backward [predictions].

    Args:
        embed: also gives the boundaries' vectors, [L, T + 2, 2P].
    """
    forward, backward, targets = [], [], []
    row_of = {word: row for row, word in enumerate(softmax.words)}
    for tokens, vectors in zip(sentences, embed(sentences), strict=True):
        size = vectors.shape[-1] // 2
        top = vectors[-1].astype(np.float32)
        forward.append(top[:-1, :size])
        backward.append(top[1:, size:])
        targets.append([BEGIN, *(row_of.get(token, UNKNOWN) for token in tokens), END])
    ahead = np.concatenate([ids[1:] for ids in targets]), np.concatenate([ids[:-1] for ids in targets])
    return tuple(  # type: ignore[return-value]
        _losses(np.concatenate(hidden), ids, softmax) for hidden, ids in zip((forward, backward), ahead, strict=True)
    )


def _losses(hidden: Float32, targets: Int64, softmax: Softmax) -> Float64:
    """Return the losses of hidden [N, P], given the rows of what follows [N]."""
    result, step = np.empty(len(hidden)), max(1, AT_ONCE // len(softmax.bias))
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        logits = hidden[rows] @ softmax.weight.T
        logits += softmax.bias
        target = logits[np.arange(len(logits)), targets[rows]].astype(np.float64)
        most = logits.max(axis=1, keepdims=True)
        logits -= most
        np.exp(logits, out=logits)
        result[rows] = np.log(logits.sum(axis=1, dtype=np.float64)) + most[:, 0] - target
    return result
