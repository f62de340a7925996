"""Launches as values: what `at` changes and what it checks, and that its short way to the driver is Triton's."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from flashelmo.kernels.launch import Launch


class Pair(NamedTuple):
    first: Any
    second: Any


@triton.jit(do_not_specialize=["row"])
def row_kernel(pair, out_ptr, row, n, SIZE: tl.constexpr):
    """out[row, program] = first + second + n."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(out_ptr + row * 64 + i, tl.load(pair.first + i) + tl.load(pair.second + i) + n)


def row_launch(device: str, **changes: Any) -> Launch:
    x = torch.arange(64, dtype=torch.float32, device=device)
    out = torch.full((4, 64), torch.nan, device=device)
    arguments = {"pair": Pair(x, 2 * x), "out_ptr": out, "n": 7, "SIZE": 16}
    return Launch(row_kernel, (4,), arguments | changes, {"num_warps": 1})


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def test_other_grids_and_integers_write_what_a_launch_of_its_own_writes(device: str) -> None:
    launch = row_launch(device)
    out: Tensor = launch.arguments["out_ptr"]
    for row, blocks in ((2, 4), (0, 3), (3, 0)):
        launch.at((blocks,), row=row).run()
    expected = torch.full((4, 64), torch.nan)
    expected[2] = expected[0] = 3 * torch.arange(64) + 7
    expected[0, 48:] = torch.nan
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def test_the_original_stays_and_changes_of_another_kind_share_nothing(device: str) -> None:
    launch = row_launch(device)
    third = launch.at((1,), row=3)
    assert "row" not in launch.arguments and launch.grid == (4,)
    assert (third.grid, third.arguments) == ((1,), {**launch.arguments, "row": 3})
    assert third == replace(launch, grid=(1,), arguments={**launch.arguments, "row": 3})
    other = torch.full((4, 64), torch.nan, device=device)
    third.run()
    replace(third, arguments={**third.arguments, "out_ptr": other}).run()
    for out in (other, launch.arguments["out_ptr"]):
        assert out.isfinite().sum() == 16 and out[3, :16].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "integers", "message"),
    [
        ({}, {"n": 3}, "n: expected a parameter that the kernel is not specialized for"),
        ({}, {"out_ptr": 3}, "out_ptr: expected a parameter that the kernel is not specialized for"),
        ({}, {"row": 1 << 31}, "row: expected an integer of 32 bits, found 2147483648"),
        ({}, {"row": True}, "row: expected an integer of 32 bits, found True"),
        ({"row": 1 << 40}, {"row": 1}, "row: expected an integer of 32 bits, found 1099511627776"),
    ],
)
def test_what_triton_would_compile_anew_is_refused(
    device: str, changes: dict[str, Any], integers: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        row_launch(device, **changes).at(**integers)


def test_tensors_are_walked_once_for_all(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[Launch] = []
    found = Launch._device

    def count(self: Launch) -> torch.device:
        walks.append(self)
        return found(self)

    monkeypatch.setattr(Launch, "_device", count)
    launch = row_launch(device)
    for row in range(4):
        launch.at(row=row).run()
    assert len(walks) == 1
    assert launch.arguments["out_ptr"].isfinite().all()


def test_tensors_inside_descriptors_are_tensors(device: str) -> None:
    descriptor = TensorDescriptor.from_tensor(torch.zeros(32, 32), [16, 16])
    launch = Launch(row_kernel, (1,), {"x_desc": descriptor, "out_ptr": torch.zeros(1, device="meta")}, {})
    assert launch.tensors.keys() == {"x", "out"}
    with pytest.raises(ValueError, match="expected a tensor on a"):
        launch.run()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an absent card's driver was told of launches, by Triton and by us."""
    if torch.cuda.is_available():
        pytest.skip("PyTorch and Triton find the card that is here")
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        pytest.skip("Triton's launchers need a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, str(Path(__file__).with_name("absent_launches.py")), str(folder)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def _who(launches: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """How many were launched by Triton and by us; taken out of what they came to."""
    return [(each.pop("by Triton"), each.pop("by us")) for each in launches]


@pytest.mark.parametrize("name", ["tuple", "dependent", "all at once", "descriptors", "scratch", "gluon"])
def test_the_driver_is_told_what_triton_tells_it(told: dict[str, Any], name: str) -> None:
    by_triton, ours = told[name]["triton"], told[name]["ours"]
    needs_triton = int(name == "scratch")  # memory is made for each launch
    assert _who(by_triton) == [(1, 0)] * 4
    assert _who(ours) == [(1, 0)] + [(needs_triton, 1 - needs_triton)] * 3
    assert ours == by_triton
    assert all(each["launches"] == 1 for each in ours)
    by_triton, others = told[name]["others by Triton"], told[name]["others"]
    assert _who(by_triton) == [(1, 0)] * 4
    assert _who(others) == [(needs_triton, 1 - needs_triton)] * 4
    assert others == by_triton and others != ours
    together = told[name]["together"]
    assert _who(together) == [(2 * needs_triton, 2 - 2 * needs_triton)] * 4
    assert together == [{**each, "launches": 2} for each in ours]
    assert [each["grid"] for each in ours] == [[1, 1, 1], [2, 1, 1], [3, 4, 1], [5, 6, 7]]
    assert len({tuple(each["parameters"]) for each in ours}) == 4
    attribute = {"dependent": 1 << 6, "all at once": 1 << 2}.get(name, 0)  # CU_LAUNCH_ATTRIBUTE_...
    assert {each["attributes"] for each in ours} == {attribute}
    second = {**ours[1], "by Triton": needs_triton, "by us": 1 - needs_triton}
    assert told[name]["in a thread"] == second and second["context"] == 1  # of device 0
    assert told[name]["by an older driver"] == {**second, "attributes": attribute & ~(1 << 6)}


@pytest.mark.parametrize("name", ["tuple", "descriptors"])
def test_the_device_is_set_and_hooks_hear_of_launches(told: dict[str, Any], name: str) -> None:
    second = {**told[name]["triton"][1], "by Triton": 0, "by us": 1}
    assert told[name]["from another device"] == second
    assert told[name]["together from another device"] == {**second, "by us": 2, "launches": 2}
    assert told[name]["with a hook"] == {**second, "by Triton": 1, "by us": 0}
    assert told[name]["heard"] == [{"tuple": "plain_kernel", "descriptors": "descriptor_kernel"}[name]]
