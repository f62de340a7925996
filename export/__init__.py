"""A whole model as one ONNX file, or as unrolled ones for CUDA, and what it takes to trust and to deploy it.

    metadata.py         what a file says about itself
    build.py            builds a file: its graph, its weights in the requested precision, its metadata
    external_data.py    weights in a file beside it
    whole_model.py      the graph; distinct_words.py, placement.py and boundaries.py are its parts
    unrolled.py         the graph of one shape, with every step, all on the card; unrolled_words.py is its first part
    verification/       compares a file with the reference, within bounds
    card.py             the model card; card_examples.py holds the programs in it
    servers/            a repository for NVIDIA Triton Inference Server
    write.py            the folder with all this, complete or not there at all
    onnx_elmo.py        a file in ONNX Runtime, with numpy alone; open_session.py opens it, batches.py makes its inputs,
                        buckets.py runs a batch in the unrolled file that holds it

The names below are loaded on first use, so that importing this package loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashelmo.engine.system.names import on_first_use

if TYPE_CHECKING:
    from flashelmo.export.onnx_elmo import OnnxElmo
    from flashelmo.export.verification.report import Report
    from flashelmo.export.verification.verify import verify
    from flashelmo.export.write import export_onnx

    __all__ = ["OnnxElmo", "Report", "export_onnx", "verify"]

# Public name -> module that defines it. The imports above tell type checkers the same.
_HOMES = {
    "OnnxElmo": "flashelmo.export.onnx_elmo",
    "Report": "flashelmo.export.verification.report",
    "export_onnx": "flashelmo.export.write",
    "verify": "flashelmo.export.verification.verify",
}
# Packages of extras, without which these modules cannot be imported.
_BUILDS = ("onnx", "onnxruntime", "torch")
_NEEDS = {"OnnxElmo": ("onnxruntime",), "export_onnx": _BUILDS, "verify": _BUILDS}

if not TYPE_CHECKING:  # to a type checker it would mean that every name is there
    __getattr__, __dir__ = on_first_use(globals(), _HOMES, _NEEDS)
