"""Which runtime executes a model, by device, precision and name; and the pipeline on it."""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec

from flashelmo.engine.cpu.pipeline import make_cpu_pipeline
from flashelmo.engine.devices.pool import DevicePool
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.pipeline import PipelineInfo
from flashelmo.engine.precision import PRECISIONS, Precision, PrecisionName, precisions_on
from flashelmo.engine.settings import INTERPRETER, Settings
from flashelmo.engine.system.processor import NO_BF16, is_arm, multiplies_bf16
from flashelmo.engine.text.schedule import MAX_WINDOW_TOKENS

logger = logging.getLogger("flashelmo.device")

# Of the CPU: the package that each is built on, and the extra that brings it.
PACKAGES = {"ort": "onnxruntime", "avx512": "onnxruntime", "openvino": "openvino", "reference": "torch"}
EXTRAS = {"ort": "cpu", "avx512": "cpu", "openvino": "openvino", "reference": "torch"}
CPU_RUNTIMES = tuple(PACKAGES)
RUNTIMES = ("auto", *CPU_RUNTIMES, "cuda")
DEVICE_NAME = re.compile(rf"auto|cpu|cuda(:\d+)?|{INTERPRETER}")


@dataclass(frozen=True)
class Choice:
    """What executes a model.

    Attributes:
        runtime: "ort", "avx512", "openvino", "reference" or "cuda".
        precision: one that it has; on a CUDA device "auto" where the device decides.
        devices: "cpu", or the names of CUDA devices.
    """

    runtime: str
    precision: str
    devices: tuple[str, ...] = ("cpu",)


def choose_runtime(settings: Settings) -> Choice:
    """What executes a model, by the settings' device, precision and runtime.

    Device "auto" is a CUDA device where there is one that has all that is asked for.

    Raises:
        FlashElmoError: the three do not go together.
    """
    devices, precision, runtime = _devices(settings.devices), settings.precision, settings.runtime
    if precision not in ("auto", *PRECISIONS):
        raise FlashElmoError(f"precision: expected one of auto, {', '.join(PRECISIONS)}, found {precision!r}")
    if runtime not in RUNTIMES:
        raise FlashElmoError(f"runtime: expected one of {', '.join(RUNTIMES)}, found {runtime!r}")
    why_not_cuda = ""
    if devices == ("auto",):
        devices, why_not_cuda = _automatic(precision, runtime)
    if devices == ("cpu",):
        choice = _choose_on_cpu(precision, runtime)
        if why_not_cuda:
            _warn_once(f"device 'auto': {why_not_cuda}")
        return choice
    if runtime not in ("auto", "cuda"):
        raise FlashElmoError(f"runtime {runtime!r} runs on device 'cpu'; expected 'cuda' on {', '.join(devices)}")
    if precision != "auto" and precision not in precisions_on("cuda"):
        expected = ", ".join(precisions_on("cuda"))
        raise FlashElmoError(f"precision {precision!r}: expected one of {expected} on a CUDA device")
    return Choice("cuda", precision, devices)


@dataclass(frozen=True)
class Faster:
    """A precision that this processor may be faster in than in float32, which "auto" takes on the CPU as it is exact.

    Attributes:
        precision: its name.
        relative_error: what it stays below, of a layer.
        needs: what must be installed first, as pip takes it; empty where all is there.
    """

    precision: PrecisionName
    relative_error: float
    needs: str = ""


def faster_on_cpu() -> list[Faster]:
    """What this processor could do faster, at which error; the most exact first. How much, `flashelmo bench` says."""
    found = []
    for name in ("bf16", "int8"):
        row = PRECISIONS[name]
        if name == "bf16" and not multiplies_bf16():
            continue
        needs = "" if any(_can_run(row)) else f"flashelmo[{EXTRAS[_runtimes(row)[-1]]}]"
        found.append(Faster(row.name, row.on("cpu").bound.relative or 0.0, needs))
    return found


def _devices(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names, checked; several must be CUDA devices."""
    for name in names:
        if not DEVICE_NAME.fullmatch(name):
            raise FlashElmoError(f"device: expected auto, cpu, cuda or cuda:N, found {name!r}")
    if not names or (len(names) > 1 and {"auto", "cpu"} & set(names)):
        raise FlashElmoError(f"device: expected one, or several CUDA devices, found {list(names)}")
    if len(names) > 1 and "cuda" in names:
        raise FlashElmoError(f"device: each of several needs a number, as in 'cuda:0', found {list(names)}")
    return names


def _choose_on_cpu(precision: str, runtime: str) -> Choice:
    row = PRECISIONS["fp32" if precision == "auto" else precision]
    if not row.runtimes:
        expected = ", ".join(precisions_on("cpu"))
        raise FlashElmoError(f"precision {precision!r}: expected one of {expected} on the CPU")
    if row.name == "bf16" and is_arm() and not multiplies_bf16():  # said before a package is asked for
        raise FlashElmoError(NO_BF16)
    available = _runtimes(row)
    if runtime == "auto":
        return Choice(next(_can_run(row), available[-1]), row.name)
    if runtime == "cuda":
        raise FlashElmoError("runtime 'cuda': expected a CUDA device, found device 'cpu'")
    if runtime not in available:
        raise FlashElmoError(f"runtime {runtime!r} has no precision {row.name!r}; expected {' or '.join(available)}")
    return Choice(runtime, row.name)


def _runtimes(precision: Precision) -> list[str]:
    """The runtimes that have a precision on this kind of processor: on Arm, ONNX Runtime alone has bfloat16."""
    return [name for name in precision.runtimes if precision.name != "bf16" or (name == "ort") == is_arm()]


def _can_run(precision: Precision) -> Iterator[str]:
    """The runtimes that have a precision and can run here, the preferred one first."""
    for runtime in _runtimes(precision):
        if find_spec(PACKAGES[runtime]) is None:
            continue
        if runtime == "avx512":
            from flashelmo.engine.cpu.lstm_c import why_not

            if why_not(precision.bits):
                continue
        yield runtime


def _automatic(precision: str, runtime: str) -> tuple[tuple[str, ...], str]:
    """A CUDA device where one can be used for this; otherwise the CPU, and the warning to log, if any."""
    if runtime in CPU_RUNTIMES or (precision != "auto" and precision not in precisions_on("cuda")):
        return ("cpu",), ""
    if not has_cuda_card():
        expects_one = find_spec("triton") is not None  # whoever installed nothing for a card misses none
        return ("cpu",), "no CUDA device found, running on the CPU" if expects_one else ""
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
def _warn_once(message: str) -> None:
    logger.warning(message)


def make_pipeline(model: ElmoModel, settings: Settings) -> PipelineInfo:
    """What turns windows into vectors on the CPU, on a device, or on several.

    Raises:
        FlashElmoError: settings that do not go together, or a device that lacks what they need.
        MissingExtraError: the chosen runtime's package is not installed.
    """
    choice = choose_runtime(settings)
    if settings.word_cache is not None and choice.runtime in ("reference", "cuda"):
        expected = ", ".join(name for name in CPU_RUNTIMES if name != "reference")
        raise FlashElmoError(f"word_cache: expected one of the CPU's runtimes {expected}, found {choice.runtime!r}")
    if choice.runtime == "reference":
        from flashelmo.engine.reference.pipeline import make_reference_pipeline

        return make_reference_pipeline(model, choice.precision, settings)
    if choice.runtime != "cuda":
        return make_cpu_pipeline(model, choice.runtime, choice.precision, settings)
    if settings.stateful and len(choice.devices) > 1:
        raise FlashElmoError(f"stateful: expected one device, found {len(choice.devices)}")
    from flashelmo.engine.cuda.pipeline import make_cuda_pipeline

    make = partial(make_cuda_pipeline, model=model, precision=choice.precision, settings=settings)
    if len(choice.devices) > 1:
        pool = DevicePool(make, choice.devices)
        return PipelineInfo(pool, ", ".join(choice.devices), "cuda", pool.precision, MAX_WINDOW_TOKENS)
    pipeline = make(choice.devices[0])
    return PipelineInfo(pipeline, str(pipeline.device), "cuda", pipeline.precision, pipeline.max_tokens)
