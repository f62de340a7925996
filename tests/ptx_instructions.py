"""PTX instructions by their names: which are known, and what each does."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ptx_arithmetic import Array, computation
from ptx_effects import (
    add_atomically,
    barrier,
    elect,
    end,
    fence,
    jump,
    largest,
    load,
    move,
    pack,
    parameter,
    prefetch,
    shuffle,
    store,
    store_matrix,
    together,
    trap,
)
from ptx_products import at_mbarrier, commit, copy, multiply, wait_for_products
from ptx_warp import Effect, Line, Source, parse, source


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
        try:
            effect = _effect(line, labels)
        except (NotImplementedError, ValueError, KeyError) as error:  # modifiers or operands that are not known
            raise NotImplementedError(f"{line.text}: {error}") from error
        if effect is None:
            raise NotImplementedError(line.text)
        predicate = _predicate(line.predicate) if line.predicate else None
        found.append(Instruction(line.text, predicate, effect, "global" in line.name or line.name[0] == "stmatrix"))
    return found


def _predicate(name: str) -> Source:
    given = source(name.lstrip("!"), "pred")
    return (lambda warp: ~given(warp)) if name.startswith("!") else given


def _effect(line: Line, labels: dict[str, int]) -> Effect | None:
    """What an instruction does; None for an unknown one."""
    operands = line.operands
    match line.name:
        case ["bra", *_]:
            return jump(labels[operands[0]])
        case ["ret"]:
            return end
        case ["trap"]:
            return trap
        case ["bar", "sync"] if len(operands) == 1:
            return barrier(int(operands[0]))
        case ["bar", "warp", "sync"] | ["wgmma", "fence", *_] | ["griddepcontrol", *_]:
            return together
        case ["fence", "proxy", "async", "shared::cta"]:
            return fence
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
        case ["redux", "sync", "max", "s32"]:
            return largest(operands)
        case ["wgmma", "commit_group", *_]:
            return commit
        case ["wgmma", "wait_group", *_]:
            return wait_for_products(int(operands[0]))
        case ["wgmma", "mma_async", "sync", "aligned", shape, "f32", kind, _]:
            return multiply(int(shape[4:].partition("k")[0]), kind, operands)
    computed = computation(line.name)
    if computed is None:
        return None
    given = [source(operand, kind) for operand, kind in zip(operands[1:], computed.operands, strict=True)]
    return move(operands[0], _applied(computed.function, given), computed.result)


def _applied(function: Callable[..., Array], given: list[Source]) -> Source:
    """A function of some values; most have two."""
    if len(given) == 2:
        first, second = given
        return lambda warp: function(first(warp), second(warp))
    return lambda warp: function(*[each(warp) for each in given])
