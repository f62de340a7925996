"""What the compiler makes of kernels in Gluon computes the right vectors in any order of warps; faults are found.

The kernels are compiled for sm_90 and their PTX runs on the host (`ptx_machine`).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from kernel_lstm import RandomLayer, real_nodes
from kernel_ptx import CASES, Case, compiled, is_for_machine
from ptx_machine import Code, run
from ptx_memory import Fault

from flashelmo.engine.precision import PRECISIONS
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm.run import LaunchOptions, LayerRun, Workspace, new_tensors
from flashelmo.kernels.tuning import CLOCK_WORDS, SPLIT_ARRIVALS

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="other launches run in Triton's interpreter")

# Threads whose values nobody wants read these too, while others still write them.
IDLE_READS = ["tensors.hidden"]


@pytest.fixture(scope="module")
def codes() -> dict[str, list[Code]]:
    """The cases' kernels."""
    return compiled(list(CASES))


def run_all(launches: Iterator[Launch], codes: list[Code], seed: int) -> None:
    """Kernels that are tested by their PTX, in an order that differs by seed; others in Triton's interpreter."""
    of_launches = iter(codes)
    for launch in launches:
        if is_for_machine(launch):
            run(launch, next(of_launches), seed, IDLE_READS)
        else:
            launch.run()
    assert next(of_launches, None) is None


def error(found: torch.Tensor, expected: torch.Tensor, layer: RandomLayer) -> float:
    difference = real_nodes(found, layer.nodes) - real_nodes(expected, layer.nodes)
    return float(difference.norm() / real_nodes(expected, layer.nodes).norm())


def bound(case: Case) -> float:
    return PRECISIONS[case.kind].bounds["cuda"].relative or 0.0


@pytest.mark.parametrize("name", [name for name in CASES if name != "small"])
def test_compiled_steps_are_right(name: str, codes: dict[str, list[Code]]) -> None:
    """Both tiles and both types, uneven directions, with the skip connection and without, and in two launches."""
    case, seed = CASES[name], len(name)
    layer = case.layer(seed)
    computed = case.run(layer)
    run_all(case.launches(computed), codes[name], seed)
    hidden = layer.expected()[0]
    assert error(computed.tensors.hidden, hidden, layer) < bound(case)
    if case.skip:
        assert computed.tensors.outputs is not None
        assert error(computed.tensors.outputs, hidden + layer.x, layer) < bound(case)


def test_a_workspace_serves_launch_after_launch(codes: dict[str, list[Code]]) -> None:
    cases = [replace(CASES["small"], sizes=sizes) for sizes in (((2,), (9,)), ((1,), (1,)), ((3,), (2,)))]
    workspace, steps = Workspace.of(cases[0].layer().pack().shape, "cpu"), [0, 0]
    for k, case in enumerate(cases):
        layer = case.layer(k)
        tensors = new_tensors(layer.pack(), layer.nodes, layer.x, workspace=workspace)
        tensors.poison()
        computed = LayerRun(layer.pack(), tensors, layer.nodes)
        run_all(case.launches(computed), codes["small"], k)
        assert error(tensors.hidden, layer.expected()[0], layer) < bound(case)
        steps = [n + len(sizes) for n, sizes in zip(steps, case.sizes, strict=True)]
        clocks = tensors.exchange[: 2 * CLOCK_WORDS].view(2, CLOCK_WORDS)[:, :2].tolist()
        assert clocks == [[n, 8 * (k + 1)] for n in steps]


# ------------------------------------------------------------------------------------------------------ what is found


def outcome(code: Code, change: Callable[[list[str]], None], case: Case = CASES["small"]) -> str:
    """What is said of a case whose kernel's lines were changed: a fault, or whether its vectors are right."""
    lines = code.ptx.split("\n")
    change(lines)
    layer = case.layer()
    computed = case.run(layer)
    changed = code._replace(ptx="\n".join(lines))
    try:
        run_all(case.launches(computed), [changed] * (1 + len(case.cuts)), 1)
    except (Fault, NotImplementedError) as fault:
        return str(fault)
    return "right" if error(computed.tensors.hidden, layer.expected()[0], layer) < bound(case) else "wrong"


def line(lines: list[str], text: str, after: int = 0) -> int:
    """Number of the first line from another one on that has a text."""
    return next(k for k, each in enumerate(lines[after:], after) if text in each)


def remove(text: str, behind: str = "waitLoop") -> Callable[[list[str]], None]:
    """What removes the first line with a text, after the first one with another."""

    def change(lines: list[str]) -> None:
        lines[line(lines, text, line(lines, behind))] = ""

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (remove("bar.sync", "fence.proxy.async"), "race: "),  # by whoever is first
        (remove("bar.sync", "wgmma.wait_group"), "stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r.*race: writes byte"),
        (remove("fence.proxy.async"), "wgmma.wait_group.sync.aligned 0: race: reads byte"),
        (remove("wgmma.wait_group"), "read before it is written"),
        (remove("waitLoop;"), "race: reads byte"),
    ],
)
def test_a_race_is_found(change: Callable[[list[str]], None], expected: str, codes: dict[str, list[Code]]) -> None:
    """Where a barrier, a fence or a wait was removed."""
    said = outcome(codes["small"][0], change)
    assert all(part in said for part in expected.split(".*")), said


@pytest.mark.parametrize("which", [(0, 2), (1,)])
def test_a_variable_that_a_loop_does_not_carry_is_found(which: tuple[int, ...], codes: dict[str, list[Code]]) -> None:
    """Where what copies it was removed: by a fault, or by the next launch's vectors."""

    def change(lines: list[str]) -> None:
        copies = [k for k, each in enumerate(lines) if re.fullmatch(r"\tmov\.b32 \t%r\d+, %r\d+;", each)]
        assert len(copies) == 3  # the first row's number in the loop and after it, and the last one's
        for k in which:
            lines[copies[k]] = ""

    in_two = replace(CASES["small"], sizes=((2, 3), (1, 2)), cuts=(2,))
    assert outcome(codes["small"][0], change, in_two) != "right"


EXTRA = "%tid.x;\nsetp.lt.u32 %p999, %tid.x, {};\n@%p999 bar.sync 0;"  # a barrier for some threads alone


def substitute(old: str, new: str) -> Callable[[list[str]], None]:
    """What replaces a text everywhere."""

    def change(lines: list[str]) -> None:
        assert any(old in each for each in lines)
        lines[:] = [each.replace(old, new) for each in lines]

    return change


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("ex2.approx.f32", "sin.approx.f32", "sin.approx.f32"),
        ("ld.relaxed.gpu.global.b64", "ld.relaxed.sys.global.b64", "@there ld.relaxed.sys.global.b64 word0, [at]: "),
        ("@there st.relaxed.gpu.global.b64 [at], value;", "", "all wait for each other, at .*@there bra again"),
        ("%tid.x;", EXTRA.format(1), "@%p999 bar.sync 0: 1 lanes reach what all must reach together"),
        ("%tid.x;", EXTRA.format(32), "bar.sync.*0: other warps are at another barrier"),
        ("mad.wide.s32 at, ", "mad.wide.s32 at, -", "read before it is written"),
    ],
)
def test_other_faults_are_found(old: str, new: str, expected: str, codes: dict[str, list[Code]]) -> None:
    said = outcome(codes["small"][0], substitute(old, new))
    assert all(part in said for part in expected.split(".*")), said


def test_splits_that_wait_in_vain_make_no_number(codes: dict[str, list[Code]]) -> None:
    """Without any look a program knows only of those that were there before; counters are whole after it."""
    case = replace(CASES["few_rows"], sizes=((2,), (1,)))
    layer = case.layer()
    computed = replace(case.run(layer), options=LaunchOptions(polls=0))
    computed.tensors.unprojected.fill_(1.0)
    *_, projection = case.launches(computed)
    run(projection, codes["few_rows"][-1], 1, [*IDLE_READS, "tensors.partial_sums"])
    assert real_nodes(computed.tensors.hidden, layer.nodes).isnan().any()
    counters = computed.tensors.counters
    assert counters.any() and not (counters % SPLIT_ARRIVALS).any()


def test_what_is_outside_a_tensor_is_not_read(codes: dict[str, list[Code]]) -> None:
    case = CASES["small"]
    computed = case.run(case.layer())
    launch = next(filter(is_for_machine, case.launches(computed)))
    tensors = launch.arguments["tensors"]
    short = tensors._replace(exchange=tensors.exchange[:1000])
    with pytest.raises(Fault, match=r"relaxed.*out of bounds: bytes \d+ to \d+ of 8000, tensors.exchange \(program"):
        run(replace(launch, arguments={**launch.arguments, "tensors": short}), codes["small"][0], 0, IDLE_READS)


def test_a_load_that_does_not_acquire_is_found(codes: dict[str, list[Code]]) -> None:
    """Of the counter of splits that wait for each other."""
    case, old = CASES["few_rows"], "ld.global.gpu.acquire.b32"
    changed = [code._replace(ptx=code.ptx.replace(old, "ld.global.gpu.relaxed.b32")) for code in codes["few_rows"]]
    assert any(old in code.ptx for code in codes["few_rows"])
    with pytest.raises(Fault, match=r"^ld.global.*: race: reads byte \d+ of tensors.partial_sums \(program"):
        run_all(case.launches(case.run(case.layer())), changed, 1)
