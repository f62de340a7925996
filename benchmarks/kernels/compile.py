"""Kernels compiled without a card, and what the compiled code says of itself.

Triton asks its driver for which card it is to compile; here the driver only has the answer. The tools that read the
code, `cuobjdump` and `nvdisasm`, come with Triton.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from flashelmo.kernels.launch import Launch

# What multiplies, fastest first: tcgen05 (sm_100), wgmma (sm_90), mma, each of floats and of 8-bit integers, and no
# matrix unit.
PRODUCTS = ("UTCHMMA", "UTCIMMA", "HGMMA", "IGMMA", "HMMA", "IMMA", "FFMA")
GLOBAL = ("LDG", "LDGSTS", "STG")  # loads, loads to shared memory, stores


class AbsentCard:
    """A driver for a card that need not be there, as far as compiling goes."""

    def __init__(self, target: int) -> None:
        self._target = target

    def get_current_device(self) -> int:
        """A number for each target, as Triton keeps compiled kernels by device."""
        return self._target

    def get_current_stream(self, device: int) -> int:
        """No launch follows that could use it."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return GPUTarget("cuda", self._target, 32)


def compile_launch(launch: Launch, target: int) -> Any:
    """The kernel as Triton compiles it for this launch, but for line numbers, which take time."""
    triton.runtime.driver.set_active(AbsentCard(target))
    triton.knobs.compilation.disable_line_info = True
    return launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)


def usage(cubin: bytes) -> dict[str, int]:
    """Registers of a thread ("REG") and bytes of its stack ("STACK")."""
    return parse_usage(_run(triton.knobs.nvidia.cuobjdump.path, "-res-usage", content=cubin))


def parse_usage(report: str) -> dict[str, int]:
    """The same, of lines as `REG:40 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:400`; ValueError where there is none."""
    numbers = {name: int(number) for name, number in re.findall(r"\b(REG|STACK):(\d+)", report)}
    if numbers.keys() != {"REG", "STACK"}:
        raise ValueError(f"cuobjdump: expected REG and STACK, found {report.strip()!r}")
    return numbers


def machine_code(cubin: bytes) -> bytes:
    """The instructions of a cubin's one kernel, the ELF section .text.NAME; ValueError unless there is one."""
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
    """How often each kernel of one target has each instruction; disassembled at once, as the tool starts slowly."""
    architecture = f"SM{target}{'a' if target >= 90 else ''}"
    assembly = _run(triton.knobs.nvidia.nvdisasm.path, "--binary", architecture, content=b"".join(codes))
    return split_instructions(assembly, [len(code) for code in codes])


def split_instructions(assembly: str, sizes: Sequence[int]) -> list[Counter[str]]:
    """Instructions of kernels that lie one behind the other, without padding, and without their modifiers but for the
    16 bytes of an access to memory, as "LDG.128".

    Args:
        assembly: lines as `/*0040*/ @!P0 HGMMA.64x8x16.F32 R1, R2 ;`, the number being the instruction's address.
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
    """What a tool prints of a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return subprocess.run([tool, *options, file.name], capture_output=True, text=True, check=True).stdout
