"""A model and the files exported from it: what every contestant of a run loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flashelmo.benchmarks.subject import Subject, load, write
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.precision import PrecisionName
from flashelmo.export.build import build_onnx
from flashelmo.export.metadata import Metadata

FILE_PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Exported:
    """A model's files.

    Attributes:
        subject: its name, native format and dimensions.
        files: the exported ones, by precision.
        metadata: of the float32 file.
        folder: takes what else is written for it.
    """

    subject: Subject
    files: Mapping[str, Path]
    metadata: Metadata
    folder: Path


def export(name: str, seed: int, folder: Path, pool: Pool) -> Exported:
    """A model by its preset or path, in the native format and in all precisions of ONNX."""
    model = load(name, seed)
    subject = write(model, Path(name).name, folder, pool)
    here = folder / f"{subject.name} onnx"
    here.mkdir()
    files: dict[str, Path] = {precision: here / f"{precision}.onnx" for precision in FILE_PRECISIONS}
    metadata = [build_onnx(model, files[precision], precision=precision) for precision in FILE_PRECISIONS]
    return Exported(subject, files, metadata[0], here)
