"""A whole model as one ONNX file, and what it takes to trust and to deploy it.

    build.py        one file: the graph of ids to every layer, their mix and its mean, and the weights
    metadata.py     what a file says of itself
    write.py        the folder: files, reports, model card, perhaps NVIDIA Triton's repository
    verify.py       a file against the reference, within bounds; report.py holds what it found
    runtime.py      a file in ONNX Runtime, with numpy alone; open_session.py opens it, batches.py makes its inputs

The names below are looked up on first use, so that importing this package loads nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashelmo.export.report import Report
    from flashelmo.export.runtime import OnnxElmo
    from flashelmo.export.verify import verify
    from flashelmo.export.write import export_onnx

__all__ = ["OnnxElmo", "Report", "export_onnx", "verify"]

# Public name -> module that defines it. The imports above tell the same to type checkers.
_HOMES = {
    "OnnxElmo": "flashelmo.export.runtime",
    "Report": "flashelmo.export.report",
    "export_onnx": "flashelmo.export.write",
    "verify": "flashelmo.export.verify",
}


def __getattr__(name: str) -> Any:
    """Import the module that defines a public name, on the name's first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
