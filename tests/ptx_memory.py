"""Memory of programs that run their PTX on a host, which knows who wrote what, and who may know of it.

Every warp, and what copies for a program, is an agent with a vector clock (Lamport 1978; Flanagan and Freund 2009,
https://doi.org/10.1145/1542476.1542490): the part of each other agent's time that it knows of, by barriers and by what
others released and it acquired. Whoever reads what was written at a time that it does not know, or writes what was read
or written so, races. What is sent by strong accesses (relaxed, volatile) orders nothing and is not checked.

A second clock holds what products may know of, which read shared memory past the caches: what was written before a
`fence.proxy.async`. Of global memory the last reader of each warp's number is remembered alone, so that a write after a
read may go unnoticed.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

Array = np.ndarray[Any, Any]
GRAIN = 2  # bytes that are remembered together
POISON = 0xFF  # of shared memory before anything is stored: NaN, or -1
ORDINARY, COPIES = 0, 1  # the two clocks


class Fault(AssertionError):
    """What a program must not do, and the instruction that did it."""


class Clocks:
    """What each agent knows of the others' times, twice: for ordinary accesses, and for those of products."""

    def __init__(self, n_agents: int) -> None:
        self.known = np.zeros((2, n_agents, n_agents), np.int32)
        self.known[ORDINARY] = np.eye(n_agents, dtype=np.int32)

    def now(self, agent: int) -> int:
        """An agent's own time."""
        return int(self.known[ORDINARY, agent, agent])

    def pass_on(self, agent: int) -> Array:
        """What an agent knows, for others; what it does from now on is not part of that."""
        known = self.known[:, agent].copy()
        self.known[ORDINARY, agent, agent] += 1
        return known

    def learn(self, agent: int, known: Array) -> None:
        """Add what another has passed on."""
        np.maximum(self.known[:, agent], known, out=self.known[:, agent])

    def meet(self, agents: list[int]) -> None:
        """Agents at a barrier: each knows what any of them did."""
        self.known[:, agents] = self.known[:, agents].max(axis=1, keepdims=True)
        self.known[ORDINARY, agents, agents] += 1

    def fence(self, agent: int) -> None:
        """Let products know what the agent knows."""
        self.known[COPIES, agent] = self.pass_on(agent)[ORDINARY]


class Region:
    """A piece of memory, and the last accesses to each of its grains.

    Args:
        name: for messages.
        start: its first address.
        data: its bytes.
        slots: agents of a program, whose reads are remembered beside each other.
    """

    def __init__(self, name: str, start: int, data: Array, clocks: Clocks, slots: int) -> None:
        n = len(data) // GRAIN + 1
        self.name, self.start, self.data, self._clocks, self._slots = name, start, data, clocks, slots
        self._writer, self._written = np.zeros(n, np.int16), np.zeros(n, np.int32)
        self._reader, self._read = np.zeros((n, slots), np.int16), np.zeros((n, slots), np.int32)
        self._views: dict[Any, tuple[Array, int]] = {}

    def places(self, addresses: Array, size: int) -> Array:
        """Bytes from the start, for accesses of some bytes each.

        Raises:
            Fault: an address is outside or not aligned.
        """
        found: Array = addresses - self.start
        if ((found < 0) | (found > len(self.data) - size) | (addresses & size - 1 != 0)).any():
            place = f"bytes {found.min()} to {found.max() + size} of {len(self.data)}, {self.name}"
            is_inside = found.min() >= 0 and found.max() + size <= len(self.data)
            raise Fault(f"{'misaligned' if is_inside else 'out of bounds'}: {place}")
        return found

    def load(self, places: Array, dtype: Any) -> Array:
        """Values."""
        view, width = self._view(dtype)
        found: Array = view[places // width]
        return found

    def store(self, places: Array, values: Array) -> None:
        """Values."""
        view, width = self._view(values.dtype)
        view[places // width] = values

    def _view(self, dtype: Any) -> tuple[Array, int]:
        if dtype not in self._views:
            width = np.dtype(dtype).itemsize
            assert self.start % width == 0, self.name
            self._views[dtype] = self.data[: len(self.data) // width * width].view(dtype), width
        return self._views[dtype]

    def races(self, places: Array, size: int, known: Array) -> Array:
        """Which of some bytes were written at times that are not known."""
        grains = self._grains(places, size)
        found = known[self._writer[grains]] < self._written[grains]
        return np.asarray(found.any(axis=-1))

    def check(
        self, places: Array, size: int, known: Array, agent: int, *, write: bool, same: Array | bool = False
    ) -> None:
        """Note an agent's access; Fault where it races with what others did at times that are not known.

        Args:
            same: of which places a write leaves the value as it is: others may have written that too.
        """
        grains, now = self._grains(places, size), self._clocks.now(agent)
        races = known[self._writer[grains]] < self._written[grains]
        races &= ~np.asarray(same)[..., None]
        if write:
            races |= (known[self._reader[grains]] < self._read[grains]).any(axis=-1)
            self._writer[grains], self._written[grains] = agent, now
        else:
            slot = agent % self._slots
            self._reader[grains, slot], self._read[grains, slot] = agent, now
        if races.any():
            place = int(grains[races].flat[0]) * GRAIN
            raise Fault(f"race: {'writes' if write else 'reads'} byte {place} of {self.name}")

    def _grains(self, places: Array, size: int) -> Array:
        first = places // GRAIN
        return first[..., None] + np.arange(size // GRAIN) if size > GRAIN else first[..., None]


def regions(tensors: Mapping[str, Tensor], clocks: Clocks, slots: int) -> list[Region]:
    """The memory of tensors by name, which is the host's; of several with one address the first."""
    found: dict[int, Region] = {}
    for name, tensor in tensors.items():
        start, n_bytes = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        if not tensor.is_contiguous():
            raise ValueError(f"{name}: expected a tensor without gaps, found strides {tensor.stride()}")
        if n_bytes and start not in found:
            data = np.ctypeslib.as_array((ctypes.c_uint8 * n_bytes).from_address(start))
            found[start] = Region(name, start, data, clocks, slots)
    return list(found.values())


class GlobalMemory:
    """Regions, and what some agent released at an address."""

    def __init__(self, found: list[Region]) -> None:
        self._regions = sorted(found, key=lambda region: region.start)
        self._starts = [region.start for region in self._regions]
        self.released: dict[int, Array] = {}

    def region(self, address: int) -> Region:
        """Where an address lies, or the one before it."""
        k = bisect_right(self._starts, address) - 1
        if k < 0:
            raise Fault(f"out of bounds: address {address:#x}")
        return self._regions[k]


@dataclass
class Mbarrier:
    """A barrier in shared memory: its phase ends when all have arrived and all bytes are here."""

    count: int
    known: Array
    arrived: int = 0
    n_bytes: int = 0
    phase: int = 0

    def add(self, arrivals: int, n_bytes: int, known: Array | None = None) -> None:
        """Arrivals, bytes to come (or, below 0, come), and what those who arrive know."""
        self.arrived += arrivals
        self.n_bytes += n_bytes
        if known is not None:
            self.known = np.maximum(self.known, known)
        if self.arrived > self.count:
            raise Fault(f"mbarrier: expected {self.count} arrivals, found {self.arrived}")
        if self.arrived == self.count and self.n_bytes == 0:
            self.arrived, self.phase = 0, self.phase + 1


@dataclass
class Launched:
    """A launch: what its programs have in common.

    Attributes:
        descriptors: of tensors, by the address of the parameter that holds one.
        idle_reads: names of tensors whose racing reads find NaN in place of a fault, and are not noted.
        flying: copies on their way.
        version: how often anything was written.
    """

    memory: GlobalMemory
    clocks: Clocks
    parameters: list[Any]
    descriptors: dict[int, Any]
    grid: tuple[int, ...]
    idle_reads: frozenset[str]
    flying: list[Callable[[], None]] = field(default_factory=list)
    version: int = 0
