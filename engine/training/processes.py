"""One process, or several that torchrun started: which one this is, and what only one of them does."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from flashelmo.engine.errors import FlashElmoError, first_line

Result = TypeVar("Result")


# Threads of gloo keep the last call's tensors a moment longer than the call, and need Python to release them. If Python
# has ended by then, they end the process (https://github.com/pytorch/pytorch/pull/179291).
LET_GO_SECONDS = 0.2

# By default a process that has waited for another one for ten minutes (NCCL) or thirty (gloo) ends the run. The first
# one may read a corpus, or measure a perplexity, for longer; torchrun ends the others if it dies.
MOST_WAITING = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """The processes of a run: this one is number `rank` of `number`, `local` on its machine."""

    rank: int = 0
    number: int = 1
    local: int = 0

    @property
    def writes(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.number > 1:
            distributed.barrier()

    def first(self, make: Callable[[], Result]) -> Result:
        """Return the first process's result of `make`, or raise its error, in all processes, which wait for it.

        Raises:
            FlashElmoError, OSError: as raised by `make`.
        """
        if self.number == 1:
            return make()
        made: list[Any] = [None, None]
        if self.writes:
            try:
                made[0] = make()
            except FlashElmoError as error:
                made[1] = FlashElmoError(error)  # of a type that can be sent
            except OSError as error:
                made[1] = error
        distributed.broadcast_object_list(made, src=0)
        result, raised = made
        if raised is not None:
            self.wait()  # one that leaves while another is still receiving may end that one
            raise raised
        found: Result = result
        return found

    def gathered(self, value: Result) -> list[Result]:
        """Return the values of all processes."""
        every = [value] * self.number
        if self.number > 1:
            distributed.all_gather_object(every, value)
        return every

    def in_all(self, holds: bool) -> bool:
        """Whether it holds in every process."""
        return all(self.gathered(holds))

    def mean(self, values: tuple[float, float]) -> tuple[float, float]:
        """Return the means over all processes."""
        forward, backward = (sum(each) / self.number for each in zip(*self.gathered(values), strict=True))
        return forward, backward


def named_processes() -> Processes:
    """Return the processes of torchrun's environment."""
    number, rank, local = found = [os.environ.get(name) for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK")]
    if number in (None, "1"):
        return Processes()
    if not all(each is not None and each.isdecimal() for each in (number, rank, local or "0")):
        expected = "expected whole numbers, as torchrun sets them"
        raise FlashElmoError(f"WORLD_SIZE, RANK, LOCAL_RANK: {expected}, found {', '.join(map(str, found))}")
    return Processes(int(rank or 0), int(number or 0), int(local or 0))


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Join the processes named in torchrun's environment, by NCCL on cards and gloo elsewhere; else only this one.

    Raises:
        FlashElmoError: the environment names them incompletely, or one cannot be reached, at first or later.
    """
    processes = named_processes()
    if processes.number == 1:
        yield processes
        return
    on_cards = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_cards:
        torch.cuda.set_device(processes.local)
    try:
        store, rank, number = next(rendezvous("env://"))  # they meet within PyTorch's own time
        store.set_timeout(MOST_WAITING)
        distributed.init_process_group(
            "nccl" if on_cards else "gloo", store=store, rank=rank, world_size=number, timeout=MOST_WAITING
        )
    except (RuntimeError, ValueError) as error:
        expected = f"expected {processes.number} that reach each other, started by torchrun"
        raise FlashElmoError(f"processes: {expected}: {first_line(error)}") from None
    try:
        yield processes
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):  # whose errors have no class
            raise
        message = f"expected {processes.number} until the end, one does not answer: {first_line(error)}"
        raise FlashElmoError(f"processes: {message}; the same command goes on from the last checkpoint") from None
    finally:
        distributed.destroy_process_group()
        time.sleep(LET_GO_SECONDS)
