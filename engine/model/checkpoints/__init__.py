"""Readers of every published weight format. The format is recognised by a path's contents, never by its name."""

from __future__ import annotations

import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

from flashelmo.engine.arguments import path_of
from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.model.checkpoints.files import (
    MODEL_FILES,
    check_regular,
    extracted,
    opened_tar,
    read_json,
)
from flashelmo.engine.model.named.locate import locate
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.system.files import is_same

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def load_model(path: str | Path, options_file: str | Path | None = None) -> ElmoModel:
    """Load a model from a folder, a zip or tar archive, or a weights file.

    Args:
        path: bilm-tf's or AllenNLP's HDF5, an NLPL archive or its folder, SeqVec's folder, an ELMoForManyLangs folder
            or archive, or what `flashelmo convert` wrote; or, if no such path exists, the name of a published model,
            which is downloaded on first use.
        options_file: the options of an HDF5 file, if they are not beside it.

    Raises:
        FlashElmoError: one line that names the file, and the missing or wrong tensor or key.
        MissingExtraError: reading ELMoForManyLangs' pickles without PyTorch; downloading without what that needs.
    """
    path = path_of("path", path)
    options = None if options_file is None else path_of("options_file", options_file)
    try:
        path = locate(path)
        if not path.exists():
            raise FlashElmoError(f"{path}: no such file or folder")
        check_regular(path)
        model = _load_folder(path, options) if path.is_dir() else _load_file(path, options)
    except OSError as error:  # permissions, names that are too long, failing disks
        raise FlashElmoError(f"{error.filename or path}: cannot be read: {reason_of(error)}") from None
    of_model = options is None or (options.is_file() and is_model_file(options, path, None))
    if not of_model and model.format != "bilm-hdf5":
        found = f"{path} in the format {model.format}, which needs none"
        raise FlashElmoError(f"{options}: expected HDF5 weights with an options file, found {found}")
    return model


def is_model_file(file: Path, path: Path, options: Path | None) -> bool:
    """Whether an existing file is part of the model that `load_model` reads from the path and the options file.

    In a model's folder, or beside its weights, these are files with the names of models' files, and all weights.
    """
    if any(other is not None and other.is_file() and file.samefile(other) for other in (path, options)):
        return True
    folder = (path if path.is_dir() else path.parent).resolve()
    if not any(is_same(folder, parent) for parent in file.resolve().parents):
        return False
    named_so = file.name in MODEL_FILES or file.name.endswith((".json", ".pkl", ".dic", ".txt.gz"))
    return named_so or (_starts_with(file, HDF5_SIGNATURE) and _has_lstm(file))


def _load_folder(folder: Path, options: Path | None) -> ElmoModel:
    from flashelmo.engine.model.checkpoints.bilm import read_bilm
    from flashelmo.engine.model.checkpoints.manylangs import PICKLES, read_manylangs
    from flashelmo.engine.model.checkpoints.native import read_native

    config = folder / "config.json"
    if config.is_file() and "format_version" in read_json(config):
        return read_native(folder)
    if config.is_file() and any((folder / name).exists() for name in PICKLES):
        return read_manylangs(folder)
    weights = [path for path in sorted(folder.iterdir()) if path.is_file() and _starts_with(path, HDF5_SIGNATURE)]
    if len(weights) > 1:  # vectors may be beside the weights; only weights hold an LSTM
        weights = [path for path in weights if _has_lstm(path)]
    if len(weights) > 1:
        raise FlashElmoError(f"{folder}: expected one model, found {', '.join(path.name for path in weights)}")
    if weights:
        return read_bilm(weights[0], options)
    inner = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))]
    if len(inner) == 1:  # archives often hold one folder
        return _load_folder(inner[0], options)
    expected = "HDF5 weights with options.json, config.json with model.safetensors, or config.json with encoder.pkl"
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise FlashElmoError(f"{folder}: expected a model ({expected}), found {found}")


def _load_file(path: Path, options: Path | None) -> ElmoModel:
    from flashelmo.engine.model.checkpoints.bilm import read_bilm
    from flashelmo.engine.model.checkpoints.native import is_safetensors, read_native

    if _starts_with(path, HDF5_SIGNATURE):
        return read_bilm(path, options)
    if is_archive(path):
        return _load_archive(path, options)
    if is_safetensors(path):
        return read_native(path.parent, path)
    if path.suffix in (".json", ".pkl", ".dic"):
        raise FlashElmoError(f"{path}: expected a model's folder, archive or weights; is it the folder {path.parent}?")
    raise FlashElmoError(f"{path}: expected HDF5 weights, safetensors, or a zip or tar archive, found none of them")


def _load_archive(path: Path, options: Path | None) -> ElmoModel:
    with extracted(path) as folder:
        try:
            model = _load_folder(folder, options)
        except FlashElmoError as error:  # which names the files where they were extracted
            error.args = (str(error).replace(str(folder), str(path)),)
            raise
    return replace(model, path=path)


def _starts_with(path: Path, signature: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(signature)) == signature


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive of a model's files."""
    try:
        if not zipfile.is_zipfile(path):
            with opened_tar(path):
                return True
        with zipfile.ZipFile(path) as archive:  # PyTorch's files are zip archives too
            return not any(name.endswith("/data.pkl") for name in archive.namelist())
    except tarfile.ReadError:
        return False
    except Exception:  # damaged; `extracted` says how
        return True


def _has_lstm(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return "RNN_0" in list(file)  # `in file` would open a link's target
    except Exception:  # damaged
        return True  # the reader will say what is wrong with it
