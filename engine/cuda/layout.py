"""A window's schedule as one array of integers, so that one copy brings it to the device. Only NumPy is used.

Letters: D directions, T depths, N nodes with the roots, R rows of the largest depth, B sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import prod
from operator import sub
from typing import Any, TypeAlias

import numpy as np

from flashelmo.engine.arrays import Int32, Int64
from flashelmo.engine.text.schedule import Forest, Schedule

Depths: TypeAlias = tuple[tuple[int, ...], ...]

D = 2
ALIGNED = 32  # integers: every part begins at a multiple of 128 bytes, as kernels are compiled for aligned pointers
LEAST_ROWS = 16  # of a bucket: no tile has fewer
LEAST_TAIL_ROWS = 32  # of a bucket's last depths: `persistent` steps take that many; fewer would mean more buckets
LEAST_NODES = 32
MOST_FILLED = 1024  # sentence lengths that are kept, at about 2 KB each


@dataclass(frozen=True)
class Sizes:
    """The sizes of a window's tensors, or of a bucket's: of all windows that are no larger.

    Attributes:
        depths: [D][T + 2], first node of each depth and one past the last, the roots' depth first. In a bucket every
            depth has as many rows as the largest depth from there on (rounded up), so that every forest in the bucket
            fits.
        n_roots: states that the first depth starts from.
        n_nodes: N. In a bucket this may be less than `depths` has room for.
        n_tokens: tokens that get a result.
        n_sentences: B if each gets one vector; 0 if every token gets its own.
        n_rows: B if rows carry a state on; else 0.
        n_words: W, distinct words, if the lowest layer's input part is computed by word; else 0. In a bucket it is the
            number of nodes, as each may have its own word.
    """

    depths: Depths
    n_roots: int
    n_nodes: int
    n_tokens: int
    n_sentences: int = 0
    n_rows: int = 0
    n_words: int = 0

    @classmethod
    def of(cls, schedule: Schedule, *, share: bool, pooled: bool, stateful: bool) -> Sizes:
        """Return the exact sizes of a schedule; without sharing every sentence has its own root."""
        n_sentences = len(schedule.offsets) - 1
        forests = (schedule.forward, schedule.backward)
        if is_sentence(schedule):
            return _of_sentence(*[forest.n_depths for forest in forests], len(schedule.token_words), pooled, stateful)
        n_roots = 1 if share else n_sentences
        n_depths = max(forest.n_depths for forest in forests)
        return cls(
            depths=tuple(_starts(forest, n_depths, n_roots) for forest in forests),
            n_roots=n_roots,
            n_nodes=n_roots + max(forest.n_nodes for forest in forests),
            n_tokens=len(schedule.token_words),
            n_sentences=n_sentences if pooled else 0,
            n_rows=n_sentences if stateful else 0,
        )

    @property
    def n_depths(self) -> int:
        """The number of depths, T, without the roots'."""
        return len(self.depths[0]) - 2

    @property
    def max_rows(self) -> int:
        """R, without the roots."""
        return max(self.rows, default=0)

    @cached_property
    def rows(self) -> list[int]:
        """The number of rows of each depth, [T], in the direction that has most, without the roots."""
        return list(map(max, *(map(sub, starts[2:], starts[1:]) for starts in self.depths)))

    def with_words(self, n_words: int) -> Sizes:
        """Return these with a number of words."""
        return _with_words(self, n_words)

    def bucket(self) -> Sizes:
        """Return the sizes of a bucket that holds this window: some padding, so that many windows share one."""
        return self._bucket

    @cached_property
    def _bucket(self) -> Sizes:
        n_nodes = max(self.n_nodes - self.n_roots, self.n_tokens)
        return _bucket_of(
            self._steps,
            n_roots=1 if self.n_roots == 1 else power_of_two(self.n_roots, LEAST_ROWS),
            n_nodes=_rounded_nodes(n_nodes, LEAST_NODES),
            n_sentences=power_of_two(self.n_sentences, LEAST_ROWS) if self.n_sentences else 0,
            n_rows=power_of_two(self.n_rows, LEAST_ROWS) if self.n_rows else 0,
            by_word=self.n_words > 0,
        )

    @property
    def _steps(self) -> tuple[tuple[int, int], ...]:
        """Return a bucket's rows by depth, as descending steps (rows, end): so many rows up to the depth `end`."""
        rows, depth = self.rows, self.n_depths
        least = min(LEAST_TAIL_ROWS, power_of_two(max(rows), LEAST_ROWS))
        found: list[tuple[int, int]] = []
        while depth:
            here, end = power_of_two(rows[depth - 1], least), _rounded_depths(depth)
            found.append((here, end))
            while depth and rows[depth - 1] <= here:
                depth -= 1
        return tuple(found[::-1])


def is_sentence(schedule: Schedule) -> bool:
    """Whether it is of one sentence: two chains of nodes, the same for all sentences of that length."""
    chains = (forest.n_nodes == forest.n_depths for forest in (schedule.forward, schedule.backward))
    return len(schedule.offsets) == 2 and all(chains)


@lru_cache(1024)
def _of_sentence(n_forward: int, n_backward: int, n_tokens: int, pooled: bool, stateful: bool) -> Sizes:
    """Return the sizes of one sentence, two chains of nodes. Cached for latency, with what follows from them."""
    n_depths = max(n_forward, n_backward)
    depths = tuple((0, *range(1, n + 2), *[n + 1] * (n_depths - n)) for n in (n_forward, n_backward))
    return Sizes(depths, 1, 1 + n_depths, n_tokens, int(pooled), int(stateful))


@lru_cache(1024)
def _with_words(sizes: Sizes, n_words: int) -> Sizes:
    return replace(sizes, n_words=n_words)


@lru_cache(1024)
def _bucket_of(
    steps: tuple[tuple[int, int], ...], *, n_roots: int, n_nodes: int, n_sentences: int, n_rows: int, by_word: bool
) -> Sizes:
    """Return the sizes of a bucket with these `Sizes._steps`; cached, so that equal buckets are one object."""
    starts = [0, n_roots]
    for rows, end in steps:
        while len(starts) < end + 2:
            starts.append(starts[-1] + rows)
    n_words = n_nodes if by_word else 0
    return Sizes((tuple(starts),) * D, n_roots, n_roots + n_nodes, n_nodes, n_sentences, n_rows, n_words)


def _starts(forest: Forest, n_depths: int, n_roots: int) -> tuple[int, ...]:
    starts = (forest.depths + n_roots).tolist()
    return (0, *starts, *[starts[-1]] * (n_depths + 1 - len(starts)))


def power_of_two(n: int, least: int) -> int:
    """Return the smallest power of two that is at least n and at least `least`."""
    return max(least, 1 << max(0, n - 1).bit_length())


def _rounded_nodes(n: int, least: int) -> int:
    """Return n rounded up to 32, 64, 80, 96, 112, 128, 160, 192, ...: beyond the least, by a quarter at most."""
    step = max(least, power_of_two(n, 1) >> 3)
    return -(-n // step) * step


def _rounded_depths(n: int) -> int:
    """Return the number of depths rounded up: by 1 at most up to 32, by less than an eighth above.

    A step without rows still costs its launches, so few are added.
    """
    step = max(2, power_of_two(n, 1) >> 4)
    return -(-n // step) * step


class Layout:
    """Where arrays of integers are placed, end to end, in one that a single copy brings to the device.

    Args:
        shapes: of the parts, by name.

    Attributes:
        size: of the whole.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._parts: dict[str, tuple[int, tuple[int, ...]]] = {}
        self.size = 0
        for name, shape in shapes.items():
            self._parts[name] = (self.size, shape)
            self.size += -(-prod(shape) // ALIGNED) * ALIGNED

    @classmethod
    @lru_cache(256)
    def of(cls, sizes: Sizes) -> Layout:
        """Return a window's layout, with these parts:

        starts [D, T + 2], parents [D, N], children [D, N + 1]: see `kernels.lstm.run.Nodes`.
        words [D, N]: each node's row in the table of word vectors.
        token_words [tokens], token_nodes [D, tokens], offsets [B + 1]: see `kernels.token_layers.Tokens`.
        final_nodes, final_ranks, final_slots, state_rows [B]: of the rows that carry a state on: the last node, its
        position in its depth, which of two depths' cells it is, and the row of the state that it goes to.
        distinct [D, W], node_words [D, N], n_words [1]: see `kernels.lstm.run.InputWords`: each distinct word's row in
        the table, the same for either direction; each node's word; and how many words there are.
        """
        shapes: dict[str, tuple[int, ...]] = {
            "starts": (D, sizes.n_depths + 2),
            "parents": (D, sizes.n_nodes),
            "children": (D, sizes.n_nodes + 1),
            "words": (D, sizes.n_nodes),
            "token_words": (sizes.n_tokens,),
            "token_nodes": (D, sizes.n_tokens),
        }
        if sizes.n_sentences:
            shapes["offsets"] = (sizes.n_sentences + 1,)
        if sizes.n_rows:
            shapes |= dict.fromkeys(("final_nodes", "final_ranks", "final_slots", "state_rows"), (sizes.n_rows,))
        if sizes.n_words:
            shapes |= {"distinct": (D, sizes.n_words), "node_words": (D, sizes.n_nodes), "n_words": (1,)}
        return cls(shapes)

    def views(self, flat: Any) -> dict[str, Any]:
        """Return the parts of an array or tensor of `size` integers, by name."""
        return {name: flat[start : start + prod(shape)].reshape(shape) for name, (start, shape) in self._parts.items()}


def fill(
    flat: Int32,
    sizes: Sizes,
    schedule: Schedule,
    word_rows: Int32 | None = None,
    *,
    first_row: int = 0,
    padding_row: int = 0,
) -> None:
    """Write a schedule into an array of `Layout.of(sizes).size` integers; a bucket's surplus is filled harmlessly.

    Args:
        word_rows: [W], each word's row in the table of word vectors; None if `fill_words` follows.
        first_row: of the state, where the window's rows begin.
        padding_row: spare row of the state that a bucket's padding rows write to.
    """
    parts = Layout.of(sizes).views(flat)
    if is_sentence(schedule) and not sizes.n_rows:
        n_tokens = len(schedule.token_words), int(schedule.offsets[-1])
        key = sizes, schedule.forward.n_nodes, schedule.backward.n_nodes, *n_tokens
        if (filled := _filled.get(key)) is None:
            filled = np.zeros_like(flat)
            _fill_structure(Layout.of(sizes).views(filled), sizes, schedule, first_row, padding_row)
            if len(_filled) == MOST_FILLED:
                _filled.clear()
            _filled[key] = filled
        np.copyto(flat, filled)
    else:
        flat.fill(0)
        _fill_structure(parts, sizes, schedule, first_row, padding_row)
    if sizes.n_words:
        for d, forest in enumerate((schedule.forward, schedule.backward)):
            parts["node_words"][d, sizes.n_roots : sizes.n_roots + forest.n_nodes] = forest.words
    if word_rows is not None:
        _fill_words(parts, sizes, schedule, word_rows)


# What `_fill_structure` writes for a sentence: the same for all sentences of one length.
_filled: dict[tuple[Any, ...], Int32] = {}


def _fill_structure(
    parts: dict[str, Int32], sizes: Sizes, schedule: Schedule, first_row: int, padding_row: int
) -> None:
    """Write everything except the words; the parts must be zero."""
    for d, forest in enumerate((schedule.forward, schedule.backward)):
        nodes = slice(sizes.n_roots, sizes.n_roots + forest.n_nodes)
        starts, n_depths = parts["starts"][d], len(forest.depths)
        np.add(forest.depths, sizes.n_roots, out=starts[1 : n_depths + 1], casting="same_kind")
        starts[n_depths + 1 :] = starts[n_depths]
        parts["parents"][d, nodes] = forest.parents
        _fill_children(parts["children"][d], starts, forest)
        np.add(forest.token_nodes, sizes.n_roots, out=parts["token_nodes"][d, : len(forest.token_nodes)])
        parts["token_nodes"][d, len(forest.token_nodes) :] = sizes.n_roots
    if sizes.n_sentences:
        parts["offsets"][: len(schedule.offsets)] = schedule.offsets
        parts["offsets"][len(schedule.offsets) :] = schedule.offsets[-1]
    if sizes.n_rows:
        _fill_final(parts, schedule.forward, sizes.n_roots, first_row, padding_row)


def fill_words(flat: Int32, sizes: Sizes, schedule: Schedule, word_rows: Int32) -> None:
    """Write the rows of words' vectors into what `fill` has filled.

    Args:
        word_rows: [W], each word's row in the table of word vectors.
    """
    _fill_words(Layout.of(sizes).views(flat), sizes, schedule, word_rows)


def _fill_words(parts: dict[str, Int32], sizes: Sizes, schedule: Schedule, word_rows: Int32) -> None:
    for d, forest in enumerate((schedule.forward, schedule.backward)):
        nodes = slice(sizes.n_roots, sizes.n_roots + forest.n_nodes)
        word_rows.take(forest.words, out=parts["words"][d, nodes], mode="clip")  # the other modes copy
    word_rows.take(schedule.token_words, out=parts["token_words"][: len(schedule.token_words)], mode="clip")
    # A bucket's surplus tokens refer to computed rows: what happens to be in memory might look like an overflow.
    parts["token_words"][len(schedule.token_words) :] = parts["words"][0, sizes.n_roots : sizes.n_roots + 1]
    if sizes.n_words:
        parts["distinct"][:, : len(word_rows)], parts["n_words"][0] = word_rows, len(word_rows)


def _fill_children(children: Int32, starts: Int32, forest: Forest) -> None:
    """Write where each node's children begin: the running sum of their numbers, as nodes are in order of their parents.

    Those of roots are undefined.
    """
    n_roots, n_depths = starts[1], forest.n_depths
    above = forest.parents + np.repeat(starts[:n_depths], np.diff(forest.depths))  # each node's parent among all nodes
    counts = np.bincount(above, minlength=len(children) - 1)
    children[0] = n_roots
    np.cumsum(counts, out=children[1:])
    children[1:] += n_roots


def _fill_final(parts: dict[str, Int32], forest: Forest, n_roots: int, first_row: int, padding_row: int) -> None:
    """Write where each row ends; both directions take the same number of steps, and rows are in order of number."""
    ranks = np.arange(len(forest.order))
    steps = last_depths(forest)
    parts["final_nodes"][: len(ranks)] = forest.depths[steps - 1] + n_roots + ranks
    parts["final_ranks"][: len(ranks)] = ranks
    parts["final_slots"][: len(ranks)] = steps % 2
    parts["state_rows"][: len(ranks)] = first_row + forest.order
    parts["state_rows"][len(ranks) :] = padding_row


def last_depths(forest: Forest) -> Int64:
    """Return the number of steps of every row [B], longest first, of a forest without sharing.

    Row k takes part in every depth with more than k nodes.
    """
    sizes = np.diff(forest.depths)
    return np.asarray(len(sizes) - np.searchsorted(sizes[::-1], np.arange(len(forest.order)), side="right"), np.int64)
