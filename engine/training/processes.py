"""One process, or several that torchrun started: who this one is, and what only one of them does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flashelmo.engine.errors import MissingExtraError

try:
    import torch
    from torch import distributed
except ImportError as error:
    raise MissingExtraError("torch", "torch", "training") from error


@dataclass(frozen=True)
class Processes:
    """The processes of a run: this one is number `rank` of `number`, `local` on its machine."""

    rank: int = 0
    number: int = 1
    local: int = 0

    @property
    def writes(self) -> bool:
        """Whether this process writes files and says what happens."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.number > 1:
            distributed.barrier()

    def same(self, number: float) -> float:
        """The first process's number."""
        if self.number == 1:
            return number
        numbers: list[float | None] = [number]
        distributed.broadcast_object_list(numbers, src=0)
        return float(numbers[0] or 0.0)

    def mean(self, values: tuple[float, float]) -> tuple[float, float]:
        """Of all processes."""
        if self.number == 1:
            return values
        every: list[tuple[float, float]] = [values] * self.number
        distributed.all_gather_object(every, values)
        forward, backward = (sum(each) / self.number for each in zip(*every, strict=True))
        return forward, backward


@contextmanager
def joined_processes(device: str) -> Iterator[Processes]:
    """Those that torchrun tells of in the environment, by NCCL on cards and gloo elsewhere; else this one alone."""
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number == 1:
        yield Processes()
        return
    on_cards = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    processes = Processes(int(os.environ["RANK"]), number, int(os.environ.get("LOCAL_RANK", "0")))
    if on_cards:
        torch.cuda.set_device(processes.local)
    distributed.init_process_group("nccl" if on_cards else "gloo")
    try:
        yield processes
    finally:
        distributed.destroy_process_group()
