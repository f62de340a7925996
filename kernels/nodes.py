"""The nodes of a schedule's forests as the kernels read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashelmo.kernels.launch import check, check_ids


@dataclass(frozen=True)
class Nodes:
    """The LSTM's steps of D directions, node by node in order of depth; depth 0 are the roots, whose state is given.

    `of` checks forests and lays them out; `Nodes(...)` takes tensors as they are, unchecked. It may stand for every
    schedule that fits, as a captured graph of launches needs, whose tensors are filled anew: how many nodes there are
    is read on the device.

    Attributes:
        starts: int32 [D, T + 2]; direction d's nodes of depth t are starts[d, t]:starts[d, t + 1]. Beyond a schedule's
            last depth all are the end of its nodes.
        parents: int32 [D, N], each node's parent among the nodes of the depth before; 0 for roots, and what lies beyond
            the last node is not read.
        words: int32 [D, N], the word of each node; likewise.
        depths: `starts` in the host's memory, or those of the largest depths that there may be, with more nodes in all
            perhaps than the N that there is room for.
        n_words: the words' numbers lie below.
    """

    starts: Tensor
    parents: Tensor
    words: Tensor
    depths: tuple[tuple[int, ...], ...]
    n_words: int = 0

    @classmethod
    def of(
        cls,
        forests: Sequence[tuple[Tensor, Tensor, Tensor]],
        *,
        n_words: int,
        n_roots: int = 1,
        device: torch.device | str = "cpu",
    ) -> Nodes:
        """Nodes of forests in the host's memory, one for each direction.

        Args:
            forests: (words [N], parents [N], depths [T + 1]) of integers; depth t's nodes are depths[t]:depths[t + 1],
                and their parents lie among those of depth t - 1, or among the roots (`engine.text.schedule.Forest`).
            n_words: word ids lie below.
            n_roots: R, states that depth 0 may start from.

        Raises:
            ValueError: an id lies outside its range, or a forest is none.
        """
        if not forests:
            raise ValueError("forests: expected one for each direction, found none")
        for d, forest in enumerate(forests):
            _check_forest(d, *forest)
        n_depths = max(len(depths) for _, _, depths in forests)
        n_nodes = n_roots + max(len(words) for words, _, _ in forests)
        starts = torch.zeros(len(forests), n_depths + 1, dtype=torch.int32)
        parents = torch.zeros(len(forests), n_nodes, dtype=torch.int32)
        all_words = torch.zeros_like(parents)
        for d, (words, above, depths) in enumerate(forests):
            check_ids(f"words of direction {d}", words, n_words)
            _check_parents(d, above, depths, n_roots)
            parents[d, n_roots : n_roots + len(above)] = above
            all_words[d, n_roots : n_roots + len(words)] = words
            starts[d, 1 : len(depths) + 1] = depths + n_roots
            starts[d, len(depths) + 1 :] = starts[d, len(depths)]
        host = tuple(map(tuple, starts.tolist()))
        return cls(starts.to(device), parents.to(device), all_words.to(device), host, n_words)

    @property
    def n_directions(self) -> int:
        """D."""
        return len(self.depths)

    @property
    def n_depths(self) -> int:
        """T, without the roots' depth."""
        return len(self.depths[0]) - 2

    @property
    def n_nodes(self) -> int:
        """N, roots included, of the direction that has most, or as many as there is room for."""
        return self.parents.shape[1]

    @property
    def n_roots(self) -> int:
        """R."""
        return self.depths[0][1]

    def rows(self, depth: int) -> int:
        """Nodes of a depth, in the direction that has most."""
        return max(starts[depth + 1] - starts[depth] for starts in self.depths)

    def span(self, first: int, last: int) -> int:
        """Nodes of depths first ... last, none of them the roots', in the direction that has most."""
        most = max(starts[last + 1] - starts[first] for starts in self.depths)
        return min(most, self.n_nodes - self.n_roots)

    @property
    def max_rows(self) -> int:
        """Nodes of the largest depth, roots included."""
        return max(self.rows(depth) for depth in range(self.n_depths + 1))


def _check_forest(direction: int, words: Tensor, parents: Tensor, depths: Tensor) -> None:
    """Raise ValueError unless parents and depths are those of as many nodes as there are words."""
    integers = (torch.int32, torch.int64)
    check(f"words of direction {direction}", words, [None], integers)
    check(f"parents of direction {direction}", parents, [len(words)], integers)
    check(f"depths of direction {direction}", depths, [None], integers)
    ends = [int(depths[0]), int(depths[-1])] if len(depths) else []
    if ends != [0, len(words)] or bool((depths.diff() < 0).any()):
        raise ValueError(f"depths of direction {direction}: expected numbers that ascend from 0 to {len(words)}")


def _check_parents(direction: int, parents: Tensor, depths: Tensor, n_roots: int) -> None:
    sizes = depths.diff()
    bounds = torch.cat([torch.tensor([n_roots]), sizes])[: len(sizes)].repeat_interleave(sizes)
    wrong = ((parents < 0) | (parents >= bounds)).nonzero()
    if len(wrong):
        node = int(wrong[0])
        depth = int(torch.searchsorted(depths, node, right=True)) - 1
        raise ValueError(
            f"parents of direction {direction}, depth {depth}: expected ids from 0 to {int(bounds[node]) - 1}, "
            f"found {int(parents[node])}"
        )
