"""bilm-tf's and AllenNLP's options.json, and the configuration it describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.files import read_json
from flashelmo.engine.model.config import ElmoConfig

N_CHARACTERS = 262  # 256 bytes, 5 specials, and the zero row of id 0, which the files leave out


def find_options(weights_file: Path) -> Path:
    """Find the options beside a weights file: named after it, as AllenNLP's are, `options.json`, or by their contents.

    Raises:
        FlashElmoError: there is no such file, or several.
    """
    folder = weights_file.parent
    named = folder / f"{weights_file.stem.replace('weights', 'options')}.json"
    for candidate in (named, folder / "options.json"):
        if candidate.is_file() and candidate != weights_file:
            return candidate
    candidates = [path for path in sorted(folder.glob("*.json")) if path != weights_file and _holds_options(path)]
    if len(candidates) != 1:
        found = ", ".join(path.name for path in candidates) or "none"
        raise FlashElmoError(f"{weights_file}: expected one options file beside it (options.json), found {found}")
    return candidates[0]


def _holds_options(path: Path) -> bool:
    try:
        return "lstm" in read_json(path)
    except FlashElmoError:
        return False


def read_options(options: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], source: Path) -> ElmoConfig:
    """Return the configuration in options.json; keys about training are ignored.

    Args:
        options: the contents of the JSON file `source`.
        shapes: of the weights file's tensors by name: they tell whether it is a word model, and its number of words.

    Raises:
        FlashElmoError: a key is missing, or a value has the wrong type.
    """
    cell_size = _get(options, "lstm.dim", source, int)
    lstm = options["lstm"]
    projection_size = lstm.get("projection_dim") or cell_size
    has_words = "embedding" in shapes and "char_embed" not in shapes  # their options may still describe characters
    inputs = _words(shapes["embedding"], projection_size) if has_words else _characters(options, source)
    values = {
        "family": "bilm",
        "cell_size": cell_size,
        "projection_size": projection_size,
        "n_layers": _get(options, "lstm.n_layers", source, int) if "n_layers" in lstm else 1,
        "cell_clip": lstm.get("cell_clip") or None,
        "projection_clip": lstm.get("proj_clip") or None,
        "skip_connections": lstm.get("use_skip_connections") or False,
        **inputs,
    }
    return ElmoConfig.from_dict(values, str(source))


def _characters(options: Mapping[str, Any], source: Path) -> dict[str, Any]:
    size = _get(options, "char_cnn.embedding.dim", source, int)
    characters = options["char_cnn"]
    if characters.get("n_characters", N_CHARACTERS) not in (N_CHARACTERS - 1, N_CHARACTERS):
        found = characters["n_characters"]
        raise FlashElmoError(f"{source}: key 'char_cnn.n_characters': expected 261 (training) or 262, found {found!r}")
    return {
        "filters": _get(options, "char_cnn.filters", source, list),
        "n_highway": characters.get("n_highway") or 0,
        "activation": characters.get("activation", "relu"),
        "character_size": size,
        "n_characters": N_CHARACTERS,
        "max_characters": characters.get("max_characters_per_token", 50),
    }


def _words(shape: tuple[int, ...], size: int) -> dict[str, Any]:
    return {
        "filters": [],
        "n_highway": 0,
        "activation": "relu",
        "character_size": 0,
        "n_characters": 0,
        "max_characters": 50,
        "word_size": size,
        "n_words": shape[0] + 1 if shape else 0,
    }


def write_options(config: ElmoConfig) -> dict[str, Any]:
    """Do the inverse of `read_options`."""
    options: dict[str, Any] = {
        "lstm": {
            "dim": config.cell_size,
            "projection_dim": config.projection_size,
            "n_layers": config.n_layers,
            "cell_clip": config.cell_clip,
            "proj_clip": config.projection_clip,
            "use_skip_connections": config.skip_connections,
        }
    }
    if config.character_size:
        options["char_cnn"] = {
            "embedding": {"dim": config.character_size},
            "filters": [list(pair) for pair in config.filters],
            "n_highway": config.n_highway,
            "n_characters": config.n_characters,
            "max_characters_per_token": config.max_characters,
            "activation": config.activation,
        }
    return options


def _get(options: Mapping[str, Any], key: str, source: Path, kind: type) -> Any:
    """Return options["a"]["b"] for the key "a.b"."""
    value: Any = options
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise FlashElmoError(f"{source}: key {key!r} is missing")
        value = value[part]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FlashElmoError(f"{source}: key {key!r}: expected {kind.__name__}, found {value!r}")
    return value
