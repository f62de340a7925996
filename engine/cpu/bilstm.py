"""Runs the bidirectional LSTM over a schedule: layer by layer, depth by depth, each node once."""

from __future__ import annotations

import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from flashelmo.engine.cpu.runtime import Array, Blocks, Int32, Kept, LstmSteps, Runtime
from flashelmo.engine.forks import InEachProcess
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.text.schedule import Forest, Schedule

# Rows of one product: enough to reach the matrix peak, few enough that a step's arrays stay in the last-level cache.
STEP_ROWS = 512
# Memory that each direction may use for layer 0's input products, one row per distinct word of the window.
WORD_TABLE_BYTES = 320 << 20


@dataclass
class RowStates:
    """Final states of rows, carried from batch to batch: of each (layer, direction), hidden [B, P] and B rows of cells.

    A smaller batch updates the first rows only; a larger one's new rows start at zero (AllenNLP, bilm-tf).
    """

    states: dict[tuple[int, int], tuple[Array, Kept]] = field(default_factory=dict)

    def of(
        self, layer: int, direction: int, n_rows: int, zeros: Callable[[int], tuple[Array, Kept]]
    ) -> tuple[Array, Kept]:
        """The states of the first n_rows rows, new ones from `zeros`; writing to them updates this object."""
        hidden, cell = self.states.get((layer, direction)) or zeros(0)
        if n_rows > len(hidden):
            new_hidden, new_cell = zeros(n_rows - len(hidden))
            hidden, cell = np.concatenate([hidden, new_hidden]), np.concatenate([cell, new_cell], axis=1)
            self.states[layer, direction] = hidden, cell
        return hidden[:n_rows], cell[:, :n_rows]

    def copy(self) -> RowStates:
        """The same states, to be updated on their own."""
        return RowStates({key: (hidden.copy(), cell.copy()) for key, (hidden, cell) in self.states.items()})


class BiLstm:
    """The LSTM layers of one model on one runtime."""

    def __init__(self, config: ElmoConfig, runtime: Runtime) -> None:
        self._config = config
        self._runtime = runtime
        self._memory: dict[tuple[str, int], Kept] = {}
        self._boundaries: dict[tuple[int, int], tuple[Array, Array, Kept]] = {}
        # A direction's memory and its pieces of the network.
        self._in_use = InEachProcess(lambda: (threading.Lock(), threading.Lock()))
        self._table_rows = max(STEP_ROWS, WORD_TABLE_BYTES // runtime.gates.row_bytes)

    def run(
        self,
        schedule: Schedule,
        word_vectors: Array,
        state: RowStates | None = None,
        on_nodes: Callable[[int], None] = lambda nodes: None,
    ) -> list[tuple[Array, Array]]:
        """Outputs of every layer: (forward [N_forward, P], backward [N_backward, P]).

        Args:
            schedule: built with `share=False, complete=True` where there is a state.
            word_vectors: [W, P] of the words that the schedule's nodes name.
            state: rows' states to start from, updated in place; None starts every root at zero.
            on_nodes: called after every step with the number of its nodes, by either direction's thread.
        """
        forests = (schedule.forward, schedule.backward)
        both = _Directions(on_nodes)

        def run_direction(direction: int) -> list[Array]:
            with self._in_use()[direction]:  # until one that an interrupted call left running has ended
                both.count(0)
                return self._run_direction(direction, forests[direction], word_vectors, state, both.count)

        if not self._runtime.concurrent_directions:
            return list(zip(run_direction(0), run_direction(1), strict=True))
        try:
            start_new_thread(both.run_backward, (run_direction,))
            forward = run_direction(0)
            return list(zip(forward, both.backward(), strict=True))
        except BaseException as error:  # Ctrl-C among them: the other direction ends after its step
            both.stopped = True
            with self._in_use()[1]:
                raise both.error or error from None

    def _run_direction(
        self,
        direction: int,
        forest: Forest,
        word_vectors: Array,
        state: RowStates | None,
        on_nodes: Callable[[int], None],
    ) -> list[Array]:
        """Outputs [N, P] of every layer."""
        outputs: list[Array] = []
        for layer in range(self._config.n_layers):
            states = state.of(layer, direction, len(forest.order), self._zero_states) if state else None
            x, x_rows = (word_vectors, forest.words) if layer == 0 else (outputs[-1], None)
            hidden = self._run_layer(layer, direction, forest, x, x_rows, states, on_nodes)
            if layer and self._config.skip_connections:
                hidden += outputs[-1]  # into the output alone: the recurrence is over
            outputs.append(hidden)
        return outputs

    def _zero_states(self, n_rows: int) -> tuple[Array, Kept]:
        """The state before any word: hidden [n_rows, P], and cells."""
        cell = self._runtime.cells.empty(n_rows)
        cell[:] = 0
        return np.zeros((n_rows, self._config.projection_size), np.float32), cell

    def _scratch(self, name: str, direction: int, blocks: Blocks, rows: int) -> Kept:
        """Rows of memory that is reused: touching newly allocated pages costs as much as reading them."""
        key, size = (name, direction), blocks.planes * rows * blocks.width
        if key not in self._memory or self._memory[key].size < size:
            self._memory[key] = np.empty(size, blocks.dtype)
        return self._memory[key][:size].reshape(blocks.planes, rows, blocks.width)

    def _boundary_state(self, layer: int, direction: int, x: Array) -> tuple[Array, Kept]:
        """State after a boundary's vector x [1, P] from a fresh state: hidden [1, P] and a cell, in every window."""
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
        x: Array,
        x_rows: Int32 | None,
        states: tuple[Array, Kept] | None,
        on_nodes: Callable[[int], None],
    ) -> Array:
        """Hidden states [N, P] of one layer. Node n's input is x[x_rows[n]], or x[n]; `states` are read and updated."""
        config, runtime = self._config, self._runtime
        sizes = np.diff(forest.depths)
        hidden = np.empty((forest.n_nodes, config.projection_size), np.float32)
        most = int(sizes.max(initial=0))
        cell, cell_before = (self._scratch(f"cells {k}", direction, runtime.cells, most) for k in range(2))
        first_depth = 0
        if states:
            before = states  # of the depth before
        elif forest.n_nodes:  # depth 0 of a shared forest is the boundary alone
            before = self._boundary_state(layer, direction, x[forest.words[:1]] if x_rows is not None else x[:1])
            hidden[:1] = before[0]
            first_depth = 1
            on_nodes(1)
        for slab in _slabs(forest, first_depth, STEP_ROWS if x_rows is None else self._table_rows, x_rows):
            first, stop = slab[0].start, slab[-1].stop
            if x_rows is None:
                gate_rows, inputs = None, x[first:stop]
            else:
                words, inverse = np.unique(x_rows[first:stop], return_inverse=True)
                gate_rows, inputs = inverse.astype(np.int32), x[words]
            gates = self._scratch("gates", direction, runtime.gates, len(inputs))
            runtime.input_product(layer, direction, inputs, gates)
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
                    if states:  # rows are in order of length: those that end here are the last ones
                        ended = slice(sizes[last] if last < len(sizes) else 0, None)
                        rows = forest.order[: sizes[last - 1]][ended]
                        states[0][rows], states[1][:, rows] = before[0][ended], before[1][:, ended]
        return hidden


class _Directions:
    """Two directions at once, the backward one in a thread of its own, until either fails.

    Ctrl-C may come at any moment. It would leave the locks of a `Future`, an `Event` or a `Condition` held for ever,
    which are taken by functions in Python; a lock by itself is safe.

    Attributes:
        stopped: both directions are to end after their step.
        error: what the backward direction failed with.
    """

    def __init__(self, on_nodes: Callable[[int], None]) -> None:
        self.stopped = False
        self.error: BaseException | None = None
        self._on_nodes = on_nodes
        self._backward: list[Array] = []
        self._done = threading.Lock()
        self._done.acquire()

    def count(self, nodes: int) -> None:
        """Called by either after a step of so many nodes."""
        if self.stopped:
            raise InterruptedError
        self._on_nodes(nodes)

    def run_backward(self, run_direction: Callable[[int], list[Array]]) -> None:
        """What the thread does."""
        try:
            self._backward = run_direction(1)
        except BaseException as error:
            if not self.stopped:
                self.error, self.stopped = error, True
        self._done.release()

    def backward(self) -> list[Array]:
        """Wait for the thread's outputs."""
        self._done.acquire()
        if self.error is not None:
            raise self.error
        return self._backward


@dataclass(frozen=True)
class _Call:
    """One call: n_steps depths from `depth` on, the same rows in each; nodes start:stop."""

    depth: int
    n_steps: int
    start: int
    stop: int

    @property
    def n_rows(self) -> int:
        return (self.stop - self.start) // self.n_steps


def _steps(forest: Forest, first_depth: int) -> Iterator[_Call]:
    """Calls of at most STEP_ROWS nodes from first_depth on: large depths are cut, those whose rows go on are joined."""
    sizes = np.diff(forest.depths)
    keeps_rows = _keeps_rows(forest)
    depth = first_depth
    while depth < forest.n_depths:
        start, size = int(forest.depths[depth]), int(sizes[depth])
        if size > STEP_ROWS:
            n_calls = -(-size // STEP_ROWS)
            cuts = [start + size * call // n_calls for call in range(n_calls + 1)]
            yield from (_Call(depth, 1, first, stop) for first, stop in pairwise(cuts))
            depth += 1
            continue
        n_steps = 1
        while depth + n_steps < forest.n_depths and keeps_rows[depth + n_steps] and (n_steps + 1) * size <= STEP_ROWS:
            n_steps += 1
        yield _Call(depth, n_steps, start, start + n_steps * size)
        depth += n_steps


def _keeps_rows(forest: Forest) -> npt.NDArray[np.bool_]:
    """[depths] whether a depth's rows are the ones before, none ended and none branched."""
    sizes = np.diff(forest.depths)
    keeps_rows = np.zeros(len(sizes), np.bool_)
    if len(sizes) > 1:
        same = forest.parents == np.arange(forest.n_nodes) - np.repeat(forest.depths[:-1], sizes)
        keeps_rows[1:] = np.logical_and.reduceat(same, forest.depths[:-1])[1:] & (sizes[1:] == sizes[:-1])
    return keeps_rows


def _slabs(forest: Forest, first_depth: int, max_nodes: int, x_rows: Int32 | None) -> Iterator[list[_Call]]:
    """Groups of consecutive calls whose input product is one: at most max_nodes nodes each.

    With `x_rows`, a window whose distinct rows are at most max_nodes is one group, however many its nodes.
    """
    if x_rows is not None and len(np.unique(x_rows)) <= max_nodes:
        max_nodes = forest.n_nodes
    slab: list[_Call] = []
    for steps in _steps(forest, first_depth):
        if slab and steps.stop - slab[0].start > max_nodes:
            yield slab
            slab = []
        slab.append(steps)
    if slab:
        yield slab
