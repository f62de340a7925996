"""What PTX of sm_90 does in the background: copies by descriptor, which barriers count, and products of four warps.

Both are done late: a copy at any time before someone sees its barrier's phase end, a product when it is waited for.
"""

from __future__ import annotations

import re
from functools import partial

import numpy as np
from ptx_arithmetic import N_LANES, Array, from_bf16
from ptx_memory import COPIES, Fault, Mbarrier
from ptx_warp import PARAMETER_SIZE, PARAMETERS, Effect, Product, Program, Warp, address, all_lanes, members, source

SWIZZLED = 128  # bytes of a row of a matrix in shared memory, whose pieces of 16 are reordered


def at_mbarrier(modifiers: list[str], operands: list[str]) -> Effect | None:
    """Set up a barrier in shared memory, arrive there with bytes to come, or see whether its phase is over."""
    first = modifiers[0]
    if first not in ("init", "try_wait") and modifiers[:2] != ["arrive", "expect_tx"]:
        return None
    at = address(operands[0 if first == "init" else 1], "b32")
    number = source(operands[-1], "u32")

    def effect(warp: Warp, active: Array) -> None:
        if not active.any():
            return
        if first != "try_wait" and active.sum() != 1:
            raise NotImplementedError("mbarrier: several lanes at once")
        program, clocks = warp.program, warp.program.launch.clocks
        which, value = int(at(warp)[active][0]), int(number(warp)[active][0])
        place = program.memory.places(np.array([which]), 8)
        program.memory.check(place, 8, warp.known(), warp.agent, write=first == "init")
        if first == "init":
            program.mbarriers[which] = Mbarrier(value, np.zeros_like(clocks.known[:, warp.agent]))
            return
        barrier = program.mbarrier(which)
        if first == "arrive":
            barrier.add(1, value, clocks.pass_on(warp.agent))
            program.launch.version += 1
            return
        is_over = barrier.phase % 2 != value
        if is_over:
            clocks.learn(warp.agent, barrier.known)
        warp.write(operands[0], np.full(N_LANES, is_over), active)

    return effect


def copy(operands: list[str]) -> Effect:
    """A block of a tensor to shared memory, at some later time; a barrier counts its bytes."""
    inside = re.fullmatch(r"\[(\S+),\s*\{(\S+),\s*(\S+)\}\]", operands[1])
    if inside is None:
        raise NotImplementedError(str(operands))
    to, barrier_at = address(operands[0], "b32"), address(operands[2], "b32")
    descriptor, column, row = source(inside[1], "b64"), source(inside[2], "s32"), source(inside[3], "s32")

    def effect(warp: Warp, active: Array) -> None:
        for lane in np.flatnonzero(active):
            program = warp.program
            place = int((descriptor(warp)[lane] - PARAMETERS) // PARAMETER_SIZE)
            block = program.launch.descriptors[place].block(int(row(warp)[lane]), int(column(warp)[lane]))
            start, known = int(to(warp)[lane]), warp.known().copy()
            counted = program.mbarrier(int(barrier_at(warp)[lane]))
            program.launch.flying.append(partial(_arrive, program, block, start, known, counted))

    return effect


def _arrive(program: Program, block: Array, start: int, known: Array, counted: Mbarrier) -> None:
    """Write a block [rows, 128 bytes] and count it."""
    clocks, agent = program.launch.clocks, program.first_agent + program.n_warps
    rows, pieces = np.indices((len(block), SWIZZLED // 16))
    at = program.memory.places(swizzled(start + rows * SWIZZLED + pieces * 16), 16)
    program.memory.check(at, 16, known, agent, write=True)
    program.memory.store(at[..., None] + np.arange(16), block.reshape(*at.shape, 16))
    passed = np.zeros_like(clocks.known[:, agent])
    passed[:, agent] = clocks.now(agent)
    clocks.pass_on(agent)
    counted.add(0, -block.size, passed)
    program.launch.version += 1


def swizzled(addresses: Array) -> Array:
    """Where 16 bytes of rows of 128 lie: their number in the row, changed by that of the row."""
    return addresses ^ (addresses >> 7 & 7) << 4


def commit(warp: Warp, active: Array) -> None:
    """End a group of products."""
    all_lanes(active)
    warp.products.append([])


def wait_for_products(n: int) -> Effect:
    """Until at most the last n groups of products are on their way; the others' sums are in registers then."""

    def effect(warp: Warp, active: Array) -> None:
        all_lanes(active)
        if warp.products[-1]:
            raise Fault("waits for products without their group's end")
        groups, warp.products = warp.products[: len(warp.products) - 1 - n], warp.products[len(warp.products) - 1 - n :]
        for product in (each for group in groups for each in group):
            warp.sums[product.sums] = product.compute(warp.sums[product.sums])
        under_way = {product.sums for group in warp.products for product in group}
        for sums in warp.sums.keys() - under_way:
            for name, values in zip(sums, warp.sums.pop(sums), strict=True):
                warp.registers[name] = values.view(np.uint32)

    return effect


def multiply(n: int, kind: str, operands: list[str]) -> Effect:
    """sums [64, n] += a [64, 16] @ b [n, 16]^T of four warps; a is in registers or, as b is, in shared memory."""
    sums = tuple(members(operands[0]))
    in_registers, options = operands[1].startswith("{"), operands[4:]
    parts = members(operands[1]) if in_registers else []
    transposed = [0, int(options[2])] if in_registers else [int(options[2]), int(options[3])]
    if options[:2] != ["1", "1"]:
        raise NotImplementedError("wgmma that negates")
    a_at, b_at, adds = source(operands[1], "b64"), source(operands[2], "b64"), source(operands[3], "pred")

    def effect(warp: Warp, active: Array) -> None:
        all_lanes(active)
        region, known = warp.program.memory, warp.known(COPIES).copy()
        kept = {name: warp.registers[name] for name in parts}
        rows = 16 * (warp.number % 4) + np.arange(16)
        a_places = None if in_registers else operand(a_at(warp), rows, bool(transposed[0]))
        b_places, add = operand(b_at(warp), np.arange(n), bool(transposed[1])), bool(adds(warp)[0])
        if sums not in warp.sums:
            if add and not set(sums) <= warp.registers.keys():
                raise Fault("adds to registers that are unwritten, or on their way in another product")
            nothing = np.full(N_LANES, 0xFFFFFFFF, np.uint32)
            warp.sums[sums] = np.stack([warp.registers.pop(name, nothing) for name in sums]).view(np.float32)

        def read(addresses: Array) -> Array:
            places = region.places(addresses, 2)
            region.check(places, 2, known, warp.agent, write=False)
            return _half(region.load(places, np.uint16), kind)

        def compute(old: Array) -> Array:
            if any(warp.registers.get(name) is not kept[name] for name in parts):
                raise Fault("an operand was changed while it was multiplied")
            a = _fragment(list(kept.values()), kind) if a_places is None else read(a_places)
            found = _lanes(a @ read(b_places).T)
            return old + found if add else found

        warp.products[-1].append(Product(sums, compute))

    return effect


def _half(raw: Array, kind: str) -> Array:
    return from_bf16(raw) if kind == "bf16" else raw.view(np.float16).astype(np.float32)


def _fragment(registers: list[Array], kind: str) -> Array:
    """A warp's part [16, 16] of an operand: lane 4g + t of register r has row g + 8 (r % 2), column 2t + 8 (r // 2)."""
    halves = np.stack(registers).view(np.uint16).reshape(2, 2, 8, 4, 2)
    return _half(np.ascontiguousarray(halves.transpose(1, 2, 0, 3, 4)).reshape(16, 16), kind)


def _lanes(sums: Array) -> Array:
    """A warp's sums [16, n] as registers [n / 2, 32]: for 8 columns two of rows g, then two of rows g + 8."""
    split = sums.reshape(2, 8, -1, 4, 2).transpose(2, 0, 4, 1, 3)
    return np.ascontiguousarray(split).reshape(-1, N_LANES)


def operand(descriptor: Array, rows: Array, is_transposed: bool) -> Array:
    """Addresses [rows, 16] of a matrix that a descriptor describes, in shared memory in swizzled rows of 128 bytes."""
    value = int(descriptor[0])
    if (descriptor != descriptor[0]).any() or value >> 62 != 1 or value >> 49 & 7:
        raise Fault(f"wgmma: expected one descriptor of rows of 128 bytes, found {value:#x}")
    start, across, along = ((value >> bit & 0x3FFF) << 4 for bit in (0, 16, 32))
    row, k = rows[:, None], np.arange(16)[None, :]
    if is_transposed:  # a row of memory has 64 rows of the matrix
        if rows.max() >= 64 and not across:
            raise Fault("wgmma: no stride")
        return swizzled(start + row // 64 * across + k // 8 * along + k % 8 * SWIZZLED + row % 64 * 2)
    if rows.max() >= 8 and not along:
        raise Fault("wgmma: no stride")
    return swizzled(start + row // 8 * along + row % 8 * SWIZZLED + k * 2)
