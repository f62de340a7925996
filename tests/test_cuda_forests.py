"""Forests built by C against NumPy's, node for node, and windows where there is no compiler."""

import logging
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from cuda_runs import AHEAD, ONE_LAYER, assert_close, on_cuda

from flashelmo.engine.cuda import forests
from flashelmo.engine.cuda.forests import build_native_forests
from flashelmo.engine.reference.reference import ReferenceRuntime
from flashelmo.engine.text.schedule import Boundaries, Schedule, Walks, build_forests, build_schedule

WORDS = 3
windows = st.lists(st.lists(st.integers(0, WORDS - 1), max_size=7), min_size=2, max_size=20)


def schedules(sentences: list[list[int]], keep: bool, share: bool, complete: bool) -> list[Schedule]:
    """Built by C and by NumPy."""
    offsets = np.cumsum([0, *map(len, sentences)])
    word_ids = np.array([word for sentence in sentences for word in sentence], np.int32)
    boundaries = Boundaries(WORDS, WORDS + 1, keep)
    return [
        build_schedule(word_ids, offsets, boundaries, share=share, complete=complete, build=build)
        for build in (build_native_forests, build_forests)
    ]


def assert_equal(ours: Schedule, expected: Schedule) -> None:
    for mine, other in ((ours.forward, expected.forward), (ours.backward, expected.backward)):
        for name in ("words", "parents", "depths", "token_nodes", "order"):
            found, wanted = getattr(mine, name), getattr(other, name)
            assert found.dtype == wanted.dtype and np.array_equal(found, wanted), name


@given(windows, st.booleans(), st.booleans(), st.booleans())
def test_nodes_are_those_of_numpy(sentences: list[list[int]], keep: bool, share: bool, complete: bool) -> None:
    assert forests._module() is not None
    assert_equal(*schedules(sentences, keep, share, complete))


@pytest.mark.parametrize("share", [True, False])
def test_a_large_window_too(share: bool) -> None:
    rng = np.random.default_rng(0)
    sentences = [rng.integers(0, WORDS, rng.integers(0, 60)).tolist() for _ in range(4000)]
    ours, expected = schedules(sentences, False, share, False)
    assert_equal(ours, expected)
    assert ours.n_nodes > 150_000


@pytest.mark.parametrize("n", [0, 2])
def test_nothing_to_do(n: int) -> None:
    for schedule in schedules([[]] * n, False, True, False):
        assert schedule.n_nodes == 0 and schedule.forward.n_depths == 0


def test_other_threads_run_meanwhile() -> None:
    """While C works on millions of words, a thread in Python goes on: NumPy's way is a loop of small operations."""
    rng = np.random.default_rng(0)
    n, B = 4_000_000, 40_000
    starts = np.arange(B) * (n // B)
    walks = Walks(
        rng.integers(0, 2000, n, np.int32),
        np.stack([starts, starts + n // B - 1]),
        np.full(B, n // B),
        np.arange(B),
    )
    stop, turns = threading.Event(), []

    def count() -> None:
        while not stop.is_set():
            turns.append(time.perf_counter())

    thread = threading.Thread(target=count)
    thread.start()
    begun = time.perf_counter()
    build_native_forests(walks, True)
    ended = time.perf_counter()
    stop.set()
    thread.join()
    pauses = np.diff([begun, *(turn for turn in turns if begun < turn < ended), ended])
    assert pauses.max() < 0.5 * (ended - begun)


def test_without_a_compiler_numpy_builds_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("no compiler\nand more lines")

    monkeypatch.setattr("triton.runtime.build.compile_module_from_src", fail)
    forests._module.cache_clear()
    sentences = [["the", "cat"], ["the"], []]
    try:
        with caplog.at_level(logging.WARNING, "flashelmo"):
            embedder = on_cuda(ONE_LAYER, cuda=AHEAD)
            for _ in range(2):
                assert_close(embedder.embed_batch(sentences), ReferenceRuntime(ONE_LAYER).embed_batch(sentences))
    finally:
        forests._module.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "schedules are made by NumPy, which is slower: no compiler"
    ]
