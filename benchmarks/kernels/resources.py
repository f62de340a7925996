"""What every GPU kernel costs, compiled without a card: `python -m benchmarks resources`.

Reported are registers, spills, shared memory and matrix instructions, for sm_75, sm_80, sm_90, sm_100 and sm_120. The
exit status is 1 if a limit is broken, with a line for each.

Triton asks its driver which card to compile for; here the driver only has that answer. The tools that read the code,
`cuobjdump` and `nvdisasm`, come with Triton.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from multiprocessing import get_context
from typing import Any

import triton
from rich.console import Console
from triton.backends.compiler import GPUTarget

from flashelmo.benchmarks.kernels.cases import TARGETS, Case, cases
from flashelmo.benchmarks.run import Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import print_table
from flashelmo.engine.errors import FlashElmoError
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.tuning import Tile

KIB = 1024
MOST_REGISTERS = 255  # per thread
WARPGROUP_ROWS = 64  # from this many on, sm_90 multiplies by warp group
# KiB per program, by compute capability (CUDA C++ Programming Guide, technical specifications).
SHARED_KIB = {75: 64, 80: 163, 90: 227, 100: 227, 120: 99}
HEADINGS = ["kernel", "type", "size", "tile", "target", "registers", "spills", "shared KiB", "product", "code"]


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Attributes:
        kernel, type, size, entries: of its `Case`.
        tiles: the launch's labels; rows: of its largest tile.
        target: compute capability.
        registers, stack: per thread, and bytes of its local memory, which is where spilled registers go.
        shared: bytes of shared memory.
        instructions: how many there are of each, such as "HGMMA", or "LDG.128" for what moves 16 bytes of global
            memory.
        ptx, signature: of a launch that may begin before the previous one ends, for checking that it waits: its code,
            and the names and types of its parameters, those of named tuples with a dot.
        error: why it does not compile; there are then no figures.
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
        """All that distinguishes it from the others."""
        return f"{self.kernel} {self.type}, {self.size}, {' & '.join(self.tiles)}, sm_{self.target}"

    @property
    def product(self) -> str:
        """The fastest multiplying instruction, with FFMA2 counted as FFMA; "" if none."""
        return next((name for name in PRODUCTS if any(each.startswith(name) for each in self.instructions)), "")


def breaches(found: Resources) -> Iterator[str]:
    """Yield the limits that a kernel breaks, one line each."""
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
    """Return all cases for some targets, in order, compiled by one process per core.

    Args:
        kernel: only those whose name begins with this.

    Raises:
        FlashElmoError: no name does.
    """
    jobs = [
        (index, [target for target in case.targets if target in targets])
        for index, case in enumerate(cases())
        if case.kernel.startswith(kernel) and set(targets) & set(case.targets)
    ]
    if not jobs:
        names = ", ".join(dict.fromkeys(case.kernel for case in cases()))
        raise FlashElmoError(f"--kernel: expected the beginning of one of {names}; found {kernel!r}")
    measured: list[tuple[Resources, bytes]] = []
    with (
        ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), get_context("spawn")) as pool,
        console.status("") as status,
    ):
        for number, (job, of_case) in enumerate(zip(jobs, pool.map(_measure_job, jobs), strict=True), 1):
            measured += of_case
            status.update(f"{number} of {len(jobs)}: {cases()[job[0]].kernel}")
    found = [resources for resources, _ in measured]
    for target in targets:
        compiled = [k for k, (resources, code) in enumerate(measured) if resources.target == target and code]
        counted = count_instructions([measured[k][1] for k in compiled], target) if compiled else []
        for k, counts in zip(compiled, counted, strict=True):
            found[k] = replace(found[k], instructions=dict(counts))
    return found


def _measure_job(job: tuple[int, list[int]]) -> list[tuple[Resources, bytes]]:
    """Compile a case, by number, for some targets."""
    case = cases()[job[0]]
    launch = case.build()
    return [measure(case, launch, target) for target in job[1]]


def measure(case: Case, launch: Launch, target: int) -> tuple[Resources, bytes]:
    """Compile a case for one target: return all figures except instructions, and the code to count these in."""
    tiles = [value for value in launch.arguments.values() if isinstance(value, Tile)]
    labels, rows = tuple(tile.label for tile in tiles), max(tile.rows for tile in tiles)
    named = (case.kernel, case.type, case.size, case.entries, labels, rows, target)
    resources = Resources(*named)
    try:
        compiled = compile_launch(launch, target)
    except Exception as error:  # whatever Triton raises: the others must still be compiled
        reason = (str(error).strip().splitlines() or [""])[-1]
        return replace(resources, error=f"{type(error).__name__}: {reason}"), b""
    cubin, metadata = compiled.asm["cubin"], compiled.metadata
    numbers = usage(cubin)
    resources = replace(resources, registers=numbers["REG"], stack=numbers["STACK"], shared=metadata.shared)
    if metadata.launch_pdl:
        resources = replace(resources, ptx=compiled.asm["ptx"], signature=flat(compiled.src.signature))
    return resources, machine_code(cubin)


def flat(signature: Mapping[str, Any], begin: str = "") -> dict[str, str]:
    """Return parameters' types by name; for named tuples those of their members."""
    found: dict[str, str] = {}
    for name, kind in signature.items():
        found |= flat(kind._asdict(), f"{begin}{name}.") if hasattr(kind, "_asdict") else {begin + name: kind}
    return found


def line_of(found: Resources) -> list[str]:
    """Return a line of the printed table."""
    line = [found.kernel, found.type, found.size, "\n".join(found.tiles), f"sm_{found.target}"]
    if found.error:
        return line
    line += [str(found.registers), str(found.stack), f"{found.shared / KIB:.1f}", found.product]
    return [*line, f"{sum(found.instructions.values()):,}"]


def run(settings: Settings, console: Console) -> int:
    """Compile, print the table and broken limits; return the exit status.

    Raises:
        FlashElmoError: kernels are interpreted, or none is selected.
    """
    if triton.knobs.runtime.interpret:
        raise FlashElmoError("TRITON_INTERPRET: expected it unset, as the interpreter compiles nothing")
    if settings.target not in (None, *TARGETS):
        raise FlashElmoError(f"--target: expected one of {', '.join(map(str, TARGETS))}, found {settings.target}")
    found = measure_all([settings.target] if settings.target else TARGETS, settings.kernel, console)
    title = f"GPU kernels, compiled by Triton {triton.__version__}"
    print_table(console, title, 5, HEADINGS, [line_of(each) for each in found])
    if settings.out is not None:
        rows = [json.dumps(asdict(each)) for each in found]  # one kernel per line
        settings.out.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
    lines = [line for each in found for line in breaches(each)]
    for line in lines:
        print(line, file=sys.stderr)
    return 1 if lines else 0


SUITE = Suite(
    "What every GPU kernel costs, by compiling it, without a card.", Settings(), ("out", "target", "kernel"), run
)


# -------------------------------------------------------------------------------------------------------- compiled code


# What multiplies, fastest first: tcgen05 (sm_100), wgmma (sm_90), mma, each for floats and for 8-bit integers, and no
# matrix unit.
PRODUCTS = ("UTCHMMA", "UTCIMMA", "HGMMA", "IGMMA", "HMMA", "IMMA", "FFMA")
GLOBAL = ("LDG", "LDGSTS", "STG")  # loads, loads to shared memory, stores


class AbsentCard:
    """A driver for a card that need not be present, sufficient for compiling."""

    def __init__(self, target: int) -> None:
        self._target = target

    def get_current_device(self) -> int:
        """Return a number for each target, as Triton keeps compiled kernels by device."""
        return self._target

    def get_current_stream(self, device: int) -> int:
        """Return a dummy, as no launch follows that could use it."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return what to compile for."""
        return GPUTarget("cuda", self._target, 32)


def compile_launch(launch: Launch, target: int) -> Any:
    """Return the kernel as Triton compiles it for this launch, but without line numbers, which take time."""
    triton.runtime.driver.set_active(AbsentCard(target))
    triton.knobs.compilation.disable_line_info = True
    return launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)


def usage(cubin: bytes) -> dict[str, int]:
    """Return registers per thread ("REG") and bytes of its stack ("STACK")."""
    return parse_usage(_run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", content=cubin))


def parse_usage(report: str) -> dict[str, int]:
    """Parse these from lines like `REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:400`; ValueError if there is none."""
    numbers = {name: int(number) for name, number in re.findall(r"\b(REG|STACK):(\d+)", report)}
    if numbers.keys() != {"REG", "STACK"}:
        raise ValueError(f"cuobjdump: expected REG and STACK, found {report.strip()!r}")
    return numbers


def machine_code(cubin: bytes) -> bytes:
    """Return the instructions of a cubin's only kernel, the ELF section .text.NAME; ValueError unless there is one."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, n_sections, names = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + k * size) for k in range(n_sections)]
    first_name = sections[names][4]
    found = [
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin.startswith(b".text.", first_name + name)
    ]
    if len(found) != 1:
        raise ValueError(f"cubin: expected one section .text, found {len(found)}")
    return found[0]


def count_instructions(codes: Sequence[bytes], target: int) -> list[Counter[str]]:
    """Count each kernel's instructions, for one target; disassembled together, as the tool starts slowly."""
    architecture = f"SM{target}{'a' if target >= 90 else ''}"
    assembly = _run(triton.knobs.nvidia.nvdisasm.path, "--binary", architecture, content=b"".join(codes))
    return split_instructions(assembly, [len(code) for code in codes])


def split_instructions(assembly: str, sizes: Sequence[int]) -> list[Counter[str]]:
    """Return instructions of consecutive kernels, without padding, and without modifiers, except for the 16 bytes of an
    access to memory, as in "LDG.128".

    Args:
        assembly: lines like `/*0040*/ @!P0 HGMMA.64x8x16.F32 R1, R2 ;`, where the number is the instruction's address.
        sizes: bytes of each kernel.
    """
    ends, counters = list(accumulate(sizes)), [Counter[str]() for _ in sizes]
    pattern = r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[0-9T]\s+)?([A-Z][A-Z0-9_]*)([.A-Z0-9_]*)"
    for address, name, modifiers in re.findall(pattern, assembly):
        if name != "NOP":
            whole = name + ".128" if name in GLOBAL and ".128" in modifiers else name
            counters[bisect_right(ends, int(address, 16))][whole] += 1
    return counters


def _run(tool: str, *options: str, content: bytes) -> str:
    """Return what a tool prints about a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout
