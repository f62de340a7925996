"""Every kernel compiles for every card, spills nothing and fits; and the tool that says so can say the contrary."""

import json
import os
import struct
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton")

from flashelmo.benchmarks.kernels import resources as kernel_resources
from flashelmo.benchmarks.kernels.cases import (
    OTHER_SIZES,
    TARGETS,
    cases,
    described,
    entry_name,
    hopper_entry_name,
)
from flashelmo.benchmarks.kernels.compile import fastest_product, machine_code, parse_usage, split_instructions
from flashelmo.benchmarks.kernels.resources import KIB, Resources, breaches, main
from flashelmo.kernels.tuning import HOPPER_TILES, TILES

FULL_TYPES = {
    "half": {"bf16"},
    "int8": {"int8"},
    "tf32": {"tf32"},
    "ieee": {"fp32"},
}  # by kind of product, compiled for every target


class Run(NamedTuple):
    """One run of the tool over all kernels and targets."""

    status: int
    output: str
    errors: str
    found: list[Resources]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """In a process of its own, as kernels imported here may be the interpreter's."""
    file = tmp_path_factory.mktemp("resources") / "resources.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "flashelmo.benchmarks.kernels.resources", "--json", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert file.is_file(), done.stderr
    rows = json.loads(file.read_text(encoding="utf-8"))
    found = [resources_of(row) for row in rows]
    assert [row["programs"] for row in rows] == [each.programs for each in found]
    return Run(done.returncode, done.stdout, done.stderr, found)


def resources_of(row: dict[str, Any]) -> Resources:
    """What was written as JSON."""
    values = {field.name: row[field.name] for field in fields(Resources)}
    return Resources(**values | {name: tuple(values[name]) for name in ("entries", "tiles", "early")})


# --------------------------------------------------------------------------------------------------------- the kernels


def test_no_kernel_breaks_a_limit(run: Run) -> None:
    lines = [line for each in run.found for line in breaches(each)]
    assert not lines, "\n".join(lines)
    assert (run.status, run.errors) == (0, "")


def test_figures_are_those_of_real_code(run: Run) -> None:
    for each in run.found:
        assert each.registers >= 16 and each.instructions >= 50 and each.programs >= 1, each
        assert each.shared > 0, each
        has_product = each.kernel.partition(",")[0] != "token layers"
        if has_product:
            exact = each.type == "fp32"
            assert (each.product == "FFMA") == exact and each.product, each


def test_every_case_is_compiled_for_its_targets(run: Run) -> None:
    expected = [
        (case.kernel, case.type, case.size, case.entries, target) for case in cases() for target in case.targets
    ]
    assert [(each.kernel, each.type, each.size, each.entries, each.target) for each in run.found] == expected
    assert len(set(each.name + str(each.entries) for each in run.found)) == len(run.found)


@pytest.mark.parametrize("target", TARGETS)
def test_every_entry_of_the_table_is_compiled(run: Run, target: int) -> None:
    """With the tile that it names, in the type that it is for; and no entry is named that is not there."""
    compiled = {
        (entry, each.type, tile)
        for each in run.found
        if each.target == target
        for entry, tile in zip(each.entries, each.tiles, strict=bool(each.entries))
    }
    for (operation, kind), table in TILES.items():
        for most, tile in table:
            for number_type in FULL_TYPES[kind] if target > 75 or kind == "ieee" else ():
                assert (entry_name(operation, kind, most), number_type, tile.label) in compiled
    named = {entry_name(operation, kind, most) for (operation, kind), table in TILES.items() for most, _ in table}
    if target == 90:
        for (operation, kind), (_, tile) in HOPPER_TILES.items():
            named.add(hopper_entry_name(operation, kind))
            for number_type in ("bf16", "fp16"):
                assert (hopper_entry_name(operation, kind), number_type, tile.label) in compiled
    assert {entry for entry, _, _ in compiled} <= named


def test_half_types_and_8_bit_weights_have_every_entry_too(run: Run) -> None:
    for number_type, kind in (("fp16", "half"), ("int8", "int8")):
        found = {entry for each in run.found if (each.type, each.target) == (number_type, 90) for entry in each.entries}
        expected = {entry_name(*key, most) for key in TILES if key[1] == kind for most, _ in TILES[key]}
        expected |= {hopper_entry_name(*key) for key in HOPPER_TILES if key[1] == kind}
        assert found == expected


def test_every_size_is_compiled(run: Run) -> None:
    sizes = {each.size for each in run.found}
    assert {described(size, "CP") for size in OTHER_SIZES} <= sizes
    assert "F 2048, E 50" in sizes and "F 12, E 3" in sizes


def test_large_tiles_multiply_by_warp_group(run: Run) -> None:
    """The rule is about some kernels; all three generations of matrix units are in use."""
    large = [each for each in run.found if each.target == 90 and each.type == "bf16" and each.rows >= 64]
    assert {each.kernel for each in large} >= {"gates", "projection", "linear", "highway", "characters"}
    assert {each.product for each in large} == {"HGMMA"}
    products = {target: {each.product for each in run.found if each.target == target} for target in TARGETS}
    assert "UTCHMMA" in products[100]
    assert not products[80] & {"HGMMA", "UTCHMMA"} and not products[120] & {"HGMMA", "UTCHMMA"}


def test_every_wait_for_others_ends_in_an_acquire(run: Run) -> None:
    """Without it a program may go on with what a cache still holds; a compiler drops one whose result nobody uses.

    A wait has two: the arrival, for the last to come, and each look of the others.
    """
    for each in run.found:
        shares_sums = any("/" in tile for tile in each.tiles)
        waits = 2 if each.kernel.startswith("persistent") else 0
        assert each.acquires == 2 * waits + shares_sums, each


def test_dependent_launches_wait_before_they_touch_what_others_write(run: Run) -> None:
    """The rule is about some kernels, on every card that has them; what they read while they wait is the schedule."""
    dependent = [each for each in run.found if each.kernel.endswith(" dependent")]
    assert {(each.kernel.split()[0], each.target) for each in dependent} == {
        (kernel, target) for kernel in ("gates", "projection") for target in (90, 100, 120)
    }
    for each in dependent:
        assert each.starts_next and "nodes.starts" in each.early
        assert set(each.early) <= {"nodes.starts", "nodes.parents"}
        assert ("nodes.parents" in each.early) == each.kernel.startswith("gates")
    assert all(not each.early and not each.starts_next for each in run.found if each not in dependent)


def test_the_table_has_a_line_for_each(run: Run) -> None:
    assert sum(f"sm_{target} " in line for line in run.output.splitlines() for target in TARGETS) == len(run.found)


# ------------------------------------------------------------------------------------------------------------- reading


def test_usage_is_read() -> None:
    report = (
        "Resource usage:\n Common:\n  GLOBAL:0\n Function gates_kernel:\n"
        "  REG:168 STACK:24 SHARED:1024 LOCAL:0 CONSTANT[0]:680 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
    )
    assert parse_usage(report) == {"REG": 168, "STACK": 24}
    with pytest.raises(ValueError, match="cuobjdump: expected REG and STACK, found 'nothing'"):
        parse_usage("nothing")


ASSEMBLY = """\
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_1) ;
        /*0020*/              @UP1 UIADD3 UR4, UR4, 0x1, URZ ;
.L_x_0:
        /*0030*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0040*/              @!PT LDS RZ, [RZ] ;
        /*0050*/                   NOP ;
        /*0060*/                   FFMA.FTZ R2, R3, R4, R5 ;
        /*0070*/                   EXIT ;
"""


def test_instructions_are_told_apart_by_kernel() -> None:
    first, second, third = split_instructions(ASSEMBLY, [0x40, 0x20, 0x20])
    assert first == {"LDC": 1, "BRA": 1, "UIADD3": 1, "HGMMA": 1}
    assert second == {"LDS": 1}  # padding is not counted
    assert third == {"FFMA": 1, "EXIT": 1}


@pytest.mark.parametrize(
    ("instructions", "product"),
    [
        (["FFMA", "HMMA", "HGMMA"], "HGMMA"),
        (["UTCHMMA", "FFMA2"], "UTCHMMA"),
        (["HMMA", "FFMA"], "HMMA"),
        (["FFMA2"], "FFMA"),
        (["FADD", "IMAD"], ""),
    ],
)
def test_the_fastest_product(instructions: list[str], product: str) -> None:
    assert fastest_product(Counter(instructions)) == product


def elf(**sections: bytes) -> bytes:
    """An ELF file of these sections, whose names have underscores for dots."""
    names, contents, headers = b"\0", b"", []
    parts = {name.replace("_", "."): content for name, content in sections.items()} | {".shstrtab": b""}
    start = 64
    for name, content in parts.items():
        o_name = len(names)
        names += name.encode() + b"\0"
        headers.append([o_name, start + len(contents), len(content)])
        contents += content
    headers[-1][1:] = start + len(contents), len(names)
    contents += names
    table = b"".join(struct.pack("<IIQQQQ24x", name, 1, 0, 0, offset, size) for name, offset, size in headers)
    head = bytearray(64)
    struct.pack_into("<Q", head, 0x28, start + len(contents))
    struct.pack_into("<HHH", head, 0x3A, 64, len(headers), len(headers) - 1)
    return bytes(head) + contents + table


def test_machine_code_is_the_text_section() -> None:
    assert machine_code(elf(_nv_info=b"xyz", _text_gates=b"code", _data=b"d")) == b"code"
    with pytest.raises(ValueError, match=r"expected one section \.text, found 0"):
        machine_code(elf(_data=b"d"))
    with pytest.raises(ValueError, match=r"expected one section \.text, found 2"):
        machine_code(elf(_text_gates=b"code", _text_projection=b"more"))


# -------------------------------------------------------------------------------------------------------------- limits

SOUND = Resources(
    kernel="gates",
    type="bf16",
    size="C 4096, P 512",
    entries=("gates/half/any",),
    tiles=("64x32x64 4w 4s",),
    rows=64,
    warps=4,
    target=90,
    registers=160,
    shared=96 * KIB,
    product="HGMMA",
    instructions=1000,
)


def test_a_sound_kernel_breaks_no_limit() -> None:
    assert list(breaches(SOUND)) == []
    for few_rows_or_another_card in ({"rows": 32}, {"target": 80}, {"target": 120}, {"type": "tf32"}, {"type": "int8"}):
        assert list(breaches(replace(SOUND, product="HMMA", **few_rows_or_another_card))) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stack": 8}, "expected no spills, found 8 bytes of stack"),
        ({"registers": 256}, "expected at most 255 registers, found 256"),
        ({"target": 80, "shared": 163 * KIB + 1}, "expected at most 163 KiB of shared memory, found 163.0"),
        ({"target": 90, "shared": 228 * KIB}, "expected at most 227 KiB of shared memory, found 228.0"),
        ({"target": 100, "shared": 228 * KIB}, "expected at most 227 KiB of shared memory, found 228.0"),
        ({"target": 120, "shared": 100 * KIB}, "expected at most 99 KiB of shared memory, found 100.0"),
        ({"product": "HMMA"}, "expected HGMMA, as a tile has 64 rows, found HMMA"),
        ({"type": "fp16", "product": ""}, "expected HGMMA, as a tile has 64 rows, found none"),
        (
            {"early": ("nodes.starts", "tensors.hidden", "the end"), "starts_next": True},
            "expected a wait for the launch before it first, found tensors.hidden, the end",
        ),
        (
            {"early": ("nodes.starts", "weights.bias")},
            "expected to let the launch after it begin, found a path that does not",
        ),
        ({"error": "CompilationError: no"}, "does not compile: CompilationError: no"),
    ],
)
def test_a_broken_limit_is_named(changes: dict[str, object], message: str) -> None:
    found = replace(SOUND, **changes)  # type: ignore[arg-type]
    assert list(breaches(found)) == [f"{found.name}: {message}"]
    assert found.name.startswith("gates ") and found.name.endswith(f"64x32x64 4w 4s, sm_{found.target}")


def test_every_broken_limit_has_a_line() -> None:
    assert len(list(breaches(replace(SOUND, stack=8, registers=256, shared=228 * KIB, product="FFMA")))) == 4


@pytest.mark.parametrize(
    ("changes", "programs"),
    [
        ({}, 2),  # 228 KiB / 97
        ({"shared": 0}, 3),  # 65536 registers / (160 * 128)
        ({"shared": 0, "registers": 161}, 3),  # 168 are given out
        ({"shared": 0, "registers": 128}, 4),
        ({"shared": 0, "registers": 129}, 3),
        ({"shared": 0, "registers": 16, "warps": 8}, 8),  # 64 warps
        ({"shared": 0, "registers": 16, "warps": 8, "target": 120}, 6),  # 48 warps
        ({"shared": 0, "registers": 16, "warps": 1}, 32),
        ({"shared": 0, "registers": 16, "warps": 1, "target": 120}, 24),
        ({"target": 80}, 1),  # 164 KiB / 97
        ({"target": 120}, 1),
        ({"target": 100, "tensor_columns": 512}, 1),
        ({"target": 120, "shared": 100 * KIB}, 0),
    ],
)
def test_programs_of_a_multiprocessor(changes: dict[str, int], programs: int) -> None:
    assert replace(SOUND, **changes).programs == programs  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------------- face


@pytest.mark.parametrize(("stack", "status", "lines"), [(0, 0, 0), (8, 1, 1)])
def test_the_exit_status_says_whether_a_limit_is_broken(
    stack: int,
    status: int,
    lines: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    found = [SOUND, replace(SOUND, stack=stack)]
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernel_resources, "measure_all", lambda *_: found)
    assert main(["--json", str(tmp_path / "found.json")]) == status
    assert len(capsys.readouterr().err.splitlines()) == lines
    rows = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert [row["stack"] for row in rows] == [0, stack] and [row["programs"] for row in rows] == [2, 2]


def test_the_interpreter_is_no_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main([]) == 1
    assert capsys.readouterr().err.startswith("kernels.resources: TRITON_INTERPRET: expected it unset")


def test_an_unknown_kernel_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["--kernel", "nothing"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("kernels.resources: --kernel: expected the beginning of one of gates, ")
    assert message.endswith("; found 'nothing'\n")
