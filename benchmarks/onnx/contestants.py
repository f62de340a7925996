"""A model and its exported files, and who takes part beside them: how each embeds a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks.contestant import REFERENCE, Contestant, Way, engine, options_of
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import Subject, prepare
from flashelmo.benchmarks.text import Sentences
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.files import first_line
from flashelmo.engine.precision import PrecisionName
from flashelmo.engine.text.spelling import Speller
from flashelmo.export import open_session
from flashelmo.export.batches import pad
from flashelmo.export.build import build_onnx
from flashelmo.export.metadata import Metadata
from flashelmo.export.onnx_elmo import OnnxElmo

FILE_PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "fp16", "int8")
BASELINE = "onnx fp32"  # whose speed others are given in
# What runs the model, on what precision. "onnx" is ONNX Runtime on the exported file, "openvino" OpenVINO on the
# float32 one; "parallel" runs the two directions, which know nothing of each other, at the same time, each with half of
# the threads.
FILES = ("onnx fp32", "onnx fp32 parallel", "onnx int8", "onnx int8 parallel")
CONTESTANTS = ("engine fp32", "engine int8", *FILES, "openvino fp32", "openvino bf16")


@dataclass(frozen=True)
class Exported:
    """A model, its exported files by precision, the float32 file's metadata, and a folder for what else is written."""

    subject: Subject
    files: Mapping[str, Path]
    metadata: Metadata
    folder: Path


def export(name: str, seed: int, folder: Path, pool: Pool) -> Exported:
    """A model by its preset or path, in the native format and in all precisions of ONNX."""
    subject = prepare(name, seed, folder, pool)
    here = folder / f"{subject.name} onnx"
    here.mkdir()
    files = {str(precision): here / f"{precision}.onnx" for precision in FILE_PRECISIONS}
    model = load_model(subject.folder)
    metadata = [build_onnx(model, files[precision], precision=precision) for precision in FILE_PRECISIONS]
    return Exported(subject, files, metadata[0], here)


def contestant(name: str, exported: Exported, settings: Settings) -> Contestant:
    """The reference, or one of CONTESTANTS, from tokens to vectors."""
    folder, threads = exported.subject.folder, settings.threads
    if name == REFERENCE:  # it pads a batch as the others do
        options = options_of(REFERENCE, settings, batch_size=max(settings.batches))
        return Contestant(name, "fp32", engine, (folder, options))
    runs, precision, *parallel = name.split()
    if runs == "onnx":
        return Contestant(name, precision, onnx_file, (exported.files[precision], threads, bool(parallel)), "onnx")
    if runs == "openvino":
        given = exported.files["fp32"], exported.metadata, precision, threads
        return Contestant(name, precision, openvino_file, given)
    return Contestant(name, precision, engine, (folder, options_of(precision, settings)), words_known=True)


def onnx_file(path: Path, threads: int | None, parallel: bool) -> Way:
    """An exported file in ONNX Runtime on the processor."""
    elmo = OnnxElmo(path, session_options=session_options(threads, parallel))

    def embed(sentences: Sentences) -> list[Any]:
        return elmo.embed(sentences, batch_size=len(sentences))

    return Way(embed, embed)


def session_options(threads: int | None, parallel: bool) -> Any:
    """ONNX Runtime's options as `OnnxElmo` makes them, or with two branches of the graph running at the same time."""
    options = open_session.options_of(None, threads)
    if parallel:
        import onnxruntime

        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        options.inter_op_num_threads = min(2, options.intra_op_num_threads)
        options.intra_op_num_threads = max(1, options.intra_op_num_threads // 2)
    return options


def openvino_file(path: Path, metadata: Metadata, precision: str, threads: int | None) -> Way:
    """An exported float32 file in OpenVINO, which may compute in bfloat16."""
    try:
        from flashelmo.engine.cpu.openvino import core, has_bf16
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino", "the exported file in OpenVINO") from error

    if precision == "bf16" and not has_bf16():
        raise FlashElmoError("this processor has no bfloat16 products (AVX-512 BF16 or AMX)")
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": threads or 0,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
    }
    try:
        request = core().compile_model(core().read_model(str(path)), "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise FlashElmoError(f"OpenVINO cannot run the file: {first_line(error)}") from error
    speller = Speller(metadata.config, metadata.lexicon)

    def embed(sentences: Sentences) -> list[Array]:
        request.infer(pad(sentences, speller, metadata), share_inputs=True)
        layers = [request.get_tensor(f"hidden_states.{layer}").data for layer in metadata.layers]
        return [np.stack([layer[row, : len(sentence)] for layer in layers]) for row, sentence in enumerate(sentences)]

    return Way(embed, embed)
