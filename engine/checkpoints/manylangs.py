"""ELMoForManyLangs' folders: two pickled state dicts, two lexicons, and the configuration that trained them.

Read as elmoformanylangs' `Embedder` does (elmoformanylangs/elmo.py, modules/), but never unpickling code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from flashelmo.engine.checkpoints.files import read_json
from flashelmo.engine.config import ElmoConfig
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.weights import Array, ElmoModel, ElmoWeights, Lexicon, check_tensors, expected_shapes

FORMAT = "manylangs"
UNKNOWN = "<oov>"
# What the published models were trained with (elmoformanylangs/configs/cnn_50_100_512_4096_sample.json).
PUBLISHED_CONFIGURATION: dict[str, Any] = {
    "encoder": {
        "name": "elmo",
        "projection_dim": 512,
        "cell_clip": 3,
        "proj_clip": 3,
        "dim": 4096,
        "n_layers": 2,
    },
    "token_embedder": {
        "name": "cnn",
        "activation": "relu",
        "filters": [[1, 32], [2, 32], [3, 64], [4, 128], [5, 256], [6, 512], [7, 1024]],
        "n_highway": 2,
        "word_dim": 100,
        "char_dim": 50,
        "max_characters_per_token": 50,
    },
}


def read_manylangs(folder: Path) -> ElmoModel:
    """Read a model's folder.

    Raises:
        FlashElmoError: naming the file and what is wrong in it, a pickle that holds code among them.
        MissingExtraError: PyTorch, which reads the pickles, is not installed.
    """
    options, source = _read_configuration(folder)
    words, characters = (_read_lexicon(folder / name) for name in ("word.dic", "char.dic"))
    config = _config(options, source, words, characters)
    for name, lexicon, size in (("word.dic", words, config.word_size), ("char.dic", characters, config.character_size)):
        if size and UNKNOWN not in lexicon:
            raise FlashElmoError(f"{folder / name}: expected the token {UNKNOWN}, found none among {len(lexicon)}")
    stored = _load_pickle(folder / "token_embedder.pkl") | _load_pickle(folder / "encoder.pkl")
    weights = ElmoWeights.from_named_tensors(_canonical_tensors(stored, config, folder), config)
    check_tensors(weights, config, str(folder))
    return ElmoModel(config, weights, Lexicon(characters, words), folder, FORMAT)


def _read_configuration(folder: Path) -> tuple[Mapping[str, Any], Path]:
    """The configuration that config.json points to, often by a path on its author's machine."""
    arguments = read_json(folder / "config.json")
    given = str(arguments.get("config_path", ""))
    for candidate in (folder / given, folder / PureWindowsPath(given).name):  # splits at / and \\ alike
        if given and candidate.is_file():
            return read_json(candidate), candidate
    if "encoder" in arguments and "token_embedder" in arguments:
        return arguments, folder / "config.json"
    return PUBLISHED_CONFIGURATION, folder / "config.json"


def _config(
    options: Mapping[str, Any], source: Path, words: Mapping[str, int], characters: Mapping[str, int]
) -> ElmoConfig:
    try:
        encoder, embedder = options["encoder"], options["token_embedder"]
        for part, kind, found in (("encoder", "elmo", encoder["name"]), ("token_embedder", "cnn", embedder["name"])):
            if str(found).lower() != kind:
                raise FlashElmoError(f"{source}: {part}: expected the name {kind!r}, found {found!r}")
        values = {
            "family": "manylangs",
            "cell_size": encoder["dim"],
            "projection_size": encoder["projection_dim"],
            "n_layers": encoder["n_layers"],
            "cell_clip": encoder.get("cell_clip") or None,
            "projection_clip": encoder.get("proj_clip") or None,
            "skip_connections": True,
            "filters": embedder["filters"] if embedder["char_dim"] else [],
            "n_highway": embedder["n_highway"] if embedder["char_dim"] else 0,
            "activation": embedder["activation"],
            "character_size": embedder["char_dim"],
            "n_characters": 1 + max(characters.values(), default=-1) if embedder["char_dim"] else 0,
            "max_characters": embedder["max_characters_per_token"],
            "word_size": embedder["word_dim"],
            "n_words": 1 + max(words.values(), default=-1) if embedder["word_dim"] else 0,
        }
    except KeyError as error:
        raise FlashElmoError(f"{source}: key {error} is missing") from None
    except TypeError as error:
        raise FlashElmoError(f"{source}: a value has the wrong type: {error}") from None
    return ElmoConfig.from_dict(values, str(source))


def _read_lexicon(path: Path) -> dict[str, int]:
    """`token<TAB>row` lines; a line of one field stands for the ideographic space."""
    if not path.exists():
        return {}
    lexicon = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise FlashElmoError(f"{path}: expected UTF-8: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        token, tab, row = line.strip("\r").rpartition("\t")
        try:
            lexicon[token if tab and token else "\u3000"] = int(row)
        except ValueError:
            raise FlashElmoError(f"{path}: line {number}: expected token, tab, number; found {line!r}") from None
    return lexicon


def _load_pickle(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch", f"reading {path}") from error
    import pickle

    if not path.exists():
        raise FlashElmoError(f"{path}: the file is missing")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise FlashElmoError(f"{path}: expected a pickle of tensors alone, found something else: {reason}") from None
    except (OSError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FlashElmoError(f"{path}: expected a PyTorch state dict: {reason}") from None
    if not isinstance(stored, dict):
        raise FlashElmoError(f"{path}: expected a PyTorch state dict, found {type(stored).__name__}")
    return {name: value for name, value in stored.items() if isinstance(value, torch.Tensor)}


def _canonical_tensors(stored: Mapping[str, Any], config: ElmoConfig, folder: Path) -> dict[str, Array]:
    def take(name: str) -> Array:
        if name not in stored:
            raise FlashElmoError(f"{folder}: tensor {name} is missing")
        array: Array = stored[name].float().numpy()
        return array

    tensors = {}
    if config.word_size:
        tensors["word_embedding"] = take("word_emb_layer.embedding.weight")
    if config.character_size:
        tensors["character_embedding"] = take("char_emb_layer.embedding.weight")
    for i in range(len(config.filters)):
        tensors[f"convolutions.{i}.weight"] = take(f"convolutions.{i}.weight").transpose(2, 1, 0)
        tensors[f"convolutions.{i}.bias"] = take(f"convolutions.{i}.bias")
    for k in range(config.n_highway):
        for kind in ("weight", "bias"):
            transform, keep = np.split(take(f"highways._layers.{k}.{kind}"), 2)
            tensors[f"highways.{k}.transform.{kind}"] = transform.T
            tensors[f"highways.{k}.gate.{kind}"] = -keep.T  # 1 - sigmoid(x) = sigmoid(-x)
    tensors["projection.weight"] = take("projection.weight").T
    tensors["projection.bias"] = take("projection.bias")
    for layer in range(config.n_layers):
        for direction in ("forward", "backward"):
            theirs, ours = f"{direction}_layer_{layer}", f"lstm.{layer}.{direction}"
            tensors[f"{ours}.input_weight"] = _gates(take(f"{theirs}.input_linearity.weight"))
            tensors[f"{ours}.recurrent_weight"] = _gates(take(f"{theirs}.state_linearity.weight"))
            tensors[f"{ours}.bias"] = take(f"{theirs}.state_linearity.bias").reshape(4, -1)
            tensors[f"{ours}.projection"] = take(f"{theirs}.state_projection.weight").T
    if config.cell_size == config.projection_size:
        raise FlashElmoError(f"{folder}: expected an LSTM with a projection to a smaller size, found dim = projection_dim")
    assert tensors.keys() == expected_shapes(config).keys()
    return {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def _gates(weight: Array) -> Array:
    """[4C, P] -> [4, P, C]."""
    return weight.reshape(4, -1, weight.shape[1]).transpose(0, 2, 1)
