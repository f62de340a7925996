"""Kernels compiled ahead, by all cores, so that who times them finds them in Triton's cache.

A part of a check is run once with launches that are written down in place of being launched. All else is real, the
device too, so that these are the very launches that will run. Other processes compile them as if the card were absent.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from multiprocessing import get_context
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from flashelmo.benchmarks.accuracy import Piece
from flashelmo.benchmarks.gpu import engine, speed
from flashelmo.benchmarks.gpu.accuracy import Truth
from flashelmo.benchmarks.kernels.compile import compile_launch
from flashelmo.benchmarks.kernels.graph_timing import Task
from flashelmo.benchmarks.kernels.lstm import LstmProblem
from flashelmo.benchmarks.kernels.problems import Problem
from flashelmo.benchmarks.kernels.suite import Kernels
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.timing import Timing
from flashelmo.benchmarks.worker import one_line
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.precision import Bound
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.linear import LibraryProduct
from flashelmo.kernels.lstm import layer, proven
from flashelmo.kernels.lstm.run import LayerRun

SPARE_CORES = 2  # for who waits, and for the process that has the card


class Recorded(NamedTuple):
    """Launches of a part, each once, the compute capability that they are for, and what could not be recorded."""

    target: int
    launches: list[bytes]
    wrong: Sequence[str] = ()


@contextmanager
def recording() -> Iterator[dict[bytes, None]]:
    """While this lasts launches are packed and not run, and nothing is compared or found wrong; the packed ones."""
    found: dict[bytes, None] = {}

    def run(launch: Launch) -> None:
        if 0 not in launch.grid and not isinstance(launch.kernel, LibraryProduct):
            found[pack(launch)] = None

    def right(problem: Any, *given: Any) -> float:
        problem.compute(*given)
        return 0.0

    def right_rows(row: Row, pieces: Iterable[Piece], bound: Bound) -> list[Row]:
        return [row.with_samples([0.0]) for _ in pieces]

    with ExitStack() as stack:
        for place, name, value in (
            (Launch, "run", run),
            (Problem, "error", right),
            (LstmProblem, "error", right),
            (Kernels, "_why_not", lambda kernels, each: ""),
            (engine, "error_rows", right_rows),
            (engine, "Truth", _Blank),
            (speed, "WARM_UPS", 1),
            (layer, "is_proven", _proof_recorder()),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        yield found


def _proof_recorder() -> Callable[[Any, LayerRun], bool]:
    """In place of the comparison of a variant's first use: its launches, once, and no verdict."""
    seen = set[Any]()

    def is_proven(variant: Any, run: LayerRun) -> bool:
        how = run.tensors.outputs is None, run.options.batch_invariant
        key = variant.name, run.weights.shape, run.weights.dtype, *how
        if run.weights.bound is not None and key not in seen:
            seen.add(key)
            proven.difference(variant, run)
        return True

    return is_proven


def run_once(rounds: int, tasks: Sequence[Task]) -> list[Timing]:
    """In place of a timer."""
    for task in tasks:
        task.run()
    return [Timing([1.0]) for _ in tasks]


class _Blank(Truth):
    """Zeros in place of what the reference would compute."""

    @cached_property
    def bounded(self) -> list[Array]:
        return [self._zeros(len(sentence) + 2) for sentence in self.sentences]

    @cached_property
    def streamed(self) -> list[Array]:
        return [self._zeros(len(sentence)) for sentence in self.stream]

    def _zeros(self, n: int) -> Array:
        config = self._model.config
        return np.zeros((config.n_layers + 1, n, 2 * config.projection_size), np.float32)


# ------------------------------------------------------------------------------------------------------------- packing


def pack(launch: Launch) -> bytes:
    """A launch as bytes, the same for launches that compile to the same kernel but for their numbers; tensors without
    their values.
    """
    file = io.BytesIO()
    kernel = launch.kernel.fn
    sizes = {each.name for each in getattr(launch.kernel, "params", ()) if each.do_not_specialize}
    small = {name for name in sizes if isinstance(value := launch.arguments[name], int) and value < 1 << 31}
    arguments = dict(launch.arguments) | dict.fromkeys(small, 17)
    _Packer(file).dump(((kernel.__module__, kernel.__name__), arguments, dict(launch.options)))
    return file.getvalue()


def unpack(packed: bytes) -> Launch:
    """The launch that was packed, with tensors that take no memory."""
    (module, name), arguments, options = pickle.loads(packed)
    return Launch(getattr(import_module(module), name), (1, 1, 1), arguments, options)


class _Packer(pickle.Pickler):
    """Tensors as their type and whether their address is a multiple of 16, which is what is compiled for, and their
    descriptors without the tensor's size.
    """

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return _tensor, (str(value.dtype).removeprefix("torch."), value.ndim, value.data_ptr() % 16 == 0)
        if type(value).__name__ == "TensorDescriptor":
            return object.__new__, (type(value),), vars(value) | {"shape": [128] * len(value.shape)}
        return NotImplemented


@dataclass(frozen=True)
class _Unaligned:
    """What Triton asks of a tensor whose address is no multiple of 16."""

    dtype: torch.dtype

    def data_ptr(self) -> int:
        """Odd in units of 16 bytes."""
        return 4


def _tensor(dtype: str, ndim: int, aligned: bool) -> Any:
    if not aligned:
        return _Unaligned(getattr(torch, dtype))
    return torch.empty((16,) * ndim, dtype=getattr(torch, dtype), device="meta")


# ----------------------------------------------------------------------------------------------------------- compiling


def compile_packed(packed: bytes, target: int) -> str:
    """Compile a launch into Triton's cache; what went wrong."""
    launch = unpack(packed)
    try:
        compile_launch(launch, target)
    except Exception as error:  # the part that runs it says so too
        return f"{launch.kernel.fn.__name__}: {one_line(error)}"
    return ""


class Ahead:
    """Records parts and compiles their launches, in processes.

    Args:
        record: gives a part's launches, called in a process of its own with each of `parts`.
    """

    def __init__(self, processes: int, record: Callable[..., Recorded], parts: Sequence[tuple[Any, ...]]) -> None:
        self._pool = ProcessPoolExecutor(
            max(1, processes), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
        )  # a thread each, as there is a process for each core
        self._records = [self._pool.submit(record, *part) for part in parts]
        self.n_launches = 0

    def finish(self, seconds: float) -> Iterator[str]:
        """Wait so long for all; what went wrong, a line each."""
        begin, seen = time.monotonic(), set[bytes]()
        waiting: set[Future[Any]] = set(self._records)
        try:
            while waiting:
                left = seconds - (time.monotonic() - begin)
                done, waiting = wait(waiting, max(0.0, left), FIRST_COMPLETED)
                if not done:
                    yield f"{len(waiting)} were not compiled ahead after {seconds:.0f} seconds"
                    break
                for future in done:
                    try:
                        found = future.result()
                    except Exception as error:  # of a process that ended too, which ends all others
                        found = one_line(error)
                    if isinstance(found, Recorded):
                        new = [packed for packed in found.launches if packed not in seen]
                        seen.update(new)
                        yield from (f"not compiled ahead: {each}" for each in found.wrong)
                        waiting |= {self._pool.submit(compile_packed, each, found.target) for each in new}
                    elif found:
                        yield f"not compiled ahead: {found}"
        except BrokenProcessPool as error:
            yield f"not compiled ahead: {one_line(error)}"
        finally:
            self.n_launches = len(seen)
            workers = list((getattr(self._pool, "_processes", None) or {}).values())
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in workers:  # whose work is done or not wanted any more
                process.terminate()
