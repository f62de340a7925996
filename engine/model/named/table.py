"""The list of named models, and where they are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from flashelmo.engine.arguments import path_of
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.system.files import cache_folder

HOME = "FLASHELMO_HOME"  # the folder of the cache
OFFLINE = ("FLASHELMO_OFFLINE", "HF_HUB_OFFLINE")
RECORD = "download.json"  # beside a model's files: where they came from, and their checksums
LANGUAGES = "manylangs-"


@dataclass(frozen=True)
class NamedFile:
    """A file that is downloaded.

    Attributes:
        url: where its authors publish it.
        sha256: of its bytes; None where its authors publish none.
    """

    url: str
    sha256: str | None = None


@dataclass(frozen=True)
class NamedModel:
    """A published model.

    Attributes:
        name: what users call it.
        about: what it is, in one line.
        page: its authors' page.
        format: "bilm" (HDF5 weights and options), or "manylangs" (ELMoForManyLangs' pickles, which PyTorch reads).
        language: an ISO 639 code, or "proteins".
        license: of the repository that publishes it; None if its authors state none.
        layers, output_size, cell_size: its dimensions; None if they are not published.
        files: by the names they get; a `.zip` is unpacked.
    """

    name: str
    about: str
    page: str
    format: str
    language: str
    license: str | None
    layers: int
    output_size: int | None
    cell_size: int | None
    files: Mapping[str, NamedFile]


@cache
def named_models() -> dict[str, NamedModel]:
    """Return all named models, in the order of the list."""
    rows = json.loads(files(__package__).joinpath("models.json").read_text(encoding="utf-8"))
    models = [
        NamedModel(**{**row, "files": {name: NamedFile(**file) for name, file in row["files"].items()}}) for row in rows
    ]
    return {model.name: model for model in models}


def find_named(name: str) -> NamedModel:
    """Return the model of this name; FlashElmoError, which lists the names, if there is none."""
    if name not in named_models():
        raise FlashElmoError(f"{name}: no model's name; there are {all_names()}")
    return named_models()[name]


def home() -> Path:
    """Return the folder of downloads: $FLASHELMO_HOME, $HF_HOME/flashelmo, or the cache folder of this user.

    Raises:
        FlashElmoError: there is none of them.
    """
    if given := os.environ.get(HOME):
        return path_of(HOME, given)
    if given := os.environ.get("HF_HOME"):
        return path_of("HF_HOME", given) / "flashelmo"
    folder = cache_folder()
    if folder is None:
        raise FlashElmoError(f"{HOME}: expected the folder of downloaded models, as this user has no home folder")
    return folder


def offline() -> str | None:
    """Return the environment variable that forbids downloads; None if none does."""
    off = ("", "0", "false", "no", "off")
    return next((name for name in OFFLINE if os.environ.get(name, "").lower() not in off), None)


def all_names() -> str:
    """Return all names as text, with those of many languages as one."""
    others = [name for name in named_models() if not name.startswith(LANGUAGES)]
    languages = [name.removeprefix(LANGUAGES) for name in named_models() if name.startswith(LANGUAGES)]
    return f"tiny, {', '.join(others)}, {LANGUAGES}LANGUAGE ({', '.join(languages)})"
