"""A window's schedule as the device gets it, against one that is built slowly, and what a bucket holds."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashelmo.engine.cuda import layout as layout_module
from flashelmo.engine.cuda.layout import ALIGNED, D, Layout, Sizes, fill, last_depths
from flashelmo.engine.text.schedule import Boundaries, Schedule, build_schedule

WORDS = 5  # and two boundaries
BEGIN, END = WORDS, WORDS + 1
WORD_ROWS = np.array([40, 30, 20, 10, 0, 60, 50], np.int32)  # of the table
FIRST_ROW, PADDING_ROW = 3, 99

windows = st.lists(st.lists(st.integers(0, WORDS - 1), max_size=6), max_size=9)
kinds = st.sampled_from(["shared", "alone", "stateful"])


def schedule_of(window: list[list[int]], kind: str, keep: bool) -> Schedule:
    offsets = np.array([0, *np.cumsum([len(sentence) for sentence in window], dtype=int)])
    ids = np.array([word for sentence in window for word in sentence], np.int32)
    boundaries = Boundaries(BEGIN, END, keep)
    return build_schedule(ids, offsets, boundaries, share=kind == "shared", complete=kind == "stateful")


def sizes_of(schedule: Schedule, kind: str, pooled: bool = False) -> Sizes:
    return Sizes.of(schedule, share=kind == "shared", pooled=pooled, stateful=kind == "stateful")


def filled(sizes: Sizes, schedule: Schedule) -> dict[str, npt.NDArray[np.int32]]:
    """What `fill` writes, into memory that was in use before, by part."""
    flat = np.full(Layout.of(sizes).size, -7, np.int32)
    fill(flat, sizes, schedule, WORD_ROWS, first_row=FIRST_ROW, padding_row=PADDING_ROW)
    parts: dict[str, npt.NDArray[np.int32]] = Layout.of(sizes).views(flat)
    return parts


def walks(window: list[list[int]], direction: int, complete: bool) -> list[list[int]]:
    """The words that each sentence runs through, its far boundary where that is asked for."""
    walks = []
    for sentence in window:
        words = [BEGIN, *sentence, END] if direction == 0 else [END, *sentence[::-1], BEGIN]
        walks.append(words if complete else words[:-1] if sentence else [])
    return walks


def check_walks(parts: dict[str, Any], sizes: Sizes, window: list[list[int]], kind: str, keep: bool) -> None:
    """Every asked-for token's node leads up through its sentence's words to its sentence's root, depth by depth.

    This is all that the kernels do, in slow motion: from a node up to its parent, in the depth above.
    """
    complete = keep or kind == "stateful"
    starts, parents, words = parts["starts"], parts["parents"], parts["words"]
    for d in range(D):
        token = 0
        used = set()
        for b, sentence in enumerate(window):
            walk = walks(window, d, complete)[b]
            places = range(len(sentence) + 2) if keep else range(1, len(sentence) + 1)
            for place in places:
                step = place if d == 0 else len(sentence) + 1 - place
                node = parts["token_nodes"][d, token]
                for depth in range(step + 1, 0, -1):
                    assert starts[d, depth] <= node < starts[d, depth + 1] <= sizes.n_nodes
                    assert words[d, node] == WORD_ROWS[walk[depth - 1]]
                    used.add(int(node))
                    node = starts[d, depth - 1] + parents[d, node]
                assert node == (0 if kind == "shared" else b)
                token += 1
        if not keep and kind != "stateful":
            assert used == set(range(sizes.n_roots, starts[d, -1]))  # none too many


def check_parts(parts: dict[str, Any], sizes: Sizes, window: list[list[int]], kind: str, keep: bool) -> None:
    """What stands beside the forests, and who names each node as its parent: its children, in their order."""
    for starts, parents, children in zip(parts["starts"], parts["parents"], parts["children"], strict=True):
        named: dict[int, list[int]] = {}
        for depth, (first, last) in enumerate(pairwise(starts[1:])):
            for node in range(first, last):
                named.setdefault(starts[depth] + parents[node], []).append(node)
        for node in range(sizes.n_roots, starts[-1]):
            assert list(range(children[node], children[node + 1])) == named.get(node, [])
    tokens = [[BEGIN, *sentence, END] if keep else sentence for sentence in window]
    flat = [word for sentence in tokens for word in sentence]
    assert parts["token_words"][: len(flat)].tolist() == WORD_ROWS[flat].tolist() if flat else True
    if sizes.n_sentences:
        offsets = [0, *np.cumsum([len(sentence) for sentence in tokens]).tolist()]
        assert parts["offsets"].tolist() == offsets + [len(flat)] * (sizes.n_sentences + 1 - len(offsets))
    if sizes.n_rows:
        rows = parts["state_rows"].tolist()
        assert sorted(rows) == [*range(FIRST_ROW, FIRST_ROW + len(window))] + [PADDING_ROW] * (len(rows) - len(window))
        for k, row in enumerate(rows[: len(window)]):
            check_row(parts, k, walks(window, 0, True)[row - FIRST_ROW])


def check_row(parts: dict[str, Any], k: int, walk: list[int]) -> None:
    """A row's state is at its last node, in both directions."""
    node, depth = parts["final_nodes"][k], len(walk)
    assert parts["final_ranks"][k] == node - parts["starts"][0, depth]
    assert parts["final_slots"][k] == depth % 2
    for d in range(D):
        assert parts["starts"][d, depth] <= node < parts["starts"][d, depth + 1]
        last = walk[-1] if d == 0 else walk[0]
        assert parts["words"][d, node] == WORD_ROWS[last]


@given(windows, kinds, st.booleans(), st.booleans())
def test_exact_sizes(window: list[list[int]], kind: str, keep: bool, pooled: bool) -> None:
    schedule = schedule_of(window, kind, keep)
    sizes = sizes_of(schedule, kind, pooled)
    parts = filled(sizes, schedule)
    assert parts["starts"].tolist() == [list(starts) for starts in sizes.depths]
    assert parts["token_words"].size == sizes.n_tokens == len(schedule.token_words)
    assert sizes.n_nodes == sizes.n_roots + max(forest.n_nodes for forest in (schedule.forward, schedule.backward))
    assert (sizes.n_sentences, sizes.n_rows) == (len(window) * pooled, len(window) * (kind == "stateful"))
    check_walks(parts, sizes, window, kind, keep)
    check_parts(parts, sizes, window, kind, keep)


@given(windows.filter(any), kinds, st.booleans(), st.booleans(), st.sampled_from([(16, 64, 64), (1, 1, 1), (2, 4, 4)]))
def test_a_bucket_holds_the_window(
    window: list[list[int]], kind: str, keep: bool, pooled: bool, least: tuple[int, int, int]
) -> None:
    """Its forests are the same, but for the roots beyond the window's; what else there is leads nowhere."""
    schedule = schedule_of(window, kind, keep)
    exact = replace(sizes_of(schedule, kind, pooled))  # whose bucket no other example has asked for
    with pytest.MonkeyPatch.context() as patch:  # small ones are outgrown sooner
        patch.setattr(layout_module, "LEAST_ROWS", least[0])
        patch.setattr(layout_module, "LEAST_NODES", least[1])
        patch.setattr(layout_module, "LEAST_TAIL_ROWS", least[2])
        bucket = exact.bucket()
        assert bucket.bucket() == bucket
    parts = filled(bucket, schedule)
    check_walks(parts, bucket, window, kind, keep)
    check_parts(parts, bucket, window, kind, keep)
    check_room(bucket, exact, parts["starts"], *least[:2])
    first = bucket.n_roots  # a node that is computed, as its word is: other memory might hold infinities
    assert (parts["token_words"][exact.n_tokens :] == parts["words"][0, first]).all()
    assert (parts["token_nodes"][:, exact.n_tokens :] == first).all() and (parts["starts"][:, 2] > first).all()


def check_room(bucket: Sizes, exact: Sizes, starts: npt.NDArray[np.int32], least_rows: int, least_nodes: int) -> None:
    """No depth has more rows than the kernels are launched for."""
    for d in range(D):
        assert np.all(np.diff(starts[d]) >= 0) and starts[d, -1] <= bucket.n_nodes
        assert np.all(np.diff(starts[d]) <= np.diff(bucket.depths[d]))
    for name in ("n_roots", "n_nodes", "n_tokens", "n_sentences", "n_rows", "n_depths", "max_rows"):
        assert getattr(bucket, name) >= getattr(exact, name)
    n_nodes = max(exact.n_nodes - exact.n_roots, exact.n_tokens)
    assert bucket.n_nodes - bucket.n_roots < max(n_nodes + least_nodes, 1.25 * n_nodes)
    assert bucket.n_depths <= max(exact.n_depths + 1, 1.0625 * exact.n_depths)
    assert bucket.max_rows < max(least_rows + 1, 2 * exact.max_rows)


@given(windows)
def test_rows_take_as_many_steps_as_their_sentences(window: list[list[int]]) -> None:
    forest = schedule_of(window, "stateful", False).forward
    assert last_depths(forest).tolist() == [len(window[b]) + 2 for b in forest.order]


def test_parts_are_aligned_and_apart() -> None:
    sizes = Sizes(((0, 1, 4, 6), (0, 1, 3, 6)), n_roots=1, n_nodes=6, n_tokens=33, n_sentences=2, n_rows=2, n_words=5)
    layout = Layout.of(sizes)
    flat = np.arange(layout.size)
    parts = layout.views(flat)
    assert all(part.flat[0] % ALIGNED == 0 for part in parts.values())
    assert {name: part.shape for name, part in parts.items()} == {
        "starts": (2, 4),
        "parents": (2, 6),
        "children": (2, 7),
        "words": (2, 6),
        "token_words": (33,),
        "token_nodes": (2, 33),
        "offsets": (3,),
        **dict.fromkeys(("final_nodes", "final_ranks", "final_slots", "state_rows"), (2,)),
        **{"distinct": (2, 5), "node_words": (2, 6), "n_words": (1,)},
    }
    numbers = np.concatenate([part.ravel() for part in parts.values()])
    assert len(set(numbers.tolist())) == len(numbers) <= layout.size
    assert set(Layout.of(replace(sizes, n_sentences=0, n_rows=0, n_words=0)).views(flat)) == {
        "starts", "parents", "children", "words", "token_words", "token_nodes",
    }  # fmt: skip


@given(windows, kinds, st.booleans(), st.booleans())
def test_words_of_nodes_are_rows_of_the_table(window: list[list[int]], kind: str, keep: bool, in_bucket: bool) -> None:
    """The table's row of a node's word is the node's; a bucket counts its words, and has room for one a node."""
    schedule = schedule_of(window, kind, keep)
    exact = sizes_of(schedule, kind)
    if exact.n_depths == 0:
        return
    exact = replace(exact, n_words=len(WORD_ROWS))
    sizes = exact.bucket() if in_bucket else exact
    parts = filled(sizes, schedule)
    assert sizes.n_words >= len(WORD_ROWS) == parts["n_words"][0]
    assert in_bucket is False or sizes.n_words == sizes.n_nodes - sizes.n_roots
    for d, forest in enumerate((schedule.forward, schedule.backward)):
        nodes = slice(sizes.n_roots, sizes.n_roots + forest.n_nodes)
        assert (parts["distinct"][d][parts["node_words"][d, nodes]] == parts["words"][d, nodes]).all()
    for name in ("distinct", "node_words"):  # what kernels may read beyond what there is
        assert (parts[name] >= 0).all() and (parts[name] < 100).all()
    assert exact.bucket() != replace(exact, n_words=0).bucket()


def test_a_buckets_last_depths_have_fewer_rows() -> None:
    """As few as they need, in powers of two, where they are many; first ones that are shared have the others' rows."""
    rows = [1, 90, 300, *[257] * 20, *[140] * 9, *[64] * 3, 9, 1, 1]
    starts = (0, *np.cumsum([1, *rows]).tolist())
    sizes = Sizes((starts, starts), n_roots=1, n_nodes=starts[-1], n_tokens=starts[-1] - 1)
    assert sizes.rows == rows
    assert sizes.bucket().rows == [512] * 24 + [256] * 8 + [64] * 4 + [32] * 4
    few = (0, *np.cumsum([1, *[64] * 3, *[2] * 4]).tolist())
    assert Sizes((few, few), n_roots=1, n_nodes=few[-1], n_tokens=200).bucket().rows == [64] * 4 + [32] * 4


def test_a_window_without_tokens_has_no_depths() -> None:
    windows: list[list[list[int]]] = [[], [[], []]]
    for window in windows:
        schedule = schedule_of(window, "shared", False)
        sizes = sizes_of(schedule, "shared", pooled=True)
        assert (sizes.n_depths, sizes.max_rows, sizes.n_tokens, sizes.n_sentences) == (0, 0, 0, len(window))


@pytest.mark.parametrize(("kind", "most"), [("shared", 100), ("stateful", 130)])
def test_many_windows_share_few_buckets(kind: str, most: int) -> None:
    """Of a thousand windows of up to forty sentences of up to forty words; single sentences need fewer still."""
    rng = np.random.default_rng(0)
    buckets, alone = set(), set()
    for _ in range(1000):
        window = [rng.integers(0, WORDS, rng.integers(1, 40)).tolist() for _ in range(rng.integers(1, 40))]
        buckets.add(sizes_of(schedule_of(window, kind, False), kind).bucket())
        alone.add(sizes_of(schedule_of(window[:1], kind, False), kind).bucket())
    assert 10 < len(buckets) < most
    assert len(alone) < 25


@pytest.mark.parametrize(
    ("n_tokens", "expected"), [(1, 32), (32, 32), (33, 64), (65, 96), (129, 160), (160, 160), (257, 320), (2560, 2560)]
)
def test_nodes_grow_by_a_quarter_at_most(n_tokens: int, expected: int) -> None:
    sizes = Sizes(((0, 1, 2), (0, 1, 2)), n_roots=1, n_nodes=2, n_tokens=n_tokens).bucket()
    assert (sizes.n_tokens, sizes.n_nodes) == (expected, expected + 1)


@pytest.mark.parametrize(
    ("n_depths", "expected"), [(1, 2), (4, 4), (5, 6), (21, 22), (31, 32), (33, 36), (64, 64), (65, 72), (129, 144)]
)
def test_depths_grow_by_a_16th_at_most(n_depths: int, expected: int) -> None:
    starts = tuple(range(n_depths + 2))
    assert Sizes((starts, starts), n_roots=1, n_nodes=n_depths + 1, n_tokens=1).bucket().n_depths == expected
