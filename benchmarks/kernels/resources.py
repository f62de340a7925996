"""What every GPU kernel costs, compiled without a card: `python -m benchmarks resources`.

Registers, spills, shared memory and matrix instructions, for sm_75, sm_80, sm_90, sm_100 and sm_120. The exit status is
1 where a limit is broken, with a line for each.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from typing import Any

import triton
from rich.console import Console

from flashelmo.benchmarks.kernels import compile
from flashelmo.benchmarks.kernels.cases import TARGETS, Case, cases
from flashelmo.benchmarks.run import Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import print_table
from flashelmo.engine.errors import FlashElmoError
from flashelmo.kernels.tuning import Tile

KIB = 1024
MOST_REGISTERS = 255  # of a thread
WARPGROUP_ROWS = 64  # from so many on, sm_90 multiplies by warp group
# KiB for one program, by compute capability (CUDA C++ Programming Guide, technical specifications).
SHARED_KIB = {75: 64, 80: 163, 90: 227, 100: 227, 120: 99}
HEADINGS = ["kernel", "type", "size", "tile", "target", "registers", "spills", "shared KiB", "product", "code"]


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Attributes:
        kernel, type, size, entries: of its `Case`.
        tiles: the launch's labels; rows: of its largest tile.
        target: compute capability.
        registers, stack: of a thread, and bytes of its local memory, which is where spilled registers go.
        shared: bytes of shared memory.
        instructions: how many there are of each, as "HGMMA", or "LDG.128" of what moves 16 bytes of global memory.
        ptx, signature: of a launch that may begin before the one before it ends, for who checks that it waits: its
            code, and the names and types of its parameters, those of named tuples with a dot.
        error: why it does not compile; there are no figures then.
    """

    kernel: str
    type: str
    size: str
    entries: tuple[str, ...]
    tiles: tuple[str, ...]
    rows: int
    target: int
    registers: int = 0
    stack: int = 0
    shared: int = 0
    instructions: Mapping[str, int] = field(default_factory=dict)
    ptx: str = ""
    signature: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def name(self) -> str:
        """All that tells it from the others."""
        return f"{self.kernel} {self.type}, {self.size}, {' & '.join(self.tiles)}, sm_{self.target}"

    @property
    def product(self) -> str:
        """The fastest instruction that multiplies, FFMA2 being FFMA; "" if none."""
        return next((name for name in compile.PRODUCTS if any(each.startswith(name) for each in self.instructions)), "")


def breaches(found: Resources) -> Iterator[str]:
    """The limits that a kernel breaks, a line each."""
    if found.error:
        yield f"{found.name}: does not compile: {found.error}"
        return
    if found.stack:
        yield f"{found.name}: expected no spills, found {found.stack} bytes of stack"
    if found.registers > MOST_REGISTERS:
        yield f"{found.name}: expected at most {MOST_REGISTERS} registers, found {found.registers}"
    most = SHARED_KIB[found.target]
    if found.shared > most * KIB:
        yield f"{found.name}: expected at most {most} KiB of shared memory, found {found.shared / KIB:.1f}"
    by_warpgroup = found.target == 90 and found.type in ("bf16", "fp16", "int8") and found.rows >= WARPGROUP_ROWS
    wanted = "IGMMA" if found.type == "int8" and "gates" in found.kernel else "HGMMA"
    if by_warpgroup and found.product != wanted:
        yield f"{found.name}: expected {wanted}, as a tile has {found.rows} rows, found {found.product or 'none'}"


def measure_all(targets: Sequence[int], kernel: str, console: Console) -> list[Resources]:
    """All cases for some targets, in their order, compiled by a process a core.

    Args:
        kernel: only those whose name begins so.

    Raises:
        FlashElmoError: none has such a name.
    """
    jobs = [
        (index, target)
        for index, case in enumerate(_cases())
        for target in case.targets
        if target in targets and case.kernel.startswith(kernel)
    ]
    if not jobs:
        names = ", ".join(dict.fromkeys(case.kernel for case in _cases()))
        raise FlashElmoError(f"--kernel: expected the beginning of one of {names}; found {kernel!r}")
    measured: list[tuple[Resources, bytes]] = []
    with (
        ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), get_context("spawn")) as pool,
        console.status("") as status,
    ):
        for each in pool.map(_measure_job, jobs):
            measured.append(each)
            status.update(f"{len(measured)} of {len(jobs)}: {each[0].name}")
    found = [resources for resources, _ in measured]
    for target in targets:
        compiled = [k for k, (resources, code) in enumerate(measured) if resources.target == target and code]
        counted = compile.count_instructions([measured[k][1] for k in compiled], target) if compiled else []
        for k, counts in zip(compiled, counted, strict=True):
            found[k] = replace(found[k], instructions=dict(counts))
    return found


_cases = cache(cases)


def _measure_job(job: tuple[int, int]) -> tuple[Resources, bytes]:
    return measure(_cases()[job[0]], job[1])


def measure(case: Case, target: int) -> tuple[Resources, bytes]:
    """Compile a case for one target: all figures but the instructions', and the code that these are counted in."""
    launch = case.build()
    tiles = [value for value in launch.arguments.values() if isinstance(value, Tile)]
    labels, rows = tuple(tile.label for tile in tiles), max(tile.rows for tile in tiles)
    named = (case.kernel, case.type, case.size, case.entries, labels, rows, target)
    resources = Resources(*named)
    try:
        compiled = compile.compile_launch(launch, target)
    except Exception as error:  # whatever Triton raises: the others are still to be compiled
        reason = (str(error).strip().splitlines() or [""])[-1]
        return replace(resources, error=f"{type(error).__name__}: {reason}"), b""
    cubin, metadata = compiled.asm["cubin"], compiled.metadata
    numbers = compile.usage(cubin)
    resources = replace(resources, registers=numbers["REG"], stack=numbers["STACK"], shared=metadata.shared)
    if metadata.launch_pdl:
        resources = replace(resources, ptx=compiled.asm["ptx"], signature=flat(compiled.src.signature))
    return resources, compile.machine_code(cubin)


def flat(signature: Mapping[str, Any], begin: str = "") -> dict[str, str]:
    """Parameters' types by name, of named tuples those of their members."""
    found: dict[str, str] = {}
    for name, kind in signature.items():
        found |= flat(kind._asdict(), f"{begin}{name}.") if hasattr(kind, "_asdict") else {begin + name: kind}
    return found


def line_of(found: Resources) -> list[str]:
    """A line of the printed table."""
    line = [found.kernel, found.type, found.size, "\n".join(found.tiles), f"sm_{found.target}"]
    if found.error:
        return line
    line += [str(found.registers), str(found.stack), f"{found.shared / KIB:.1f}", found.product]
    return [*line, f"{sum(found.instructions.values()):,}"]


def run(settings: Settings, console: Console) -> int:
    """Compile, print the table and what breaks a limit; the exit status.

    Raises:
        FlashElmoError: kernels are interpreted, or none is asked for.
    """
    if triton.knobs.runtime.interpret:
        raise FlashElmoError("TRITON_INTERPRET: expected it unset, as the interpreter compiles nothing")
    if settings.target not in (None, *TARGETS):
        raise FlashElmoError(f"--target: expected one of {', '.join(map(str, TARGETS))}, found {settings.target}")
    found = measure_all([settings.target] if settings.target else TARGETS, settings.kernel, console)
    title = f"GPU kernels, compiled by Triton {triton.__version__}"
    print_table(console, title, 5, HEADINGS, [line_of(each) for each in found])
    if settings.out is not None:
        rows = [json.dumps(asdict(each)) for each in found]  # one kernel a line
        settings.out.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
    lines = [line for each in found for line in breaches(each)]
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


SUITE = Suite("what every GPU kernel costs, compiled without a card", Settings(), ("out", "target", "kernel"), run)
