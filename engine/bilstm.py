"""Runs the bidirectional LSTM over a schedule: layer by layer, depth by depth, each node once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from flashelmo.engine.config import ElmoConfig
from flashelmo.engine.graph import GATES
from flashelmo.engine.runtimes import Array, Int32, Runtime
from flashelmo.engine.schedule import Forest, Schedule

# Rows of one product: enough to reach the matrix peak, few enough that a step's arrays stay in the last-level cache.
STEP_ROWS = 256
# Input products of a layer are held for this many bytes of rows at once: of a window's distinct words, or of nodes.
WORD_TABLE_BYTES = 512 << 20


@dataclass
class LstmState:
    """Final states of rows, carried from batch to batch: for each (layer, direction), hidden [B, P] and cell [B, C].

    A smaller batch updates the first rows only; a larger one's new rows start at zero (AllenNLP, bilm-tf).
    """

    rows: dict[tuple[int, int], tuple[Array, Array]] = field(default_factory=dict)

    def of(self, layer: int, direction: int, n_rows: int, config: ElmoConfig) -> tuple[Array, Array]:
        """The states of the first n_rows rows; writing to them updates this object."""
        sizes = (config.projection_size, config.cell_size)
        old = self.rows.get((layer, direction), tuple(np.zeros((0, size), np.float32) for size in sizes))
        missing = n_rows - len(old[0])
        if missing > 0:
            old = tuple(np.pad(array, ((0, missing), (0, 0))) for array in old)
            self.rows[layer, direction] = old
        return old[0][:n_rows], old[1][:n_rows]


class BiLstm:
    """The LSTM layers of one model on one runtime."""

    def __init__(self, config: ElmoConfig, runtime: Runtime) -> None:
        self._config = config
        self._runtime = runtime
        self._table_rows = max(STEP_ROWS, WORD_TABLE_BYTES // (len(GATES) * 4 * config.cell_size))

    def run(
        self,
        schedule: Schedule,
        word_vectors: Array,
        state: LstmState | None = None,
        on_nodes: Callable[[int], None] = lambda nodes: None,
    ) -> list[tuple[Array, Array]]:
        """Outputs of every layer: (forward [N_forward, P], backward [N_backward, P]).

        Args:
            schedule: built with `share=False, complete=True` where there is a state.
            word_vectors: [W, P] of the words that the schedule's nodes name.
            state: rows' states to start from, updated in place; None starts every root at zero.
            on_nodes: called after every step with the number of its nodes, for progress bars.
        """
        directions = []
        for direction, forest in enumerate((schedule.forward, schedule.backward)):
            outputs: list[Array] = []
            for layer in range(self._config.n_layers):
                states = state.of(layer, direction, len(forest.rows), self._config) if state else None
                if layer == 0:
                    hidden = self._run_layer(layer, direction, forest, word_vectors, forest.words, states, on_nodes)
                else:
                    hidden = self._run_layer(layer, direction, forest, outputs[-1], None, states, on_nodes)
                    if self._config.skip_connections:
                        hidden += outputs[-1]  # into the output alone: the recurrence is over
                outputs.append(hidden)
            directions.append(outputs)
        return list(zip(*directions, strict=True))

    def _run_layer(
        self,
        layer: int,
        direction: int,
        forest: Forest,
        x: Array,
        x_rows: Int32 | None,
        states: tuple[Array, Array] | None,
        on_nodes: Callable[[int], None],
    ) -> Array:
        """Hidden states [N, P] of one layer. Node n's input is x[x_rows[n]], or x[n]; `states` are read and updated."""
        config, runtime = self._config, self._runtime
        sizes = np.diff(forest.depths)
        hidden = np.empty((forest.n_nodes, config.projection_size), np.float32)
        cells = np.empty((2, sizes.max(initial=0), config.cell_size), np.float32)  # this depth's and the one before
        if states is None:
            states = (np.zeros((1, config.projection_size), np.float32), np.zeros((1, config.cell_size), np.float32))
            finals = None
        else:
            finals = states

        for slab in _slabs(forest, STEP_ROWS if x_rows is None else self._table_rows, x_rows):
            first, last = slab[0][1], slab[-1][2]
            if x_rows is None:
                gate_rows, inputs = None, x[first:last]
            else:
                words, inverse = np.unique(x_rows[first:last], return_inverse=True)
                gate_rows, inputs = inverse.astype(np.int32), x[words]
            gates = np.empty((len(GATES), len(inputs), config.cell_size), np.float32)
            runtime.input_product(layer, direction, inputs, gates)
            for depth, start, stop in slab:
                begin, end = forest.depths[depth], forest.depths[depth + 1]
                before = states if depth == 0 else (hidden[forest.depths[depth - 1] : begin], cells[(depth - 1) % 2])
                here = slice(start - first, stop - first)
                runtime.step(
                    layer,
                    direction,
                    gates[:, here] if gate_rows is None else gates,
                    None if gate_rows is None else gate_rows[here],
                    forest.parents[start:stop],
                    *before,
                    hidden[start:stop],
                    cells[depth % 2, start - begin : stop - begin],
                )
                on_nodes(stop - start)
                if finals and stop == end:
                    # rows are in order of length: those that end here are the last ones
                    going_on = sizes[depth + 1] if depth + 1 < len(sizes) else 0
                    rows = forest.rows[going_on : end - begin]
                    finals[0][rows] = hidden[begin + going_on : end]
                    finals[1][rows] = cells[depth % 2, going_on : end - begin]
        return hidden


def _slabs(forest: Forest, max_nodes: int, x_rows: Int32 | None) -> Iterator[list[tuple[int, int, int]]]:
    """Groups of consecutive steps (depth, start, stop) whose input product is one: at most max_nodes nodes each.

    With `x_rows`, a window whose distinct rows are at most max_nodes is one group, however many its nodes.
    """
    if x_rows is not None and len(np.unique(x_rows)) <= max_nodes:
        max_nodes = forest.n_nodes
    slab: list[tuple[int, int, int]] = []
    for depth in range(forest.n_depths):
        begin, end = int(forest.depths[depth]), int(forest.depths[depth + 1])
        n_steps = -(-(end - begin) // STEP_ROWS)
        for step in range(n_steps):
            start = begin + (end - begin) * step // n_steps
            stop = begin + (end - begin) * (step + 1) // n_steps
            if slab and stop - slab[0][1] > max_nodes:
                yield slab
                slab = []
            slab.append((depth, start, stop))
    if slab:
        yield slab
