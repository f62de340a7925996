"""The processes of a run on a card: many that compile kernels ahead, then one at a time that has the card.

Kernels are compiled ahead so that who times them finds them in Triton's cache. Each process goes through a share of the
jobs with launches that are compiled in place of being launched, by whoever meets them first. All else is real, the
device too, so that these are the very launches that will run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import torch

from flashelmo.benchmarks.gpu import accuracy, speed
from flashelmo.benchmarks.kernels.lstm import LstmProblem
from flashelmo.benchmarks.kernels.problems import Problem
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.worker import Deadline, Here, Worker, WorkerError, one_line
from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.linear import LibraryProduct
from flashelmo.kernels.lstm import layer, proven
from flashelmo.kernels.lstm.run import LayerRun

Name: TypeAlias = tuple[str, str, str]  # section, model and detail of a job
LONGER = 1.6  # times as long as the others the correctness may take


def supervise(
    sections: Iterable[str],
    settings: Settings,
    deadline: Deadline,
    make: Callable[[Sequence[Row]], Worker | Here],
    worker: Worker | Here | None = None,
    patience: float = 75.0,
) -> Iterator[list[Row]]:
    """The rows of every job of every section, each section in its time, the job at fault as a line of its own.

    Args:
        make: starts a process, told what was measured before; `worker` has started.
        patience: seconds after which a process is taken for hung.
    """
    rows: list[Row] = []

    def ask(*given: Any) -> Any:
        nonlocal worker
        waiting, late = Deadline(patience), f"no end within {patience:.0f} seconds"
        try:
            worker = worker or make(rows)
            return worker.call(*given, give_up=lambda: late if waiting.left < 0 else "")
        except (FlashElmoError, WorkerError):
            end()
            raise

    def end() -> None:
        nonlocal worker
        if worker is not None:
            worker.close()
        worker = None

    for section in sections:
        seconds = (settings.part_seconds or patience) * (LONGER if section == "correctness" else 1)
        left = Deadline(min(seconds, max(0.0, deadline.left)))
        names: list[Name] = [(section, "", "all")]
        try:
            names = ask("names", section) if left.left > 0 else names
        except (FlashElmoError, WorkerError) as error:
            yield [Row(section, name="all", note=f"{FAILED}: {error}")]
            continue
        for name in names:
            row, lost = Row(name[0], name[1], name[2] or "all"), False
            try:
                found = [replace(row, note=left.over)]
                if left.left > 0:
                    found, lost = ask("do", section, name)
            except (FlashElmoError, WorkerError) as error:
                found = [replace(row, note=f"{FAILED}: {error}")]
            rows += found
            yield found
            if lost:
                end()
    end()


# ------------------------------------------------------------------------------------------------------ compiling ahead


PROCESSES = 12  # at most: each has a context and a model on the card


def warm(launch: Launch) -> None:
    """Compile a launch into Triton's cache."""
    launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)


@contextmanager
def compiling(claims: Path, compile_launch: Callable[[Launch], None] = warm) -> Iterator[None]:
    """While this lasts launches are compiled and not run, each by one of all processes that share a folder of claims,
    and nothing is computed by references or keeps what follows it from being compiled.
    """
    proved = set[Any]()

    def run(launch: Launch) -> None:
        if 0 in launch.grid or isinstance(launch.kernel, LibraryProduct):
            return
        key = hashlib.sha256(repr((launch.kernel.fn.__name__, *list(launch.signature())[1:])).encode()).hexdigest()
        try:
            (claims / key).touch(exist_ok=False)
        except FileExistsError:
            return
        compile_launch(launch)

    def computed(problem: Any, *given: Any) -> float:
        problem.compute(*given)
        return 0.0

    def is_proven(variant: Any, run: LayerRun) -> bool:
        """In place of the comparison of a variant's first use: its launches, once, and no verdict."""
        key = variant.name, run.weights.shape, run.weights.dtype, run.tensors.outputs is None, run.words is None
        if run.weights.bound is not None and key not in proved:
            proved.add(key)
            proven.difference(variant, run)
        return True

    with ExitStack() as stack:
        for place, name, value in (
            (Launch, "run", run),
            (Problem, "error", computed),
            (LstmProblem, "error", computed),
            (accuracy, "ReferenceRuntime", _Zeros),
            (speed.Speed, "is_right", lambda self, precision: True),
            (speed, "WARM_UPS", 1),
            (layer, "is_proven", is_proven),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        yield


class _Zeros:
    """In place of the reference."""

    def __init__(self, model: ElmoModel, **options: object) -> None:
        self._config = model.config

    def embed_batch(self, sentences: Sequence[Sequence[str]], boundaries: bool = False) -> list[Float32]:
        """Zeros of the right shapes."""
        layers, size = self._config.n_layers + 1, 2 * self._config.projection_size
        return [np.zeros((layers, len(sentence) + 2 * boundaries, size), np.float32) for sentence in sentences]


class Ahead:
    """Compiles in processes of its own.

    Args:
        share: called in each process with its number, how many there are and what is given; gives what went wrong.
    """

    def __init__(self, share: Callable[..., list[str]], n: int, *given: Any) -> None:
        self._pool = ProcessPoolExecutor(n, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,))
        self._shares = [self._pool.submit(share, k, n, *given) for k in range(n)]

    def finish(self, seconds: float) -> Iterator[str]:
        """Wait so long for all; what went wrong, a line each. Whoever is not ready then is ended."""
        done, late = wait(self._shares, max(0.0, seconds))
        for future in done:
            try:
                yield from (f"not compiled ahead: {line}" for line in future.result())
            except Exception as error:  # of a process that ended too, which ends all others
                yield f"not compiled ahead: {one_line(error)}"
        if late:
            yield f"{len(late)} processes did not compile all after {seconds:.0f} seconds"
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
