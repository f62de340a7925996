"""The schedule: which LSTM steps a window of sentences needs, each computed once.

From a fresh state, the forward LSTM's state after a prefix depends only on that prefix, the backward one's only on the
suffix. A window of sentences is therefore two forests: one node for each distinct prefix, one for each distinct suffix.
A node's depth is its time step; it knows its word and its parent. A time step is then one dense product over the nodes
of that depth: no padding, no mask, no sentence computed twice.

Rows that carry their own state (stateful runs) use the same structure without sharing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from flashelmo.engine.arrays import Int32, Int64

MAX_WINDOW_TOKENS = 1 << 17  # beyond it, twice the window saves 1.5% of the steps (benchmarks/results/bulk)
LARGEST_WINDOW_TOKENS = 1 << 19  # on a card that has room for more: see `engine.cuda.memory`
MAX_WINDOW_SENTENCES = 1 << 17  # rows of a step: kernels count a direction's cells, up to 16,383 per row, in 32 bits
DENSE_FOREST_CELLS = 1 << 17  # rows times depths: up to here a dense table is faster than a loop over depths


@dataclass(frozen=True)
class Forest:
    """Nodes of one direction in order of depth.

    Attributes:
        words: [N] index of each node's word.
        parents: [N] index of each node's parent among the nodes of the previous depth, or, at depth 0, among the roots.
        depths: [depths + 1]; the nodes of depth t are depths[t]:depths[t + 1].
        token_nodes: [tokens] node of every requested token, sentence after sentence.
        order: [B] the sentences by number of steps, longest first. Without sharing, the rows of a depth are the first
            ones in this order.
    """

    words: Int32
    parents: Int32
    depths: Int64
    token_nodes: Int32
    order: Int64

    @property
    def n_nodes(self) -> int:
        """N, the LSTM steps of this direction."""
        return len(self.words)

    @property
    def n_depths(self) -> int:
        """The number of time steps."""
        return len(self.depths) - 1


@dataclass(frozen=True)
class Boundaries:
    """Word indices of the begin and end of a sentence, and whether their own vectors are requested."""

    begin: int
    end: int
    keep: bool = False


@dataclass(frozen=True)
class Schedule:
    """The two forests of a window.

    Attributes:
        forward, backward: one node for each distinct prefix, and for each distinct suffix.
        token_words: [tokens] word index of every requested token, including boundaries if they are kept.
        offsets: [B + 1]; sentence b's tokens are offsets[b]:offsets[b + 1] of token_words and of token_nodes.
    """

    forward: Forest
    backward: Forest
    token_words: Int32
    offsets: Int64

    @property
    def n_nodes(self) -> int:
        """The LSTM steps of both directions, for one layer."""
        return self.forward.n_nodes + self.backward.n_nodes


def build_schedule(
    word_ids: Int32,
    offsets: Int64,
    boundaries: Boundaries,
    *,
    share: bool = True,
    complete: bool = False,
    build: Builder | None = None,
) -> Schedule:
    """Return the forests of a window of sentences.

    Args:
        word_ids: [tokens] index of each token's word, sentence after sentence.
        offsets: [B + 1]; sentence b is word_ids[offsets[b]:offsets[b + 1]].
        boundaries: every sentence runs between these two words. No token uses the far one's state, so it is computed
            only if boundaries are kept or the run is complete.
        share: one node for equal prefixes (suffixes) and one root for all. Otherwise every sentence has its own nodes
            and its own root, root b for sentence b.
        complete: run every sentence, even an empty one, through its far boundary, as a stateful run must.
        build: makes the nodes of more than one sentence; by default `build_forests`.
    """
    if len(offsets) == 2:
        return _one_sentence(word_ids, boundaries, complete)
    lengths = offsets[1:] - offsets[:-1]
    starts = offsets + 2 * np.arange(len(offsets))  # each sentence is between its two boundaries
    places = np.arange(len(word_ids)) + np.repeat(2 * np.arange(len(lengths)) + 1, lengths)  # of words in `sequences`
    sequences = np.empty(starts[-1], np.int32)
    sequences[starts[:-1]], sequences[starts[1:] - 1], sequences[places] = boundaries.begin, boundaries.end, word_ids

    if boundaries.keep or complete:
        steps = lengths + 2
    else:
        steps = np.where(lengths > 0, lengths + 1, 0)
    wanted: slice | Int64 = slice(None) if boundaries.keep else places
    order = np.argsort(-steps, kind="stable")
    walks = Walks(sequences, np.stack([starts[:-1], starts[1:] - 1]), steps, order)
    forward, backward = (
        Forest(nodes.words, nodes.parents, nodes.depths, nodes.of_positions[wanted], order)
        for nodes in (build or build_forests)(walks, share)
    )
    token_words, offsets = (sequences, starts) if boundaries.keep else (word_ids, offsets)
    return Schedule(forward, backward, token_words, offsets)


def _one_sentence(word_ids: Int32, boundaries: Boundaries, complete: bool) -> Schedule:
    """Return two chains, quickly: a caller waits for the schedule of a single sentence."""
    n, keep = len(word_ids), boundaries.keep
    sequence = np.empty(n + 2, np.int32)
    sequence[0], sequence[1:-1], sequence[-1] = boundaries.begin, word_ids, boundaries.end
    n_steps = n + 2 if keep or complete else n + 1 if n else 0
    parents, depths, order = np.zeros(n_steps, np.int32), np.arange(n_steps + 1), np.zeros(1, np.int64)
    wanted = slice(None) if keep else slice(1, -1)
    nodes = np.arange(n + 2, dtype=np.int32)
    return Schedule(
        forward=Forest(sequence[:n_steps], parents, depths, nodes[wanted], order),
        backward=Forest(sequence[::-1][:n_steps], parents, depths, nodes[::-1][wanted], order),
        token_words=sequence[wanted],
        offsets=np.array([0, n + 2 * keep]),
    )


class Walks(NamedTuple):
    """Rows of words: row b of a direction goes through `sequences` from firsts[direction, b] for steps[b] words.

    Attributes:
        sequences: the sentences between their boundaries, end to end.
        firsts: [2, B]; the forward direction goes forward from there, the backward one back.
        steps: [B].
        order: [B] the rows, longest first.
    """

    sequences: Int32
    firsts: Int64
    steps: Int64
    order: Int64


class ForestNodes(NamedTuple):
    """The nodes of one direction: `words`, `parents` and `depths` of a `Forest`, and the node of each position in
    `sequences`.

    Nodes of a depth are ordered by their parents, then by their words; without sharing by their rows.
    """

    words: Int32
    parents: Int32
    depths: Int64
    of_positions: Int32


Builder: TypeAlias = Callable[[Walks, bool], tuple[ForestNodes, ForestNodes]]


def build_forests(walks: Walks, share: bool) -> tuple[ForestNodes, ForestNodes]:
    """Return the nodes of both directions; with `share`, one for equal prefixes (suffixes)."""
    if 0 < len(walks.order) * walks.steps.max(initial=0) <= DENSE_FOREST_CELLS:
        return _build_small_forests(walks, share)
    return _build_forest(walks, 0, share), _build_forest(walks, 1, share)


def _build_forest(walks: Walks, direction: int, share: bool) -> ForestNodes:
    """Return the nodes of one direction, built depth by depth."""
    sequences, firsts, steps, order = walks
    stride = 1 - 2 * direction
    firsts = firsts[direction, order]
    # sentences are ordered by length, so those that reach depth t are the first reach[t]
    reach = len(order) - np.searchsorted(np.sort(steps), np.arange(steps.max(initial=0)), side="right")
    n_words = int(sequences.max(initial=0)) + 1

    position_nodes = np.full(len(sequences), -1, np.int32)
    words, parents, depths = [], [], [0]
    states = np.zeros(len(order), np.int64) if share else order  # each row's node of the previous depth
    for depth, n_rows in enumerate(reach):
        positions = firsts[:n_rows] + stride * depth
        words_here = sequences[positions]
        parents_here = states[:n_rows]
        if share and n_rows > 1:
            pairs, states = np.unique(parents_here * n_words + words_here, return_inverse=True)
            parents_here, words_here = np.divmod(pairs, n_words)
        else:
            states = np.arange(n_rows)
        position_nodes[positions] = depths[-1] + states
        words.append(words_here)
        parents.append(parents_here)
        depths.append(depths[-1] + len(words_here))
    return ForestNodes(_concatenate(words), _concatenate(parents), np.array(depths, np.int64), position_nodes)


def _build_small_forests(walks: Walks, share: bool) -> tuple[ForestNodes, ForestNodes]:
    """Do as `build_forests`, without a loop over depths, which for few rows costs more than the work in it.

    Rows are sorted by their words. Then each shares the nodes of the previous row as far as their beginnings are equal,
    and has its own from the first difference on.
    """
    sequences, firsts, steps, order = walks
    B, T = len(order), int(steps.max())
    depth = np.arange(T)
    positions = firsts[:, :, None] + depth * np.array([1, -1])[:, None, None]  # [2, B, T]
    present = np.broadcast_to(depth < steps[:, None], positions.shape)
    words = np.where(present, sequences.take(positions, mode="clip"), np.int32(-1))
    positions[1] += len(sequences)  # both directions' nodes by position, one after the other
    rows = _lexicographic(words) if share else np.stack([order, order + B])  # [2, B]
    words, positions, present = (each.reshape(2 * B, T)[rows] for each in (words, positions, present))
    is_new = present.copy()
    if share:
        differs = np.logical_or.accumulate(words[:, 1:] != words[:, :-1], axis=2)  # from the first difference on
        is_new[:, 1:] &= differs
    rank = np.cumsum(is_new, axis=1, dtype=np.int32) - 1  # of each row's node in its depth
    parents = np.empty_like(rank)
    parents[:, :, 0] = 0 if share else order
    parents[:, :, 1:] = rank[:, :, :-1]
    depths = np.zeros((2, T + 1), np.int64)
    np.cumsum(np.count_nonzero(is_new, axis=1), axis=1, out=depths[:, 1:])
    position_nodes = np.full(2 * len(sequences), -1, np.int32)
    position_nodes[positions[present]] = (rank + depths[:, None, :-1].astype(np.int32))[present]
    by_depth = is_new.transpose(0, 2, 1)

    def nodes(direction: int) -> ForestNodes:
        chosen = by_depth[direction]
        ours = position_nodes.reshape(2, -1)[direction]
        return ForestNodes(words[direction].T[chosen], parents[direction].T[chosen], depths[direction], ours)

    return nodes(0), nodes(1)


def _lexicographic(words: Int32) -> Int64:
    """Return the lexicographic order of each direction's rows of words [2, B, T], where -1 comes first.

    Returns:
        [2, B] row numbers; the second direction's are counted from B.
    """
    _, B, T = words.shape
    keys = np.empty((2, B, T + 1), ">u4")  # whose bytes compare as the numbers do
    keys[:, :, 0] = [[0], [1]]
    keys[:, :, 1:] = words + 1
    return keys.view(f"V{keys.itemsize * (T + 1)}").reshape(2 * B).argsort(kind="stable").reshape(2, B)


def _concatenate(parts: Sequence[npt.NDArray[np.signedinteger]]) -> Int32:
    return np.concatenate(parts, dtype=np.int32) if parts else np.empty(0, np.int32)
