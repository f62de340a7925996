"""The nodes of a schedule's forests as the kernels read them; `engine.cuda.compute.nodes_of` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Nodes:
    """The LSTM's steps of D directions, node by node in order of depth; depth 0 are the roots, whose state is given.

    Kernels read wherever these integers point. They may stand for every schedule that fits, as a captured graph of
    launches needs, whose tensors are filled anew: how many nodes there are is read on the device.

    Attributes:
        starts: int32 [D, T + 2]; direction d's nodes of depth t are starts[d, t]:starts[d, t + 1]. Beyond a schedule's
            last depth all are the end of its nodes.
        parents: int32 [D, N], each node's parent among the nodes of the depth before; 0 for roots, and what lies beyond
            the last node is not read.
        words: int32 [D, N], the word of each node; likewise.
        depths: host copy of starts; for a captured graph, upper bounds whose total may exceed N.
    """

    starts: Tensor
    parents: Tensor
    words: Tensor
    depths: tuple[tuple[int, ...], ...]

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
        """States that the first depth starts from."""
        return self.depths[0][1]

    def rows(self, depth: int) -> int:
        """Nodes of a depth, in the direction that has most."""
        return max(starts[depth + 1] - starts[depth] for starts in self.depths)

    def span(self, depths: range) -> int:
        """Nodes of depths that follow each other, none of them the roots', in the direction that has most."""
        most = max(starts[depths.stop] - starts[depths.start] for starts in self.depths)
        return min(most, self.n_nodes - self.n_roots)

    @cached_property
    def max_rows(self) -> int:
        """Nodes of the largest depth, roots included."""
        return max(self.rows(depth) for depth in range(self.n_depths + 1))
