"""PTX text as lines, and a warp: where its lanes are in the code, and what operands mean to it.

Registers have no type: each holds the bits that were last written to it, and one that nothing was written to cannot be
read. Lanes that branch apart go on by themselves, those behind first, until they meet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from ptx_arithmetic import N_LANES, RAW, TYPES, Array, decoder
from ptx_memory import ORDINARY, POISON, Fault, Launched, Mbarrier, Region

ALL = np.ones(N_LANES, np.bool_)
LANES = np.arange(N_LANES, dtype=np.uint32)
SHARED_START = 1024  # of a program's memory
PARAMETERS = 1 << 30  # addresses of parameters, as far as they are asked for; some are computed in 32 bits
PARAMETER_SIZE = 128


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
            lines.append(Line(text, _scoped(predicate, local, scope), name.split("."), parts))
    return lines, labels


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
    launch: Launched
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
        last: the instruction that it stopped at.
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
    last: str = ""

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
        return self.program.launch.clocks.known[which, self.agent]

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


def all_lanes(active: Array) -> None:
    """Fault unless all are there."""
    if active is not ALL and not active.all():
        raise Fault(f"{int(active.sum())} lanes reach what all must reach together")


def members(operand: str) -> list[str]:
    """Registers of `{a, b}`, or the one that is named alone."""
    return [name.strip() for name in operand.strip("{} ").split(",")]


def constant(value: int, kind: str) -> Array:
    """A number in all lanes."""
    if kind == "pred":
        return np.full(N_LANES, value != 0)
    width = np.dtype(TYPES[kind]).itemsize
    return decoder(kind)(np.full(N_LANES, value & (1 << 8 * width) - 1, RAW[width]))


def source(operand: str, kind: str) -> Source:
    """What reads an operand as values of a kind."""
    raw = np.dtype(np.bool_ if kind == "pred" else RAW[np.dtype(TYPES[kind]).itemsize])
    if operand == "%tid.x":
        return lambda warp: (32 * warp.number + LANES).astype(raw)
    if special := re.fullmatch(r"%(n?)ctaid\.([xyz])", operand):
        axis = "xyz".index(special[2])
        return lambda warp: constant((warp.program.launch.grid if special[1] else warp.program.at)[axis], kind)
    if number := re.fullmatch(r"-?\d+|0x[0-9a-fA-F]+|0f[0-9a-fA-F]{8}", operand):
        text = number[0]
        fixed = constant(int(text[2:], 16) if text[:2] in ("0x", "0f") else int(text), kind)
        return lambda warp: fixed
    if operand == "global_smem":
        memory = constant(SHARED_START, kind)
        return lambda warp: memory
    if parameter := re.fullmatch(r"\w+_param_(\d+)", operand):
        place = constant(PARAMETERS + PARAMETER_SIZE * int(parameter[1]), kind)
        return lambda warp: place
    decode = decoder(kind)

    def read(warp: Warp) -> Array:
        found = warp.registers.get(operand)
        if found is None:
            raise Fault(f"{operand}: read before it is written")
        return found if found.dtype is raw else found.astype(raw)

    return read if kind == "pred" or kind[0] == "u" or re.fullmatch(r"b\d+", kind) else lambda warp: decode(read(warp))


def address(operand: str, kind: str = "b64") -> Source:
    """What computes the address `[register + offset]`."""
    base, _, offset = operand.strip("[] ").partition("+")
    start, more = source(base.strip(), kind), np.int64(int(offset or 0))
    if not more and kind == "b64":
        return lambda warp: start(warp).view(np.int64)
    return lambda warp: start(warp).astype(np.int64) + more
