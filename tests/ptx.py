"""What a compiled kernel may do before an instruction of its PTX: whether a dependent launch waits in time.

A launch that may begin before the one before it ends must reach `griddepcontrol.wait` on every path, and touch nothing
before that the launch before may write. Both can be read from the code: from its jumps which instructions may come
first, and from its registers which parameter an address was made from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

WAIT = "griddepcontrol.wait"
LAUNCH = "griddepcontrol.launch_dependents"
END = "the end"

_REGISTER = re.compile(r"%[a-z]+\d+")
_PARAMETER = re.compile(r"\w+_param_(\d+)")
_LABEL = re.compile(r"\s*([$\w]+):\s*$")


class Statement(NamedTuple):
    """One instruction: its name with modifiers, or ":" and a label; its operands; whether it may be skipped."""

    name: str
    operands: str
    predicated: bool = False


def before(ptx: str, instruction: str, parameters: Sequence[str]) -> tuple[str, ...]:
    """The parameters that some path reads or writes memory through before the instruction, `END` if a path has none.

    What an address was made from is over-estimated, never under-estimated, but for addresses that were themselves
    loaded from memory, which no kernel here has.

    Args:
        parameters: `parameter_names` of the kernel.

    Raises:
        ValueError: the kernel has other parameters, or a label that is not there.
    """
    n_parameters = len(re.findall(r"\.param \.", ptx))
    if n_parameters != len(parameters) + 2:  # Triton adds two of its own
        raise ValueError(f"ptx: expected {len(parameters) + 2} parameters, found {n_parameters}")
    statements = list(parse(ptx))
    sources = _sources(statements)
    found: set[str] = set()
    reached, waiting = {0}, [0]
    while waiting:
        at = waiting.pop()
        if at == len(statements):
            found.add(END)
            continue
        statement = statements[at]
        if statement.name == instruction and not statement.predicated:
            continue
        addresses = " ".join(re.findall(r"\[([^]]*)\]", statement.operands))
        accessed = {k for register in _REGISTER.findall(addresses) for k in sources.get(register, ())}
        found |= {parameters[k] for k in accessed if parameters[k:] and parameters[k]}
        following = set(_following(statements, at))
        waiting += following - reached
        reached |= following
    return tuple(sorted(found))


def parameter_names(signature: Mapping[str, str]) -> list[str]:
    """A kernel's parameters by its compiled signature: tensors' names, "" for numbers.

    Constants are no parameters.
    """
    found = []
    for name, kind in signature.items():
        if kind.startswith("tensordesc"):
            found += [name] + [""] * (2 * kind.partition("[")[2].partition("]")[0].count(",") + 2)  # sizes and strides
        elif kind != "constexpr":
            found.append(name if kind.startswith("*") else "")
    return found


def parse(ptx: str) -> Iterator[Statement]:
    """The kernel's statements in order, without declarations."""
    body = ptx.partition("\n{\n")[2].partition("-- End function")[0]
    for line in re.sub(r"//[^\n]*", "", body).splitlines():
        if label := _LABEL.match(line):
            yield Statement(":", label[1])
            continue
        for text in line.split(";"):
            text = text.lstrip("{} \t")  # scopes
            predicate, text = text.split(None, 1) if text.startswith("@") else ("", text)
            name, _, operands = text.strip().partition(" ")
            if name and not name.startswith("."):
                yield Statement(name, operands.strip(), bool(predicate))


def _following(statements: Sequence[Statement], at: int) -> Iterator[int]:
    """Which may come next; the number of statements stands for the end."""
    name, operands, predicated = statements[at]
    jumps = name.split(".")[0] in ("bra", "ret", "exit", "trap")
    if not jumps or predicated:
        yield at + 1
    if name.startswith("bra"):  # labels of loops written in assembly have one name: the jump is beside its own
        places = [k for k, each in enumerate(statements) if each == (":", operands, False)]
        if not places:
            raise ValueError(f"ptx: expected a label {operands}, found none")
        yield min(places, key=lambda k: abs(k - at))
    elif jumps:
        yield len(statements)


def _sources(statements: Sequence[Statement]) -> dict[str, set[int]]:
    """From which parameters each register was made, other than by loading from where they point."""
    found: dict[str, set[int]] = {}
    changed = True
    while changed:
        changed = False
        for name, operands, _ in statements:
            # The first operand, which may be several registers in braces, is what is written.
            into, _, rest = operands.partition("}" if operands.startswith("{") else ",")
            if "[" in operands and not name.startswith("ld.param"):
                continue
            made = {int(k) for k in _PARAMETER.findall(rest)}  # loaded, or a descriptor's place
            made |= {k for register in _REGISTER.findall(rest) for k in found.get(register, ())}
            for register in _REGISTER.findall(into):
                known = found.setdefault(register, set())
                changed |= not made <= known
                known |= made
    return found
