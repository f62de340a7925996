"""Vectors that overflow on a device: refused by their sentence, without a look at those that don't."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from cuda_runs import AHEAD, ONE_LAYER, assert_close, on_cuda, on_host, pipeline_of
from tiny_models import WORD_MODEL, WORDS, random_model

from flashelmo.engine.cuda.pipeline import CudaPipeline
from flashelmo.engine.cuda.transfer import Mark
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Layers, Output
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.settings import CudaSettings
from flashelmo.engine.text.windows import Window

pytestmark = [
    pytest.mark.usefixtures("little_padding"),
    # Of the interpreter, where a card goes on in silence.
    pytest.mark.filterwarnings("ignore:.*(overflow|invalid value):RuntimeWarning"),
]

SENTENCES = [[], ["sat"], [], ["the", "cat"], ["sat"], ["the"]]
FINITE = [sentence for sentence in SENTENCES if "cat" not in sentence]
MESSAGE = r"^sentence 3 \('the cat'\): expected finite vectors, found infinity or NaN: an overflow in the model$"


def overflowing() -> ElmoModel:
    """Of finite weights; its vectors of "cat" are infinite, and so are those of what stands beside it."""
    model = random_model(replace(WORD_MODEL, n_layers=1, word_size=5), WORDS)
    weights = model.weights
    assert weights.word_embedding is not None and weights.projection is not None
    embedding = weights.word_embedding.copy()
    embedding[WORDS.words["cat"]] = 3e38 * np.sign(weights.projection.weight[:, 0])
    return replace(model, weights=replace(weights, word_embedding=embedding))


OVERFLOWING = overflowing()


def overflowed(embedder: Any) -> bool:
    return pipeline_of(embedder)._executor.overflowed


@pytest.mark.parametrize(
    ("settings", "layers", "pool"),
    [(AHEAD, "all", None), (AHEAD, "average", "mean"), (CudaSettings(), "all", None)],
    ids=["launched", "launched, means", "graphs"],
)
def test_an_overflow_is_refused_by_its_sentence(layers: Layers, settings: CudaSettings, pool: str | None) -> None:
    """In its place; other sentences are embedded as before, by that embedder too."""
    embedder = on_cuda(OVERFLOWING, window_tokens=3, cuda=settings)
    expected = [
        Output(layers, pool=pool).choose(vectors) for vectors in ReferenceRuntime(OVERFLOWING).embed_batch(FINITE)
    ]
    for _ in range(3 if settings.graphs else 1):  # launched, captured, replayed
        assert_close(list(embedder.embed(FINITE, layers=layers, pool=pool)), expected)
    assert not overflowed(embedder)
    stream = embedder.embed(SENTENCES, layers=layers, pool=pool)
    for vectors in expected[:3]:
        assert_close([next(stream)], [vectors])
    with pytest.raises(FlashElmoError, match=MESSAGE):
        next(stream)
    assert_close(list(embedder.embed(FINITE, layers=layers, pool=pool)), expected)


def test_a_mix_that_overflows_is_refused() -> None:
    """Of finite vectors, by its large factors."""
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
    with pytest.raises(FlashElmoError, match=MESSAGE):
        list(embedder.embed(SENTENCES, mix=(3e38, 3e38)))
    assert all(np.isfinite(vectors).all() for vectors in embedder.embed_batch(SENTENCES))


def test_a_sentence_is_named_by_its_number_in_halves_too() -> None:
    """Windows of which one is larger than the device takes."""
    embedder = on_cuda(OVERFLOWING, window_tokens=2, cuda=AHEAD)
    windows = [Window.from_sentences(part) for part in (SENTENCES[:1], SENTENCES[1:5])]
    with pytest.raises(FlashElmoError, match=MESSAGE):
        for _, results in embedder.embed_windows(windows):
            list(results)


@pytest.mark.parametrize("tokens", [3, 99])
def test_tensors_are_looked_at_when_later_ones_are_given(tokens: int) -> None:
    embedder = on_cuda(OVERFLOWING, window_tokens=tokens, cuda=AHEAD)
    for _ in range(2):
        with pytest.raises(FlashElmoError, match=MESSAGE):
            list(embedder.embed(SENTENCES, convert_to_numpy=False))
        assert_close(on_host(embedder.embed(FINITE, convert_to_numpy=False)), embedder.embed_batch(FINITE))


def test_what_a_call_left_on_the_device_is_refused_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was not computed when the call ended, as nobody waited for it."""
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
    expected = embedder.embed_batch(SENTENCES)
    list(embedder.embed(SENTENCES, convert_to_numpy=False))
    pipeline_of(embedder)._executor._overflowed[0] = 1  # as a card does, after the end of the call
    with pytest.raises(
        FlashElmoError, match=r"^vectors of an earlier call that were left on .*: expected finite values"
    ):
        embedder.embed_batch(SENTENCES)
    for _ in range(2):  # said once
        assert_close(embedder.embed_batch(SENTENCES), expected)


def test_another_thread_may_look_at_the_same_time_at_what_a_call_left() -> None:
    reads = [Mark(None), None]

    class Shared(CudaPipeline):
        _left = property(lambda self: reads.pop(0), lambda self, mark: None)  # type: ignore[assignment]

    pipeline = pipeline_of(on_cuda(ONE_LAYER))
    pipeline.__class__ = Shared
    pipeline._check_left()
    assert reads == [None]


@pytest.mark.parametrize("stateful", [False, True])
def test_what_is_in_memory_by_chance_is_no_overflow(stateful: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a bucket that are never computed are read by nobody."""
    empty = torch.Tensor.new_empty

    def poisoned(self: torch.Tensor, *size: Any, **options: Any) -> torch.Tensor:
        made = empty(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    embedder = on_cuda(ONE_LAYER, stateful=stateful)
    parts: list[list[list[str]]] = [[["the"], [], ["cat"]], [["cat", "sat"]], [[], []], [["sat"]]]
    for part in parts:
        for pool in (None, "mean"):
            list(embedder.embed(part, pool=pool))
    assert not overflowed(embedder)


def test_progress_advances_as_results_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Piece by piece; where they stay on the device, window by window."""
    monkeypatch.setattr("flashelmo.engine.cuda.results.PIECE_BYTES", 1)
    windows = [Window.from_sentences(part) for part in ([["the"], ["cat", "sat"]], [], [["sat"], ["cat"], ["the"]])]
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD, window_tokens=2)  # larger windows are halved
    reports: list[float] = []
    found = []
    for _, results in embedder.embed_windows(windows, reports.append):
        found.append([len(reports) for _ in results])
        assert reports == sorted(reports) and reports[-1] == 1.0
        reports.clear()
    assert found == [[1, 2], [], [1, 2, 3]]
    for _, _results in embedder.embed_windows(windows, reports.append, convert_to_numpy=False):
        assert reports == [1.0]
        reports.clear()


def test_only_what_overflows_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the host: the device has found whether there is anything."""
    looked: list[Any] = []
    is_finite = np.isfinite

    def look(array: Any) -> Any:
        looked.append(array.shape)
        return is_finite(array)

    embedder = on_cuda(OVERFLOWING, cuda=AHEAD)
    monkeypatch.setattr("flashelmo.engine.cuda.results.np.isfinite", look)
    embedder.embed_batch(FINITE)
    assert not looked
    with pytest.raises(FlashElmoError, match=MESSAGE):
        embedder.embed_batch(SENTENCES)
    assert len(looked) == 4
