"""The forests against sentences walked one by one."""

from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashelmo.engine.text.schedule import Boundaries, Forest, Schedule, build_schedule

BEGIN, END = 7, 8
windows = st.lists(st.lists(st.integers(0, 6), max_size=6), max_size=12)


def schedule_of(sentences: list[list[int]], *, keep: bool, share: bool, complete: bool) -> Schedule:
    offsets = np.cumsum([0, *map(len, sentences)])
    word_ids = np.array([word for sentence in sentences for word in sentence], np.int32)
    return build_schedule(word_ids, offsets, Boundaries(BEGIN, END, keep), share=share, complete=complete)


def path(forest: Forest, node: int, depth: int) -> tuple[list[int], int]:
    """Words from the root to a node, and the root."""
    words = []
    for level in range(depth, -1, -1):
        assert forest.depths[level] <= node < forest.depths[level + 1]
        words.append(int(forest.words[node]))
        parent = int(forest.parents[node])
        node = parent + int(forest.depths[level - 1]) if level else parent
    return words[::-1], node


@given(windows, st.booleans(), st.booleans(), st.booleans())
def test_every_token_hangs_under_its_own_prefix_and_suffix(
    sentences: list[list[int]], keep: bool, share: bool, complete: bool
) -> None:
    schedule = schedule_of(sentences, keep=keep, share=share, complete=complete)
    for b, sentence in enumerate(sentences):
        whole = [BEGIN, *sentence, END]
        positions = range(len(whole)) if keep else range(1, len(whole) - 1)
        span = slice(schedule.offsets[b], schedule.offsets[b + 1])
        assert schedule.token_words[span].tolist() == [whole[p] for p in positions]
        for position, node in zip(positions, schedule.forward.token_nodes[span], strict=True):
            assert path(schedule.forward, int(node), position) == (whole[: position + 1], 0 if share else b)
        for position, node in zip(positions, schedule.backward.token_nodes[span], strict=True):
            suffix = whole[position:][::-1]
            assert path(schedule.backward, int(node), len(suffix) - 1) == (suffix, 0 if share else b)


@given(windows)
def test_a_shared_forest_has_one_node_for_each_distinct_prefix_and_no_other(sentences: list[list[int]]) -> None:
    schedule = schedule_of(sentences, keep=False, share=True, complete=False)
    prefixes = {(BEGIN, *s[:n]) for s in sentences if s for n in range(len(s) + 1)}
    suffixes = {(*s[n:], END) for s in sentences if s for n in range(len(s) + 1)}
    assert schedule.forward.n_nodes == len(prefixes)
    assert schedule.backward.n_nodes == len(suffixes)


@given(windows)
def test_a_complete_run_takes_every_sentence_through_both_boundaries(sentences: list[list[int]]) -> None:
    schedule = schedule_of(sentences, keep=False, share=False, complete=True)
    for forest in (schedule.forward, schedule.backward):
        assert forest.n_nodes == sum(len(s) + 2 for s in sentences)
        lengths = np.array([len(s) for s in sentences], int)[forest.order]
        assert (np.diff(lengths) <= 0).all()
        for depth, size in enumerate(np.diff(forest.depths)):
            # the rows of a depth are the first of the order, so a node's parent has its own index
            assert size == (lengths + 2 > depth).sum()
            if depth:
                begin = forest.depths[depth]
                assert forest.parents[begin : begin + size].tolist() == list(range(size))


def test_equal_sentences_cost_nothing_more() -> None:
    once = schedule_of([[1, 2, 3]], keep=False, share=True, complete=False)
    often = schedule_of([[1, 2, 3]] * 50, keep=False, share=True, complete=False)
    assert once.n_nodes == often.n_nodes == 8


@pytest.mark.parametrize("sentences", [[], [[]], [[], []]])
def test_nothing_to_do(sentences: list[list[int]]) -> None:
    schedule = schedule_of(sentences, keep=False, share=True, complete=False)
    assert schedule.n_nodes == 0
    assert schedule.offsets.tolist() == [0] * (len(sentences) + 1)


@given(windows, st.integers(0, 2))
def test_nodes_of_a_depth_stand_in_order_and_are_distinct(sentences: list[list[int]], n_words: int) -> None:
    """Of their parents, then of their words, though sentences are long, end alike, and go on after others' ends."""
    window = [word % (n_words + 1) for sentence in sentences for word in sentence]
    cuts = [window[:k] for k in range(len(window) + 1)] + [sentence * 9 for sentence in sentences]
    schedule = schedule_of(cuts + cuts[::-1], keep=False, share=True, complete=False)
    for forest in (schedule.forward, schedule.backward):
        for first, last in pairwise(forest.depths):
            nodes = list(zip(forest.parents[first:last].tolist(), forest.words[first:last].tolist(), strict=True))
            assert nodes == sorted(set(nodes))


def assert_same_nodes(one: Schedule, other: Schedule) -> None:
    for ours, expected in ((one.forward, other.forward), (one.backward, other.backward)):
        for name in ("words", "parents", "depths", "token_nodes"):
            found, wanted = getattr(ours, name), getattr(expected, name)
            assert found.dtype == wanted.dtype and np.array_equal(found, wanted), name


@given(windows, st.booleans(), st.booleans(), st.booleans())
def test_a_large_window_depth_by_depth_has_the_same_nodes(
    sentences: list[list[int]], keep: bool, share: bool, complete: bool
) -> None:
    table = schedule_of(sentences, keep=keep, share=share, complete=complete)
    with patch("flashelmo.engine.text.schedule.DENSE_FOREST_CELLS", 0):
        assert_same_nodes(schedule_of(sentences, keep=keep, share=share, complete=complete), table)


@given(st.lists(st.integers(0, 6), max_size=9), st.booleans())
def test_a_sentence_by_itself_has_the_forests_that_it_has_in_company(sentence: list[int], share: bool) -> None:
    alone = schedule_of([sentence], keep=False, share=share, complete=False)
    beside = schedule_of([sentence, []], keep=False, share=share, complete=False)
    assert_same_nodes(alone, beside)
    for ours, expected in ((alone.forward, beside.forward), (alone.backward, beside.backward)):
        assert ours.order.tolist() == [0] and ours.order.dtype == expected.order.dtype
    assert alone.token_words.tolist() == beside.token_words.tolist() == sentence
    assert alone.offsets.tolist() == beside.offsets[:2].tolist()


def test_long_rows_are_numbered_in_wider_integers() -> None:
    """More depths than 16 bits hold."""
    sentence = np.random.default_rng(0).integers(0, 6, 40_000).tolist()
    schedule = schedule_of([sentence, sentence[:-1]], keep=False, share=True, complete=False)
    assert schedule.forward.n_nodes == 40_001 and schedule.backward.n_nodes > 79_000
    assert schedule.forward.words.tolist() == [BEGIN, *sentence]
    assert schedule.forward.token_nodes.tolist() == [*range(1, 40_001), *range(1, 40_000)]
