"""flashelmo's own format: `config.json`, `model.safetensors` and, for models with one, `lexicon.json`.

The tensors are the canonical ones under their canonical names: a model is used directly from the memory-mapped file.
"""

from __future__ import annotations

import json
import math
import mmap
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.engine.arguments import is_one_of, path_of
from flashelmo.engine.arrays import Float32, Uint8
from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.model.checkpoints.files import MODEL_FILES, check_regular, check_rows, new_folder, read_json
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel, ElmoWeights, Lexicon, all_finite, expected_shapes

FORMAT = "native"
FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
HEADER_LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 8
STORED_TYPES = {"F32": np.float32, "F16": np.float16}  # types that are read as float32


def write_native(model: ElmoModel, folder: str | Path, *, overwrite: bool = False, card: str | None = None) -> None:
    """Write a model's folder, with a model card if one is given; it appears complete or not at all.

    Raises:
        FlashElmoError: the folder exists (and is not to be overwritten) or cannot be written.
    """
    path = path_of("folder", folder)
    with new_folder(path, overwrite, lambda name: name in MODEL_FILES or _is_card(path, name)) as target:
        write_native_files(model, target)
        if card is not None:
            (target / CARD_FILE).write_text(card, encoding="utf-8")


def write_native_files(model: ElmoModel, folder: Path, dtype: str = "float32") -> None:
    """Write a model's files into an existing folder.

    Args:
        model: the model to write.
        folder: an existing folder.
        dtype: "float32", or "float16" for half the bytes: numbers are rounded, and must be converted when read.
    """
    source_format = model.source_format if model.format == FORMAT else model.format
    config = {"format_version": FORMAT_VERSION, "source_format": source_format, **model.config.to_dict()}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if model.lexicon is not None:
        lexicon = {"characters": dict(model.lexicon.characters), "words": dict(model.lexicon.words)}
        (folder / "lexicon.json").write_text(json.dumps(lexicon, ensure_ascii=False), encoding="utf-8")
    write_safetensors(dict(model.weights.named_tensors()), folder / WEIGHTS_FILE, dtype)


def write_safetensors(tensors: Mapping[str, Float32], path: Path, dtype: str = "float32") -> None:
    """Write tensors by name, as numbers of this type.

    Raises:
        FlashElmoError: the type cannot hold a value.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with np.errstate(over="ignore"):  # what follows says more than NumPy's warning
        arrays = {name: np.ascontiguousarray(tensor, dtype) for name, tensor in tensors.items()}
    for name, array in arrays.items() if dtype != "float32" else ():
        if not all_finite(array):
            raise FlashElmoError(f"{path.name}: tensor {name}: expected values within {dtype}'s range; use float32")
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(arrays, path)
    except SafetensorError as error:
        raise OSError(str(error)) from None
    path.chmod(mode)  # save_file creates it with mode 0600


def _is_card(folder: Path, name: str) -> bool:
    """Whether a file is one of flashelmo's model cards, which may be replaced."""
    if name != CARD_FILE:
        return False
    return "\nlibrary_name: flashelmo\n" in (folder / name).read_text(encoding="utf-8", errors="replace")


def read_native(folder: Path, weights_file: Path | None = None) -> ElmoModel:
    """Read a folder that `write_native` wrote; the tensors are read-only views of the memory-mapped file.

    Args:
        folder: holds `config.json`, and the lexicon if there is one.
        weights_file: if it is not the folder's `model.safetensors`.

    Raises:
        FlashElmoError: names the file and the tensor or key.
    """
    config_file, weights_file = folder / "config.json", weights_file or folder / WEIGHTS_FILE
    values = read_json(config_file)
    version, source_format = values.pop("format_version", None), values.pop("source_format", None)
    if version != FORMAT_VERSION:
        raise FlashElmoError(f"{config_file}: expected format_version {FORMAT_VERSION}, found {version}")
    config = ElmoConfig.from_dict(values, str(config_file))
    tensors = read_safetensors(weights_file)
    expected = expected_shapes(config).keys()
    if missing := sorted(expected - tensors.keys()):
        raise FlashElmoError(f"{weights_file}: tensor {missing[0]} is missing, which {config_file.name} asks for")
    if unknown := sorted(tensors.keys() - expected):
        raise FlashElmoError(f"{weights_file}: tensor {unknown[0]} has no place in a model of {config_file.name}")
    weights = ElmoWeights.from_named_tensors(tensors, config)
    has_lexicon = bool(config.word_size) or config.family == "manylangs"
    lexicon = _read_lexicon(folder / "lexicon.json", config) if has_lexicon else None
    return ElmoModel(config, weights, lexicon, weights_file, FORMAT, source_format)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors: with a length, and a JSON object of that length."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        return 2 <= length <= MAX_HEADER_BYTES and file.read(1) == b"{"


def read_safetensors(path: Path) -> dict[str, Float32]:
    """Return read-only views of a memory-mapped safetensors file of float32 tensors; copies of float16 ones.

    On Windows, where no mapped file can be removed or replaced, it is read instead.

    The safetensors library's own numpy reader copies every tensor. Layout: https://huggingface.co/docs/safetensors
    (8 bytes of header length, a JSON header of names, types, shapes and offsets, then the data).
    """
    check_regular(path)
    try:
        data: Uint8 = np.memmap(path, np.uint8, mode="r") if sys.platform != "win32" else np.fromfile(path, np.uint8)
    except (OSError, ValueError) as error:
        raise FlashElmoError(f"{path}: cannot be read: {reason_of(error)}") from None
    data.flags.writeable = False
    begin = HEADER_LENGTH_BYTES + int.from_bytes(data[:HEADER_LENGTH_BYTES].tobytes(), "little")
    try:
        header: dict[str, Any] = json.loads(data[HEADER_LENGTH_BYTES:begin].tobytes().decode("utf-8"))
        header.pop("__metadata__", None)
        entries = {name: (entry["dtype"], entry["shape"], *entry["data_offsets"]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise FlashElmoError(f"{path}: expected a safetensors file, found no readable header") from None
    tensors = {name: _view(data[begin:], path, name, *entry) for name, entry in entries.items()}
    end = 0
    for start, stop, name in sorted((start, stop, name) for name, (_, _, start, stop) in entries.items()):
        if start != end:  # neither gaps nor overlaps, as the format demands
            raise FlashElmoError(f"{path}: tensor {name} begins at byte {start} of the data, expected {end}")
        end = stop
    return tensors


def _view(data: Uint8, path: Path, name: str, dtype: str, shape: Any, *offsets: Any) -> Float32:
    """Return one tensor of the file's data."""
    numbers = [*shape, *offsets] if isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS else [None]
    if len(offsets) != 2 or not all(type(number) is int and 0 <= number < 2**64 for number in numbers):
        raise FlashElmoError(f"{path}: tensor {name}: expected a shape and two offsets, found {shape} and {offsets}")
    if not is_one_of(dtype, *STORED_TYPES):
        raise FlashElmoError(f"{path}: tensor {name} has type {dtype}, expected F32 or F16")
    stored = np.dtype(STORED_TYPES[dtype])
    start, stop = offsets
    if not start <= stop <= len(data):
        end = f"the data end at {len(data)}"
        raise FlashElmoError(
            f"{path}: tensor {name} stands at bytes {start} to {stop}, but {end}: truncated or damaged"
        )
    n_bytes = stored.itemsize * math.prod(shape)
    if stop - start != n_bytes:
        raise FlashElmoError(f"{path}: tensor {name} has {stop - start} bytes, expected {n_bytes} by its shape")
    # a header of odd length would leave numbers unaligned: then they are copied, not mapped; so are those of float16
    values = np.asarray(data[start:stop].view(stored).reshape(shape))
    return np.require(values, np.float32, "A")


def release_pages(weights: ElmoWeights) -> None:
    """Let the system reclaim the memory of a memory-mapped model; the file is read again when needed."""
    for _, tensor in weights.named_tensors():
        array: Any = tensor
        while array is not None and not isinstance(array, np.memmap):
            array = getattr(array, "base", None)
        if array is not None and hasattr(mmap, "MADV_DONTNEED"):
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
            return  # all tensors are in one file


def _read_lexicon(path: Path, config: ElmoConfig) -> Lexicon:
    values = read_json(path)
    for name, n_rows in (("characters", config.n_characters), ("words", config.n_words)):
        rows = values.get(name)
        if not isinstance(rows, dict) or not all(type(row) is int for row in rows.values()):
            raise FlashElmoError(f"{path}: key {name!r}: expected an object of tokens and rows")
        if n_rows:  # a lexicon may have words that the model does not look up
            check_rows(rows, n_rows, path)
    return Lexicon(values["characters"], values["words"])
