"""`lstm.c`, `words.c` and `team.c`, compiled where they run, and weights, packed as they read them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from ctypes import c_void_p
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flashelmo.engine.arrays import Array, Float32
from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.system.files import cache_folder, temporary_folder
from flashelmo.engine.system.forks import InEachProcess
from flashelmo.engine.system.processor import cpu_flags

Bits = Literal[8, 16]

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
BASE = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
PRODUCTS = {8: "avx512_vnni", 16: "avx512_bf16"}
TILES = ("amx_tile", "amx_bf16", "amx_int8")
COMPILE_SECONDS = 300
DIGEST_BYTES = hashlib.sha256().digest_size
LINE, LANES = 64, 16  # bytes of a row that are multiplied at once; columns per block
LOG2_E = np.float32(np.log2(np.e))  # sigmoid(x) = 1 / (1 + 2^(-x log2 e))


def why_not(bits: Bits) -> str:
    """Return why this machine cannot compute in so many bits with `lstm.c`; empty if it can."""
    flags = cpu_flags()
    if sys.platform != "linux" or not flags.issuperset(BASE):
        return "expected Linux on a processor with AVX-512"
    if PRODUCTS[bits] not in flags and not flags.issuperset(TILES):
        return f"expected a processor with {PRODUCTS[bits]} or AMX"
    try:
        library()
    except FlashElmoError as error:
        return str(error)
    return ""


class Team:
    """Threads that do the library's calls, one call at a time, and the memory that they need.

    Args:
        threads: how many; the system may give fewer.

    Raises:
        FlashElmoError: no compiler on this machine can compile the library.
    """

    def __init__(self, threads: int) -> None:
        self._library = library()
        self._in_process = InEachProcess(partial(_Threads, self._library, threads))

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the library."""
        threads = self._in_process()
        if not getattr(self._library, function)(threads.address, *arguments):
            raise MemoryError(f"{function}: not enough memory")


class _Threads:
    """A `Team` of team.h at an address, ended with this object."""

    def __init__(self, of: ctypes.CDLL, threads: int) -> None:
        address = of.make_team(threads)
        if address is None:
            raise MemoryError("make_team: not enough memory")
        self.address = c_void_p(address)
        weakref.finalize(self, of.end_team, self.address).atexit = False  # the process ends them, even during a call


def library() -> ctypes.CDLL:
    """Return the functions of these sources, with tiles where processor and system provide them.

    Raises:
        FlashElmoError: no compiler on this machine can compile it.
    """
    found = _library_or_problem()
    if isinstance(found, str):
        raise FlashElmoError(found)
    return found


@cache
def _library_or_problem() -> ctypes.CDLL | str:
    """Return the library or why there is none; cached, since a compiler may take long to fail."""
    flags = cpu_flags()
    try:
        if flags.issuperset(TILES):
            with_tiles = compiled((*BASE, *PRODUCTS.values(), *TILES))
            if with_tiles.ask_for_tiles() == 0:
                return with_tiles
        return compiled((*BASE, *(flag for flag in PRODUCTS.values() if flag in flags)))
    except FlashElmoError as error:
        return str(error)


def compiled(flags: Sequence[str]) -> ctypes.CDLL:
    """Return the library for these instructions, compiled, or from the user's cache after the first time.

    Raises:
        FlashElmoError: there is no compiler, or none that can compile it, or no folder to do it in.
    """
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if not os.environ.get("CC") and shutil.which(compiler[0]) is None:
        compiler = ["cc"]  # what Python was built with may not be here: ready-made ones name clang
    options = ["-O3", "-pthread", "-shared", "-fPIC", "-mfma"]
    options += [f"-m{flag.replace('_', '' if flag.startswith('avx') else '-')}" for flag in flags]
    name = hashlib.sha256(
        b"".join(source.read_bytes() for source in SOURCES) + " ".join(compiler + options).encode()
    ).hexdigest()[:16]
    problem = ""
    for folder in _folders():
        path = folder / f"lstm-{name}.so"
        try:
            found = _loaded(path, [*compiler, *options])
        except OSError as error:
            problem = f"{path}: {error.strerror or error}"
            continue
        found.make_team.restype = c_void_p
        return found
    raise FlashElmoError(problem)


def _folders() -> Iterator[Path]:
    """Yield folders for the library: the user's cache; then, if that is not writable, a temporary folder."""
    if (folder := cache_folder()) is not None:
        yield folder
    try:
        temporary = tempfile.TemporaryDirectory(prefix="flashelmo-")
    except OSError as error:  # as where all of a container is read-only
        raise FlashElmoError(f"expected a folder to compile in: {reason_of(error)}") from None
    with temporary as name:
        yield Path(name)


def _loaded(path: Path, command: Sequence[str]) -> ctypes.CDLL:
    """Return the library at this path, compiling it first unless it is there and whole."""
    if not _is_whole(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(command, path)
    return ctypes.CDLL(str(path))


def _is_whole(path: Path) -> bool:
    """Whether a file ends with the digest of what precedes it: loading a partial library may end the process."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return data[-DIGEST_BYTES:] == hashlib.sha256(data[:-DIGEST_BYTES]).digest()


def _compile(command: Sequence[str], path: Path) -> None:
    """Compile to a file that appears there only when complete."""
    with temporary_folder(path) as folder:
        made = folder / path.name
        try:
            done = subprocess.run(
                [*command, *(str(source) for source in SOURCES if source.suffix == ".c"), "-o", str(made)],
                capture_output=True,
                text=True,
                timeout=COMPILE_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            raise FlashElmoError(f"expected a C compiler, found none that works: {command[0]}") from None
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), "it failed")
            raise FlashElmoError(f"expected a C compiler, found {command[0]}: {said.strip()}")
        with made.open("r+b") as file:
            file.write(hashlib.sha256(file.read()).digest())  # at the end, which the system's loader ignores
            file.flush()
            os.fsync(file.fileno())
        made.replace(path)


def pack(numbers: Array, multiple: int = 0) -> Array:
    """Return matrices [groups, K, N] as products.h describes them: [N / 16, K / k, groups, 16, 16, 4 bytes].

    Args:
        numbers: 8-bit integers, or the bits of bfloat16.
        multiple: K is padded to a multiple of this, by default to whole lines of 64 bytes.
    """
    n_groups, n_inputs, n_columns = numbers.shape
    each = 4 // numbers.itemsize
    padded = np.zeros(
        (n_groups, _up(n_inputs, multiple or LINE // numbers.itemsize), _up(n_columns, LANES)), numbers.dtype
    )
    padded[:, :n_inputs, :n_columns] = numbers
    tiles = padded.reshape(n_groups, -1, LANES, each, padded.shape[2] // LANES, LANES).transpose(4, 1, 0, 2, 5, 3)
    packed = aligned(padded.size, numbers.dtype.type).reshape(tiles.shape)
    packed[...] = tiles
    return packed


def to_bfloat16(x: Float32) -> npt.NDArray[np.uint16]:
    """Return the upper 16 bits of each number, rounded to nearest, ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def in_groups(matrix: Float32, n_groups: int) -> Float32:
    """Return [K, N] as [groups, K, N / groups]: columns go to the groups in turn, 16 at a time; zeros at the end."""
    n_rows, n_columns = matrix.shape
    padded = np.zeros((n_rows, _up(n_columns, n_groups * LANES)), np.float32)
    padded[:, :n_columns] = matrix
    turns = padded.reshape(n_rows, -1, n_groups, LANES).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(turns.reshape(n_groups, n_rows, -1))


def in_blocks(values: Array) -> Array:
    """Return [groups, N] as [N / 16, groups, 16], with zeros at the end."""
    padded = np.zeros((len(values), _up(values.shape[1], LANES)), values.dtype)
    padded[:, : values.shape[1]] = values
    return np.ascontiguousarray(padded.reshape(len(values), -1, LANES).transpose(1, 0, 2))


def aligned(n: int, dtype: type[np.generic]) -> Array:
    """Return memory for n numbers, aligned to 64 bytes."""
    n_bytes = n * np.dtype(dtype).itemsize
    memory = np.empty(n_bytes + LINE, np.uint8)
    return memory[-memory.ctypes.data % LINE :][:n_bytes].view(dtype)


def pointer(array: Array | None) -> c_void_p:
    """Return the address of an array's data."""
    return c_void_p(None if array is None else array.ctypes.data)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
