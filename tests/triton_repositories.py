"""Repositories for NVIDIA Triton Inference Server from tiny models, and how the server and its clients read them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from tiny_models import MANYLANGS, MANYLANGS_LEXICON, MODELS, random_model
from tritonclient.grpc import InferInput, model_config_pb2
from tritonclient.utils import triton_to_np_dtype

from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import PrecisionName
from flashelmo.export.build import build_onnx
from flashelmo.export.servers.repository import write_triton_repository

MIX = [0.2, 0.5, 0.3]
ALL_MODELS = {**MODELS, "large": random_model(replace(MANYLANGS, n_characters=400), MANYLANGS_LEXICON)}
FILE_NAMES = {"fp32": "model.onnx", "fp16": "model_fp16.onnx", "int8": "model_int8.onnx"}
# Name of the case: model, precisions, what else is asked of the export.
CASES: dict[str, tuple[str, list[PrecisionName], dict]] = {
    "characters": ("skip", ["fp32", "fp16", "int8"], {}),
    "words": ("words alone", ["fp32"], {}),
    "both": ("manylangs", ["fp32", "fp16"], {}),
    "external data": ("large", ["fp32", "fp16"], {"external_data": True}),
    "any characters, two layers": ("no projection", ["fp32"], {"characters": "dynamic", "layers": [0, 2]}),
    "stateful": ("skip", ["fp32", "fp16"], {"stateful": True}),
    "stateful words": ("manylangs", ["fp32"], {"stateful": True}),
}


def export(case: str, folder: Path) -> tuple[Path, ElmoModel]:
    """The repository of a case, and the model in it."""
    name, precisions, options = CASES[case]
    files = {precision: folder / FILE_NAMES[precision] for precision in precisions}
    for precision, path in files.items():
        build_onnx(ALL_MODELS[name], path, precision=precision, mix=MIX, **options)
    write_triton_repository(folder / "triton", files, ALL_MODELS[name])
    return folder / "triton", ALL_MODELS[name]


def read_config(folder: Path):
    """config.pbtxt as the server's own protocol reads it; an unknown field is an error."""
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def parameters(config) -> dict[str, str]:
    return {name: value.string_value for name, value in config.parameters.items()}


def type_name(value: int) -> str:
    return model_config_pb2.DataType.Name(value).removeprefix("TYPE_")


def read_request(folder: Path) -> dict:
    return json.loads((folder / "request.json").read_text(encoding="utf-8"))


def request_arrays(request: dict) -> dict[str, np.ndarray]:
    """The inputs of a request, checked as a client's library checks them."""
    arrays = {}
    for given in request["inputs"]:
        array = np.array(given["data"], triton_to_np_dtype(given["datatype"])).reshape(given["shape"])
        InferInput(given["name"], given["shape"], given["datatype"]).set_data_from_numpy(array)
        arrays[given["name"]] = array
    return arrays


def onnx_models(repository: Path) -> list[Path]:
    return [path for name in FILE_NAMES if (path := repository / f"elmo_{name}").is_dir()]


def text_models(repository: Path) -> list[Path]:
    return [path for name in ("elmo_native", "elmo_onnx_text") if (path := repository / name).is_dir()]
