"""The schedule: which LSTM steps a window of sentences needs, each computed once.

From a fresh state, the forward LSTM's state after a prefix depends on that prefix alone, the backward one's on the
suffix alone. A window of sentences is therefore two forests: one node for each distinct prefix, one for each distinct
suffix. A node's depth is its time step; it knows its word and its parent. A time step is then one dense product over
the nodes of that depth: no padding, no mask, no sentence computed twice.

Rows that carry a state of their own (stateful runs) take the same structure without sharing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]

MAX_WINDOW_TOKENS = 1 << 17  # beyond it, larger windows share hardly more steps
DENSE_FOREST_CELLS = 1 << 17  # rows times depths: up to here a dense table takes less time than a loop over depths


@dataclass(frozen=True)
class Forest:
    """Nodes of one direction in order of depth.

    Attributes:
        words: [N] index of each node's word.
        parents: [N] index of each node's parent among the nodes of the depth before, or, at depth 0, among the roots.
        depths: [depths + 1]; the nodes of depth t are depths[t]:depths[t + 1].
        token_nodes: [tokens] node of every token that was asked for, sentences end to end.
        order: [B] the sentences in order of their number of steps, longest first. Without sharing, the rows of a
            depth are the first ones of this order.
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
        """Number of time steps."""
        return len(self.depths) - 1


@dataclass(frozen=True)
class Boundaries:
    """Word indices of the begin and end of a sentence, and whether their own vectors are asked for."""

    begin: int
    end: int
    keep: bool = False


@dataclass(frozen=True)
class Schedule:
    """The two forests of a window.

    Attributes:
        forward, backward: one node for each distinct prefix, and for each distinct suffix.
        token_words: [tokens] word index of every token that was asked for, boundaries included where they are kept.
        offsets: [B + 1]; sentence b's tokens are offsets[b]:offsets[b + 1] of token_words and of token_nodes.
    """

    forward: Forest
    backward: Forest
    token_words: Int32
    offsets: Int64

    @property
    def n_nodes(self) -> int:
        """LSTM steps of both directions, for one layer."""
        return self.forward.n_nodes + self.backward.n_nodes


def build_schedule(
    word_ids: Int32,
    offsets: Int64,
    boundaries: Boundaries,
    *,
    share: bool = True,
    complete: bool = False,
) -> Schedule:
    """Forests of a window of sentences.

    Args:
        word_ids: [tokens] index of each token's word, sentences end to end.
        offsets: [B + 1]; sentence b is word_ids[offsets[b]:offsets[b + 1]].
        boundaries: every sentence runs between these two words. The far one's state is used by no token, so it is
            computed only where boundaries are kept or the run is complete.
        share: one node for equal prefixes (suffixes) and one root for all. Without it every sentence has nodes of
            its own and its own root, root b for sentence b.
        complete: run every sentence, an empty one too, through its far boundary, as a stateful run must.
    """
    lengths = np.diff(offsets)
    starts = offsets + 2 * np.arange(len(offsets))  # a sentence stands between its two boundaries
    sequences = np.empty(starts[-1], np.int32)
    sequences[starts[:-1]] = boundaries.begin
    sequences[starts[1:] - 1] = boundaries.end
    inner = np.ones(len(sequences), np.bool_)
    inner[starts[:-1]] = inner[starts[1:] - 1] = False
    sequences[inner] = word_ids

    if boundaries.keep or complete:
        steps = lengths + 2
    else:
        steps = np.where(lengths > 0, lengths + 1, 0)
    wanted: slice | npt.NDArray[np.bool_] = slice(None) if boundaries.keep else inner
    return Schedule(
        forward=_build_forest(sequences, starts[:-1], 1, steps, wanted, share=share),
        backward=_build_forest(sequences, starts[1:] - 1, -1, steps, wanted, share=share),
        token_words=sequences[wanted],
        offsets=starts if boundaries.keep else offsets,
    )


def _build_forest(
    sequences: Int32,
    firsts: Int64,
    stride: int,
    steps: Int64,
    wanted: slice | npt.NDArray[np.bool_],
    *,
    share: bool,
) -> Forest:
    """Forest of the rows that start at `firsts` in `sequences` and walk by `stride` for `steps` [B] words."""
    order = np.argsort(-steps, kind="stable")
    if 0 < len(order) * steps.max(initial=0) <= DENSE_FOREST_CELLS:
        return _build_small_forest(sequences, firsts, stride, steps, wanted, order, share=share)
    firsts = firsts[order]
    # sentences stand in order of length, so those that reach depth t are the first reach[t]
    reach = len(order) - np.searchsorted(np.sort(steps), np.arange(steps.max(initial=0)), side="right")
    n_words = int(sequences.max(initial=0)) + 1

    position_nodes = np.full(len(sequences), -1, np.int32)
    words, parents, depths = [], [], [0]
    states = np.zeros(len(order), np.int64) if share else order  # each row's node of the depth before
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
    return Forest(
        words=_concatenate(words),
        parents=_concatenate(parents),
        depths=np.array(depths, np.int64),
        token_nodes=position_nodes[wanted],
        order=order,
    )


def _build_small_forest(
    sequences: Int32,
    firsts: Int64,
    stride: int,
    steps: Int64,
    wanted: slice | npt.NDArray[np.bool_],
    order: Int64,
    *,
    share: bool,
) -> Forest:
    """The same, all depths at once: where rows are few, a loop over depths would take far longer than its work.

    Rows in order of their words share with the row before them what both begin with; the rest are nodes of their own.
    """
    depth = np.arange(steps.max())
    positions = firsts[:, None] + stride * depth
    present = depth < steps[:, None]
    words = np.where(present, sequences[np.where(present, positions, 0)], -1)  # [B, T]
    row_order = _lexicographic(words) if share else order
    words, positions, present = words[row_order], positions[row_order], present[row_order]
    is_new = present.copy()
    if share:
        differs = np.logical_or.accumulate(words[1:] != words[:-1], axis=1)  # from the first difference on
        is_new[1:] &= differs
    rank = np.cumsum(is_new, axis=0, dtype=np.int32) - 1  # of each row's node in its depth
    parents = np.empty_like(rank)
    parents[:, 0] = 0 if share else row_order
    parents[:, 1:] = rank[:, :-1]
    depths = np.zeros(len(depth) + 1, np.int64)
    np.cumsum(is_new.sum(axis=0), out=depths[1:])
    position_nodes = np.full(len(sequences), -1, np.int32)
    position_nodes[positions[present]] = (rank + depths[:-1].astype(np.int32))[present]
    return Forest(
        words=words.T[is_new.T].astype(np.int32),  # depth by depth
        parents=parents.T[is_new.T],
        depths=depths,
        token_nodes=position_nodes[wanted],
        order=order,
    )


def _lexicographic(words: npt.NDArray[np.signedinteger[Any]]) -> Int64:
    """The order of rows by their first words, then their second, ...; -1 comes first."""
    if len(words) == 1:
        return np.zeros(1, np.int64)
    keys = np.ascontiguousarray(words + 1, ">u4")  # whose bytes compare as the numbers do
    return keys.view(f"V{keys.itemsize * keys.shape[1]}")[:, 0].argsort(kind="stable")


def _concatenate(parts: Sequence[npt.NDArray[np.signedinteger]]) -> Int32:
    return np.concatenate(parts, dtype=np.int32) if parts else np.empty(0, np.int32)
