"""A model and the files exported from it: what every contestant of a run loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flashelmo.benchmarks.onnx.settings import FILE_PRECISIONS
from flashelmo.benchmarks.settings import Subject
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.initialize import random_model
from flashelmo.export.build import build_onnx
from flashelmo.export.metadata import Metadata


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


def export(name: str, seed: int, folder: Path) -> Exported:
    """A model from a path, or a random one of a preset: in the native format and in all precisions of ONNX."""
    path = Path(name)
    model = load_model(path) if path.exists() else random_model(name, seed)
    native, here = folder / path.name, folder / f"{path.name} onnx"
    write_native(model, native)
    here.mkdir()
    files: dict[str, Path] = {precision: here / f"{precision}.onnx" for precision in FILE_PRECISIONS}
    metadata = [build_onnx(model, files[precision], precision=precision) for precision in FILE_PRECISIONS]
    return Exported(Subject(path.name, native, model.config), files, metadata[0], here)
