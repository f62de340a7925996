"""The table of precisions: each row is complete, and everything that names a precision comes from it."""

import platform
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from flashelmo.engine import choice
from flashelmo.engine.choice import Choice, Faster, choose_runtime, faster_on_cpu
from flashelmo.engine.cpu import lstm_c
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import PRECISIONS, Backend, Bound, PrecisionName, precisions_on
from flashelmo.engine.settings import Settings
from flashelmo.engine.system import processor


def test_the_names_of_the_table_are_those_of_the_type() -> None:
    assert tuple(PRECISIONS) == get_args(PrecisionName)
    assert all(name == row.name for name, row in PRECISIONS.items())


@pytest.mark.parametrize("row", PRECISIONS.values(), ids=list(PRECISIONS))
def test_a_row_runs_somewhere_within_a_bound(row: Any) -> None:
    assert bool(row.runtimes) == (row.cpu is not None)  # the CPU has it where some runtime does
    assert row.bounds, "a precision that runs nowhere"
    for backend, bound in row.bounds.items():
        assert row.on(backend).bound is bound
        assert bound.relative is not None and 0 < bound.relative < 0.1
        assert bound.tightest == (bound.relative if bound.max_abs is None else bound.max_abs)


@pytest.mark.parametrize("backend", get_args(Backend))
def test_the_more_bits_the_closer(backend: Backend) -> None:
    """A bound that is wider than the next type's says that one of the two is wrong."""
    names = [name for name in ("fp64", "fp32", "fp16", "tf32", "bf16", "int8") if name in precisions_on(backend)]
    bounds = [PRECISIONS[name].on(backend).bound.relative or 0.0 for name in names]
    assert bounds == sorted(bounds) and len(set(bounds)) == len(bounds)


def test_bounds_are_not_below_what_the_types_can_hold() -> None:
    spacing = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
    for row in PRECISIONS.values():
        for backend, bound in row.bounds.items():
            assert bound.relative is not None and bound.relative > spacing[row.on(backend).dtype]


def test_a_place_without_it_is_an_error() -> None:
    with pytest.raises(KeyError, match="fp64 does not run on cuda"):
        PRECISIONS["fp64"].on("cuda")
    assert "fp64" not in precisions_on("cuda") and "tf32" not in precisions_on("cpu")


def test_a_bound_of_nothing_bounds_nothing() -> None:
    assert set(astuple(Bound())) == {None}
    with pytest.raises(StopIteration):
        _ = Bound().tightest


def test_what_a_processor_could_do_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 where it has the instructions, with what is missing for it; "auto" stays float32 all the same."""
    monkeypatch.setattr(choice, "find_spec", lambda package: None if package == "openvino" else package)
    monkeypatch.setattr(choice, "is_arm", lambda: False)
    monkeypatch.setattr(lstm_c, "why_not", lambda bits: "expected a processor with AMX")
    monkeypatch.setattr(choice, "multiplies_bf16", lambda: False)
    assert faster_on_cpu() == [Faster("int8", 0.03)]
    monkeypatch.setattr(choice, "multiplies_bf16", lambda: True)
    assert faster_on_cpu() == [Faster("bf16", 0.01, "flashelmo[openvino]"), Faster("int8", 0.03)]
    monkeypatch.setattr(lstm_c, "why_not", lambda bits: "")
    assert faster_on_cpu() == [Faster("bf16", 0.01), Faster("int8", 0.03)]
    assert choose_runtime(Settings(device="cpu")) == Choice("ort", "fp32")


def test_bfloat16_is_of_onnx_runtime_on_arm_and_of_others_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lstm_c, "why_not", lambda bits: "expected Linux on a processor with AVX-512")
    monkeypatch.setattr(choice, "multiplies_bf16", lambda: True)
    for on_arm, runtime, missing in ((True, "ort", "flashelmo[cpu]"), (False, "openvino", "flashelmo[openvino]")):
        monkeypatch.setattr(choice, "is_arm", lambda on_arm=on_arm: on_arm)
        monkeypatch.setattr(choice, "find_spec", lambda package: package)
        assert choose_runtime(Settings("cpu", "bf16")) == Choice(runtime, "bf16")
        monkeypatch.setattr(choice, "find_spec", lambda package: None)
        assert choose_runtime(Settings("cpu", "bf16")) == Choice(runtime, "bf16")  # whose error names the extra
        with pytest.raises(FlashElmoError, match=f"has no precision 'bf16'; expected (avx512 or )?{runtime}$"):
            choose_runtime(Settings("cpu", "bf16", "openvino" if on_arm else "ort"))
        assert faster_on_cpu()[0] == Faster("bf16", 0.01, missing)


@pytest.mark.parametrize("machine", ["arm64", "aarch64", "ARM64"])
def test_bf16_on_arm_is_refused_before_a_package_is_asked_for(machine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it lacks BF16, as does any on macOS and Windows for what is known of it."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(choice, "multiplies_bf16", lambda: False)
    monkeypatch.setattr(choice, "find_spec", lambda package: None)
    with pytest.raises(FlashElmoError, match=r"^precision 'bf16': this processor has no bfloat16 products that a"):
        choose_runtime(Settings(device="cpu", precision="bf16"))
    assert choose_runtime(Settings(device="cpu", precision="int8")) == Choice("ort", "int8")


def test_a_processors_name_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Python knows "arm" alone."""

    def sysctl(key: bytes, name: Any, size: Any, *new: Any) -> int:
        name.value = {b"machdep.cpu.brand_string": b"Apple M1"}[key]
        return 0

    monkeypatch.setattr(processor.sys, "platform", "darwin")
    monkeypatch.setattr(processor, "Path", lambda path: Path("absent"))
    monkeypatch.setattr(processor.ctypes, "CDLL", lambda name: SimpleNamespace(sysctlbyname=sysctl))
    assert processor.processor_name() == "Apple M1"
