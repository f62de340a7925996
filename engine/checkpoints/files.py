"""Files and folders of checkpoints: JSON with clear errors, archives, folders that appear whole or not at all."""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flashelmo.engine.errors import FlashElmoError

# What a folder may hold to be replaced: files that are written here, and nothing of the user's.
MODEL_FILES = {"config.json", "model.safetensors", "lexicon.json", "options.json", "weights.hdf5", "vocab.txt"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; FlashElmoError where it cannot be read or is something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlashElmoError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise FlashElmoError(f"{path}: expected JSON: {error}") from None
    if not isinstance(values, dict):
        raise FlashElmoError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return values


@contextmanager
def new_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes when it does not."""
    if folder.exists() and not overwrite:
        raise FlashElmoError(f"{folder}: exists already; pass --overwrite (overwrite=True) to replace it")
    if folder.exists() and not folder.is_dir():
        raise FlashElmoError(f"{folder}: expected a folder to replace, found a file")
    if folder.exists() and (others := sorted({path.name for path in folder.iterdir()} - MODEL_FILES)):
        raise FlashElmoError(f"{folder}: expected a model's folder to replace, found other files in it: {others[0]}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise FlashElmoError(f"{folder}: cannot be written: {error.strerror or error}") from None
    try:
        temporary.chmod(0o755)
        yield temporary
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            folder.rename(old / folder.name)
            temporary.rename(folder)
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
    except OSError as error:
        raise FlashElmoError(f"{folder}: cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def extracted(archive: Path) -> Iterator[Path]:
    """The files of a zip or tar archive in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="flashelmo.") as folder:
        try:
            if zipfile.is_zipfile(archive):
                with zipfile.ZipFile(archive) as file:
                    file.extractall(folder)
            else:
                with tarfile.open(archive) as tar:
                    tar.extractall(folder, filter="data")
        except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError) as error:
            raise FlashElmoError(f"{archive}: expected a whole zip or tar archive: {error}") from None
        yield Path(folder)
