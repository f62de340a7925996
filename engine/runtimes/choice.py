"""Which runtime executes a model, by device, precision and name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.graph import WeightType, prepare_tensors
from flashelmo.engine.runtimes import Runtime
from flashelmo.engine.weights import ElmoModel

if TYPE_CHECKING:
    from flashelmo.engine.runtimes.reference import ReferenceRuntime

Precision = Literal["fp32", "bf16", "int8", "fp64"]
RuntimeName = Literal["auto", "ort", "openvino", "reference"]

# Precision -> the runtimes that have it, the preferred one first.
RUNTIMES: dict[str, tuple[str, ...]] = {
    "fp32": ("ort", "openvino", "reference"),
    "int8": ("ort",),
    "bf16": ("openvino",),
    "fp64": ("reference",),
}


def choose_runtime(device: str, precision: str, runtime: str) -> str:
    """The name of a runtime; FlashElmoError where the three do not go together."""
    if device not in ("auto", "cpu"):
        raise FlashElmoError(f"device: expected 'auto' or 'cpu', found {device!r}")
    if precision not in RUNTIMES:
        raise FlashElmoError(f"precision: expected one of {', '.join(RUNTIMES)}, found {precision!r}")
    available = RUNTIMES[precision]
    if runtime == "auto":
        return available[0]
    if runtime not in RUNTIMES["fp32"]:
        raise FlashElmoError(f"runtime: expected auto, {', '.join(RUNTIMES['fp32'])}, found {runtime!r}")
    if runtime not in available:
        raise FlashElmoError(f"runtime {runtime!r} has no precision {precision!r}; expected {' or '.join(available)}")
    return runtime


def make_runtime(model: ElmoModel, name: str, precision: str, threads: int) -> Runtime:
    """The runtime of a name, "ort" or "openvino", on `threads` threads; 0 takes all cores."""
    if name == "openvino":
        from flashelmo.engine.runtimes.openvino import OpenVinoRuntime

        tensors = prepare_tensors(model.config, model.weights, "float32")
        return OpenVinoRuntime(model.config, tensors, "bf16" if precision == "bf16" else "fp32", threads)
    from flashelmo.engine.runtimes.ort import OrtRuntime

    weight_type: WeightType = "int8" if precision == "int8" else "float32"
    return OrtRuntime(model.config, prepare_tensors(model.config, model.weights, weight_type), weight_type, threads)


def make_reference(
    model: ElmoModel, precision: str, threads: int | None, stateful: bool, batch_size: int
) -> ReferenceRuntime:
    """The PyTorch reference, which takes sentences whole."""
    from flashelmo.engine.runtimes.reference import ReferenceRuntime

    number_type: Literal["fp64", "fp32"] = "fp64" if precision == "fp64" else "fp32"
    return ReferenceRuntime(model, precision=number_type, threads=threads, stateful=stateful, batch_size=batch_size)
