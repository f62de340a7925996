"""Ctrl-C at whatever moment of a call on a device: the next call is right, or says that the state is lost."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from cuda_runs import AHEAD, ONE_LAYER, Compute, on_cuda, pipeline_of
from interrupts import count_moments, interrupt
from test_forks import succeeds_in_a_fork
from test_interrupts import N_INTERRUPTS, in_time
from tiny_models import WORD_MODEL, WORDS, random_model

from flashelmo.engine.cuda import executor
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import tolerance
from flashelmo.engine.settings import CudaSettings

# The interpreter's own moments are no kernel's.
WITHIN = "/engine/"
CACHED_WORDS = 4
VOCABULARY = [word for word in WORDS.words if not word.startswith("<")]

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def some_sentences(rng: np.random.Generator, n: int = 2) -> list[list[str]]:
    return [rng.choice([*VOCABULARY, "new", "<UNK>"], rng.integers(1, 4)).tolist() for _ in range(n)]


def are_close(found: list[Any], expected: list[Any]) -> bool:
    return all(np.abs(a - b).max(initial=0) < tolerance("fp32", "cuda") for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("settings", "as_numpy"),
    [(AHEAD, True), (AHEAD, False), (CudaSettings(), True)],
    ids=["launched", "launched, tensors", "graphs"],
)
def test_an_interrupted_call_does_not_change_the_next_ones(settings: CudaSettings, as_numpy: bool) -> None:
    """Of two windows, of which one is computed ahead; tensors are left on the device."""
    embedder = on_cuda(ONE_LAYER, cuda=settings, cache_bytes=CACHED_WORDS * 16, window_tokens=3)
    undisturbed = ElmoEmbedder(ONE_LAYER, device="cpu")
    rng = np.random.default_rng(0)

    def use(sentences: list[list[str]]) -> None:
        list(embedder.embed(sentences, convert_to_numpy=as_numpy))

    sentences = some_sentences(rng)
    n_moments = count_moments(lambda: use(sentences), WITHIN)
    for moment in rng.integers(1, n_moments + 1, N_INTERRUPTS // 3).tolist():
        sentences = some_sentences(rng)
        interrupt(lambda sentences=sentences: use(sentences), moment, WITHIN)  # type: ignore[misc]
        for following in (some_sentences(rng), sentences):
            assert are_close(embedder.embed_batch(following), undisturbed.embed_batch(following)), moment


def test_an_interrupted_batch_moves_the_state_on_as_a_whole_or_the_next_one_says_that_it_is_lost() -> None:
    model = random_model(WORD_MODEL, WORDS)
    embedder = on_cuda(model, cuda=AHEAD, stateful=True)
    undisturbed = ElmoEmbedder(model, device="cpu", stateful=True)
    rng = np.random.default_rng(1)
    first, interrupted, last = (some_sentences(rng) for _ in range(3))

    def last_after(*batches: list[list[str]]) -> list[Any]:
        undisturbed.reset_state()
        for batch in batches:
            undisturbed.embed_batch(batch)
        return undisturbed.embed_batch(last)

    right = last_after(first), last_after(first, interrupted)
    n_moments = count_moments(lambda: embedder.embed_batch(interrupted), WITHIN)
    for moment in rng.integers(1, n_moments + 1, N_INTERRUPTS // 3).tolist():
        embedder.reset_state()
        embedder.embed_batch(first)
        interrupt(lambda: embedder.embed_batch(interrupted), moment, WITHIN)
        try:
            found = embedder.embed_batch(last)
        except FlashElmoError as error:
            assert "call reset_state()" in str(error)
            continue
        assert any(are_close(found, expected) for expected in right), moment


def test_a_stateful_stream_that_is_given_up_half_way_is_lost_until_it_is_reset() -> None:
    """The windows after the one it gave were computed ahead: nothing may go on from their states."""
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD, stateful=True, batch_size=1)
    undisturbed = ElmoEmbedder(ONE_LAYER, device="cpu", stateful=True, batch_size=1)
    sentences = [["the"], ["cat"], ["sat"], ["the"]]
    expected = list(undisturbed.embed(sentences))
    stream = embedder.embed(sentences)
    assert are_close([next(stream)], expected[:1])
    with pytest.raises(FlashElmoError, match=r"another call was not read to its end.*; call reset_state\(\)"):
        embedder.embed_batch([["cat"]])
    assert are_close(list(stream), expected[1:])  # it may still be read on
    assert are_close(embedder.embed_batch([["cat"]]), undisturbed.embed_batch([["cat"]]))
    next(embedder.embed(sentences))
    for _ in range(2):
        with pytest.raises(FlashElmoError, match=r"call reset_state\(\)"):
            embedder.embed_batch([["cat"]])
    embedder.reset_state()
    assert are_close(list(embedder.embed(sentences)), expected)


def test_a_stateful_stream_whose_input_raises_gives_what_came_before() -> None:
    """And the next call goes on from there."""
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD, stateful=True, batch_size=1)
    undisturbed = ElmoEmbedder(ONE_LAYER, device="cpu", stateful=True, batch_size=1)
    sentences = [["the"], ["cat"], ["sat"]]

    def stop() -> Iterator[list[str]]:
        yield from sentences
        raise ValueError("the caller's own")

    results: list[list[Any]] = [[], []]
    for given, each in zip(results, (embedder, undisturbed), strict=True):
        with pytest.raises(ValueError, match="the caller's own"):
            for vectors in each.embed(stop()):
                given.append(vectors)
    assert are_close(*results) and len(results[0]) == 2  # the third would have had a place in the next batch
    assert are_close(embedder.embed_batch([["cat"]]), undisturbed.embed_batch([["cat"]]))


def test_an_error_in_half_of_a_stateful_window_loses_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the other half have moved on."""
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD, stateful=True, window_tokens=1)
    fresh = embedder.embed_batch([["the"]])
    broken = Compute(lambda sizes: len(broken.computed) == 1, lambda: RuntimeError("CUDA error: an illegal address"))
    with monkeypatch.context() as patch:
        patch.setattr(executor, "compute", broken)
        with pytest.raises(RuntimeError, match="illegal address"):
            embedder.embed_batch([["the"], ["cat"]])
    with pytest.raises(FlashElmoError, match=r"the state is lost; call reset_state\(\)"):
        embedder.embed_batch([["the"]])
    embedder.reset_state()
    assert are_close(embedder.embed_batch([["the"]]), fresh)


def test_a_state_that_is_half_written_is_lost_until_it_is_reset() -> None:
    embedder = on_cuda(random_model(WORD_MODEL, WORDS), cuda=AHEAD, stateful=True)
    fresh = embedder.embed_batch([["the", "cat"]])
    state = pipeline_of(embedder)._executor._state
    assert state is not None
    cell, state.cell = state.cell, state.cell[:1]  # the second layer's write fails
    names = "final_nodes", "final_ranks", "final_slots", "state_rows"
    with pytest.raises(IndexError):
        state.write_back(
            dict.fromkeys(names, torch.zeros(1, dtype=torch.int32, device=cell[0].device)),
            [(hidden, torch.stack([c, c])) for hidden, c in zip(state.hidden, cell, strict=True)],
        )
    state.cell = cell
    with pytest.raises(FlashElmoError, match=r"the state is lost; call reset_state\(\)"):
        embedder.embed_batch([["the", "cat"]])
    embedder.reset_state()
    assert are_close(embedder.embed_batch([["the", "cat"]]), fresh)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_told_at_once_that_it_needs_its_own_embedder() -> None:
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
    embedder.embed_batch([["the"]])

    def check() -> bool:
        try:
            embedder.embed_batch([["the"]])
        except FlashElmoError as error:
            return "was forked from the one that loaded the embedder; start processes by 'spawn'" in str(error)
        return False

    assert succeeds_in_a_fork(check)


def test_sentences_may_be_made_by_the_embedder_itself() -> None:
    """While windows of the outer call are queued and not read yet."""
    embedder = on_cuda(ONE_LAYER, cuda=AHEAD, window_tokens=2)
    given: list[list[str]] = [["the", "cat"], ["sat"], ["cat", "new"], ["the"]]
    inner: list[Any] = []

    def sentences() -> Iterator[list[str]]:
        for sentence in given:
            inner.extend(embedder.embed([sentence[::-1]]))
            yield sentence

    outer = in_time(lambda: list(embedder.embed(sentences())))
    undisturbed = ElmoEmbedder(ONE_LAYER, device="cpu")
    assert len(outer) == len(inner) == len(given)
    assert are_close(outer, list(undisturbed.embed(given)))
    assert are_close(inner, list(undisturbed.embed([sentence[::-1] for sentence in given])))
