"""The host side: text to windows, windows to forests. 100,000 tokens: 0.033 s are 3M tokens a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from flashelmo.engine.cuda.layout import Layout, Sizes, fill
from flashelmo.engine.pipeline import Planner
from flashelmo.engine.settings import Settings
from flashelmo.engine.text.schedule import Boundaries, Forest, Schedule, build_schedule
from flashelmo.engine.text.windows import Window, read_windows

N_TOKENS = 100_000


def read(path: Path) -> Window:
    (window,) = read_windows(path, max_sentences=1 << 16, max_tokens=1 << 20)
    return window


def schedule(window: Window, share: bool = True) -> Schedule:
    n_words = len(window.words)
    return build_schedule(window.word_ids, window.offsets, Boundaries(n_words, n_words + 1), share=share)


def prefixes(window: Window, step: int) -> int:
    """Distinct prefixes (step 1) or suffixes (step -1), the empty one included: what a forest must have as nodes."""
    found = {()}
    for b in range(len(window)):
        ids = window.word_ids[window.offsets[b] : window.offsets[b + 1]].tolist()[::step]
        found |= {tuple(ids[: k + 1]) for k in range(len(ids))}
    return len(found)


def words_on_the_way(forest: Forest, node: int) -> list[int]:
    """Words from a node's root to the node."""
    words: list[int] = []
    for depth in range(int(np.searchsorted(forest.depths, node, side="right")) - 1, -1, -1):
        words.insert(0, int(forest.words[node]))
        node = int(forest.parents[node]) + int(forest.depths[depth - 1]) if depth else node
    return words


@pytest.mark.benchmark(group="text to words, 100,000 tokens")
def test_read_windows(benchmark: BenchmarkFixture, text_file: Path) -> None:
    lines = text_file.read_text(encoding="utf-8").splitlines()
    window = read(text_file)
    assert [window.tokens(b) for b in range(len(window))] == [line.split() for line in lines]
    assert len(window.word_ids) >= N_TOKENS
    benchmark(read, text_file)


@pytest.mark.benchmark(group="text to words, 100,000 tokens")
def test_window_of_lists(benchmark: BenchmarkFixture, text_file: Path) -> None:
    sentences = [line.split() for line in text_file.read_text(encoding="utf-8").splitlines()]
    window = Window.from_sentences(sentences)
    assert [window.tokens(b) for b in range(len(window))] == sentences
    benchmark(Window.from_sentences, sentences)


@pytest.mark.benchmark(group="words to forests, 100,000 tokens")
@pytest.mark.parametrize("share", [True, False], ids=["shared", "unshared"])
def test_build_schedule(benchmark: BenchmarkFixture, text_file: Path, share: bool) -> None:
    window = read(text_file)
    result = schedule(window, share)
    if share:
        assert result.forward.n_nodes == prefixes(window, 1)
        assert result.backward.n_nodes == prefixes(window, -1)
    begin, last = len(window.words), int(window.offsets[-1]) - 1
    sentence = window.word_ids[window.offsets[-2] : window.offsets[-1]].tolist()
    assert words_on_the_way(result.forward, int(result.forward.token_nodes[last])) == [begin, *sentence]
    benchmark(schedule, window, share)


@pytest.mark.benchmark(group="text to a device's input, 100,000 tokens")
def test_device_input(benchmark: BenchmarkFixture, text_file: Path) -> None:
    planner = Planner(("<S>", "</S>"), Settings(threads=1))

    def run() -> dict[str, Any]:
        plan = planner.plan(read(text_file))
        sizes = Sizes.of(plan.schedule, share=True, pooled=False, stateful=False)
        flat = np.empty(Layout.of(sizes).size, np.int32)
        fill(flat, sizes, plan.schedule, np.arange(len(plan.words), dtype=np.int32))
        return Layout.of(sizes).views(flat)

    window, parts = read(text_file), run()
    expected = schedule(window)
    assert np.array_equal(parts["words"][0, 1 : 1 + expected.forward.n_nodes], expected.forward.words)
    assert np.array_equal(parts["token_nodes"][1], expected.backward.token_nodes + 1)
    benchmark(run)
