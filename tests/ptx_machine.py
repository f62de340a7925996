"""Runs the compiled PTX of a launch on a host: all programs at once, warp by warp, in an order that is random.

The tensors' memory is used as it is. Shared memory, its swizzled matrices, copies by descriptor, barriers and products
of a group of warps (wgmma) are as on sm_90; copies and products are done late. Looked for are accesses out of bounds,
registers that nothing was written to, races (`ptx_memory`), barriers that warps reach differently, and warps that wait
for what never comes. What is not shown: time, what ptxas makes of the PTX, weaker orders of memory than that a race is
an error, a `wgmma.fence` that is missing, and the last bits of approximate functions and of sums.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from ptx_arithmetic import Array
from ptx_instructions import Instruction, instructions
from ptx_memory import POISON, Clocks, Fault, GlobalMemory, Launched, Region, regions
from ptx_products import SWIZZLED
from ptx_warp import SHARED_START, Program, Warp, constant

from flashelmo.kernels.launch import Launch

PATIENCE = 20  # rounds in which all warps look for what is not there
PREEMPTED = 0.03  # how often a warp stops at an access to memory
SLOW = 0.25  # programs that dawdle, others from time to time


class Code(NamedTuple):
    """A compiled kernel.

    Attributes:
        signature: parameters' types by name, as `flashelmo.benchmarks.kernels.resources.flat` gives them.
        shared: bytes of shared memory.
    """

    ptx: str
    signature: dict[str, str]
    shared: int
    n_warps: int


class Descriptor:
    """Of a tensor in global memory, copied in blocks whose rows have 128 bytes."""

    def __init__(self, described: Any) -> None:
        self._shape = list(described.block_shape)
        base = described.base.view(torch.uint8).reshape(described.shape[0], -1)
        self._bytes, self._width = base.numpy(), described.base.element_size()
        if self._shape[1] * self._width != SWIZZLED or described.layout.swizzle_byte_width != SWIZZLED:
            raise NotImplementedError(f"blocks {self._shape} whose rows have not 128 bytes")

    def block(self, row: int, column: int) -> Array:
        """Bytes [rows, 128]; zero beyond the tensor's end."""
        found = np.zeros((self._shape[0], SWIZZLED), np.uint8)
        if row < 0 or column < 0:
            raise Fault("copies from before a tensor's begin")
        there = self._bytes[row : row + self._shape[0], column * self._width : column * self._width + SWIZZLED]
        found[: there.shape[0], : there.shape[1]] = there
        return found


def run(launch: Launch, code: Code, seed: int = 0, idle_reads: Sequence[str] = ()) -> None:
    """Run all programs of a launch.

    Args:
        launch: its grid and arguments; tensors are in the host's memory.
        seed: of the order in which warps go on.
        idle_reads: tensors that some threads read without need, perhaps while others write: what they find is NaN.

    Raises:
        Fault: a program did what it must not; its instruction is named.
        NotImplementedError: an instruction is not known.
    """
    parameters, tensors, descriptors = _arguments(launch.arguments, code.signature)
    grid = (*launch.grid, 1, 1)[:3]
    places = [(x, y, z) for z, y, x in product(*map(range, reversed(grid)))]
    slots = code.n_warps + 1
    clocks = Clocks(slots * len(places))
    memory = GlobalMemory(regions(tensors, clocks, slots))
    launched = Launched(memory, clocks, parameters, descriptors, grid, frozenset(idle_reads))
    warps = []
    for k, at in enumerate(places):
        data = np.full(code.shared, POISON, np.uint8)
        region = Region("shared memory", SHARED_START, data, clocks, slots)
        program = Program(at, code.n_warps, slots * k, launched, region)
        warps += [Warp(program, number, slots * k + number) for number in range(code.n_warps)]
    with np.errstate(all="ignore"):
        Machine(instructions(code.ptx), warps, launched, random.Random(seed)).run()


def run_assembly(code: str, operands: Sequence[int], memory: Region) -> dict[str, Array]:
    """Run inline assembly by one warp; its registers afterwards.

    Args:
        operands: of `$0`, `$1` and so on, the same in all lanes.
        memory: the only one that there is.
    """
    launched = Launched(GlobalMemory([memory]), Clocks(2), [], {}, (1, 1, 1), frozenset())
    warp = Warp(Program((0, 0, 0), 1, 0, launched, memory), 0, 0)
    warp.registers |= {f"${k}": constant(value, "b64") for k, value in enumerate(operands)}
    Machine(instructions(f"{code}\nret;"), [warp], launched, random.Random(0)).run()
    return warp.registers


def _arguments(given: Mapping[str, Any], signature: dict[str, str]) -> tuple[list[Any], dict[str, Any], dict[int, Any]]:
    """A compiled kernel's parameters in order, tensors by name, and descriptors by their parameter's number."""
    parameters: list[Any] = []
    tensors: dict[str, Any] = {}
    descriptors: dict[int, Any] = {}
    for name, kind in signature.items():
        first, *rest = name.split(".")
        value = getattr(given[first], rest[0]) if rest else given[first]
        if kind.startswith("tensordesc"):
            descriptors[len(parameters)] = Descriptor(value)
            parameters += [0, *value.shape, *value.strides]
        elif kind.startswith("*"):
            tensors[name] = value
            parameters.append(value.data_ptr())
        elif kind != "constexpr":
            parameters.append(value)
    return [*parameters, 0, 0], tensors, descriptors  # Triton adds two of its own


class Machine:
    """Lets warps go on in turns until all have ended."""

    def __init__(self, code: list[Instruction], warps: list[Warp], launch: Launched, chance: random.Random) -> None:
        self._code, self._warps, self._launch, self._chance = code, warps, launch, chance
        self._slow: set[int] = set()

    def run(self) -> None:
        """See above."""
        vain = 0
        while live := [warp for warp in self._warps if warp.state != "done"]:
            ready = [warp for warp in live if warp.state == "runs" and warp.seen < self._launch.version]
            vain = 0 if ready else vain + 1
            if self._launch.flying and (not ready or self._chance.random() < 0.1):
                flying = self._launch.flying
                flying.pop(self._chance.randrange(len(flying)))()
            for warp in self._turn(ready or [warp for warp in live if warp.state == "runs"]):
                self._go_on(warp)
            if vain > PATIENCE or not any(warp.state == "runs" for warp in live):
                self._check_deadlock(live)

    def _turn(self, ready: list[Warp]) -> Iterator[Warp]:
        """Half of those that can go on, fewer of slow programs."""
        if not self._slow or self._chance.random() < 0.02:
            firsts = sorted({warp.program.first_agent for warp in self._warps})
            self._slow = set(self._chance.sample(firsts, int(len(firsts) * SLOW)))
        self._chance.shuffle(ready)
        for warp in ready[: len(ready) // 2 + 1]:
            is_slow = warp.program.first_agent in self._slow or warp.seen >= 0
            if not is_slow or len(ready) == 1 or self._chance.random() < 0.2:
                yield warp

    def _check_deadlock(self, live: list[Warp]) -> None:
        if all(warp.state == "done" for warp in live) or self._launch.flying:
            return
        texts = sorted({warp.last for warp in live if warp.state != "done"})
        raise Fault(f"all wait for each other, at {'; '.join(texts)}")

    def _go_on(self, warp: Warp) -> None:
        """Until the warp stops, or by chance."""
        warp.seen = -1
        while True:
            instruction = self._code[warp.at]
            active = warp.mask
            if instruction.predicate is not None:
                active = active & instruction.predicate(warp)
            warp.at += 1
            try:
                stops = instruction.effect(warp, active)
            except Fault as fault:
                where = f"program {warp.program.at}, warp {warp.number}"
                raise Fault(f"{instruction.text}: {fault} ({where})") from None
            if warp.apart:
                warp.converge()
            if stops or (instruction.yields and self._chance.random() < PREEMPTED):
                warp.last = instruction.text
                return
