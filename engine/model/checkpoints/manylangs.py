"""ELMoForManyLangs' folders: two pickled state dicts, two lexicons, and the configuration that trained them.

They are read as elmoformanylangs' `Embedder` does (elmoformanylangs/elmo.py, modules/), but without unpickling code.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from flashelmo.engine.arrays import Array, Arrays, Float32
from flashelmo.engine.errors import FlashElmoError, MissingExtraError, first_line
from flashelmo.engine.model.checkpoints.files import check_growth, check_regular, check_rows, check_zip, read_json
from flashelmo.engine.model.checkpoints.stored import Stored, check_stored, to_canonical
from flashelmo.engine.model.checkpoints.widened import widen
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, ElmoModel, ElmoWeights, Lexicon

if TYPE_CHECKING:
    import torch

FORMAT = "manylangs"
PICKLES = EMBEDDER, ENCODER = "token_embedder.pkl", "encoder.pkl"
NEEDED_WORDS = ("<oov>", "<bos>", "<eos>")
NEEDED_CHARACTERS = (*NEEDED_WORDS, "<bow>", "<eow>", "<pad>")
# How the published models were trained (elmoformanylangs/configs/cnn_50_100_512_4096_sample.json).
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
        FlashElmoError: names the file and what is wrong in it, such as a pickle that contains code.
        MissingExtraError: PyTorch, which reads the pickles, is not installed.
    """
    options, source = _read_configuration(folder)
    sizes = _sizes(options, source)
    words = _read_lexicon(folder / "word.dic", NEEDED_WORDS) if sizes["word_size"] else {}
    characters = _read_lexicon(folder / "char.dic", NEEDED_CHARACTERS) if sizes["character_size"] else {}
    files = {file: _load_pickle(folder / file) for file in PICKLES}
    for key, name, lexicon in (("n_words", "word", words), ("n_characters", "char", characters)):
        embedding = files[EMBEDDER].get(f"{name}_emb_layer.embedding.weight", np.empty((len(lexicon), 0)))
        sizes[key] = embedding.shape[0] if lexicon and embedding.ndim else 0
        check_rows(lexicon, sizes[key], folder / f"{name}.dic")
    config = ElmoConfig.from_dict(sizes, str(source))
    tensors: dict[str, Float32] = {}
    for file, stored in files.items():
        shapes = {name: tensor.shape for name, tensor in stored.items()}
        table = {k: s for k, s in stored_tensors(config).items() if k.startswith("lstm.") == (file == ENCODER)}
        check_stored(table.values(), shapes, folder / file, source.name)
        tensors |= {k: to_canonical(s, stored[s.name], folder / file) for k, s in table.items()}
    config, tensors = widen(config, tensors)
    return ElmoModel(
        config, ElmoWeights.from_named_tensors(tensors, config), Lexicon(characters, words), folder, FORMAT
    )


def stored_tensors(config: ElmoConfig) -> dict[str, Stored]:
    """Return how the state dicts store each canonical tensor. Their linear layers compute x @ weight.T."""
    size, cell, filters, inputs = config.projection_size, config.cell_size, config.n_filters, config.character_size
    table = {}
    if config.word_size:
        table["word_embedding"] = Stored("word_emb_layer.embedding.weight", (config.n_words, config.word_size))
    if config.character_size:
        table["character_embedding"] = Stored("char_emb_layer.embedding.weight", (config.n_characters, inputs))
    for i, (width, number) in enumerate(config.filters):
        theirs = f"convolutions.{i}"
        table[f"{theirs}.weight"] = Stored(f"{theirs}.weight", (number, inputs, width), lambda t: t.transpose(2, 1, 0))
        table[f"{theirs}.bias"] = Stored(f"{theirs}.bias", (number,))
    for k in range(config.n_highway):
        for kind, shape in (("weight", (2 * filters, filters)), ("bias", (2 * filters,))):
            theirs, upper, lower = f"highways._layers.{k}.{kind}", slice(0, filters), slice(filters, 2 * filters)
            table[f"highways.{k}.transform.{kind}"] = Stored(theirs, shape, np.transpose, rows=upper)
            table[f"highways.{k}.gate.{kind}"] = Stored(theirs, shape, _to_gate, rows=lower)
    table["projection.weight"] = Stored("projection.weight", (size, config.word_size + filters), np.transpose)
    table["projection.bias"] = Stored("projection.bias", (size,))
    for layer in range(config.n_layers):
        for direction in DIRECTIONS:
            theirs, ours = f"{direction}_layer_{layer}", f"lstm.{layer}.{direction}"
            for kind, name in (("input_weight", "input_linearity"), ("recurrent_weight", "state_linearity")):
                table[f"{ours}.{kind}"] = Stored(f"{theirs}.{name}.weight", (4 * cell, size), _split_gates)
            table[f"{ours}.bias"] = Stored(f"{theirs}.state_linearity.bias", (4 * cell,), lambda t: t.reshape(4, -1))
            table[f"{ours}.projection"] = Stored(f"{theirs}.state_projection.weight", (size, cell), np.transpose)
    return table


def _to_gate(keep: Float32) -> Float32:
    """Convert a gate: theirs keeps the input, ours weights the new part: 1 - sigmoid(x) = sigmoid(-x)."""
    return -keep.T


def _split_gates(weight: Float32) -> Float32:
    """Convert [4C, P] to [4, P, C]; the gates' order i, f, g, o is the canonical one."""
    return weight.reshape(4, -1, weight.shape[1]).transpose(0, 2, 1)


def _read_configuration(folder: Path) -> tuple[Mapping[str, Any], Path]:
    """Return the configuration that config.json refers to, often by a path on its author's machine, and its file.

    A path that leads out of the folder is not followed: the file of that name in the folder is used.
    """
    arguments = read_json(folder / "config.json")
    given = PureWindowsPath(str(arguments.get("config_path") or ""))  # splits at both / and \\
    inside = not given.anchor and ".." not in given.parts
    for candidate in (given.as_posix(), given.name) if inside else (given.name,):
        if (folder / candidate).is_file():
            return read_json(folder / candidate), folder / candidate
    if "encoder" in arguments and "token_embedder" in arguments:
        return arguments, folder / "config.json"
    return PUBLISHED_CONFIGURATION, folder / "cnn_50_100_512_4096_sample.json"


def _sizes(options: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Return the configuration except the lexicons' sizes."""
    try:
        encoder, embedder = options["encoder"], options["token_embedder"]
        for part, kind, found in (("encoder", "elmo", encoder["name"]), ("token_embedder", "cnn", embedder["name"])):
            if str(found).lower() != kind:
                raise FlashElmoError(f"{source}: {part}: expected the name {kind!r}, found {found!r}")
        return {
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
            "max_characters": embedder["max_characters_per_token"],
            "word_size": embedder["word_dim"],
        }
    except KeyError as error:
        raise FlashElmoError(f"{source}: key {error} is missing") from None
    except (TypeError, AttributeError) as error:
        raise FlashElmoError(f"{source}: a value has the wrong type: {error}") from None


def _read_lexicon(path: Path, needed: Sequence[str]) -> dict[str, int]:
    """Read `token<TAB>row` lines, stripped as the published reader does, which leaves the token U+3000 one field."""
    lexicon = {}
    try:
        check_regular(path)
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise FlashElmoError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise FlashElmoError(f"{path}: expected UTF-8: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        token, tab, row = line.strip().rpartition("\t")
        try:
            lexicon[token if tab else "\u3000"] = int(row)
        except ValueError:
            raise FlashElmoError(f"{path}: line {number}: expected token, tab, number; found {line[:60]!r}") from None
    for token in needed:
        if token not in lexicon:
            raise FlashElmoError(f"{path}: expected the token {token}, found none among {len(lexicon)}")
    return lexicon


def _load_pickle(path: Path) -> Arrays:
    """Return the tensors of a state dict. Only tensors are unpickled, so no code in the file runs."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch", f"reading {path.name}") from error
    import pickle

    if not path.exists():
        raise FlashElmoError(f"{path}: the file is missing")
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about other versions of pickle; only the tensors matter
            if zipfile.is_zipfile(path):
                check_zip(path)
            stored = torch.load(path, map_location="cpu", weights_only=True)
        check_growth(
            path, sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
        )  # strides may be 0
        return {name: _to_numpy(tensor) for name, tensor in stored.items()}
    except FlashElmoError:
        raise
    except pickle.UnpicklingError as error:  # its message advises running the file's code
        found = next((line for line in str(error).splitlines() if "GLOBAL" in line), "something else").strip()
        raise FlashElmoError(f"{path}: expected a pickle of tensors alone, found: {found}") from None
    except Exception as error:  # a damaged file may raise anything
        raise FlashElmoError(f"{path}: expected a whole PyTorch state dict: {first_line(error)}") from None


def _to_numpy(tensor: torch.Tensor) -> Array:
    array: Array = (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()
    return array
