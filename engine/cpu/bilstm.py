"""Runs the bidirectional LSTM over a schedule: layer by layer, depth by depth, each node once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from flashelmo.engine.arrays import Float32, Int32
from flashelmo.engine.cpu.calls import slabs
from flashelmo.engine.cpu.runtime import Blocks, Kept, LstmSteps, Runtime
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.system.forks import InEachProcess
from flashelmo.engine.system.threads import Background
from flashelmo.engine.text.schedule import Forest, Schedule

# Rows of one product: enough to reach the matrix peak, few enough that a step's arrays stay in the last-level cache.
STEP_ROWS = 512
# Memory that each direction may use for layer 0's input products, one row per distinct word of the window.
WORD_TABLE_BYTES = 320 << 20


@dataclass
class RowStates:
    """Final states of rows, carried from batch to batch: per (layer, direction), hidden [B, P] and B rows of cells.

    A smaller batch updates only the first rows; a larger one's new rows start at zero (AllenNLP, bilm-tf).
    """

    states: dict[tuple[int, int], tuple[Float32, Kept]] = field(default_factory=dict)

    def of(
        self, layer: int, direction: int, n_rows: int, zeros: Callable[[int], tuple[Float32, Kept]]
    ) -> tuple[Float32, Kept]:
        """Return the states of the first n_rows rows, new ones from `zeros`; writing to them updates this object."""
        hidden, cell = self.states.get((layer, direction)) or zeros(0)
        if n_rows > len(hidden):
            new_hidden, new_cell = zeros(n_rows - len(hidden))
            hidden, cell = np.concatenate([hidden, new_hidden]), np.concatenate([cell, new_cell], axis=1)
            self.states[layer, direction] = hidden, cell
        return hidden[:n_rows], cell[:, :n_rows]

    def copy(self) -> RowStates:
        """Return the same states, to be updated independently."""
        return RowStates({key: (hidden.copy(), cell.copy()) for key, (hidden, cell) in self.states.items()})


class _Stopped(Exception):
    """In one direction, as the other has failed."""


class BiLstm:
    """The LSTM layers of one model on one runtime."""

    def __init__(self, config: ElmoConfig, runtime: Runtime) -> None:
        self._config = config
        self._runtime = runtime
        self._memory: dict[tuple[str, int], Kept] = {}
        self._boundaries: dict[tuple[int, int], tuple[Float32, Float32, Kept]] = {}
        # Each direction's memory and its pieces of the network.
        self._in_use = InEachProcess(lambda: (threading.Lock(), threading.Lock()))
        self._table_rows = max(STEP_ROWS, WORD_TABLE_BYTES // runtime.gates.row_bytes)

    def run(
        self,
        schedule: Schedule,
        word_vectors: Float32,
        state: RowStates | None = None,
        on_nodes: Callable[[int], None] = lambda nodes: None,
    ) -> list[tuple[Float32, Float32]]:
        """Return every layer's outputs: (forward [N_forward, P], backward [N_backward, P]).

        Args:
            schedule: built with `share=False, complete=True` where there is a state.
            word_vectors: [W, P] of the words that the schedule's nodes refer to.
            state: rows' states to start from, updated in place; with None every root starts at zero.
            on_nodes: called after every step with its number of nodes, by either direction's thread.
        """
        forests = (schedule.forward, schedule.backward)
        stopped = False  # both directions end after their step, as one has failed

        def count(nodes: int) -> None:
            if stopped:
                raise _Stopped
            on_nodes(nodes)

        def run_direction(direction: int) -> list[Float32]:
            nonlocal stopped
            with self._in_use()[direction]:  # wait until one that an interrupted call left running has ended
                try:
                    count(0)
                    return self._run_direction(direction, forests[direction], word_vectors, state, count)
                except BaseException:
                    stopped = True
                    raise

        if not self._runtime.concurrent_directions:
            return list(zip(run_direction(0), run_direction(1), strict=True))
        try:
            backward = Background(partial(run_direction, 1))
            return list(zip(run_direction(0), backward.result(), strict=True))
        except BaseException as raised:  # even Ctrl-C
            stopped = True
            with self._in_use()[1]:
                pass  # the other direction has ended, or ends at its begin
            if not isinstance(raised, _Stopped):
                raise
        backward.result()  # outside of the handler: what stopped this one, without how it was stopped
        raise AssertionError("unreachable: the other direction raised")

    def _run_direction(
        self,
        direction: int,
        forest: Forest,
        word_vectors: Float32,
        state: RowStates | None,
        on_nodes: Callable[[int], None],
    ) -> list[Float32]:
        """Return every layer's outputs [N, P]."""
        outputs: list[Float32] = []
        for layer in range(self._config.n_layers):
            states = state.of(layer, direction, len(forest.order), self._zero_states) if state else None
            x, x_rows = (word_vectors, forest.words) if layer == 0 else (outputs[-1], None)
            hidden = self._run_layer(layer, direction, forest, x, x_rows, states, on_nodes)
            if layer and self._config.skip_connections:
                hidden += outputs[-1]  # only into the output: the recurrence is over
            outputs.append(hidden)
        return outputs

    def _zero_states(self, n_rows: int) -> tuple[Float32, Kept]:
        """Return the state before any word: hidden [n_rows, P], and cells."""
        cell = self._runtime.cells.empty(n_rows)
        cell[:] = 0
        return np.zeros((n_rows, self._config.projection_size), np.float32), cell

    def _scratch(self, name: str, direction: int, blocks: Blocks, rows: int) -> Kept:
        """Return rows of reused memory: touching newly allocated pages costs as much as reading them."""
        key, size = (name, direction), blocks.planes * rows * blocks.width
        if key not in self._memory or self._memory[key].size < size:
            self._memory[key] = np.empty(size, blocks.dtype)
        return self._memory[key][:size].reshape(blocks.planes, rows, blocks.width)

    def _boundary_state(self, layer: int, direction: int, x: Float32) -> tuple[Float32, Kept]:
        """Return the state after a boundary's vector x [1, P], from zero, in every window: hidden [1, P] and a cell."""
        key = (layer, direction)
        known = self._boundaries.get(key)
        if known is None or not np.array_equal(known[0], x):
            gates = self._runtime.gates.empty(1)
            self._runtime.input_product(layer, direction, x, gates)
            zeros, after = self._zero_states(1), self._zero_states(1)
            first = np.zeros(1, np.int32)
            rows = first[None] if layer == 0 else None
            self._runtime.steps(LstmSteps(layer, direction, gates, rows, first, *zeros, after[0][None], after[1]))
            known = self._boundaries[key] = (x.copy(), *after)
        return known[1], known[2]

    def _run_layer(
        self,
        layer: int,
        direction: int,
        forest: Forest,
        x: Float32,
        x_rows: Int32 | None,
        states: tuple[Float32, Kept] | None,
        on_nodes: Callable[[int], None],
    ) -> Float32:
        """Return one layer's hidden states [N, P]. Node n's input is x[x_rows[n]], or x[n]; `states` are updated."""
        config, runtime = self._config, self._runtime
        sizes = np.diff(forest.depths)
        hidden = np.empty((forest.n_nodes, config.projection_size), np.float32)
        most = int(sizes.max(initial=0))
        cell, cell_before = (self._scratch(f"cells {k}", direction, runtime.cells, most) for k in range(2))
        first_depth = 0
        if states:
            before = states  # of the previous depth
        elif forest.n_nodes:  # depth 0 of a shared forest is only the boundary
            before = self._boundary_state(layer, direction, x[forest.words[:1]] if x_rows is not None else x[:1])
            hidden[:1] = before[0]
            first_depth = 1
            on_nodes(1)
        per_product = STEP_ROWS if x_rows is None else self._table_rows
        for slab in slabs(forest, first_depth, STEP_ROWS, per_product, x_rows):
            first = slab[0].start
            gates, gate_rows = self._input_gates(layer, direction, slice(first, slab[-1].stop), x, x_rows)
            for steps in slab:
                here, shape = slice(steps.start - first, steps.stop - first), (steps.n_steps, steps.n_rows)
                row = steps.start - int(forest.depths[steps.depth])
                runtime.steps(
                    LstmSteps(
                        layer,
                        direction,
                        gates[:, here] if gate_rows is None else gates,
                        None if gate_rows is None else gate_rows[here].reshape(shape),
                        forest.parents[steps.start :][: steps.n_rows],
                        *before,
                        hidden[steps.start : steps.stop].reshape(*shape, -1),
                        cell[:, row : row + steps.n_rows],
                    )
                )
                on_nodes(steps.stop - steps.start)
                last = steps.depth + steps.n_steps
                if steps.stop == forest.depths[last]:  # all rows of this depth are done
                    before = (hidden[forest.depths[last - 1] : steps.stop], cell[:, : sizes[last - 1]])
                    cell, cell_before = cell_before, cell
                    if states:  # rows are in order of length: the last ones end here
                        ended = slice(sizes[last] if last < len(sizes) else 0, None)
                        rows = forest.order[: sizes[last - 1]][ended]
                        states[0][rows], states[1][:, rows] = before[0][ended], before[1][:, ended]
        return hidden

    def _input_gates(
        self, layer: int, direction: int, nodes: slice, x: Float32, x_rows: Int32 | None
    ) -> tuple[Kept, Int32 | None]:
        """Return the non-recurrent part of nodes' gates; or that of their distinct rows of x, and each node's row."""
        gate_rows, inputs = None, x[nodes]
        if x_rows is not None:
            words, inverse = np.unique(x_rows[nodes], return_inverse=True)
            gate_rows, inputs = inverse.astype(np.int32), x[words]
        gates = self._scratch("gates", direction, self._runtime.gates, len(inputs))
        self._runtime.input_product(layer, direction, inputs, gates)
        return gates, gate_rows
