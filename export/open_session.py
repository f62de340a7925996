"""Opens a file in ONNX Runtime, on the requested execution providers and no others."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from flashelmo.engine.arguments import check
from flashelmo.engine.cpu.sessions import onnxruntime, session_options
from flashelmo.engine.errors import FlashElmoError, first_line
from flashelmo.engine.system.files import is_foreign
from flashelmo.engine.system.processor import check_threads, n_cores
from flashelmo.engine.text.sentences import several
from flashelmo.export.metadata import BUCKET_FILE

Options: TypeAlias = Mapping[str, Any]
Provider: TypeAlias = str | tuple[str, Options]

SHORT_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FIRST_WITH_TF32 = 1, 18  # earlier versions refuse the option
DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
ort = onnxruntime.capi.onnxruntime_pybind11_state
# ONNX Runtime's exceptions have no common class but Exception.
ORT_ERRORS = (
    ort.EngineError,
    ort.EPFail,
    ort.Fail,
    ort.InvalidArgument,
    ort.InvalidGraph,
    ort.InvalidProtobuf,
    ort.NoModel,
    ort.NoSuchFile,
    ort.NotImplemented,
    ort.RuntimeException,
    RuntimeError,
    ValueError,
)


def model_files(path: Path) -> list[Path]:
    """Return the files that a path stands for: itself, or the unrolled files in it; for an exported folder its fp32
    file, or else its only file, or its unrolled files, likewise.
    """
    if unrolled := _unrolled(path):
        return unrolled
    file = path / "onnx" / "model.onnx" if path.is_dir() else path
    if file.is_file():
        return [file]
    others = sorted(file for file in (path / "onnx").glob("*.onnx") if not is_foreign(file.name))
    if len(others) == 1 and others[0].is_file():
        return others
    folders = [folder for folder in sorted((path / "onnx").glob("cuda_*")) if _unrolled(folder)]
    if not others and folders:
        preferred = [folder for folder in folders if folder.name == "cuda_fp32"] or folders
        return _unrolled(preferred[0])
    if others:
        names = ", ".join(other.name for other in others)
        raise FlashElmoError(f"{file}: expected this file or exactly one other, found {names}; pass the path of one")
    raise FlashElmoError(f"{file}: expected a model exported by flashelmo, found no such file")


def _unrolled(folder: Path) -> list[Path]:
    """Return the unrolled files in a folder."""
    return sorted(file for file in folder.glob("*.onnx") if re.fullmatch(BUCKET_FILE, file.name))


def available_providers(providers: str | Sequence[Provider]) -> list[tuple[str, Options]]:
    """Return full names and options of providers, after checking that this ONNX Runtime was built with all of them."""
    there = onnxruntime.get_available_providers()
    wanted: list[tuple[str, Options]] = []
    for provider in [providers] if isinstance(providers, str) else several("providers", providers):
        name, options = provider if isinstance(provider, tuple) and len(provider) == 2 else (provider, {})
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise FlashElmoError(f"providers: expected names or (name, options), found {provider!r}")
        name = SHORT_NAMES.get(name, name)
        if name not in there:
            raise FlashElmoError(f"providers: expected some of {', '.join(there)}, found {name}")
        wanted.append((name, {**_defaults(name), **options}))
    if not wanted:
        raise FlashElmoError(f"providers: expected some of {', '.join(there)}, found none")
    return wanted


def _defaults(name: str) -> Options:
    """Return a provider's default options here: without them, CUDA rounds float32 products to 11 bits."""
    version = re.match(r"(\d+)\.(\d+)", onnxruntime.__version__)
    knows_tf32 = version is not None and tuple(map(int, version.groups())) >= FIRST_WITH_TF32
    return {"use_tf32": "0"} if name == "CUDAExecutionProvider" and knows_tf32 else {}


def with_cuda_graphs(wanted: Sequence[tuple[str, Options]]) -> list[tuple[str, Options]]:
    """Enable CUDA graphs unless told otherwise: ONNX Runtime then only opens files whose nodes are all on CUDA."""
    graphs = {SHORT_NAMES["cuda"]: {"enable_cuda_graph": "1"}}
    return [(name, {**graphs.get(name, {}), **options}) for name, options in wanted]


def device_of(name: str, options: Options) -> tuple[str, int]:
    """Return the kind and number of the device on which a provider leaves its results."""
    return (DEVICES[name], int(options.get("device_id", 0))) if name in DEVICES else ("cpu", 0)


def number_type(name: str) -> npt.DTypeLike:
    """Return the numpy type of a value whose type ONNX Runtime writes as `tensor(float)`."""
    element = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(element, element))


def device_memory(value: Any, device: tuple[str, int]) -> Any:
    """Return an OrtValue for an input or output of a session, which has a fixed shape."""
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(value.shape), number_type(value.type), *device)


def options_of(given: Any, threads: int | None) -> Any:
    """Return the given SessionOptions, or some that suit batches whose shapes keep changing."""
    check_threads(threads)
    if given is not None:
        check(isinstance(given, onnxruntime.SessionOptions), "session_options", "onnxruntime.SessionOptions", given)
        if threads is not None:
            raise FlashElmoError("threads: with session_options, set them there")
        return given
    options = session_options(threads or n_cores())
    options.log_severity_level = 4  # errors are raised, and would otherwise be reported twice
    return options


def open_session(file: Path, wanted: list[tuple[str, Options]], options: Any) -> Any:
    """Return an InferenceSession on the wanted providers; ONNX Runtime would skip those that fail to load."""
    providers = [(name, dict(values)) for name, values in wanted]
    try:
        if any(name in DEVICES for name, _ in wanted):
            _preload()
        session = onnxruntime.InferenceSession(str(file), options, providers=providers, enable_fallback=0)
    except ORT_ERRORS as error:
        raise FlashElmoError(f"{file}: ONNX Runtime cannot load it: {reason(error)}") from error
    session.disable_fallback()
    found = session.get_providers()
    for name, _ in wanted:
        if name not in found:  # onnxruntime#23372
            raise FlashElmoError(f"providers: {name} did not load, ONNX Runtime would have used {', '.join(found)}")
    return session


def properties_of(session: Any, file: Path) -> Mapping[str, str]:
    """Return what a file says about itself, still as text."""
    try:
        properties: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise FlashElmoError(f"{file}: damaged metadata: expected UTF-8, found otherwise: {error.reason}") from None
    return properties


def _preload() -> None:
    """Load the CUDA libraries from pip's wheels, which ONNX Runtime since 1.21 does not find by itself."""
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it prints what it did not find; the caller's output stays clean
            onnxruntime.preload_dlls()


def reason(error: Exception) -> str:
    """Return the first line of an exception's message, without the code and path that ONNX Runtime puts before it."""
    line = first_line(error)
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .+? failed: ?)?", "", line)
