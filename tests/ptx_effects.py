"""What PTX instructions do to a warp: where it goes on, its registers, and the memory that it shares with others."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from ptx_arithmetic import N_LANES, TYPES, Array, encoder
from ptx_memory import Fault, Region
from ptx_warp import ALL, LANES, Effect, Source, Warp, address, all_lanes, constant, members, source

STRONG = {"relaxed", "volatile", "acquire"}  # accesses that others may see at any time
SCOPES = {"gpu", "cg", "v2", "v4", "cta", "shared::cta"}


def jump(target: int) -> Effect:
    """To an instruction, for the lanes that do."""

    def effect(warp: Warp, active: Array) -> bool:
        if active is not ALL and not active.any():
            return False
        back, rest = target < warp.at, warp.mask & ~active
        if active is not ALL and rest.any():
            warp.apart[warp.at] = rest | warp.apart.get(warp.at, ~ALL)
            warp.mask = active
        warp.at = target
        if back:
            warp.seen = warp.program.launch.version
        return back

    return effect


def end(warp: Warp, active: Array) -> bool:
    """Of the warp."""
    all_lanes(active)
    if any(warp.products) or warp.program.waiting.get(0):
        raise Fault("ends while a product is on its way, or others are at a barrier")
    warp.state = "done"
    return True


def trap(warp: Warp, active: Array) -> None:
    """What the kernel does where it cannot go on."""
    if active.any():
        raise Fault("trap")


def together(warp: Warp, active: Array) -> None:
    """Nothing, but that all lanes must be there."""
    all_lanes(active)


def fence(warp: Warp, active: Array) -> None:
    """Let products know of what was written."""
    warp.program.launch.clocks.fence(warp.agent)


def barrier(number: int) -> Effect:
    """Of all warps of the program, at one instruction."""

    def effect(warp: Warp, active: Array) -> bool:
        if not active.any():
            return False
        all_lanes(active)
        waiting = warp.program.waiting.setdefault(number, [])
        waiting.append(warp)
        warp.state = "waits"
        if any(each.at != warp.at for each in waiting):
            raise Fault("other warps are at another barrier")
        if len(waiting) == warp.program.n_warps:
            warp.program.launch.clocks.meet([each.agent for each in waiting])
            for each in waiting:
                each.state = "runs"
            waiting.clear()
        return True

    return effect


def move(to: str, value: Source, kind: str) -> Effect:
    """A value to a register."""
    encode = encoder(kind)

    def effect(warp: Warp, active: Array) -> None:
        warp.write(to, encode(value(warp)), active)

    return effect


def pack(operands: list[str], kind: str) -> Effect:
    """Parts to a register, or a register to its parts."""
    to, given = members(operands[0]), members(operands[1])
    part = f"b{int(kind[1:]) // max(len(to), len(given))}"
    sources = [source(each, part if len(given) > 1 else kind) for each in given]
    raw = np.dtype(TYPES[part])

    def effect(warp: Warp, active: Array) -> None:
        values = np.stack([np.ascontiguousarray(each(warp)) for each in sources], axis=-1)
        if len(to) == 1:
            warp.write(to[0], values.view(TYPES[kind])[:, 0], active)
        else:
            for k, register in enumerate(to):
                warp.write(register, np.ascontiguousarray(values.view(raw)[:, k]), active)

    return effect


def parameter(operands: list[str], kind: str) -> Effect:
    """One of the kernel's."""
    (index,) = re.findall(r"_param_(\d+)", operands[1])

    def effect(warp: Warp, active: Array) -> None:
        value = warp.program.launch.parameters[int(index)]
        warp.write(operands[0], constant(value, kind) if isinstance(value, int) else _float(value), active)

    return effect


def _float(value: float) -> Array:
    return np.full(N_LANES, value, np.float32).view(np.uint32)


def elect(operands: Sequence[str]) -> Effect:
    """The first lane."""

    def effect(warp: Warp, active: Array) -> None:
        all_lanes(active)
        warp.write(operands[0], np.zeros(N_LANES, np.uint32), active)
        warp.write(operands[1], LANES == 0, active)

    return effect


def shuffle(operands: list[str], how: str) -> Effect:
    """A value of another lane."""
    if how not in ("bfly", "idx") or operands[3:] not in (["31", "-1"], ["0x1f", "0xffffffff"]):
        raise NotImplementedError(f"shfl.{how} {operands}")
    to, value, other = operands[0], source(operands[1], "b32"), source(operands[2], "u32")

    def effect(warp: Warp, active: Array) -> None:
        all_lanes(active)
        lane = other(warp)
        warp.write(to, value(warp)[LANES ^ lane if how == "bfly" else lane], active)

    return effect


def largest(operands: list[str]) -> Effect:
    """The largest value of all lanes."""
    to, value, lanes = operands[0], source(operands[1], "s32"), source(operands[2], "u32")

    def effect(warp: Warp, active: Array) -> None:
        all_lanes(active)
        if (lanes(warp) != 0xFFFFFFFF).any():
            raise NotImplementedError("redux of some lanes")
        warp.write(to, np.full(N_LANES, value(warp).max(), np.int32).view(np.uint32), active)

    return effect


# --------------------------------------------------------------------------------------------------------------- memory


def _region(warp: Warp, addresses: Array, is_shared: bool) -> Region:
    return warp.program.memory if is_shared else warp.program.launch.memory.region(int(addresses[0]))


def _space(modifiers: list[str]) -> tuple[bool, bool]:
    """Whether memory is shared, and whether the access is strong."""
    known = STRONG | SCOPES | {"global", "shared"}
    if not set(modifiers) <= known or not {"global", "shared", "shared::cta"} & set(modifiers):
        raise NotImplementedError(".".join(modifiers))
    return not {"shared", "shared::cta"}.isdisjoint(modifiers), not STRONG.isdisjoint(modifiers)


def load(modifiers: list[str], kind: str, operands: list[str]) -> Effect:
    """Values from memory, of the active lanes."""
    is_shared, is_strong = _space(modifiers)
    to, at = members(operands[0]), address(operands[1], "b32" if is_shared else "b64")
    dtype, width = TYPES[kind], np.dtype(TYPES[kind]).itemsize
    encode = encoder("s64" if kind.startswith("s") and to[0].startswith("%rd") else kind)

    def read(warp: Warp, active: Array) -> list[Array]:
        addresses = at(warp)[active]
        region, size = _region(warp, addresses, is_shared), width * len(to)
        places = region.places(addresses, size)
        if "acquire" in modifiers:
            _acquire(warp, addresses)
        found = [region.load(places + width * k, dtype) for k in range(len(to))]
        if is_strong:
            return found
        if region.name in warp.program.launch.idle_reads:
            races = region.races(places, size, warp.known())
            return [np.where(races, ~np.zeros_like(each), each) for each in found]
        region.check(places, size, warp.known(), warp.agent, write=False)
        return found

    def effect(warp: Warp, active: Array) -> None:
        found = read(warp, active) if active is ALL or active.any() else [np.empty(0, dtype)] * len(to)
        for register, values in zip(to, found, strict=True):
            if active is not ALL:
                some, values = values, np.zeros(N_LANES, dtype)
                values[active] = some
            warp.write(register, encode(values), active)

    return effect


def _acquire(warp: Warp, addresses: Array) -> None:
    for each in addresses:
        released = warp.program.launch.memory.released.get(int(each))
        if released is not None:
            warp.program.launch.clocks.learn(warp.agent, released)


def store(modifiers: list[str], kind: str, operands: list[str]) -> Effect:
    """Values to memory, of the active lanes."""
    is_shared, is_strong = _space(modifiers)
    at, given = (
        address(operands[0], "b32" if is_shared else "b64"),
        [source(each, kind) for each in members(operands[1])],
    )
    width = np.dtype(TYPES[kind]).itemsize

    def effect(warp: Warp, active: Array) -> None:
        if active is not ALL and not active.any():
            return
        addresses = at(warp)[active]
        region, size = _region(warp, addresses, is_shared), width * len(given)
        places = region.places(addresses, size)
        values = [value(warp)[active] for value in given]
        if not is_strong:
            pairs = enumerate(values)
            same = np.all([region.load(places + width * k, each.dtype) == each for k, each in pairs], axis=0)
            region.check(places, size, warp.known(), warp.agent, write=True, same=same)
        for k, each in enumerate(values):
            region.store(places + width * k, each)
        warp.program.launch.version += 1

    return effect


def add_atomically(operands: list[str], kind: str) -> Effect:
    """Add to a number in global memory, for one lane after another; acquires and releases."""
    at, value = address(operands[1]), source(operands[2], kind)

    def effect(warp: Warp, active: Array) -> None:
        launch = warp.program.launch
        old = np.zeros(N_LANES, TYPES[kind])
        addresses, added = at(warp), value(warp)
        for lane in np.flatnonzero(active):
            which = addresses[lane : lane + 1]
            region = _region(warp, which, False)
            place = region.places(which, old.itemsize)
            _acquire(warp, which)
            old[lane] = region.load(place, TYPES[kind])[0]
            region.store(place, old[lane : lane + 1] + added[lane : lane + 1])
            launch.memory.released[int(which[0])] = launch.clocks.pass_on(warp.agent)
            launch.version += 1
        warp.write(operands[0], old, active)

    return effect


def prefetch(operands: list[str]) -> Effect:
    """Nothing, but that it must be inside."""
    at = address(operands[0])

    def effect(warp: Warp, active: Array) -> None:
        addresses = at(warp)[active]
        if len(addresses):
            _region(warp, addresses, False).places(addresses, 1)

    return effect


def store_matrix(operands: list[str]) -> Effect:
    """Matrices of 8 rows of 16 bytes, four lanes a row; lane 8j + i has the address of row i of matrix j."""
    at, given = address(operands[0], "b32"), [source(each, "b32") for each in members(operands[1])]

    def effect(warp: Warp, active: Array) -> None:
        all_lanes(active)
        region, addresses = warp.program.memory, at(warp)
        for k, value in enumerate(given):
            rows = region.places(addresses[8 * k : 8 * k + 8], 16)
            region.check(rows, 16, warp.known(), warp.agent, write=True)
            region.store(np.repeat(rows, 4) + 4 * (np.arange(N_LANES) % 4), value(warp))
        warp.program.launch.version += 1

    return effect
