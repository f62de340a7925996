"""A model repository for NVIDIA Triton Inference Server: the exported files, and models that take text.

    elmo_fp32/        an exported file, run by the server's ONNX Runtime backend; elmo_fp16, elmo_int8 likewise
    elmo_native/      flashelmo's engine, run by its Python backend: text in, vectors out
    elmo_onnx_text/   the first exported file behind text, run by the Python backend

Each has `config.pbtxt`, the version `1/`, and `request.json`, an example in the Open Inference Protocol
(https://github.com/kserve/open-inference-protocol).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from flashelmo.engine.arrays import Arrays
from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import PrecisionName
from flashelmo.engine.system.files import temporary_folder
from flashelmo.engine.text.spelling import Speller
from flashelmo.export.batches import pad
from flashelmo.export.metadata import Metadata
from flashelmo.export.servers.config import Tensor, graph_tensors, onnx_config, text_config
from flashelmo.export.servers.readme import readme
from flashelmo.export.verification.sentences import SENTENCES

EXAMPLE = SENTENCES[0]
TEXT_OUTPUTS = ("token_embeddings", "sentence_embedding", "mask")
ABOUT_NATIVE = """\
model: its folder, beside model.py. device: cpu, cuda:0, or instance: where instance_group puts it. precision: auto,
fp32, int8, bf16, on a GPU fp16 or tf32 too. layers: top, average, a layer's number or a coefficient for each layer.
threads: 0 for all cores."""
ABOUT_ONNX_TEXT = "model: the file, beside model.py. threads: 0 for all cores."


def write_triton_repository(folder: Path, files: Mapping[PrecisionName, Path], model: ElmoModel) -> None:
    """Write a repository; it appears complete or not at all.

    Args:
        folder: to be created.
        files: exported files by precision, at least one; they are hard-linked if the disk allows it.
        model: the model that they were exported from.

    Raises:
        FlashElmoError: the folder exists or cannot be written, or a file was not exported by this package.
    """
    if not files:
        raise FlashElmoError(f"{folder}: expected an exported file to serve, found none")
    if folder.exists():
        raise FlashElmoError(f"{folder}: exists already; remove it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as workspace:
            new = workspace / "new"
            metadata = [_write_onnx(new / f"elmo_{name}", file) for name, file in files.items()]
            _write_native_text(new / "elmo_native", model, metadata[0])
            if not metadata[0].stateful:
                _write_onnx_text(new / "elmo_onnx_text", next(iter(files.values())), metadata[0])
            (new / "README.md").write_text(readme(list(files), metadata[0]), encoding="utf-8")
            new.rename(folder)
    except OSError as error:
        raise FlashElmoError(f"{folder}: cannot be written: {reason_of(error)}") from None


def _write_onnx(folder: Path, file: Path) -> Metadata:
    """Write the model of one exported file, and return its metadata."""
    proto = onnx.load(file, load_external_data=False)
    metadata = Metadata.from_properties({entry.key: entry.value for entry in proto.metadata_props}, str(file))
    inputs = pad([EXAMPLE], Speller(metadata.config, metadata.lexicon), metadata)
    example = [Tensor(name, "INT64", array.shape) for name, array in inputs.items()]
    (folder / "1").mkdir(parents=True)
    _link(file, folder / "1")
    config = onnx_config(folder.name, proto, metadata, example)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    _write_json(folder / "request.json", _onnx_request(inputs, proto, metadata))
    if not metadata.stateful:
        _write_warmup(folder, {name: array.tobytes() for name, array in inputs.items()})
    return metadata


def _write_native_text(folder: Path, model: ElmoModel, metadata: Metadata) -> None:
    parameters = {
        "model": "model",
        "device": "instance",
        "precision": "auto",
        "layers": ",".join(map(repr, metadata.mix)),
    }
    _write_text(folder, metadata, parameters, ABOUT_NATIVE)
    write_native(model, folder / "1" / "model")


def _write_onnx_text(folder: Path, file: Path, metadata: Metadata) -> None:
    _write_text(folder, metadata, {"model": "model.onnx"}, ABOUT_ONNX_TEXT)
    _link(file, folder / "1")


def _write_text(folder: Path, metadata: Metadata, parameters: Mapping[str, str], about: str) -> None:
    """Write a model of the Python backend, whose code is the module of its name in `export/servers/models`."""
    (folder / "1").mkdir(parents=True)
    code = find_spec(f"flashelmo.export.servers.models.{folder.name}")
    assert code is not None and code.origin is not None
    shutil.copyfile(code.origin, folder / "1" / "model.py")
    config = text_config(folder.name, metadata.config.output_size, parameters, about)
    (folder / "config.pbtxt").write_text(config, encoding="utf-8")
    line = " ".join(EXAMPLE)
    text = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": [line]}
    _write_json(folder / "request.json", {"inputs": [text], "outputs": [{"name": name} for name in TEXT_OUTPUTS]})
    encoded = line.encode()
    _write_warmup(folder, {"text": len(encoded).to_bytes(4, "little") + encoded})


def _onnx_request(inputs: Arrays, proto: onnx.ModelProto, metadata: Metadata) -> dict[str, Any]:
    """Return the example for an exported file; for a stateful one it has one sentence."""
    request: dict[str, Any] = {
        "inputs": [
            {"name": name, "shape": list(array.shape), "datatype": "INT64", "data": array.tolist()}
            for name, array in inputs.items()
        ],
        "outputs": [_wanted(tensor) for tensor in graph_tensors(proto.graph.output) if tensor.name in TEXT_OUTPUTS],
    }
    if metadata.stateful:
        request["parameters"] = {"sequence_id": 1, "sequence_start": True, "sequence_end": True}
    return request


def _wanted(tensor: Tensor) -> dict[str, Any]:
    """Return an output of a request; the server cannot write float16 in JSON."""
    binary: dict[str, Any] = {"parameters": {"binary_data": True}} if tensor.datatype == "FP16" else {}
    return {"name": tensor.name, **binary}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_warmup(folder: Path, data: Mapping[str, bytes]) -> None:
    """Write inputs as in the server's memory, to the files that the configuration names."""
    (folder / "warmup").mkdir()
    for name, value in data.items():
        (folder / "warmup" / name).write_bytes(value)


def _link(file: Path, folder: Path) -> None:
    """Link the exported file as `model.onnx`, and its external data under the name by which the file refers to them."""
    data = file.with_name(f"{file.name}_data")
    for source, target in ((file, folder / "model.onnx"), (data, folder / data.name)):
        if source is data and not data.exists():
            continue
        try:
            os.link(source, target)
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(source, target)
