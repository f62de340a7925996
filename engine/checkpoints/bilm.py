"""bilm-tf's and AllenNLP's weights: one HDF5 file and an options.json.

Names and shapes as bilm-tf's `dump_weights` writes them (bilm/training.py) and AllenNLP's `_ElmoBiLm` reads them
(allennlp/modules/elmo.py). NLPL archives, SeqVec and published AllenNLP files are all of this kind.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flashelmo.engine.checkpoints.files import new_folder, read_json
from flashelmo.engine.config import ElmoConfig
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.weights import (
    DIRECTIONS,
    Array,
    ElmoModel,
    ElmoWeights,
    Lexicon,
    check_tensors,
    expected_shapes,
)

if TYPE_CHECKING:
    import h5py

FORMAT = "bilm-hdf5"
N_CHARACTERS = 262  # 256 bytes, six specials less the one id 0 takes: what every model is trained with, plus id 0
GATE_ORDER = (0, 2, 1, 3)  # canonical i, f, g, o from bilm-tf's i, j, f, o and back


def read_bilm(weights_file: Path, options_file: Path | None = None) -> ElmoModel:
    """Read a weights file and its options.

    Args:
        weights_file: HDF5.
        options_file: JSON; where absent, `options.json` or the only `*options*.json` beside the weights.

    Raises:
        FlashElmoError: naming the file, the key or the tensor, what was expected and what was found.
    """
    import h5py

    options_file = options_file or find_options(weights_file)
    options = read_json(options_file)
    try:
        with h5py.File(weights_file, "r") as file:
            config = read_options(options, file, options_file)
            names = hdf5_names(config)
            tensors = {name: _read_tensor(file, name, names, config, weights_file) for name in expected_shapes(config)}
    except OSError as error:
        raise FlashElmoError(f"{weights_file}: expected a readable HDF5 file: {error}") from None
    weights = ElmoWeights.from_named_tensors(tensors, config)
    check_tensors(weights, config, str(weights_file))
    lexicon = Lexicon({}, _read_vocabulary(weights_file.parent)) if config.word_size else None
    return ElmoModel(config, weights, lexicon, weights_file, FORMAT)


def write_bilm(model: ElmoModel, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write `weights.hdf5` and `options.json` (and `vocab.txt`) that bilm-tf and AllenNLP read."""
    import h5py

    config = model.config
    if config.family != "bilm":
        raise FlashElmoError(f"{folder}: expected a model of the bilm family to write, found {config.family}")
    with new_folder(Path(folder), overwrite) as target:
        (target / "options.json").write_text(json.dumps(write_options(config), indent=2) + "\n", encoding="utf-8")
        names = hdf5_names(config)
        with h5py.File(target / "weights.hdf5", "w") as file:
            stored: dict[str, list[Array]] = {}
            for name, tensor in model.weights.named_tensors():
                path, _, to_file = names[name]
                stored.setdefault(path, []).append(to_file(tensor))
            for path, parts in stored.items():  # an LSTM's matrix is stored as one: input rows, then recurrent rows
                file.create_dataset(path, data=np.concatenate(parts), dtype="float32")
        if model.lexicon is not None and model.lexicon.words:
            (target / "vocab.txt").write_text("\n".join(model.lexicon.words) + "\n", encoding="utf-8")


def find_options(weights_file: Path) -> Path:
    """The options beside a weights file: named after it as AllenNLP's are, `options.json`, or the only candidate."""
    folder = weights_file.parent
    named = folder / weights_file.name.replace("weights", "options").replace(weights_file.suffix, ".json")
    for candidate in (named, folder / "options.json"):
        if candidate.is_file():
            return candidate
    candidates = sorted(folder.glob("*options*.json"))
    if len(candidates) != 1:
        found = ", ".join(path.name for path in candidates) or "none"
        raise FlashElmoError(f"{weights_file}: expected one options file beside it (options.json), found {found}")
    return candidates[0]


def read_options(options: Mapping[str, Any], file: h5py.File, source: Path) -> ElmoConfig:
    """options.json to a configuration; training keys are ignored. The file's tensors say how many characters."""
    lstm = _get(options, "lstm", source, dict)
    characters = options.get("char_cnn") or {}
    size = {}
    if "char_embed" in file or characters:
        characters = _get(options, "char_cnn", source, dict)
        if "char_embed" not in file:
            raise FlashElmoError(f"{file.filename}: tensor char_embed is missing, which {source} asks for")
        size = {
            "character_size": _get(_get(characters, "embedding", source, dict), "dim", source, int),
            "n_characters": file["char_embed"].shape[0] + 1,
        }
    elif "embedding" in file:
        rows, columns = file["embedding"].shape
        size = {"word_size": columns, "n_words": rows + 1}
    else:
        raise FlashElmoError(f"{file.filename}: expected a tensor char_embed or embedding, found {sorted(file)}")
    values = {
        "family": "bilm",
        "cell_size": _get(lstm, "dim", source, int),
        "projection_size": lstm.get("projection_dim") or _get(lstm, "dim", source, int),
        "n_layers": _get(lstm, "n_layers", source, int),
        "cell_clip": lstm.get("cell_clip") or None,
        "projection_clip": lstm.get("proj_clip") or None,
        "skip_connections": bool(lstm.get("use_skip_connections", False)),
        "filters": _get(characters, "filters", source, list) if characters else [],
        "n_highway": characters.get("n_highway") or 0,
        "activation": characters.get("activation", "relu"),
        "max_characters": characters.get("max_characters_per_token", 50),
        "character_size": 0,
        "n_characters": 0,
        **size,
    }
    config = ElmoConfig.from_dict(values, str(source))
    expected = characters.get("n_characters", N_CHARACTERS)
    if config.character_size and not config.n_characters - 1 <= expected <= config.n_characters:
        found = f"{source} says n_characters {expected}"
        raise FlashElmoError(f"{file.filename}: tensor char_embed has {config.n_characters - 1} rows, but {found}")
    return config


def write_options(config: ElmoConfig) -> dict[str, Any]:
    """The inverse of `read_options`."""
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


# Path in the file, how the stored tensor becomes the canonical one, and how that becomes the stored one.
Conversion = tuple[str, Callable[[Array], Array], Callable[[Array], Array]]


def hdf5_names(config: ElmoConfig) -> dict[str, Conversion]:
    """Where each canonical tensor lies in the file, and how it is turned."""
    names: dict[str, Conversion] = {
        "character_embedding": ("char_embed", _add_zero_row, _drop_row),
        "word_embedding": ("embedding", _add_zero_row, _drop_row),
        "projection.weight": ("CNN_proj/W_proj", _same, _same),
        "projection.bias": ("CNN_proj/b_proj", _same, _same),
    }
    for i in range(len(config.filters)):
        names[f"convolutions.{i}.weight"] = (f"CNN/W_cnn_{i}", lambda t: t[0], lambda t: t[None])
        names[f"convolutions.{i}.bias"] = (f"CNN/b_cnn_{i}", _same, _same)
    for k in range(config.n_highway):
        for ours, theirs in (("transform", "transform"), ("gate", "carry")):
            names[f"highways.{k}.{ours}.weight"] = (f"CNN_high_{k}/W_{theirs}", _same, _same)
            names[f"highways.{k}.{ours}.bias"] = (f"CNN_high_{k}/b_{theirs}", _same, _same)
    size = config.projection_size
    for direction, name in enumerate(DIRECTIONS):
        for layer in range(config.n_layers):
            ours = f"lstm.{layer}.{name}"
            theirs = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            names[f"{ours}.input_weight"] = (f"{theirs}/W_0", lambda t: _split_gates(t[:size]), _join_gates)
            names[f"{ours}.recurrent_weight"] = (f"{theirs}/W_0", lambda t: _split_gates(t[size:]), _join_gates)
            names[f"{ours}.bias"] = (f"{theirs}/B", _read_bias, _write_bias)
            names[f"{ours}.projection"] = (f"{theirs}/W_P_0", _same, _same)
    return names


def _read_tensor(file: h5py.File, name: str, names: dict[str, Conversion], config: ElmoConfig, source: Path) -> Array:
    path, from_file, to_file = names[name]
    expected = list(to_file(np.broadcast_to(np.float32(0), expected_shapes(config)[name])).shape)
    if path.endswith("W_0"):
        expected[0] = 2 * config.projection_size
    if path not in file:
        raise FlashElmoError(f"{source}: tensor {path} is missing, expected shape {tuple(expected)}")
    if file[path].shape != tuple(expected):
        raise FlashElmoError(f"{source}: tensor {path} has shape {file[path].shape}, expected {tuple(expected)}")
    try:
        return np.ascontiguousarray(from_file(file[path][()].astype(np.float32, copy=False)))
    except OSError as error:
        raise FlashElmoError(f"{source}: tensor {path} cannot be read: {error}") from None


def _same(tensor: Array) -> Array:
    return tensor


def _add_zero_row(tensor: Array) -> Array:
    return np.concatenate([np.zeros_like(tensor[:1]), tensor])


def _drop_row(tensor: Array) -> Array:
    return tensor[1:]


def _split_gates(tensor: Array) -> Array:
    """[P, 4C] in the order i, j, f, o -> [4, P, C] in the order i, f, g, o."""
    return np.stack([np.split(tensor, 4, axis=1)[gate] for gate in GATE_ORDER])


def _join_gates(tensor: Array) -> Array:
    return np.concatenate([tensor[gate] for gate in GATE_ORDER], axis=1)


def _read_bias(tensor: Array) -> Array:
    """[4C] -> [4, C]. TensorFlow's LSTMCell adds 1 to the forget gate when it runs."""
    bias = tensor.reshape(4, -1)[list(GATE_ORDER)]
    bias[1] += 1.0
    return bias


def _write_bias(tensor: Array) -> Array:
    bias = np.array(tensor)
    bias[1] -= 1.0
    return bias[list(GATE_ORDER)].reshape(-1)


def _read_vocabulary(folder: Path) -> dict[str, int]:
    """Words of a word model, one a line; row 0 is no word. Empty where no vocabulary lies beside the weights."""
    for path, open_file in ((folder / "vocab.txt", open), (folder / "vocab.txt.gz", gzip.open)):
        if path.is_file():
            with open_file(path, "rt", encoding="utf-8") as file:
                return {line.rstrip("\n"): row for row, line in enumerate(file, start=1)}
    return {}


def _get(options: Mapping[str, Any], key: str, source: Path, kind: type) -> Any:
    if key not in options:
        raise FlashElmoError(f"{source}: key {key!r} is missing, found {sorted(options)}")
    value = options[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise FlashElmoError(f"{source}: key {key!r}: expected {kind.__name__}, found {value!r}")
    return value
