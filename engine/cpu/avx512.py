"""16 and 8 bits on processors with AMX, or AVX-512 that multiplies such numbers: `lstm.c`, compiled where it runs.

Word vectors are computed by ONNX Runtime in float32, once for each distinct word.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flashelmo.engine.cpu.ort import make_pieces
from flashelmo.engine.cpu.runtime import Array, Blocks, Int32, Int64, Kept, LstmSteps
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.forks import InEachProcess
from flashelmo.engine.graph.pieces import words_graph
from flashelmo.engine.graph.tensors import prepare_tensors, quantize
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, GATES, ElmoWeights, LstmCell
from flashelmo.engine.processor import cpu_flags, n_cores
from flashelmo.engine.threads import Background, in_order

Bits = Literal[8, 16]

SOURCE = Path(__file__).with_name("lstm.c")
BASE = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
PRODUCTS = {8: "avx512_vnni", 16: "avx512_bf16"}
TILES = ("amx_tile", "amx_bf16", "amx_int8")
COMPILE_SECONDS = 300
TYPES = {8: np.int8, 16: np.uint16}
LINE, LANES = 64, 16  # bytes of a row that are multiplied at once; columns of a block
# Gates are 1 / (1 + 2^sum), the candidate is (2^sum - 1) / (2^sum + 1): what weights and biases are multiplied by.
EXPONENTS = np.float32(np.log2(np.e)) * np.array([-1, -1, 2, -1], np.float32)
LEVELS = 127  # products of 8 bits are added in 32
AHEAD = 32 << 10  # bytes behind weights that may be asked for, and are not read


def why_not(bits: Bits) -> str:
    """Why this machine cannot compute in so many bits by `lstm.c`; empty where it can."""
    flags = cpu_flags()
    if sys.platform != "linux" or not flags.issuperset(BASE):
        return "expected Linux on a processor with AVX-512"
    if PRODUCTS[bits] not in flags and not flags.issuperset(TILES):
        return f"expected a processor with {PRODUCTS[bits]} or AMX"
    try:
        _library()
    except FlashElmoError as error:
        return str(error)
    return ""


class Avx512Runtime:
    """Runs `lstm.c`, a call for each input product and for each run of steps.

    Args:
        config, weights: of the model.
        bits: of numbers that are multiplied: 16 (bfloat16), or 8, whose rows are scaled by their largest magnitude.
        threads: threads to use; 0 takes all cores. Each direction has half of them.

    Raises:
        FlashElmoError: the processor, the system or its compiler cannot.
    """

    def __init__(self, config: ElmoConfig, weights: ElmoWeights, bits: Bits, threads: int = 0) -> None:
        if why := why_not(bits):
            raise FlashElmoError(f"runtime 'avx512': {why}")
        threads = threads or n_cores()
        self.concurrent_directions = threads > 1
        n_blocks = -(-config.cell_size // LANES)
        self.gates, self.cells = Blocks(n_blocks, len(GATES) * LANES, np.uint16), Blocks(n_blocks, LANES)
        self._library, self._process = _library(), os.getpid()
        pack = partial(_Cell, config=config, bits=bits, threads=-(-threads // len(DIRECTIONS)))
        cells = list(in_order(pack, (cell for layer in weights.lstm for cell in layer), threads))
        self._cells = [cells[at : at + len(DIRECTIONS)] for at in range(0, len(cells), len(DIRECTIONS))]
        self._memory = [np.empty(0, np.uint8) for _ in DIRECTIONS]
        tensors = prepare_tensors(config, weights, "float32")
        self._words = InEachProcess(partial(make_pieces, [words_graph(config)], [threads], tensors))

    def word_vectors(self, windows: Int32 | None, word_ids: Int64 | None, vectors: Array) -> None:
        """Words graph: windows [W, m, width], word_ids [W] -> vectors [W, P]."""
        self._words()[0].run_words(windows, word_ids, vectors)

    def input_product(self, layer: int, direction: int, x: Array, gates: Kept) -> None:
        """Input product: x [m, P] -> gates, m rows."""
        cell = self._cells[layer][direction].struct
        memory = self._room(cell, direction, len(x))
        arguments = (len(x), c_int64(_rows(gates)), _pointer(np.ascontiguousarray(x)), _pointer(gates))
        self._call(self._library.input_product, ctypes.byref(cell), *arguments, memory)

    def steps(self, steps: LstmSteps) -> None:
        """T LSTM steps of n rows."""
        cell = self._cells[steps.layer][steps.direction].struct
        n_steps, n_rows, _ = steps.new_hidden.shape
        told = _Steps(n_steps, n_rows, _rows(steps.gates), _rows(steps.cell), _rows(steps.new_cell))
        told.parents, told.gate_rows = _pointer(steps.parents), _pointer(steps.gate_rows)
        told.hidden, told.cells, told.parts = _pointer(steps.hidden), _pointer(steps.cell), _pointer(steps.gates)
        told.new_hidden, told.new_cells = _pointer(steps.new_hidden), _pointer(steps.new_cell)
        memory = self._room(cell, steps.direction, n_rows)
        self._call(self._library.run_steps, ctypes.byref(cell), ctypes.byref(told), memory)

    def _room(self, cell: _CellStruct, direction: int, n_rows: int) -> c_void_p:
        """Memory of a direction for so many rows."""
        n_bytes = self._library.memory_bytes(ctypes.byref(cell), n_rows)
        if self._memory[direction].size < n_bytes:
            self._memory[direction] = _aligned(n_bytes, np.uint8)
        return _pointer(self._memory[direction])

    def _call(self, function: Any, *arguments: Any) -> None:
        """Call it. In a forked process OpenMP's threads are missing: a new thread calls, for which it starts others."""
        if os.getpid() == self._process:
            function(*arguments)
        else:
            Background(partial(function, *arguments)).result()


class _CellStruct(ctypes.Structure):
    """`Cell` of lstm.c."""

    _fields_ = [
        *((name, c_int32) for name in ("n_inputs", "n_cells", "bits", "threads")),
        *((name, c_float) for name in ("cell_clip", "projection_clip")),
        *((name, c_void_p) for name in ("input", "recurrent", "projection")),
        *((name, c_void_p) for name in ("bias", "input_scale", "recurrent_scale", "projection_scale")),
    ]


class _Steps(ctypes.Structure):
    """`Steps` of lstm.c."""

    _fields_ = [
        *((name, c_int32) for name in ("n_steps", "n_rows")),
        *((name, c_int64) for name in ("part_rows", "before_rows", "after_rows")),
        *((name, c_void_p) for name in ("parents", "gate_rows", "hidden", "cells", "parts")),
        *((name, c_void_p) for name in ("new_hidden", "new_cells")),
    ]


class _Cell:
    """One direction of a layer, packed; `struct` points into its arrays."""

    def __init__(self, cell: LstmCell, config: ElmoConfig, bits: Bits, threads: int) -> None:
        self.arrays: dict[str, npt.NDArray[Any]] = {"bias": _blocks_of(cell.bias * EXPONENTS[:, None])}
        for name, weight in (("input", cell.input_weight), ("recurrent", cell.recurrent_weight)):
            self._add(name, weight, EXPONENTS, bits)
        if cell.projection is not None:
            self._add("projection", _halves(cell.projection), np.ones(2, np.float32), bits)
        clips = (config.cell_clip or 0.0, config.projection_clip or 0.0)
        self.struct = _CellStruct(config.projection_size, config.cell_size, bits, threads, *clips)
        for name, array in self.arrays.items():
            setattr(self.struct, name, _pointer(array))

    def _add(self, name: str, weight: Array, factors: Array, bits: Bits) -> None:
        """Pack weights [gates, K, N] as `name`, and in 8 bits the scales of their columns."""
        numbers: npt.NDArray[Any]
        if bits == 8:
            quantized = [quantize(gate, LEVELS) for gate in weight]
            scales = np.stack([scale for _, scale in quantized]) * factors[:, None]
            self.arrays[f"{name}_scale"] = _blocks_of(scales)
            numbers = np.stack([integers for integers, _ in quantized])
        else:
            numbers = to_bfloat16(weight * factors[:, None, None])
        # What is projected is padded alike in 16 bits and in 8.
        self.arrays[name] = pack(numbers, LINE if name == "projection" else LINE // numbers.itemsize)


def pack(numbers: npt.NDArray[Any], multiple: int) -> npt.NDArray[Any]:
    """Matrices [gates, K, N] as `lstm.c` reads them: [N / 16, K / k, gates, 16, 16, 4 bytes], K up to a multiple."""
    n_gates, n_inputs, n_columns = numbers.shape
    each = 4 // numbers.itemsize
    padded = np.zeros((n_gates, _up(n_inputs, multiple), _up(n_columns, LANES)), numbers.dtype)
    padded[:, :n_inputs, :n_columns] = numbers
    tiles = padded.reshape(n_gates, -1, LANES, each, padded.shape[2] // LANES, LANES).transpose(4, 1, 0, 2, 5, 3)
    packed = _aligned(padded.nbytes + AHEAD, np.uint8)[: padded.nbytes].view(numbers.dtype).reshape(tiles.shape)
    packed[...] = tiles
    return packed


def to_bfloat16(x: Array) -> npt.NDArray[np.uint16]:
    """The upper 16 bits of each number, rounded to the nearest, to even where two are as near."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _halves(projection: Array) -> Array:
    """[C, P] -> [2, C, P / 2]: of every 32 columns the first 16, and the others."""
    padded = np.zeros((len(projection), _up(projection.shape[1], 2 * LANES)), np.float32)
    padded[:, : projection.shape[1]] = projection
    return np.ascontiguousarray(
        padded.reshape(len(projection), -1, 2, LANES).transpose(2, 0, 1, 3).reshape(2, len(projection), -1)
    )


def _blocks_of(values: Array) -> Array:
    """[gates, N] -> [N / 16, gates, 16], zeros at the end."""
    padded = np.zeros((len(values), _up(values.shape[1], LANES)), np.float32)
    padded[:, : values.shape[1]] = values
    return np.ascontiguousarray(padded.reshape(len(values), -1, LANES).transpose(1, 0, 2))


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def _aligned(n: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Memory for n numbers from a 64-byte boundary on."""
    memory = np.empty(n * np.dtype(dtype).itemsize + LINE, np.uint8)
    return memory[-memory.ctypes.data % LINE :][: n * np.dtype(dtype).itemsize].view(dtype)


def _rows(kept: Kept) -> int:
    """Rows of the array that this one is part of, plane by plane."""
    return kept.strides[0] // kept.strides[1]


def _pointer(array: npt.NDArray[Any] | None) -> c_void_p:
    return c_void_p(None if array is None else array.ctypes.data)


# ------------------------------------------------------------------------------------------------------- the library


@cache
def _library() -> ctypes.CDLL:
    """The functions of `lstm.c`, with tiles where processor and system give them.

    Raises:
        FlashElmoError: no compiler here can compile it.
    """
    flags = cpu_flags()
    if flags.issuperset(TILES):
        library = compiled((*BASE, *PRODUCTS.values(), *TILES))
        if library.ask_for_tiles() == 0:
            return library
    return compiled((*BASE, *(flag for flag in PRODUCTS.values() if flag in flags)))


def compiled(flags: Sequence[str]) -> ctypes.CDLL:
    """The library for these instructions, from the user's cache after the first time.

    Raises:
        FlashElmoError: there is no compiler, or none that can.
    """
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    options = ["-O3", "-fopenmp", "-shared", "-fPIC", "-mfma"]
    options += [f"-m{flag.replace('_', '' if flag.startswith('avx') else '-')}" for flag in flags]
    name = hashlib.sha256(SOURCE.read_bytes() + " ".join(compiler + options).encode()).hexdigest()[:16]
    problem = ""
    for folder in _folders():
        path = folder / f"lstm-{name}.so"
        try:
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                _compile([*compiler, *options], path)
            library = ctypes.CDLL(str(path))
        except OSError as error:
            problem = f"{path}: {error.strerror or error}"
            continue
        library.memory_bytes.restype = c_int64
        return library
    raise FlashElmoError(problem)


def _folders() -> Iterator[Path]:
    """Where a library may be kept: the user's cache, or where that cannot be written to, a folder for now."""
    with suppress(RuntimeError):  # no home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flashelmo"
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        yield Path(folder)


def _compile(command: Sequence[str], path: Path) -> None:
    """Compile; the file appears whole."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        try:
            done = subprocess.run(
                [*command, str(SOURCE), "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=COMPILE_SECONDS,
                check=False,
            )
        except (FileNotFoundError, subprocess.TimeoutExpired):
            raise FlashElmoError(f"expected a C compiler with OpenMP, found none that works: {command[0]}") from None
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), "it failed")
            raise FlashElmoError(f"expected a C compiler with OpenMP, found {command[0]}: {said.strip()}")
        made.replace(path)
