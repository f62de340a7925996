"""Ctrl-C at whatever moment of a call on a device: the next call is right, or says that the state is lost."""

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from cuda_runs import AHEAD, ONE_LAYER, on_cuda, pipeline_of
from interrupts import count_moments, interrupt
from test_forks import succeeds_in_a_fork
from test_interrupts import N_INTERRUPTS
from tiny_models import WORD_MODEL, WORDS, random_model

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


@pytest.mark.parametrize("settings", [AHEAD, CudaSettings()], ids=["launched", "graphs"])
def test_an_interrupted_call_does_not_change_the_next_ones(settings: CudaSettings) -> None:
    embedder = on_cuda(ONE_LAYER, cuda=settings, cache_bytes=CACHED_WORDS * 16)
    undisturbed = ElmoEmbedder(ONE_LAYER, device="cpu")
    rng = np.random.default_rng(0)
    sentences = some_sentences(rng)
    n_moments = count_moments(lambda: embedder.embed_batch(sentences), WITHIN)
    for moment in rng.integers(1, n_moments + 1, N_INTERRUPTS // 3).tolist():
        sentences = some_sentences(rng)
        interrupt(lambda sentences=sentences: embedder.embed_batch(sentences), moment, WITHIN)  # type: ignore[misc]
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
            return "found one forked from it; start processes by 'spawn'" in str(error)
        return False

    assert succeeds_in_a_fork(check)
