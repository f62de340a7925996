"""Which nodes of a forest a runtime computes in one call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from flashelmo.engine.arrays import Bool, Int32
from flashelmo.engine.text.schedule import Forest


@dataclass(frozen=True)
class Call:
    """One call: n_steps depths from `depth` on, with the same rows in each; nodes start:stop."""

    depth: int
    n_steps: int
    start: int
    stop: int

    @property
    def n_rows(self) -> int:
        """The number of rows of each depth."""
        return (self.stop - self.start) // self.n_steps


def slabs(
    forest: Forest, first_depth: int, step_rows: int, max_nodes: int, x_rows: Int32 | None
) -> Iterator[list[Call]]:
    """Yield groups of consecutive calls that share one input product: at most max_nodes nodes each.

    Args:
        first_depth: the first one to compute.
        step_rows: the most nodes per depth of a call.
        x_rows: each node's row of the input [N], unless nodes have their own: a window with at most max_nodes distinct
            rows is one group, whatever its number of nodes.
    """
    if x_rows is not None and len(np.unique(x_rows)) <= max_nodes:
        max_nodes = forest.n_nodes
    slab: list[Call] = []
    for steps in _steps(forest, first_depth, step_rows):
        if slab and steps.stop - slab[0].start > max_nodes:
            yield slab
            slab = []
        slab.append(steps)
    if slab:
        yield slab


def _steps(forest: Forest, first_depth: int, step_rows: int) -> Iterator[Call]:
    """Yield calls of at most step_rows rows from first_depth on: large depths are cut, those with equal rows joined."""
    sizes = np.diff(forest.depths)
    keeps_rows = _keeps_rows(forest)
    depth = first_depth
    while depth < forest.n_depths:
        start, size = int(forest.depths[depth]), int(sizes[depth])
        if size > step_rows:
            n_calls = -(-size // step_rows)
            cuts = [start + size * call // n_calls for call in range(n_calls + 1)]
            yield from (Call(depth, 1, first, stop) for first, stop in pairwise(cuts))
            depth += 1
            continue
        n_steps = 1
        while depth + n_steps < forest.n_depths and keeps_rows[depth + n_steps] and (n_steps + 1) * size <= step_rows:
            n_steps += 1
        yield Call(depth, n_steps, start, start + n_steps * size)
        depth += n_steps


def _keeps_rows(forest: Forest) -> Bool:
    """Return, per depth, whether its rows are those of the depth before, with none ended and none branched."""
    sizes = np.diff(forest.depths)
    keeps_rows = np.zeros(len(sizes), np.bool_)
    if len(sizes) > 1:
        same = forest.parents == np.arange(forest.n_nodes) - np.repeat(forest.depths[:-1], sizes)
        keeps_rows[1:] = np.logical_and.reduceat(same, forest.depths[:-1])[1:] & (sizes[1:] == sizes[:-1])
    return keeps_rows
