"""Where the programs of a persistent launch wait for each other.

All of them must run at once: the launch is cooperative, with a program a multiprocessor. A grid of one program is legal
and never waits, so that Triton's interpreter runs it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

MAX_POLLS = tl.constexpr(1 << 22)  # of a wait: seconds, where a step takes microseconds


class Barrier(NamedTuple):
    """Where the programs of a device's persistent launches meet.

    Attributes:
        arrivals: int64 [1], how many programs have ever arrived; each launch adds a multiple of its programs.
        timed_out: int32 [1], not 0 once a wait has been given up.
        programs: of every launch that meets here; one launch at a time.
    """

    arrivals: Any
    timed_out: Any
    programs: int

    @classmethod
    def on(cls, device: torch.device | str, programs: int | None = None) -> Barrier:
        """A barrier on a device, for as many programs as it has multiprocessors where no number is given."""
        device = torch.device(device)
        most = n_multiprocessors(device)
        if programs is not None and (programs < 1 or (device.type == "cuda" and programs > most)):
            raise ValueError(f"programs: expected 1 to {most}, all of which run at once, found {programs}")
        arrivals, timed_out = (torch.zeros(1, dtype=dtype, device=device) for dtype in (torch.int64, torch.int32))
        return cls(arrivals, timed_out, programs or most)

    def check(self) -> None:
        """Raise RuntimeError if a wait of a launch so far was given up: its results are wrong. Waits for the device."""
        if int(self.timed_out):
            raise RuntimeError("barrier: expected all programs of a launch to arrive, found some missing after seconds")


@triton.jit
def wait_for_all(barrier, polls_left):
    """Wait until all programs of the grid are here; returns how often a later wait may look.

    The ticket says which round of arrivals this is, so that nothing is ever reset.
    """
    tl.debug_barrier()  # what this program's threads have written goes before its arrival
    n_programs = tl.num_programs(0).to(tl.int64)
    ticket = tl.atomic_add(barrier.arrivals, 1, sem="acq_rel")  # the last to come does not look again
    target = (ticket // n_programs + 1) * n_programs
    arrived = ticket + 1
    while (arrived < target) & (polls_left > 0):
        arrived = tl.atomic_add(barrier.arrivals, 0, sem="acquire")  # a load, by one thread for all
        polls_left -= 1
    if arrived < target:
        tl.store(barrier.timed_out, 1)
    tl.debug_barrier()
    return tl.where(arrived < target, 0, MAX_POLLS)  # once given up, no later wait holds the device


def n_multiprocessors(device: torch.device) -> int:
    """Programs that surely run at once on a device: its multiprocessors; 1 in Triton's interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
