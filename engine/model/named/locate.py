"""Which path a model's name stands for."""

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
    """The folder of the model that comes with the package, with which is embedded where none is named."""
    return Path(__file__).resolve().parents[1] / TINY


def locate(path: Path) -> Path:
    """A model's path as it is given, or the folder of the model of that name, which is downloaded if it is not there.

    "tiny" comes with the package.

    What exists is a path, whatever it is called.

    Raises:
        FlashElmoError: neither is there; the download fails.
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
    """The path of a model from what a caller gives as the argument `name`: see `path_of` and `locate`.

    With None the one that comes with the package.
    """
    return bundled() if value is None else locate(path_of(name, value))
