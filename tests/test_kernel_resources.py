"""Every kernel compiles for every card, spills nothing, fits, and waits in time; and what says so can say the contrary.

All are compiled once: the tests that look at them are in this file, and processes of pytest-xdist wait for the first.
"""

import fcntl
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("triton")

from ptx import END, LAUNCH, WAIT, before, parameter_names

from flashelmo import kernels
from flashelmo.benchmarks.__main__ import main
from flashelmo.benchmarks.kernels import resources
from flashelmo.benchmarks.kernels.cases import OTHER_SIZES, TARGETS, cases, described, entry_name, hopper_entry_name
from flashelmo.benchmarks.kernels.lstm import kernel_name
from flashelmo.benchmarks.kernels.resources import KIB, Resources, breaches, parse_usage, split_instructions
from flashelmo.kernels.tuning import HOPPER_TILES, TILES

ROWS_ALONE = (
    "token layers",
    "gather words",
    "characters embedded",
    "int8 rows",
    "states carried",
    "training cell",
    "training step",
    "roots",
)  # kernels that multiply no matrices
FULL_TYPES = {"half": "bf16", "int8": "int8", "tf32": "tf32", "ieee": "fp32"}  # compiled for every target


class Run(NamedTuple):
    """One run of the tool over all kernels and targets."""

    status: int
    output: str
    errors: str
    found: list[Resources]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """In a process of its own, as kernels imported here may be the interpreter's."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file, said = folder / "resources.json", folder / "resources-said.json"
    with (folder / "resources.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not said.is_file():
            environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
            command = [sys.executable, "-m", "flashelmo.benchmarks", "resources", "--out", str(file)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
            said.write_text(json.dumps([done.returncode, done.stdout, done.stderr]), encoding="utf-8")
    status, output, errors = json.loads(said.read_text(encoding="utf-8"))
    assert file.is_file(), errors
    tuples = ("entries", "tiles")
    rows = json.loads(file.read_text(encoding="utf-8"))
    return Run(status, output, errors, [Resources(**row | {k: tuple(row[k]) for k in tuples}) for row in rows])


# --------------------------------------------------------------------------------------------------------- the kernels


def test_no_kernel_breaks_a_limit(run: Run) -> None:
    lines = [line for each in run.found for line in breaches(each)]
    assert not lines, "\n".join(lines)
    assert (run.status, run.errors) == (0, "")
    assert sum(f"sm_{target} " in line for line in run.output.splitlines() for target in TARGETS) == len(run.found)
    for each in run.found:  # figures are those of real code
        assert each.registers >= 8 and sum(each.instructions.values()) >= 30, each.name
        if each.kernel.partition(",")[0] not in ROWS_ALONE:
            assert (each.product == "FFMA") == (each.type == "fp32") and each.product and each.shared > 0, each.name


def test_every_case_is_compiled_for_its_targets_and_every_size(run: Run) -> None:
    expected = [(case.kernel, case.type, case.size, case.entries, each) for case in cases() for each in case.targets]
    assert [(each.kernel, each.type, each.size, each.entries, each.target) for each in run.found] == expected
    assert len(set(each.name + str(each.entries) for each in run.found)) == len(run.found)
    sizes = {each.size for each in run.found}
    assert {described(config, "CP") for config in OTHER_SIZES} <= sizes
    assert "F 2048, E 50" in sizes and "F 12, E 3" in sizes


def test_every_kernel_has_a_case() -> None:
    sources = [path.read_text(encoding="utf-8") for path in Path(kernels.__file__).parent.rglob("*.py")]
    named = {name for source in sources for name in re.findall(r"^def (\w+_kernel)\(", source, re.MULTILINE)}
    assert len(named) > 20 and named == {kernel_name(case.build()) for case in cases()}


@pytest.mark.parametrize("target", TARGETS)
def test_every_entry_of_the_table_is_compiled(run: Run, target: int) -> None:
    """With the tile that it names, in the type that it is for; and no entry is named that is not there."""
    compiled = {
        (entry, each.type, tile)
        for each in run.found
        if each.target == target
        for entry, tile in zip(each.entries, each.tiles, strict=bool(each.entries))
    }
    named = {entry_name(*key, most): (key[1], tile) for key, table in TILES.items() for most, tile in table}
    for entry, (kind, tile) in named.items():
        if target > 75 or kind == "ieee":
            assert (entry, FULL_TYPES[kind], tile.label) in compiled
    hopper = {hopper_entry_name(*key): tile for key, (_, tile) in HOPPER_TILES.items()} if target == 90 else {}
    assert {(entry, each, tile.label) for entry, tile in hopper.items() for each in ("bf16", "fp16")} <= compiled
    assert {entry for entry, _, _ in compiled} <= named.keys() | hopper.keys()
    for number_type, kind in (("fp16", "half"), ("int8", "int8")) if target == 90 else ():
        found = {entry for entry, each, _ in compiled if each == number_type and f"/{kind}/" in entry}
        expected = {entry_name(*key, most) for key in TILES if key[1] == kind for most, _ in TILES[key]}
        assert found == expected | {hopper_entry_name(*key) for key in HOPPER_TILES if key[1] == kind}


def test_large_tiles_multiply_by_warp_group(run: Run) -> None:
    """The rule is about some kernels; all three generations of matrix units are in use."""
    large = [each for each in run.found if each.target == 90 and each.type == "bf16" and each.rows >= 64]
    assert {each.kernel for each in large} >= {"gates", "projection", "input", "highway", "characters"}
    assert {each.product for each in large} == {"HGMMA"}
    products = {target: {each.product for each in run.found if each.target == target} for target in TARGETS}
    assert "UTCHMMA" in products[100]
    assert not products[80] & {"HGMMA", "UTCHMMA"} and not products[120] & {"HGMMA", "UTCHMMA"}


def test_tokens_move_sixteen_bytes_an_access(run: Run) -> None:
    """Where rows are whole numbers of them: of three layers 16 values a thread, and as many results in float32."""
    of_type = [each for each in run.found if each.type == "bf16" and each.target == 90]
    found = {each.kernel: each for each in of_type if each.size == "P 512"}
    moves = {name: (wide_loads(each), each.instructions.get("STG.128", 0)) for name, each in found.items()}
    assert moves["token layers"] == (3 * 2, 3 * 4) and moves["gather words"] == (4, 4)
    assert moves["token layers, means"][0] >= 3


def test_adagrad_moves_sixteen_bytes_an_access(run: Run) -> None:
    """Each thread has 16 values of three tensors to load and of two to store."""
    steps = [each for each in run.found if each.kernel.startswith("training step")]
    assert steps and {(wide_loads(each), each.instructions.get("STG.128", 0)) for each in steps} == {(12, 8)}


def test_persistent_steps_keep_their_weights(run: Run) -> None:
    """Half of the gates' of 64 cells lie in registers, two in each; the others and the projection's are copied once."""
    for each in (each for each in run.found if each.kernel.startswith("persistent steps,")):
        P = int(each.size.rpartition("P ")[2])
        in_registers = 128 * P // 2 // (8 * 32)
        assert in_registers < each.registers and each.instructions["LDG"] > in_registers
        assert each.instructions["HGMMA"] == 3 * P // 16 and each.instructions["UTMALDG"] == 3 * P // 64
        assert each.rows <= 32 and each.stack == 0


def wide_loads(found: Resources) -> int:
    return found.instructions.get("LDG.128", 0) + found.instructions.get("LDGSTS.128", 0)


def test_waits_end_in_an_acquire_and_come_before_what_others_write(run: Run) -> None:
    """Without an acquire a program may go on with what a cache still holds; a compiler drops one that nobody uses.

    Splits that are summed by the last to come have one, those that wait for each other two: the arrival, and each look
    of the others. Persistent programs count those that have ended. What dependent launches read while they wait is what
    no launch before is still writing.
    """
    dependent = [each for each in run.found if each.ptx]
    names = {each.kernel.partition(",")[0] for each in dependent}
    assert names == {"few_rows gates", "few_rows gates by word", "few_rows projection"}
    for each in run.found:
        waits = each.kernel.startswith(("few_rows projection", "Hopper projection"))
        expected = 1 + waits if any("/" in tile for tile in each.tiles) else 0
        if each.kernel.startswith("persistent"):
            expected = 2  # the second one fetches the next step's parents
        assert each.instructions.get("CCTL", 0) == expected, each.name
    for each in dependent:
        first, parameters = {"weight_desc", "nodes.starts"}, parameter_names(each.signature)
        first |= {"nodes.parents", "x_gates_ptr"} if "gates" in each.kernel else {"nodes.children", "tensors.x"}
        if "by word" in each.kernel:
            first |= {"nodes.words"}
        assert set(before(each.ptx, WAIT, parameters)) == first and END not in before(each.ptx, LAUNCH, parameters)


# ------------------------------------------------------------------------------------------------------------- reading

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


def test_compiled_code_is_read() -> None:
    report = "Resource usage:\n Function gates_kernel:\n  REG:168 STACK:24 SHARED:1024 LOCAL:0 CONSTANT[0]:680\n"
    assert parse_usage(report) == {"REG": 168, "STACK": 24}
    with pytest.raises(ValueError, match="cuobjdump: expected REG and STACK, found 'nothing'"):
        parse_usage("nothing")
    first, second, third = split_instructions(ASSEMBLY, [0x40, 0x20, 0x20])
    assert first == {"LDC": 1, "BRA": 1, "UIADD3": 1, "HGMMA": 1}
    access = "/*{:04x}*/  @P1 {} ;\n".format
    lines = ["LDG.E.128 R4, desc[UR4][R2.64]", "LDG.E R4, [R2.128]", "STG.E.128 [R2], R4", "LDS.128 R4, [R2]"]
    (accesses,) = split_instructions("".join(access(16 * k, line) for k, line in enumerate(lines)), [0x40])
    assert accesses == {"LDG.128": 1, "LDG": 1, "STG.128": 1, "LDS": 1}
    assert (second, third) == ({"LDS": 1}, {"FFMA": 1, "EXIT": 1})  # padding is not counted
    for instructions, product in (
        (["FFMA", "HMMA", "HGMMA"], "HGMMA"),
        (["UTCHMMA", "FFMA2"], "UTCHMMA"),
        (["FFMA2"], "FFMA"),
        (["FADD", "IMAD"], ""),
    ):
        assert replace(SOUND, instructions=dict.fromkeys(instructions, 1)).product == product


# -------------------------------------------------------------------------------------------------------------- limits

SOUND = replace(
    Resources("gates", "bf16", "C 4096, P 512", ("gates/half/any",), ("64x32x64 4w 4s",), rows=64, target=90),
    **dict[str, Any](registers=160, shared=96 * KIB, instructions={"HGMMA": 1000}),
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"instructions": {"HMMA": 9}, **other}, "") for other in ({"rows": 32}, {"target": 80}, {"type": "tf32"})),
        ({"stack": 8}, "expected no spills, found 8 bytes of stack"),
        ({"registers": 256}, "expected at most 255 registers, found 256"),
        ({"target": 80, "shared": 163 * KIB + 1}, "expected at most 163 KiB of shared memory, found 163.0"),
        ({"target": 120, "shared": 100 * KIB}, "expected at most 99 KiB of shared memory, found 100.0"),
        ({"type": "fp16", "instructions": {}}, "expected HGMMA, as a tile has 64 rows, found none"),
        ({"type": "int8"}, "expected IGMMA, as a tile has 64 rows, found HGMMA"),
        ({"error": "CompilationError: no"}, "does not compile: CompilationError: no"),
    ],
)
def test_a_broken_limit_is_named(changes: dict[str, object], message: str) -> None:
    found = replace(SOUND, **changes)  # type: ignore[arg-type]
    assert list(breaches(found)) == ([f"{found.name}: {message}"] if message else [])
    assert list(breaches(SOUND)) == [] and found.name.endswith(f"64x32x64 4w 4s, sm_{found.target}")


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its exit status says whether a limit is broken; the interpreter is no compiler; what is unknown is named."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert main(["resources"]) == 1
    assert "TRITON_INTERPRET: expected it unset" in capsys.readouterr().err
    monkeypatch.delenv("TRITON_INTERPRET")
    assert main(["resources", "--kernel", "nothing"]) == 1
    message = capsys.readouterr().err
    assert "--kernel: expected the beginning of one of gates, " in message and message.endswith("; found 'nothing'\n")
    assert main(["resources", "--target", "91"]) == 1
    assert "--target: expected one of 75, 80, 90, 100, 120, found 91" in capsys.readouterr().err
    for stack, status, lines in ((0, 0, 0), (8, 1, 1)):
        found = [SOUND, replace(SOUND, stack=stack)]
        monkeypatch.setattr(resources, "measure_all", lambda *_, found=found: found)
        assert main(["resources"]) == status
        assert len(capsys.readouterr().err.splitlines()) == lines
