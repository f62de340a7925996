"""bilm-tf's and AllenNLP's weights: one HDF5 file and an options.json.

Names and shapes as bilm-tf's `dump_weights` writes them (bilm/training.py) and AllenNLP's `_ElmoBiLm` reads them
(allennlp/modules/elmo.py). NLPL archives, SeqVec and published AllenNLP files are all of this kind.
"""

from __future__ import annotations

import io
import json
import math
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flashelmo.engine.arguments import path_of, shown
from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.model.checkpoints.files import check_growth, new_folder, read_json, unpacked
from flashelmo.engine.model.checkpoints.options import find_options, read_options, write_options
from flashelmo.engine.model.checkpoints.stored import Stored, check_stored, to_canonical
from flashelmo.engine.model.checkpoints.widened import widen
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, ElmoModel, ElmoWeights, Lexicon

if TYPE_CHECKING:
    import h5py

FORMAT = "bilm-hdf5"
GATE_ORDER = (0, 2, 1, 3)  # canonical i, f, g, o from bilm-tf's i, j, f, o and back
NEEDED_WORDS = {"<S>", "</S>", "<UNK>"}
NOT_A_WORD = "!!!MAXTERMID"  # a line in vocabularies that bilm-tf's reader skips
# Prefixes of the names of the network's tensors; others, such as a softmax, belong to training.
PARTS = ("CNN", "RNN_", "char_embed", "embedding")
ALONE = "/RNN/LSTMCell/", "/RNN/MultiRNNCell/Cell0/LSTMCell/"  # one layer: as bilm-tf writes it; as AllenNLP reads it
DEPTH = 5  # number of groups around the deepest tensors


def read_bilm(weights_file: Path, options_file: Path | None = None) -> ElmoModel:
    """Read a weights file and its options.

    Args:
        weights_file: HDF5.
        options_file: JSON; by default what `find_options` finds beside the weights.

    Raises:
        FlashElmoError: names the file and the key or tensor, and says what was expected and found.
    """
    options_file = options_file or find_options(weights_file)
    options = read_json(options_file)
    with opened(weights_file) as file:
        stored = {name.replace(*ALONE): dataset for name, dataset in datasets(file, weights_file, *PARTS).items()}
        shapes = {name: tuple(dataset.shape or ()) for name, dataset in stored.items()}
        config = read_options(options, shapes, options_file)
        table = stored_tensors(config, stored)
        check_stored(table.values(), shapes, weights_file, options_file.name)
        tensors = {name: to_canonical(s, stored[s.name], weights_file) for name, s in table.items()}
    config, tensors = widen(config, tensors)
    weights = ElmoWeights.from_named_tensors(tensors, config)
    lexicon = Lexicon({}, _read_vocabulary(weights_file.parent, config.n_words - 1)) if config.word_size else None
    return ElmoModel(config, weights, lexicon, weights_file, FORMAT)


def write_bilm(model: ElmoModel, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write `weights.hdf5` and `options.json` (and `vocab.txt`) that bilm-tf and AllenNLP read.

    What `read_bilm` has read is written back bit for bit. The file's forget bias lacks the 1 of the canonical one, so
    that of other models may be rounded, by 6e-8 at most where it is within ±1.
    """
    config = model.config
    if config.family != "bilm":
        raise FlashElmoError(f"{folder}: expected a model of the bilm family to write, found {config.family}")
    if config.character_size and config.word_size:
        raise FlashElmoError(f"{folder}: expected a model of characters or of words to write, found one of both")
    with new_folder(path_of("folder", folder), overwrite) as target:
        write_bilm_files(model, target)


def write_bilm_files(model: ElmoModel, folder: Path) -> None:
    """Write the files of `write_bilm` into an existing folder."""
    import h5py

    config = model.config
    table, parts = stored_tensors(config), dict[str, list[Float32]]()
    for name, tensor in model.weights.named_tensors():
        parts.setdefault(table[name].name, []).append(table[name].write(tensor))
    (folder / "options.json").write_text(json.dumps(write_options(config), indent=2) + "\n", encoding="utf-8")
    image = io.BytesIO()  # on a full disk HDF5 itself would segfault
    with h5py.File(image, "w") as file:
        for stored_name, tensors in parts.items():  # an LSTM's matrix: input rows, then recurrent rows
            file.create_dataset(stored_name, data=np.concatenate(tensors), dtype="float32")
    (folder / "weights.hdf5").write_bytes(image.getbuffer())
    if model.lexicon is not None and model.lexicon.words:
        words = {row: word for word, row in model.lexicon.words.items()}
        lines = [words.get(row, "") for row in range(1, config.n_words)]  # a word's line is its row
        (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def stored_tensors(config: ElmoConfig, found: Collection[str] = ()) -> dict[str, Stored]:
    """Return how the file stores each canonical tensor of a model with this configuration.

    Args:
        config: the model's dimensions.
        found: names of the file's tensors: some files project between equal sizes, as AllenNLP does.
    """
    size, cell, filters, inputs = config.projection_size, config.cell_size, config.n_filters, config.character_size
    projects_cells = cell != size or any(name.endswith("/W_P_0") for name in found)
    table = {}
    if config.character_size:
        table["character_embedding"] = Stored("char_embed", (config.n_characters - 1, inputs), _add_zero_row, _drop_row)
    if config.word_size:
        table["word_embedding"] = Stored("embedding", (config.n_words - 1, config.word_size), _add_zero_row, _drop_row)
    for i, (width, number) in enumerate(config.filters):
        shape = (1, width, inputs, number)
        table[f"convolutions.{i}.weight"] = Stored(f"CNN/W_cnn_{i}", shape, lambda t: t[0], lambda t: t[None])
        table[f"convolutions.{i}.bias"] = Stored(f"CNN/b_cnn_{i}", (number,))
    for k in range(config.n_highway):
        for ours, theirs in (("transform", "transform"), ("gate", "carry")):  # their carry gate weights the new part
            table[f"highways.{k}.{ours}.weight"] = Stored(f"CNN_high_{k}/W_{theirs}", (filters, filters))
            table[f"highways.{k}.{ours}.bias"] = Stored(f"CNN_high_{k}/b_{theirs}", (filters,))
    if config.character_size and (filters != size or "CNN_proj/W_proj" in found):
        table["projection.weight"] = Stored("CNN_proj/W_proj", (filters, size))
        table["projection.bias"] = Stored("CNN_proj/b_proj", (size,))
    for direction, name in enumerate(DIRECTIONS):
        for layer in range(config.n_layers):
            theirs = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            matrix = partial(Stored, f"{theirs}/W_0", (2 * size, 4 * cell), _split_gates, _join_gates)
            table[f"lstm.{layer}.{name}.input_weight"] = matrix(rows=slice(0, size))
            table[f"lstm.{layer}.{name}.recurrent_weight"] = matrix(rows=slice(size, 2 * size))
            table[f"lstm.{layer}.{name}.bias"] = Stored(f"{theirs}/B", (4 * cell,), _read_bias, _write_bias)
            if projects_cells:
                table[f"lstm.{layer}.{name}.projection"] = Stored(f"{theirs}/W_P_0", (cell, size))
    return table


@contextmanager
def opened(weights_file: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file; what h5py raises is a FlashElmoError."""
    import h5py

    try:
        with h5py.File(weights_file, "r") as file:
            yield file
    except FlashElmoError:
        raise
    except Exception as error:  # h5py raises anything for a damaged file
        raise FlashElmoError(f"{weights_file}: expected a whole HDF5 file: {reason_of(error)}") from None


def datasets(file: h5py.File, source: Path, *parts: str) -> dict[str, h5py.Dataset]:
    """Return tensors whose names begin with `parts`, without following links to other places and files.

    Raises:
        FlashElmoError: names the file `source`, and a tensor whose values are in another file; or they exceed
            `check_growth`.
    """
    import h5py

    tensors: dict[str, h5py.Dataset] = {}
    seen = set()  # groups, which may contain each other
    found = [(name, file) for name in file if name.startswith(parts)]
    for path, group in found:  # deeper ones are appended
        name = path.rpartition("/")[2]
        if group.id.links.get_info(name.encode("utf-8", "surrogateescape")).type != h5py.h5l.TYPE_HARD:
            continue
        entry = group[name]
        if isinstance(entry, h5py.Dataset):
            if entry.is_virtual or entry.external:  # could be any file on this machine
                raise FlashElmoError(f"{source}: tensor {path}: its values are stored in another file")
            tensors[path] = entry
        elif isinstance(entry, h5py.Group) and path.count("/") < DEPTH and entry not in seen:
            seen.add(entry)
            found += [(f"{path}/{inner}", entry) for inner in entry]
    check_growth(source, sum(map(_n_bytes, tensors.values())))
    return tensors


def _n_bytes(dataset: h5py.Dataset) -> int:
    """Return the memory that reading takes: HDF5 unpacks whole chunks, which may be larger than the dataset."""
    values = max(math.prod(dataset.shape or ()), math.prod(dataset.chunks or ()))
    return int(values * dataset.dtype.itemsize)


def _add_zero_row(tensor: Float32) -> Float32:
    return np.concatenate([np.zeros_like(tensor[:1]), tensor])


def _drop_row(tensor: Float32) -> Float32:
    return tensor[1:]


def _split_gates(tensor: Float32) -> Float32:
    """Convert [P, 4C] in the order i, j, f, o to [4, P, C] in the order i, f, g, o."""
    gates = np.split(tensor, 4, axis=1)
    return np.stack([gates[gate] for gate in GATE_ORDER])


def _join_gates(tensor: Float32) -> Float32:
    return np.concatenate([tensor[gate] for gate in GATE_ORDER], axis=1)


def _read_bias(tensor: Float32) -> Float32:
    """Convert [4C] to [4, C]. TensorFlow's LSTMCell adds 1 to the forget gate when it runs."""
    bias = tensor.reshape(4, -1)[list(GATE_ORDER)]
    bias[1] += 1.0
    return bias


def _write_bias(tensor: Float32) -> Float32:
    bias = np.array(tensor)
    bias[1] -= 1.0
    return bias[list(GATE_ORDER)].reshape(-1)


def _read_vocabulary(folder: Path, n_words: int) -> dict[str, int]:
    """Return a word model's words by row, one per line; row 0 is no word. Empty without a vocabulary file."""
    for path in (folder / "vocab.txt", folder / "vocab.txt.gz"):
        if path.is_file():
            words = words_of(path, n_words)
            if len(words) != n_words:
                raise FlashElmoError(f"{path}: expected {n_words} words, as the embedding has, found {len(words)}")
            if missing := sorted(NEEDED_WORDS - set(words)):
                raise FlashElmoError(f"{path}: expected the word {missing[0]}, found none among {n_words}")
            return {word: row for row, word in enumerate(words, start=1)}
    return {}


def words_of(path: Path, n_rows: int | None = None) -> list[str]:
    """Return the words of a vocabulary, one per line. Blank lines at its end are none.

    Args:
        path: the file, which may be compressed.
        n_rows: of a table, if there is one: where it has a row for every line, blank ones too, as bilm-tf would count
            them, each is a word.

    Raises:
        FlashElmoError: it cannot be read, is not UTF-8, or a line has not one word.
    """
    stripped = [line.strip() for line in io.StringIO(_read_text(path), newline=None)]
    lines = [(number, line) for number, line in enumerate(stripped, start=1) if line != NOT_A_WORD]
    if len(lines) != n_rows:
        while lines and not lines[-1][1]:
            lines.pop()
        for number, line in lines:
            if not line or " " in line or "\t" in line:
                raise FlashElmoError(f"{path}: line {number}: expected one word, found {shown(line)}")
    return [line for _, line in lines]


def _read_text(path: Path) -> str:
    try:
        with unpacked(path) as file:
            return file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlashElmoError(f"{path}: expected UTF-8: {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise FlashElmoError(f"{path}: cannot be read: {error}") from None
