"""The softmax of a trained model, in its own file: embedding does not need it.

`softmax.safetensors` holds `weight` [V, P] and `bias` [V], `vocab.txt` the word of each row. Of bilm-tf's files, an
HDF5 file with `softmax/W` [V, P] and `softmax/b` [V] among its tensors can be read; the published ones have none, and
TensorFlow's own checkpoints are not supported.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.model.checkpoints.native import read_safetensors, write_safetensors
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


def find_softmax(weights: Path) -> Softmax | None:
    """Return the softmax beside (or in) the weights of a model; None if there is none.

    Raises:
        FlashElmoError: it does not match its vocabulary, or the vocabulary is missing.
    """
    folder = weights if weights.is_dir() else weights.parent
    source = folder / SOFTMAX_FILE
    found = read_safetensors(source) if source.is_file() else None
    if found is None:
        files = [weights] if weights.is_file() else sorted(folder.glob("*.hdf5"))
        source = files[0] if files else source
        found = _from_hdf5(source) if files and source.suffix in (".hdf5", ".h5") else None
    if found is None:
        return None
    vocabulary = folder / VOCABULARY_FILE
    if not vocabulary.is_file():
        raise FlashElmoError(f"{vocabulary}: expected the words of the softmax in {source.name}, found no such file")
    words = read_vocabulary(vocabulary)
    weight, bias = found.get("weight"), found.get("bias")
    if weight is None or bias is None or weight.ndim != 2 or weight.shape[:1] != bias.shape:
        raise FlashElmoError(f"{source}: expected tensors weight [V, P] and bias [V], found {sorted(found)}")
    if len(words) != len(weight):
        raise FlashElmoError(
            f"{vocabulary}: expected {len(weight):,} words, as {source.name} has, found {len(words):,}"
        )
    return Softmax(weight, bias, words)


def _from_hdf5(path: Path) -> dict[str, Float32] | None:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = {"weight": "softmax/W", "bias": "softmax/b"}
            if not all(name in file for name in names.values()):
                return None
            return {ours: np.asarray(file[name], np.float32) for ours, name in names.items()}
    except OSError as error:
        raise FlashElmoError(f"{path}: expected a whole HDF5 file: {reason_of(error)}") from None
