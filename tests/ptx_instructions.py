"""PTX text as instructions of a warp: what each does to its registers and to the memory that it shares with others.

Registers have no type: each holds the bits that were last written to it, and one that nothing was written to cannot be
read. Lanes that branch apart go on by themselves, those behind first, until they meet; what all lanes must do together
they must reach together. An instruction that is not here is named by NotImplementedError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ptx_arithmetic import N_LANES, RAW, TYPES, Array, computation, decoder, encoder, from_bf16
from ptx_memory import COPIES, ORDINARY, POISON, Fault, Mbarrier, Region, Shared

ALL = np.ones(N_LANES, np.bool_)
LANES = np.arange(N_LANES, dtype=np.uint32)
SHARED_START = 1024  # of a program's memory
PARAMETERS = 1 << 50  # addresses of a kernel's parameters, as far as they are asked for
PARAMETER_SIZE = 128
SWIZZLED = 128  # bytes of a row of a matrix in shared memory, whose pieces of 16 are reordered
STRONG = {"relaxed", "volatile", "acquire"}  # accesses that others may see at any time
SCOPES = {"gpu", "cg", "v2", "v4", "cta", "shared::cta"}


# -------------------------------------------------------------------------------------------------------------- parsing


class Line(NamedTuple):
    """An instruction's text: its predicate ("", "p" or "!p"), the parts of its name, and its operands."""

    text: str
    predicate: str
    name: list[str]
    operands: list[str]


def parse(ptx: str) -> tuple[list[Line], dict[str, int]]:
    """A kernel's instructions, and where its labels are. Names of inline assembly differ between its scopes."""
    lines: list[Line] = []
    labels: dict[str, int] = {}
    scope, local = 0, set[str]()
    for text in _statements(ptx):
        if text in ("{", "}"):
            scope, local = scope + 1, set()
        elif text.startswith(".reg"):
            local |= {name for each in text.split(None, 2)[2].split(",") for name in _declared(each.strip())}
        elif text.endswith(":"):
            labels[text[:-1] if text.startswith("$") else f"{text[:-1]}@{scope}"] = len(lines)
        elif not text.startswith("."):
            found = re.match(r"(?:@(!?[%\w]+)\s+)?([\w.:]+)\s*(.*)", text)
            if found is None:
                raise NotImplementedError(text)
            predicate, name, operands = found.groups("")
            parts = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", _scoped(operands, local, scope))
            if name.startswith("bra") and not operands.startswith("$"):
                parts = [f"{operands}@{scope}"]
            lines.append(Line(text, _scoped(predicate, local, scope), _parts(name), parts))
    return lines, labels


def _parts(name: str) -> list[str]:
    """`shared::cta` is one part."""
    return name.split(".")


def _statements(ptx: str) -> Iterator[str]:
    """Of the body, without comments."""
    body = ptx.partition(".entry")[2].partition("\n{\n")[2] if ".entry" in ptx else ptx
    for line in re.sub(r"//[^\n]*", "", body).splitlines():
        for part in re.split(r";|(?<=:)(?=\s*$)", line):
            part = part.strip()
            if part.startswith("{") and not part.endswith("}"):
                yield "{"
                part = part[1:].strip()
            if part:
                yield part


def _declared(name: str) -> list[str]:
    """`word<2>` declares word0 and word1."""
    several = re.fullmatch(r"(\w+)<(\d+)>", name)
    return [f"{several[1]}{k}" for k in range(int(several[2]))] if several else [name]


def _scoped(operands: str, local: set[str], scope: int) -> str:
    return re.sub(r"(?<![%\w$])[A-Za-z]\w*", lambda m: f"{m[0]}@{scope}" if m[0] in local else m[0], operands)


# ----------------------------------------------------------------------------------------------------------------- warps


@dataclass
class Product:
    """A product on its way, which has its sums until it is waited for."""

    sums: tuple[str, ...]
    compute: Callable[[Array], Array]


@dataclass(eq=False)
class Program:
    """One program of the launch, and what its warps share.

    Attributes:
        at: its place in the grid.
        first_agent: number of its first warp among all agents; what copies for the program comes after the last.
        waiting: warps at each barrier.
    """

    at: tuple[int, int, int]
    n_warps: int
    first_agent: int
    shared: Shared
    memory: Region
    mbarriers: dict[int, Mbarrier] = field(default_factory=dict)
    waiting: dict[int, list[Warp]] = field(default_factory=dict)

    def mbarrier(self, address: int) -> Mbarrier:
        """The one at an address; Fault where none is."""
        if address not in self.mbarriers:
            raise Fault("mbarrier: not initialized")
        return self.mbarriers[address]


@dataclass(eq=False)
class Warp:
    """Registers of 32 lanes, and where they are in the code.

    Attributes:
        mask: lanes that are at `at`; the others are in `apart`, by their place.
        seen: version of memory at which it jumped back, perhaps to look again; -1 where it goes on.
    """

    program: Program
    number: int
    agent: int
    registers: dict[str, Array] = field(default_factory=dict)
    at: int = 0
    mask: Array = field(default_factory=lambda: ALL)
    apart: dict[int, Array] = field(default_factory=dict)
    products: list[list[Product]] = field(default_factory=lambda: [[]])
    sums: dict[tuple[str, ...], Array] = field(default_factory=dict)
    state: str = "runs"
    seen: int = -1

    def write(self, name: str, raw: Array, active: Array) -> None:
        """Set a register of some lanes."""
        if active is not ALL:
            old = self.registers.get(name)
            if old is None:
                old = np.full(N_LANES * raw.itemsize, POISON, np.uint8).view(raw.dtype)
            raw = np.where(active, raw, old.astype(raw.dtype, copy=False))
        self.registers[name] = raw

    def known(self, which: int = ORDINARY) -> Array:
        """What it knows of others' times."""
        return self.program.shared.clocks.known[which, self.agent]

    def converge(self) -> None:
        """Let the lanes that are behind go on, with those that they meet."""
        if self.at in self.apart:
            self.mask = self.mask | self.apart.pop(self.at)
        behind = min(self.apart, default=self.at)
        if behind < self.at:
            self.apart[self.at], self.at, self.mask = self.mask, behind, self.apart.pop(behind)
        if self.mask.all():
            self.mask = ALL


Effect = Callable[[Warp, Array], bool | None]  # of the active lanes; whether the warp stops
Source = Callable[[Warp], Array]


class Instruction(NamedTuple):
    """An effect, which some lanes may be excluded from, and whether others may go on before the next one."""

    text: str
    predicate: Source | None
    effect: Effect
    yields: bool


def instructions(ptx: str) -> list[Instruction]:
    """A kernel's.

    Raises:
        NotImplementedError: one is not known here; its text.
    """
    lines, labels = parse(ptx)
    found = []
    for line in lines:
        effect = _effect(line, labels)
        if effect is None:
            raise NotImplementedError(line.text)
        predicate = _predicate(line.predicate) if line.predicate else None
        found.append(Instruction(line.text, predicate, effect, "global" in line.name or line.name[0] == "stmatrix"))
    return found


def _predicate(name: str) -> Source:
    given = source(name.lstrip("!"), "pred")
    return (lambda warp: ~given(warp)) if name.startswith("!") else given


def _members(operand: str) -> list[str]:
    """Registers of `{a, b}`, or the one that is named alone."""
    return [name.strip() for name in operand.strip("{} ").split(",")]


def constant(value: int, kind: str) -> Array:
    """A number in all lanes."""
    if kind == "pred":
        return np.full(N_LANES, value != 0)
    raw = RAW[np.dtype(TYPES[kind]).itemsize]
    return decoder(kind)(np.full(N_LANES, value & (1 << 8 * np.dtype(raw).itemsize) - 1, raw))


def source(operand: str, kind: str) -> Source:
    """What reads an operand as values of a kind."""
    raw = np.dtype(TYPES[kind])
    raw = raw if kind == "pred" else np.dtype(RAW[raw.itemsize])
    if operand == "%tid.x":
        return lambda warp: (32 * warp.number + LANES).astype(raw)
    if special := re.fullmatch(r"%(n?)ctaid\.([xyz])", operand):
        axis = "xyz".index(special[2])
        return lambda warp: constant((warp.program.shared.grid if special[1] else warp.program.at)[axis], kind)
    if number := re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+|0f[0-9a-fA-F]{8}", operand):
        text = number[0]
        fixed = constant(int(text[2:], 16) if text[:2] in ("0x", "0f") else int(text), kind)
        return lambda warp: fixed
    if operand == "global_smem" or (parameter := re.fullmatch(r"\w+_param_(\d+)", operand)):
        fixed = constant(SHARED_START if operand == "global_smem" else PARAMETERS + PARAMETER_SIZE * int(parameter[1]), kind)
        return lambda warp: fixed

    decode = decoder(kind)

    def read(warp: Warp) -> Array:
        found = warp.registers.get(operand)
        if found is None:
            raise Fault(f"{operand}: read before it is written")
        return decode(found if found.dtype == raw else found.astype(raw))

    return read


def address(operand: str, kind: str = "b64") -> Source:
    """What computes the address `[register + offset]`."""
    base, _, offset = operand.strip("[] ").partition("+")
    start, more = source(base.strip(), kind), np.int64(int(offset or 0))
    return lambda warp: start(warp).astype(np.int64) + more


def _effect(line: Line, labels: dict[str, int]) -> Effect | None:
    """What an instruction does; None for an unknown one."""
    first, operands = line.name[0], line.operands
    match line.name:
        case ["bra", *_]:
            return jump(labels[operands[0]])
        case ["ret"]:
            return _end
        case ["trap"]:
            return _trap
        case ["bar" | "barrier", "sync"]:
            return barrier(int(operands[0]))
        case ["bar", "warp", "sync"] | ["wgmma", "fence", *_] | ["griddepcontrol", *_] | ["setmaxnreg", *_]:
            return _together
        case ["fence", "proxy", "async", "shared::cta"]:
            return _fence
        case ["mov", kind] if "{" in line.text:
            return pack(operands, kind)
        case ["mov", kind]:
            return move(operands[0], source(operands[1], kind), kind)
        case ["cvta", *_]:
            return move(operands[0], source(operands[1], "b64"), "b64")
        case ["ld", "param", kind]:
            return parameter(operands, kind)
        case ["ld", *modifiers, kind]:
            return load(modifiers, kind, operands)
        case ["st", *modifiers, kind]:
            return store(modifiers, kind, operands)
        case ["atom", "global", "gpu", "acq_rel", "add", kind]:
            return add_atomically(operands, kind)
        case ["prefetch", "global", _]:
            return prefetch(operands)
        case ["stmatrix", "sync", "aligned", "m8n8", _, "shared", "b16"]:
            return store_matrix(operands)
        case ["mbarrier", *modifiers]:
            return at_mbarrier(modifiers, operands)
        case ["cp", "async", "bulk", "tensor", "2d", *_]:
            return copy(operands)
        case ["elect", "sync"]:
            return elect(operands[0].split("|"))
        case ["shfl", "sync", how, "b32"]:
            return shuffle(operands, how)
        case ["wgmma", "commit_group", *_]:
            return _commit
        case ["wgmma", "wait_group", *_]:
            return wait_for_products(int(operands[0]))
        case ["wgmma", "mma_async", "sync", "aligned", shape, "f32", kind, _]:
            return multiply(int(shape[4:].partition("k")[0]), kind, operands)
    computed = computation(line.name)
    if computed is None or first in ("bra", "mov"):
        return None
    given = [source(operand, kind) for operand, kind in zip(operands[1:], computed.operands, strict=True)]
    return move(operands[0], _applied(computed.function, given), computed.result)


def _applied(function: Callable[..., Array], given: list[Source]) -> Source:
    """A function of some values; most have two."""
    if len(given) == 2:
        first, second = given
        return lambda warp: function(first(warp), second(warp))
    return lambda warp: function(*[each(warp) for each in given])


# ---------------------------------------------------------------------------------------------------- control, registers


def jump(target: int) -> Effect:
    """To an instruction, for the lanes that do."""

    def effect(warp: Warp, active: Array) -> bool:
        if not active.any():
            return False
        back, rest = target < warp.at, warp.mask & ~active
        if rest.any():
            warp.apart[warp.at] = rest | warp.apart.get(warp.at, ~ALL)
            warp.mask = active
        warp.at = target
        if back:
            warp.seen = warp.program.shared.version
        return back

    return effect


def _all_lanes(active: Array) -> None:
    if not active.all():
        raise Fault(f"{int(active.sum())} lanes reach what all must reach together")


def _end(warp: Warp, active: Array) -> bool:
    _all_lanes(active)
    if any(warp.products) or warp.program.waiting.get(0):
        raise Fault("ends while a product is on its way, or others are at a barrier")
    warp.state = "done"
    return True


def _trap(warp: Warp, active: Array) -> None:
    if active.any():
        raise Fault("trap")


def _together(warp: Warp, active: Array) -> None:
    _all_lanes(active)


def _fence(warp: Warp, active: Array) -> None:
    warp.program.shared.clocks.fence(warp.agent)


def barrier(number: int) -> Effect:
    """Of all warps of the program, at one instruction."""

    def effect(warp: Warp, active: Array) -> bool:
        _all_lanes(active)
        waiting = warp.program.waiting.setdefault(number, [])
        waiting.append(warp)
        warp.state = "waits"
        if any(each.at != warp.at for each in waiting):
            raise Fault("other warps are at another barrier")
        if len(waiting) == warp.program.n_warps:
            warp.program.shared.clocks.meet([each.agent for each in waiting])
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
    to, given = _members(operands[0]), _members(operands[1])
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
        value = warp.program.shared.parameters[int(index)]
        warp.write(operands[0], constant(value, kind) if isinstance(value, int) else _float(value), active)

    return effect


def _float(value: float) -> Array:
    return np.full(N_LANES, value, np.float32).view(np.uint32)


def elect(operands: Sequence[str]) -> Effect:
    """The first lane."""

    def effect(warp: Warp, active: Array) -> None:
        _all_lanes(active)
        warp.write(operands[0], np.zeros(N_LANES, np.uint32), active)
        warp.write(operands[1], LANES == 0, active)

    return effect


def shuffle(operands: list[str], how: str) -> Effect:
    """A value of another lane."""
    if how not in ("bfly", "idx") or operands[3:] not in (["31", "-1"], ["0x1f", "0xffffffff"]):
        raise NotImplementedError(f"shfl.{how} {operands}")
    to, value, other = operands[0], source(operands[1], "b32"), source(operands[2], "u32")

    def effect(warp: Warp, active: Array) -> None:
        _all_lanes(active)
        lane = other(warp)
        warp.write(to, value(warp)[LANES ^ lane if how == "bfly" else lane], active)

    return effect


# ---------------------------------------------------------------------------------------------------------------- memory


def _region(warp: Warp, addresses: Array, is_shared: bool) -> Region:
    return warp.program.memory if is_shared else warp.program.shared.memory.region(int(addresses[0]))


def _space(modifiers: list[str]) -> tuple[bool, bool]:
    """Whether memory is shared, and whether the access is strong."""
    known = STRONG | SCOPES | {"global", "shared"}
    if not set(modifiers) <= known or not {"global", "shared", "shared::cta"} & set(modifiers):
        raise NotImplementedError(".".join(modifiers))
    return not {"shared", "shared::cta"}.isdisjoint(modifiers), not STRONG.isdisjoint(modifiers)


def load(modifiers: list[str], kind: str, operands: list[str]) -> Effect:
    """Values from memory, of the active lanes."""
    is_shared, is_strong = _space(modifiers)
    to, at = _members(operands[0]), address(operands[1], "b32" if is_shared else "b64")
    dtype, width = TYPES[kind], np.dtype(TYPES[kind]).itemsize
    size = width * len(to)
    encode = encoder("s64" if kind.startswith("s") and to[0].startswith("%rd") else kind)

    def effect(warp: Warp, active: Array) -> None:
        if not active.any():
            for register in to:
                warp.write(register, np.zeros(N_LANES, RAW[width]), active)
            return
        addresses = at(warp)[active]
        region = _region(warp, addresses, is_shared)
        region.places(addresses, size)
        races = None
        if "acquire" in modifiers:
            _acquire(warp, addresses)
        if not is_strong and region.name in warp.program.shared.idle_reads:
            races = region.races(addresses, size, warp.known())
        elif not is_strong:
            region.check(addresses, size, warp.known(), warp.agent, write=False)
        for k, register in enumerate(to):
            values = np.zeros(N_LANES, dtype)
            found = region.load(addresses + width * k, dtype, width)
            values[active] = found if races is None else np.where(races, ~np.zeros_like(found), found)
            warp.write(register, encode(values), active)

    return effect


def _acquire(warp: Warp, addresses: Array) -> None:
    for each in addresses:
        released = warp.program.shared.memory.released.get(int(each))
        if released is not None:
            warp.program.shared.clocks.learn(warp.agent, released)


def store(modifiers: list[str], kind: str, operands: list[str]) -> Effect:
    """Values to memory, of the active lanes."""
    is_shared, is_strong = _space(modifiers)
    at, given = address(operands[0], "b32" if is_shared else "b64"), [source(each, kind) for each in _members(operands[1])]
    width = np.dtype(TYPES[kind]).itemsize

    def effect(warp: Warp, active: Array) -> None:
        if not active.any():
            return
        addresses = at(warp)[active]
        region = _region(warp, addresses, is_shared)
        region.places(addresses, width * len(given))
        if not is_strong:
            region.check(addresses, width * len(given), warp.known(), warp.agent, write=True)
        for k, value in enumerate(given):
            region.store(addresses + width * k, value(warp)[active])
        warp.program.shared.version += 1

    return effect


def add_atomically(operands: list[str], kind: str) -> Effect:
    """Add to a number in global memory, for one lane after another; acquires and releases."""
    at, value = address(operands[1]), source(operands[2], kind)

    def effect(warp: Warp, active: Array) -> None:
        shared = warp.program.shared
        old = np.zeros(N_LANES, TYPES[kind])
        addresses, added = at(warp), value(warp)
        for lane in np.flatnonzero(active):
            place = addresses[lane : lane + 1]
            region = _region(warp, place, False)
            _acquire(warp, place)
            old[lane] = region.load(place, TYPES[kind])[0]
            region.store(place, old[lane : lane + 1] + added[lane : lane + 1])
            shared.memory.released[int(place[0])] = shared.clocks.pass_on(warp.agent)
            shared.version += 1
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
    at, given = address(operands[0], "b32"), [source(each, "b32") for each in _members(operands[1])]

    def effect(warp: Warp, active: Array) -> None:
        _all_lanes(active)
        region, addresses = warp.program.memory, at(warp)
        for k, value in enumerate(given):
            rows = addresses[8 * k : 8 * k + 8]
            region.check(rows, 16, warp.known(), warp.agent, write=True)
            region.places(rows, 16)
            region.store(np.repeat(rows, 4) + 4 * (np.arange(N_LANES) % 4), value(warp))
        warp.program.shared.version += 1

    return effect


# ------------------------------------------------------------------------------------------------------ copies, products


def at_mbarrier(modifiers: list[str], operands: list[str]) -> Effect | None:
    """Set up a barrier in shared memory, arrive at it, or see whether its phase is over."""
    first = modifiers[0]
    at = address(operands[1 if first in ("arrive", "try_wait") else 0], "b32")
    number = source(operands[-1] if operands[-1][0] != "[" else "1", "u32")
    if first not in ("init", "inval", "arrive", "try_wait") or {"cluster", "remote", "noComplete"} & set(modifiers):
        return None

    def effect(warp: Warp, active: Array) -> None:
        program = warp.program
        clocks = program.shared.clocks
        if not active.any():
            return
        place, value = int(at(warp)[active][0]), int(number(warp)[active][0])
        which = np.array([place])
        program.memory.check(which, 8, warp.known(), warp.agent, write=first in ("init", "inval"))
        if first == "init":
            program.mbarriers[place] = Mbarrier(value, np.zeros_like(clocks.known[:, warp.agent]))
        elif first == "inval":
            del program.mbarriers[place]
        elif first == "arrive":
            expected = "expect_tx" in modifiers
            program.mbarrier(place).add(1 if expected else value, value if expected else 0, clocks.pass_on(warp.agent))
            program.shared.version += 1
        else:
            over = program.mbarrier(place).phase % 2 != value
            if over:
                clocks.learn(warp.agent, program.mbarrier(place).known)
            warp.write(operands[0], np.full(N_LANES, over), active)

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
            block = program.shared.descriptors[place].block(int(row(warp)[lane]), int(column(warp)[lane]))
            start, known = int(to(warp)[lane]), warp.known().copy()
            counted = program.mbarrier(int(barrier_at(warp)[lane]))
            program.shared.flying.append(lambda: _arrive(program, block, start, known, counted))

    return effect


def _arrive(program: Program, block: Array, start: int, known: Array, counted: Mbarrier) -> None:
    """Write a block [rows, 128 bytes] and count it."""
    clocks, agent = program.shared.clocks, program.first_agent + program.n_warps
    rows, pieces = np.indices((len(block), SWIZZLED // 16))
    at = swizzled(start + rows * SWIZZLED + pieces * 16)
    program.memory.check(at, 16, known, agent, write=True)
    program.memory.store(at[..., None] + np.arange(16), block.reshape(*at.shape, 16))
    passed = np.zeros_like(clocks.known[:, agent])
    passed[:, agent] = clocks.now(agent)
    clocks.pass_on(agent)
    counted.add(0, -block.size, passed)
    program.shared.version += 1


def swizzled(addresses: Array) -> Array:
    """Where 16 bytes of rows of 128 lie: their number in the row, changed by that of the row."""
    return addresses ^ (addresses >> 7 & 7) << 4


def _commit(warp: Warp, active: Array) -> None:
    _all_lanes(active)
    warp.products.append([])


def wait_for_products(n: int) -> Effect:
    """Until at most the last n groups of products are on their way; the others' sums are in registers then."""

    def effect(warp: Warp, active: Array) -> None:
        _all_lanes(active)
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
    """sums [64, n] += a [64, 16] @ b [n, 16]^T, by four warps; a of each is in registers or, as b is, in shared memory."""
    sums = tuple(_members(operands[0]))
    in_registers, options = operands[1].startswith("{"), operands[4:]
    parts = _members(operands[1]) if in_registers else []
    transposed = [0, int(options[2])] if in_registers else [int(options[2]), int(options[3])]
    if options[:2] != ["1", "1"]:
        raise NotImplementedError("wgmma that negates")
    a_at, b_at, adds = source(operands[1], "b64"), source(operands[2], "b64"), source(operands[3], "pred")

    def effect(warp: Warp, active: Array) -> None:
        _all_lanes(active)
        region, known = warp.program.memory, warp.known(COPIES).copy()
        kept = {name: warp.registers[name] for name in parts}
        rows = 16 * (warp.number % 4) + np.arange(16)
        a_places = None if in_registers else operand(a_at(warp), rows, bool(transposed[0]))
        b_places, add = operand(b_at(warp), np.arange(n), bool(transposed[1])), bool(adds(warp)[0])
        if sums not in warp.sums:
            nothing = None if add else np.full(N_LANES, 0xFFFFFFFF, np.uint32)  # sums that begin here may be unwritten
            found = [warp.registers.pop(name, nothing) for name in sums]
            if any(each is None for each in found):
                raise Fault("adds to registers that are unwritten, or on their way in another product")
            warp.sums[sums] = np.stack(found).view(np.float32)

        def read(places: Array) -> Array:
            region.check(places, GRAIN_OF_OPERANDS, known, warp.agent, write=False)
            return _half(region.load(places, np.uint16), kind)

        def compute(old: Array) -> Array:
            if any(warp.registers.get(name) is not kept[name] for name in parts):
                raise Fault("an operand was changed while it was multiplied")
            a = _fragment(list(kept.values()), kind) if a_places is None else read(a_places)
            found = _lanes(a @ read(b_places).T)
            return old + found if add else found

        warp.products[-1].append(Product(sums, compute))

    return effect


GRAIN_OF_OPERANDS = 2  # bytes of a number


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
