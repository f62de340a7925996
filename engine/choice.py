"""Which runtime executes a model, by device, precision and name."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from flashelmo.engine.cpu.runtime import Runtime
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel

if TYPE_CHECKING:
    from flashelmo.engine.graph.builder import WeightType
    from flashelmo.engine.reference.reference import ReferenceRuntime

Precision: TypeAlias = Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8", "fp64"]
RuntimeName: TypeAlias = Literal["auto", "ort", "openvino", "reference", "cuda"]

logger = logging.getLogger("flashelmo.device")

# Precision -> the runtimes of the processor that have it, the preferred one first.
CPU_RUNTIMES: dict[str, tuple[str, ...]] = {
    "fp32": ("ort", "openvino", "reference"),
    "int8": ("ort",),
    "bf16": ("openvino",),
    "fp64": ("reference",),
}
CUDA_PRECISIONS = ("bf16", "fp16", "fp32", "tf32", "int8")
PRECISIONS = ("auto", *dict.fromkeys((*CPU_RUNTIMES, *CUDA_PRECISIONS)))
RUNTIMES = ("auto", "ort", "openvino", "reference", "cuda")
INTERPRETER = "interpreter"  # the CUDA runtime's kernels, interpreted by Triton on the CPU: for tests
DEVICE_NAME = re.compile(rf"auto|cpu|cuda(:\d+)?|{INTERPRETER}")


@dataclass(frozen=True)
class Choice:
    """What executes a model.

    Attributes:
        runtime: "ort", "openvino", "reference" or "cuda".
        precision: one that it has; on a CUDA device "auto" where the device decides.
        devices: "cpu", or the names of CUDA devices.
    """

    runtime: str
    precision: str
    devices: tuple[str, ...] = ("cpu",)


def choose_runtime(device: str | Sequence[str], precision: str, runtime: str) -> Choice:
    """What executes a model; device "auto" is a CUDA device where there is one that has all that is asked for.

    Raises:
        FlashElmoError: the three do not go together.
    """
    devices = _devices(device)
    if precision not in PRECISIONS:
        raise FlashElmoError(f"precision: expected one of {', '.join(PRECISIONS)}, found {precision!r}")
    if runtime not in RUNTIMES:
        raise FlashElmoError(f"runtime: expected one of {', '.join(RUNTIMES)}, found {runtime!r}")
    why_not_cuda = ""
    if devices == ("auto",):
        devices, why_not_cuda = _automatic(precision, runtime)
    if devices == ("cpu",):
        choice = _choose_on_cpu(precision, runtime)
        if why_not_cuda:
            _say_once(f"device 'auto': {why_not_cuda}")
        return choice
    if runtime not in ("auto", "cuda"):
        raise FlashElmoError(f"runtime {runtime!r} runs on device 'cpu'; expected 'cuda' on {', '.join(devices)}")
    if precision not in ("auto", *CUDA_PRECISIONS):
        expected = ", ".join(CUDA_PRECISIONS)
        raise FlashElmoError(f"precision {precision!r}: expected one of {expected} on a CUDA device")
    return Choice("cuda", precision, devices)


def _devices(device: str | Sequence[str]) -> tuple[str, ...]:
    """The names, checked; several must be CUDA devices."""
    names = (device,) if isinstance(device, str) else tuple(device)
    for name in names:
        if not DEVICE_NAME.fullmatch(str(name)):
            raise FlashElmoError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    if not names or (len(names) > 1 and {"auto", "cpu"} & set(names)):
        raise FlashElmoError(f"device: expected one, or several CUDA devices, found {list(names)}")
    if len(names) > 1 and "cuda" in names:
        raise FlashElmoError(f"device: expected a number of each of several, as in 'cuda:0', found {list(names)}")
    return names


def _choose_on_cpu(precision: str, runtime: str) -> Choice:
    precision = "fp32" if precision == "auto" else precision
    available = CPU_RUNTIMES.get(precision, ())
    if not available:
        expected = ", ".join(CPU_RUNTIMES)
        raise FlashElmoError(f"precision {precision!r}: expected one of {expected} on the CPU")
    if runtime == "auto":
        return Choice(available[0], precision)
    if runtime == "cuda":
        raise FlashElmoError("runtime 'cuda': expected a CUDA device, found device 'cpu'")
    if runtime not in available:
        raise FlashElmoError(f"runtime {runtime!r} has no precision {precision!r}; expected {' or '.join(available)}")
    return Choice(runtime, precision)


def _automatic(precision: str, runtime: str) -> tuple[tuple[str, ...], str]:
    """A CUDA device where one can be used for this; otherwise the CPU, and what is to be said of it."""
    if runtime in ("ort", "openvino", "reference") or precision == "fp64":
        return ("cpu",), ""
    if not has_cuda_card():
        return ("cpu",), "no CUDA device found, running on the CPU"
    try:
        from flashelmo.engine.cuda.requirements import check_precision, find_device

        check_precision(find_device("cuda"), precision)
    except FlashElmoError as error:
        return ("cpu",), f"running on the CPU: {error}"
    return ("cuda",), ""


@cache
def has_cuda_card() -> bool:
    """Whether NVIDIA's driver finds a card; PyTorch, which takes seconds to import, is not asked."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            driver = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


@cache
def _say_once(message: str) -> None:
    logger.warning(message)


def make_runtime(model: ElmoModel, name: str, precision: str, threads: int) -> Runtime:
    """The runtime of a name, "ort" or "openvino", on `threads` threads; 0 takes all cores."""
    from flashelmo.engine.graph.tensors import prepare_tensors  # needs onnx, which a CUDA device does not

    if name == "openvino":
        from flashelmo.engine.cpu.openvino import OpenVinoRuntime

        tensors = prepare_tensors(model.config, model.weights, "float32")
        return OpenVinoRuntime(model.config, tensors, "bf16" if precision == "bf16" else "fp32", threads)
    from flashelmo.engine.cpu.ort import OrtRuntime

    weight_type: WeightType = "int8" if precision == "int8" else "float32"
    return OrtRuntime(model.config, prepare_tensors(model.config, model.weights, weight_type), weight_type, threads)


def make_reference(
    model: ElmoModel, precision: str, threads: int | None, stateful: bool, batch_size: int
) -> ReferenceRuntime:
    """The PyTorch reference, which takes sentences whole."""
    from flashelmo.engine.reference.reference import ReferenceRuntime

    number_type: Literal["fp64", "fp32"] = "fp64" if precision == "fp64" else "fp32"
    return ReferenceRuntime(model, precision=number_type, threads=threads, stateful=stateful, batch_size=batch_size)
