"""Which path a model's name stands for."""

from __future__ import annotations

import re
from pathlib import Path

from flashelmo.engine.arguments import path_of
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.named.table import RECORD, all_names, home, named_models

NAME = re.compile(r"[A-Za-z0-9]+([._-][A-Za-z0-9.]+)*")
FILES = (".hdf5", ".h5", ".json", ".zip", ".safetensors")  # suffixes that no name has


def locate(path: Path) -> Path:
    """A model's path as it is given, or the folder of the model of that name, which is downloaded if it is not there.

    What exists is a path, whatever it is called.

    Raises:
        FlashElmoError: neither is there; the download fails.
        MissingExtraError: the packages for downloads are not installed.
    """
    name = str(path)
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
    """The path of a model from what a caller gives as the argument `name`: see `path_of` and `locate`."""
    return locate(path_of(name, value))
