"""The softmax of a trained model, in its own file: embedding does not need it.

`softmax.safetensors` holds `weight` [V, P] and `bias` [V], `vocab.txt` the word of each row. Of bilm-tf's files, an
HDF5 file with `softmax/W` [V, P] and `softmax/b` [V] among its tensors can be read; the published ones have none, and
TensorFlow's own checkpoints are not supported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import is_archive, load_model
from flashelmo.engine.model.checkpoints.bilm import FORMAT, datasets, opened
from flashelmo.engine.model.checkpoints.files import extracted
from flashelmo.engine.model.checkpoints.native import read_safetensors, write_safetensors
from flashelmo.engine.model.checkpoints.stored import Stored, check_stored, to_canonical
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.training.corpus import read_vocabulary

SOFTMAX_FILE, VOCABULARY_FILE = "softmax.safetensors", "vocab.txt"


@dataclass(frozen=True)
class Softmax:
    """weight [V, P], bias [V], and the word of each row."""

    weight: Float32
    bias: Float32
    words: list[str]

    @property
    def sha256(self) -> str:
        """The sha256 of its numbers and its words."""
        digest = hashlib.sha256("\n".join(self.words).encode())
        for array in (self.weight, self.bias):
            digest.update(np.ascontiguousarray(array, np.float32).reshape(-1).data)
        return digest.hexdigest()


def write_softmax(softmax: Softmax, folder: Path, dtype: str = "float32") -> None:
    """Write it and its vocabulary into a folder."""
    write_safetensors({"weight": softmax.weight, "bias": softmax.bias}, folder / SOFTMAX_FILE, dtype)
    text = "".join(f"{word}\n" for word in softmax.words)
    (folder / VOCABULARY_FILE).write_text(text, encoding="utf-8", newline="\n")


def find_softmax(model: ElmoModel) -> Softmax | None:
    """Return the softmax beside (or in) the weights that a model was read from; None if there is none.

    Raises:
        FlashElmoError: it is not one of the model's size and of its vocabulary, is not finite, or has no vocabulary.
    """
    if is_archive(model.path):
        with extracted(model.path) as folder:
            return find_softmax(load_model(folder))
    source = model.path.with_name(SOFTMAX_FILE)
    if source.is_file():
        return _checked(read_safetensors(source), "weight", "bias", source, model)
    if model.format != FORMAT:
        return None
    with opened(model.path) as file:
        stored = datasets(file, model.path, "softmax")
        names = "softmax/W", "softmax/b"
        return _checked(stored, *names, model.path, model) if stored.keys() >= set(names) else None


def _checked(stored: Mapping[str, Any], weight: str, bias: str, source: Path, model: ElmoModel) -> Softmax:
    vocabulary = source.with_name(VOCABULARY_FILE)
    if not vocabulary.is_file():
        raise FlashElmoError(f"{vocabulary}: expected the words of the softmax in {source.name}, found no such file")
    rows = stored[weight].shape if weight in stored else None
    words = read_vocabulary(vocabulary, rows[0] if rows else None)
    table = Stored(weight, (len(words), model.config.projection_size)), Stored(bias, (len(words),))
    check_stored(table, {name: tuple(tensor.shape or ()) for name, tensor in stored.items()}, source, vocabulary.name)
    values, biases = (to_canonical(each, stored[each.name], source) for each in table)
    return Softmax(values, biases, words)
