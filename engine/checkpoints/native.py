"""flashelmo's own format: `config.json`, `model.safetensors` and, for models with one, `lexicon.json`.

The tensors are the canonical ones under their canonical names, so a model is used as it lies in the file, memory-mapped.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.engine.checkpoints.files import new_folder, read_json
from flashelmo.engine.config import ElmoConfig
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.weights import Array, ElmoModel, ElmoWeights, Lexicon, check_tensors, expected_shapes

FORMAT = "native"
FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
HEADER_LENGTH_BYTES = 8


def write_native(model: ElmoModel, folder: str | Path, *, overwrite: bool = False) -> None:
    """Write a model's folder; it appears whole or not at all.

    Raises:
        FlashElmoError: the folder exists (and is not to be overwritten) or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with new_folder(Path(folder), overwrite) as target:
        config = {"format_version": FORMAT_VERSION, **model.config.to_dict()}
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if model.lexicon is not None:
            lexicon = {"characters": dict(model.lexicon.characters), "words": dict(model.lexicon.words)}
            (target / "lexicon.json").write_text(json.dumps(lexicon, ensure_ascii=False), encoding="utf-8")
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in model.weights.named_tensors()}
        try:
            save_file(tensors, target / WEIGHTS_FILE)
        except SafetensorError as error:
            raise OSError(str(error)) from None


def read_native(folder: Path) -> ElmoModel:
    """Read a folder that `write_native` wrote; the tensors are read-only views of the memory-mapped file.

    Raises:
        FlashElmoError: naming the file and the tensor or key.
    """
    config_file, weights_file = folder / "config.json", folder / WEIGHTS_FILE
    values = read_json(config_file)
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise FlashElmoError(f"{config_file}: expected format_version {FORMAT_VERSION}, found {version}")
    config = ElmoConfig.from_dict(values, str(config_file))
    tensors = read_safetensors(weights_file)
    if missing := sorted(expected_shapes(config).keys() - tensors.keys()):
        raise FlashElmoError(f"{weights_file}: tensor {missing[0]} is missing")
    if unknown := sorted(tensors.keys() - expected_shapes(config).keys()):
        raise FlashElmoError(f"{weights_file}: tensor {unknown[0]} is not part of {config_file.name}")
    weights = ElmoWeights.from_named_tensors(tensors, config)
    check_tensors(weights, config, str(weights_file))
    lexicon = _read_lexicon(folder / "lexicon.json") if (folder / "lexicon.json").exists() else None
    return ElmoModel(config, weights, lexicon, weights_file, FORMAT)


def read_safetensors(path: Path) -> dict[str, Array]:
    """Read-only views of a memory-mapped safetensors file of float32 tensors.

    The safetensors library's own numpy reader copies every tensor. Layout: https://huggingface.co/docs/safetensors
    (8 bytes of header length, a JSON header of names, types, shapes and offsets, then the data).
    """
    try:
        data = np.memmap(path, np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise FlashElmoError(f"{path}: cannot be read: {error}") from None
    begin = HEADER_LENGTH_BYTES + int.from_bytes(data[:HEADER_LENGTH_BYTES].tobytes(), "little")
    try:
        header: dict[str, Any] = json.loads(data[HEADER_LENGTH_BYTES:begin].tobytes().decode("utf-8"))
        header.pop("__metadata__", None)
        entries = [(name, entry["dtype"], entry["shape"], *entry["data_offsets"]) for name, entry in header.items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FlashElmoError(f"{path}: expected a safetensors file, found no readable header") from None
    tensors = {}
    for name, dtype, shape, start, stop in entries:
        if dtype != "F32":
            raise FlashElmoError(f"{path}: tensor {name} has type {dtype}, expected F32")
        if not 0 <= start <= stop <= len(data) - begin:
            found = f"the file ends at {len(data) - begin}"
            raise FlashElmoError(f"{path}: tensor {name} stands at bytes {start} to {stop}, but {found}: truncated")
        if stop - start != 4 * int(np.prod(shape, dtype=np.int64)):
            raise FlashElmoError(f"{path}: tensor {name} has {stop - start} bytes, expected shape {tuple(shape)}")
        tensors[name] = data[begin + start : begin + stop].view(np.float32).reshape(shape)
    return tensors


def release_pages(weights: ElmoWeights) -> None:
    """Let the system take back the memory of a memory-mapped model; what is read again comes from the file."""
    for _, tensor in weights.named_tensors():
        array: Any = tensor
        while array is not None and not isinstance(array, np.memmap):
            array = getattr(array, "base", None)
        if array is not None and hasattr(mmap, "MADV_DONTNEED"):
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
            return  # all tensors lie in one file


def _read_lexicon(path: Path) -> Lexicon:
    values = read_json(path)
    parts = [values.get(name) for name in ("characters", "words")]
    for part in parts:
        if not isinstance(part, dict) or not all(isinstance(row, int) for row in part.values()):
            raise FlashElmoError(f"{path}: expected 'characters' and 'words', each token to row")
    return Lexicon(*parts)  # type: ignore[arg-type]
