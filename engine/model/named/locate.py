"""The path that a model's name stands for."""

from __future__ import annotations

import re
from pathlib import Path

from flashelmo.engine.arguments import path_of
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.named.table import RECORD, all_names, home, named_models

TINY = "tiny"  # the model that comes with the package
NAME = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9.]+)*")
FILES = (".hdf5", ".h5", ".json", ".zip", ".safetensors")  # suffixes that no name has


def bundled() -> Path:
    """Return the folder of the model that comes with the package, which is used where none is named."""
    return Path(__file__).resolve().parents[1] / TINY


def locate(path: Path) -> Path:
    """Return a model's path as given, or the folder of the model of that name, downloading it if necessary.

    "tiny" comes with the package.

    If a path exists, it is used, whatever its name.

    Raises:
        FlashElmoError: there is neither; or the download fails.
        MissingExtraError: the packages for downloads are not installed.
    """
    name = str(path)
    if name == TINY and not path.exists():
        return bundled()
    if path.exists() or not NAME.fullmatch(name) or path.suffix in FILES:
        return path
    if name not in named_models():
        raise FlashElmoError(f"{name}: no such file or folder, and no model's name; there are {all_names()}")
    folder = home() / name
    if not (folder / RECORD).is_file():
        from flashelmo.engine.model.named.download import download

        download(named_models()[name], home())
    return folder


def model_path(name: str, value: object) -> Path:
    """Return a model's path from the value that a caller gives as the argument `name`: see `path_of` and `locate`.

    With None, it is the model that comes with the package.
    """
    return bundled() if value is None else locate(path_of(name, value))
