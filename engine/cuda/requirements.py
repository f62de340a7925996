"""What the CUDA runtime needs of a machine, and one line about what is missing."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from flashelmo.engine.errors import FlashElmoError, MissingExtraError, OtherSystemError
from flashelmo.engine.precision import PRECISIONS
from flashelmo.engine.settings import INTERPRETER

try:
    import torch
    import triton
except ModuleNotFoundError as error:
    if sys.platform != "linux":  # where no extra brings it
        raise OtherSystemError(f"device 'cuda': expected Linux, as Triton does, found {sys.platform}") from error
    raise MissingExtraError(str(error.name), "gpu", "device 'cuda'") from error

LEAST_TRITON = (3, 6)
LEAST_CAPABILITY = PRECISIONS["fp32"].capability


def find_device(name: str) -> torch.device:
    """Return the device of a name: "cuda" (the current one), "cuda:1", or "interpreter".

    Raises:
        FlashElmoError: it, or something that it needs, is missing.
    """
    if tuple(map(int, triton.__version__.split(".")[:2])) < LEAST_TRITON:
        expected = f"Triton {_dotted(LEAST_TRITON)} or newer"
        raise FlashElmoError(f"device {name!r}: expected {expected}, found {triton.__version__}")
    interprets = bool(triton.knobs.runtime.interpret)
    if name == INTERPRETER:
        if not interprets:
            raise FlashElmoError("device 'interpreter': expected TRITON_INTERPRET=1 in the environment, found it unset")
        from triton.runtime.interpreter import InterpreterBuilder

        if not getattr(InterpreterBuilder, "repaired", False):
            raise FlashElmoError(
                "device 'interpreter': expected Triton's interpreter as tests/interpreter.py repairs it, found its own"
            )
        return torch.device("cpu")
    if interprets:
        raise FlashElmoError(f"device {name!r}: expected kernels on the card, found TRITON_INTERPRET set; unset it")
    if not torch.backends.cuda.is_built():
        raise FlashElmoError(
            f"device {name!r}: expected a PyTorch with CUDA, found {torch.__version__}; https://pytorch.org has one"
        )
    n_devices = _count(name)
    device = torch.device(name)
    index = torch.cuda.current_device() if name == "cuda" else device.index
    if index >= n_devices:
        raise FlashElmoError(f"device {name!r}: expected one of cuda:0 to cuda:{n_devices - 1}, found no such card")
    capability = torch.cuda.get_device_capability(index)
    if capability < LEAST_CAPABILITY:
        raise FlashElmoError(
            f"device {name!r}: expected compute capability {_dotted(LEAST_CAPABILITY)} or more, found "
            f"{torch.cuda.get_device_name(index)} with {_dotted(capability)}"
        )
    _check_compiler(name)
    return torch.device("cuda", index)


def default_precision(device: torch.device) -> str:
    """Return the precision in which a device computes fastest: "bf16" if it has it, otherwise "fp32"."""
    return "bf16" if _has(device, "bf16") else "fp32"


def check_precision(device: torch.device, precision: str) -> None:
    """Raise FlashElmoError if the device lacks the precision."""
    if precision != "auto" and not _has(device, precision):
        found = f"{torch.cuda.get_device_name(device)} with {_dotted(torch.cuda.get_device_capability(device))}"
        expected = _dotted(PRECISIONS[precision].capability)
        raise FlashElmoError(
            f"precision {precision!r}: expected a card of compute capability {expected} or more, found {found}; "
            "pass 'fp32'"
        )


def _has(device: torch.device, precision: str) -> bool:
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= PRECISIONS[precision].capability


def _count(name: str) -> int:
    """Return the number of cards that PyTorch can use, at least one."""
    try:
        torch.cuda.init()
        n_devices = torch.cuda.device_count()
    except (RuntimeError, AssertionError) as error:  # no driver, or too old a one: PyTorch's own message says which
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise FlashElmoError(f"device {name!r}: expected a card that CUDA can use, found none: {reason}") from None
    if not n_devices:
        raise FlashElmoError(f"device {name!r}: expected a card that CUDA can use, found none")
    return n_devices


def _check_compiler(name: str) -> None:
    """Raise FlashElmoError unless Triton finds what it builds its launchers with."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        raise FlashElmoError(f"device {name!r}: Triton needs a C compiler, found none; install gcc or set CC")
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise FlashElmoError(f"device {name!r}: Triton needs Python's headers, found no {header}; install python3-dev")


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
