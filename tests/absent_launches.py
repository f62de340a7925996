"""A program: launches through Triton's own launchers, compiled for a card that is absent. Arguments: driver's folder.

Prints, as JSON, what each launch came to, by Triton's way and by ours.
"""

import ctypes
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

from flashelmo.benchmarks.kernels.absent import Guard, pretend
from flashelmo.kernels import series
from flashelmo.kernels.gluon import async_load
from flashelmo.kernels.launch import Launch, run_in_order


class Pair(NamedTuple):
    """As kernels take their tensors."""

    first: Any
    second: Any
    clip: float


@triton.jit(do_not_specialize=["n", "depth"])
def plain_kernel(pair, out_ptr, absent, n, depth, ones, scale, SIZE: tl.constexpr):
    """Named tuples, None in and beside them, a number that is compiled in, floats."""
    i = tl.arange(0, SIZE)
    x = tl.load(pair.first + i) * scale + pair.clip + ones
    if pair.second is not None:
        x += tl.load(pair.second + i)
    if absent is None:
        tl.store(out_ptr + n * depth + tl.program_id(0) * SIZE + i, x)


@triton.jit(do_not_specialize=["row"])
def descriptor_kernel(x_desc, out_ptr, y_desc, row, SIZE: tl.constexpr):
    """Two tensor descriptors, not side by side."""
    i = tl.arange(0, 16)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out_ptr + i, x_desc.load([row, 0]) + y_desc.load([row, 0]))


@triton.jit(do_not_specialize=["row"])
def scratch_kernel(x_ptr, out_ptr, y_desc, row, SIZE: tl.constexpr):
    """A descriptor made on the device, which needs memory for each launch, and one from the host."""
    x_desc = tl.make_tensor_descriptor(x_ptr, [64, SIZE], [SIZE, 1], [16, SIZE])
    i = tl.arange(0, 16)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out_ptr + i, x_desc.load([row, 0]) + y_desc.load([row, 0]))


@gluon.jit(do_not_specialize=["row"])
def gluon_kernel(x_desc, out_ptr, row):
    """Gluon's descriptor."""
    bar = gl.allocate_shared_memory(gl.int64, [1], gl.nvidia.hopper.mbarrier.MBarrierLayout())
    gl.nvidia.hopper.mbarrier.init(bar, count=1)
    x = gl.allocate_shared_memory(x_desc.dtype, x_desc.block_shape, x_desc.layout)
    gl.nvidia.hopper.mbarrier.expect(bar, x_desc.block_type.nbytes)
    async_load(x_desc, [row, 0], bar, x)
    gl.nvidia.hopper.mbarrier.wait(bar, 0)
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [1, 32], [4, 1], [1, 0])
    i = gl.arange(0, 16, gl.SliceLayout(1, layout))[:, None] * 64 + gl.arange(0, 64, gl.SliceLayout(0, layout))[None, :]
    gl.store(out_ptr + i, x.load(layout))


def tensor() -> Tensor:
    return torch.zeros(64, 64, dtype=torch.float16)


def launches() -> dict[str, tuple[int, list[Launch]]]:
    """By name, how many parameters the launch has, and some that differ in integers and grid alone."""
    x, y, out = tensor(), tensor(), tensor()
    block = [16, 64]
    x_desc, y_desc = (TensorDescriptor.from_tensor(each, block) for each in (x, y))
    gluon_desc = GluonDescriptor.from_tensor(x, block, gl.NVMMASharedLayout.get_default_for(block, gl.float16))
    plain = {"out_ptr": out, "absent": None, "n": 1, "ones": 1, "scale": 0.5, "SIZE": 64}
    by_row = {"row": 0, "SIZE": 64}
    made = {
        "tuple": (7, Launch(plain_kernel, (1,), {"pair": Pair(x, y, 2.5), **plain}, {"num_warps": 1})),
        "dependent": (6, Launch(plain_kernel, (1,), {"pair": Pair(x, None, 2.5), **plain}, {"launch_pdl": True})),
        "all at once": (
            6,
            Launch(plain_kernel, (1,), {"pair": Pair(x, None, 1.0), **plain}, {"launch_cooperative_grid": True}),
        ),
        "descriptors": (
            12,
            Launch(descriptor_kernel, (1,), {"x_desc": x_desc, "out_ptr": out, "y_desc": y_desc, **by_row}, {}),
        ),
        "scratch": (8, Launch(scratch_kernel, (1,), {"x_ptr": x, "out_ptr": out, "y_desc": y_desc, **by_row}, {})),
        "gluon": (7, Launch(gluon_kernel, (1,), {"x_desc": gluon_desc, "out_ptr": out, "row": 0}, {"num_warps": 4})),
    }
    some: dict[str, tuple[int, list[Launch]]] = {}
    for name, (n, launch) in made.items():
        integer = "row" if "row" in launch.arguments else "depth"
        grids: list[tuple[int, ...]] = [(1,), (2,), (3, 4), (5, 6, 7)]
        values = (1, 16, 17, -3)
        some[name] = n, [launch.at(grid, **{integer: value}) for grid, value in zip(grids, values, strict=True)]
    return some


FIELDS = ("launches", "stream", "function", "attributes", "threads", "shared", "context")


class Launched(ctypes.Structure):
    """What the driver keeps of the last launch."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in FIELDS] + [
        ("grid", ctypes.c_ulonglong * 3),
        ("parameters", ctypes.c_ulonglong * 64),
    ]


def main(folder: str) -> None:
    driver = pretend(Path(folder))
    triton.knobs.compilation.disable_line_info = True
    n_parameters = ctypes.c_int.in_dll(driver, "n_parameters")
    launched = Launched.in_dll(driver, "launched")
    by_triton: list[Any] = []
    run = JITFunction.run

    def count(self: Any, *args: Any, **options: Any) -> Any:
        by_triton.append(self)
        return run(self, *args, **options)

    JITFunction.run = count
    by_us: list[Any] = []
    launch_series: Any = series.launch

    def count_ours(parts: Any, which: Any, *others: Any) -> None:
        by_us.extend(which)
        launch_series(parts, which, *others)

    series.launch = count_ours  # type: ignore[assignment]

    def told(*alike: Launch, device: int = 0) -> dict[str, Any]:
        """Of the last of some launches."""
        launches, before, ours_before = launched.launches, len(by_triton), len(by_us)
        with Guard(device):
            run_in_order(alike)
        return {
            **{name: getattr(launched, name) for name in FIELDS},
            "launches": launched.launches - launches,
            "by Triton": len(by_triton) - before,
            "by us": len(by_us) - ours_before,
            "grid": list(launched.grid),
            "parameters": list(launched.parameters[: n_parameters.value]),
        }

    def in_a_thread(launch: Launch) -> dict[str, Any]:
        """Which has no context at first."""
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(copy_context().run, told, launch).result()  # with Triton's allocator

    version = ctypes.c_int.in_dll(driver, "version")
    found = {}
    others = launches()  # of other tensors, which the kernels that are compiled then are given too
    for name, (n_parameters.value, alike) in launches().items():
        heard: list[Any] = []
        found[name] = {
            "triton": [told(replace(launch)) for launch in alike],
            "ours": [told(launch) for launch in alike],
            "others by Triton": [told(replace(launch)) for launch in others[name][1]],
            "others": [told(launch) for launch in others[name][1]],
            "together": [told(others[name][1][0], launch) for launch in alike],
            "from another device": told(alike[1], device=1),
            "together from another device": told(*alike[:2], device=1),
            "in a thread": in_a_thread(alike[1]),
        }
        version.value = 12020
        found[name]["by an older driver"] = told(alike[1])
        version.value = 13000
        triton.knobs.runtime.launch_enter_hook.add(heard.append)
        found[name]["with a hook"] = told(alike[1])
        found[name]["heard"] = [each.get()["name"] for each in heard]
        triton.knobs.runtime.launch_enter_hook.remove(heard.append)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
