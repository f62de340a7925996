"""16 and 8 bits on processors with AMX, or AVX-512 for such numbers: `lstm.c` instead of the graph's pieces.

Words are computed in 16 bits too, once per distinct word; where the processor only has 8 bits, or a model has no
characters, ONNX Runtime computes them in float32.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import partial

import numpy as np

from flashelmo.engine.arrays import Array, Arrays, Float32
from flashelmo.engine.cpu.lstm_c import (
    LANES,
    LINE,
    LOG2_E,
    Bits,
    Team,
    in_blocks,
    in_groups,
    pack,
    pointer,
    to_bfloat16,
    why_not,
)
from flashelmo.engine.cpu.ort import make_pieces
from flashelmo.engine.cpu.runtime import Blocks, Kept, LstmSteps
from flashelmo.engine.cpu.words_c import CharCnn
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.graph.pieces import words_graph
from flashelmo.engine.graph.tensors import prepare_tensors, quantize
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, GATES, ElmoWeights, LstmCell
from flashelmo.engine.system.forks import InEachProcess
from flashelmo.engine.system.processor import n_cores
from flashelmo.engine.system.threads import in_order

# Gates are 1 / (1 + 2^sum), the candidate is (2^sum - 1) / (2^sum + 1): weights and biases are multiplied by these.
EXPONENTS = LOG2_E * np.array([-1, -1, 2, -1], np.float32)
LEVELS = 127  # products of 8 bits are added in 32
ADDED = 128  # to rows of 8 bits, which VNNI multiplies as unsigned numbers


class Avx512Runtime:
    """Runs `lstm.c`, with one call for each input product and for each run of steps.

    Args:
        config, weights: of the model.
        bits: of the numbers that are multiplied: 16 (bfloat16), or 8, with each row scaled by its largest magnitude.
        threads: how many to use; 0 takes all cores. Each direction has half of them.

    Raises:
        FlashElmoError: the processor, the system or its compiler cannot do this.
    """

    def __init__(self, config: ElmoConfig, weights: ElmoWeights, bits: Bits, threads: int = 0) -> None:
        if why := why_not(bits):
            raise FlashElmoError(f"runtime 'avx512': {why}")
        threads = threads or n_cores()
        self.concurrent_directions = threads > 1
        n_blocks = -(-config.cell_size // LANES)
        self.gates, self.cells = Blocks(n_blocks, len(GATES) * LANES, np.uint16), Blocks(n_blocks, LANES)
        self._teams = [Team(-(-threads // len(DIRECTIONS))) for _ in DIRECTIONS]
        make_cell = partial(_Cell, config=config, bits=bits)
        cells = list(in_order(make_cell, (cell for layer in weights.lstm for cell in layer), threads))
        self._cells = [cells[at : at + len(DIRECTIONS)] for at in range(0, len(cells), len(DIRECTIONS))]
        tensors = prepare_tensors(config, weights, "float32")
        if config.character_size and not why_not(16):
            self.word_vectors = CharCnn(config, weights, tensors, threads).compute
        else:
            pieces = InEachProcess(partial(make_pieces, {"words": (words_graph(config), threads)}, tensors))
            self.word_vectors = lambda *arguments: pieces()["words"].run_words(*arguments)

    def input_product(self, layer: int, direction: int, x: Float32, gates: Kept) -> None:
        """Write the input product: x [m, P] -> gates, m rows."""
        cell = self._cells[layer][direction].struct
        x = np.ascontiguousarray(x)
        arguments = (len(x), c_int64(_rows(gates)), pointer(x), pointer(gates))
        self._teams[direction].call("input_product", ctypes.byref(cell), *arguments)

    def steps(self, steps: LstmSteps) -> None:
        """Do T LSTM steps of n rows."""
        cell = self._cells[steps.layer][steps.direction].struct
        n_steps, n_rows, _ = steps.new_hidden.shape
        told = _Steps(n_steps, n_rows, _rows(steps.gates), _rows(steps.cell), _rows(steps.new_cell))
        told.parents, told.gate_rows = pointer(steps.parents), pointer(steps.gate_rows)
        told.hidden, told.cells, told.parts = pointer(steps.hidden), pointer(steps.cell), pointer(steps.gates)
        told.new_hidden, told.new_cells = pointer(steps.new_hidden), pointer(steps.new_cell)
        self._teams[steps.direction].call("run_steps", ctypes.byref(cell), ctypes.byref(told))


class _CellStruct(ctypes.Structure):
    """`Cell` in lstm.c."""

    _fields_ = [
        *((name, c_int32) for name in ("n_inputs", "n_cells", "bits")),
        *((name, c_float) for name in ("cell_clip", "projection_clip")),
        *((name, c_void_p) for name in ("input", "recurrent", "projection")),
        *((name, c_void_p) for name in ("bias", "input_scale", "recurrent_scale", "projection_scale")),
        *((name, c_void_p) for name in ("input_start", "recurrent_start", "projection_start")),
    ]


class _Steps(ctypes.Structure):
    """`Steps` in lstm.c."""

    _fields_ = [
        *((name, c_int32) for name in ("n_steps", "n_rows")),
        *((name, c_int64) for name in ("part_rows", "before_rows", "after_rows")),
        *((name, c_void_p) for name in ("parents", "gate_rows", "hidden", "cells", "parts")),
        *((name, c_void_p) for name in ("new_hidden", "new_cells")),
    ]


class _Cell:
    """One direction of a layer, packed; `struct` points into its arrays."""

    def __init__(self, cell: LstmCell, config: ElmoConfig, bits: Bits) -> None:
        self.arrays: Arrays = {"bias": in_blocks(cell.bias * EXPONENTS[:, None])}
        for name, weight in (("input", cell.input_weight), ("recurrent", cell.recurrent_weight)):
            self._add(name, weight, EXPONENTS, bits)
        if cell.projection is not None:  # cells are padded to 64 in 16 bits as in 8
            self._add("projection", in_groups(cell.projection, 2), np.ones(2, np.float32), bits, multiple=LINE)
        clips = (config.cell_clip or 0.0, config.projection_clip or 0.0)
        self.struct = _CellStruct(config.projection_size, config.cell_size, bits, *clips)
        for name, array in self.arrays.items():
            setattr(self.struct, name, pointer(array))

    def _add(self, name: str, weight: Float32, factors: Float32, bits: Bits, multiple: int = 0) -> None:
        """Pack weights [groups, K, N] times the groups' factors as `name`; in 8 bits the scales contain these."""
        numbers: Array
        if bits == 8:
            quantized = [quantize(group, LEVELS) for group in weight]
            numbers = np.stack([integers for integers, _ in quantized])
            self.arrays[f"{name}_scale"] = in_blocks(np.stack([scale for _, scale in quantized]) * factors[:, None])
            self.arrays[f"{name}_start"] = in_blocks(-ADDED * numbers.sum(axis=1, dtype=np.int32))
        else:
            numbers = to_bfloat16(weight * factors[:, None, None])
        self.arrays[name] = pack(numbers, multiple)


def _rows(kept: Kept) -> int:
    """Return the number of rows of the array that this one is part of, plane by plane."""
    return kept.strides[0] // kept.strides[1]
