"""`flashelmo convert` and `flashelmo info`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from flashelmo.engine.arguments import path_of
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.manylangs import PICKLES
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.system.files import is_same, sha256_of


def convert(
    source: str | Path, destination: str | Path, *, options_file: str | Path | None = None, overwrite: bool = False
) -> ElmoModel:
    """Read a model of any format and write it in flashelmo's own; return the model.

    Raises:
        FlashElmoError: as for `load_model` and `write_native`; a model is never replaced by its own conversion.
    """
    destination = path_of("destination", destination)
    original = Path(os.path.realpath(path_of("source", source)))
    final = Path(os.path.realpath(destination))
    if any(is_same(final, each) for each in (original, *original.parents)):
        raise FlashElmoError(f"{destination}: expected another folder than that of the model to convert")
    model = load_model(source, options_file)
    write_native(model, destination, overwrite=overwrite)
    return model


def describe(model: ElmoModel) -> dict[str, Any]:
    """Return a model's description, ready for JSON: format, dimensions, parameters, and its files' sizes and sha256."""
    config = model.config
    dimensions = config.to_dict()
    n_lstms = dimensions.pop("n_layers")
    inputs = [name for name, size in (("characters", config.character_size), ("words", config.word_size)) if size]
    return {
        "path": str(model.path),
        "format": model.format,
        "source_format": model.source_format or model.format,
        "family": config.family,
        "parameters": model.weights.n_parameters,
        "layers": n_lstms + 1,  # counted as in vectors: the characters' layer, then each LSTM's
        "lstm_layers": n_lstms,
        "output_size": config.output_size,
        "inputs": inputs,
        **dimensions,
        "files": [_describe_file(path) for path in _files(model.path)],
    }


def _files(path: Path) -> list[Path]:
    """Return the weights files; none for a model that was not read from files."""
    return [file for file in ([path / name for name in PICKLES] if path.is_dir() else [path]) if file.is_file()]


def _describe_file(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
