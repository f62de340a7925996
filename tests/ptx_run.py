"""Runs short PTX of one thread, as inline assembly has it: the few instructions that kernels here use, on a host.

Registers are whole numbers of 32 or 64 bits. Operands `$k` are given by position, where a compiler puts registers.
"""

import re
import struct
from collections.abc import Callable, Sequence

MASK32, MASK64 = (1 << 32) - 1, (1 << 64) - 1
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "ge": lambda a, b: a >= b,
    "gt": lambda a, b: a > b,
    "ne": lambda a, b: a != b,
}


class Thread:
    """One thread's registers, and the memory that it reads and writes.

    Args:
        operands: values of `$0`, `$1`, and so on; of results anything.
        read: a word of 64 bits at an address.
        write: likewise.
    """

    def __init__(
        self, operands: Sequence[int], read: Callable[[int], int], write: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        self.registers = {f"${k}": value & MASK64 for k, value in enumerate(operands)}
        self._read, self._write = read, write

    def run(self, code: str) -> None:
        """All instructions, to the end."""
        lines = [line.strip() for line in re.split(r"[;\n]", code)]
        lines = [line for line in lines if line and line not in "{}" and not line.startswith(".reg")]
        labels = {line[:-1]: k for k, line in enumerate(lines) if line.endswith(":")}
        at = 0
        while at < len(lines):
            line, at = lines[at], at + 1
            if line.endswith(":"):
                continue
            condition, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
            if condition and not self.registers[condition[1:]]:
                continue
            name, _, operands = rest.partition(" ")
            if name == "bra":
                at = labels[operands]
            elif name != "bar.warp.sync":
                self._execute(name.split("."), re.findall(r"\{[^}]*\}|\[[^]]*\]|[^,\s]+", operands))

    def signed(self, name: str) -> int:
        """A register's or a literal's lower 32 bits, as a whole number with a sign."""
        value = self._value(name) & MASK32
        return value - (1 << 32) if value >> 31 else value

    def float(self, name: str) -> float:
        """A register's lower 32 bits as a float."""
        return float(struct.unpack("<f", struct.pack("<I", self._value(name) & MASK32))[0])

    def _value(self, name: str) -> int:
        if name.startswith("{"):
            low, high = self._members(name)
            return self._value(low) & MASK32 | (self._value(high) & MASK32) << 32
        if re.fullmatch(r"-?\d+", name):
            return int(name) & MASK64
        return int(name[2:], 16) if re.fullmatch("0f[0-9A-Fa-f]{8}", name) else self.registers[name]

    def _members(self, names: str) -> list[str]:
        return [name.strip() for name in names.strip("{}").split(",")]

    def _address(self, place: str) -> int:
        base, _, offset = place.strip("[]").partition("+")
        return self._value(base.strip()) + int(offset or 0)

    def _execute(self, name: list[str], operands: list[str]) -> None:
        to, *given = operands
        match name[0]:
            case "mov" if to.startswith("{"):
                value = self._value(given[0])
                for part, register in enumerate(self._members(to)):
                    self.registers[register] = value >> (32 * part) & MASK32
            case "mov":
                self.registers[to] = self._value(given[0]) & (MASK64 if name[1] == "b64" else MASK32)
            case "ld":
                registers = self._members(to) if to.startswith("{") else [to]
                assert name[1:] == ["relaxed", "gpu", "global", *(["v2"] if len(registers) == 2 else []), "b64"]
                for k, register in enumerate(registers):
                    self.registers[register] = self._read(self._address(given[0]) + 8 * k)
            case "st":
                assert name[1:] == ["relaxed", "gpu", "global", "b64"]
                self._write(self._address(to), self._value(given[0]))
            case "setp":
                number = self.signed if name[-1] == "s32" else self._value
                found = COMPARISONS[name[1]](number(given[0]), number(given[1]))
                self.registers[to] = found and (name[2] != "and" or bool(self._value(given[2])))
            case "mad":
                assert name[1:] == ["wide", "s32"]
                self.registers[to] = self.signed(given[0]) * self.signed(given[1]) + self._value(given[2]) & MASK64
            case "sub":
                self.registers[to] = self.signed(given[0]) - self.signed(given[1]) & MASK32
            case "xor":
                self.registers[to] = (self._value(given[0]) ^ self._value(given[1])) & MASK32
            case "or":
                self.registers[to] = (self._value(given[0]) | self._value(given[1])) & MASK32
            case "add":
                assert name[1:] == ["rn", "f32"]
                (bits,) = struct.unpack("<I", struct.pack("<f", self.float(given[0]) + self.float(given[1])))
                self.registers[to] = bits
            case _:
                raise NotImplementedError(".".join(name))
