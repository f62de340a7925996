"""A file opened in ONNX Runtime, on the execution providers that were asked for and no others."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from flashelmo.engine.arguments import shown
from flashelmo.engine.errors import FlashElmoError, MissingExtraError, first_line
from flashelmo.engine.processor import check_threads, n_cores
from flashelmo.engine.text.sentences import several
from flashelmo.export.metadata import BUCKET_FILE

try:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as ort
except ImportError as error:
    raise MissingExtraError("onnxruntime", "cpu", "running an exported file") from error

Options: TypeAlias = Mapping[str, Any]
Provider: TypeAlias = str | tuple[str, Options]

SHORT_NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
FIRST_WITH_TF32 = 1, 18  # earlier versions refuse the option
DEVICES = {"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"}
# ONNX Runtime's exceptions have no class in common but Exception.
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
    """The files that a path means: itself, or the unrolled files that it holds; in an exported folder its fp32 file, or
    else its only file, or its unrolled files, likewise.
    """
    if unrolled := _unrolled(path):
        return unrolled
    file = path / "onnx" / "model.onnx" if path.is_dir() else path
    if file.is_file():
        return [file]
    others = sorted((path / "onnx").glob("*.onnx"))
    if len(others) == 1 and others[0].is_file():
        return others
    folders = [folder for folder in sorted((path / "onnx").glob("cuda_*")) if _unrolled(folder)]
    if not others and folders:
        preferred = [folder for folder in folders if folder.name == "cuda_fp32"] or folders
        return _unrolled(preferred[0])
    if others:
        names = ", ".join(other.name for other in others)
        raise FlashElmoError(f"{file}: expected this file or a single other one, found {names}; pass the path of one")
    raise FlashElmoError(f"{file}: expected a model exported by flashelmo, found no such file")


def _unrolled(folder: Path) -> list[Path]:
    """The unrolled files that lie in a folder."""
    return sorted(file for file in folder.glob("*.onnx") if re.fullmatch(BUCKET_FILE, file.name))


def available_providers(providers: str | Sequence[Provider]) -> list[tuple[str, Options]]:
    """Full names and options of providers, all of which this ONNX Runtime was built with."""
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
    """What a provider is told unless the caller says otherwise: CUDA's by itself rounds float32 products to 11 bits."""
    version = re.match(r"(\d+)\.(\d+)", onnxruntime.__version__)
    knows_tf32 = version is not None and tuple(map(int, version.groups())) >= FIRST_WITH_TF32
    return {"use_tf32": "0"} if name == "CUDAExecutionProvider" and knows_tf32 else {}


def with_cuda_graphs(wanted: Sequence[tuple[str, Options]]) -> list[tuple[str, Options]]:
    """The providers, CUDA with graphs unless told: ONNX Runtime opens a file then only where all nodes lie there."""
    graphs = {SHORT_NAMES["cuda"]: {"enable_cuda_graph": "1"}}
    return [(name, {**graphs.get(name, {}), **options}) for name, options in wanted]


def device_of(name: str, options: Options) -> tuple[str, int]:
    """Kind and number of the device on which a provider leaves what it computed."""
    return (DEVICES[name], int(options.get("device_id", 0))) if name in DEVICES else ("cpu", 0)


def number_type(name: str) -> npt.DTypeLike:
    """The numpy type of a value whose type ONNX Runtime writes as `tensor(float)`."""
    element = name.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(element, element))


def device_memory(value: Any, device: tuple[str, int]) -> Any:
    """An OrtValue for an input or output of a session, of the one shape that it has."""
    return onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(value.shape), number_type(value.type), *device)


def options_of(given: Any, threads: int | None) -> Any:
    """The SessionOptions given, or some that suit batches whose shapes keep changing."""
    check_threads(threads)
    if given is not None:
        if not isinstance(given, onnxruntime.SessionOptions):
            raise FlashElmoError(f"session_options: expected onnxruntime.SessionOptions, found {shown(given)}")
        if threads is not None:
            raise FlashElmoError("threads: expected them in session_options, since these are given, found both")
        return given
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or n_cores()
    options.enable_mem_pattern = False  # shapes vary without end, and a pattern is kept for each
    options.log_severity_level = 4  # what fails is raised, and would be said twice
    return options


def open_session(file: Path, wanted: list[tuple[str, Options]], options: Any) -> Any:
    """An InferenceSession on the providers wanted; ONNX Runtime would go on without those that fail to load."""
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
    """What a file says of itself, still as text."""
    try:
        properties: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise FlashElmoError(f"{file}: damaged metadata: expected UTF-8, found otherwise: {error.reason}") from None
    return properties


def _preload() -> None:
    """Load the CUDA libraries of pip's wheels, which ONNX Runtime since 1.21 does not find unless told to."""
    if hasattr(onnxruntime, "preload_dlls"):
        with redirect_stdout(sys.stderr):  # it prints what it did not find; the caller's output stays clean
            onnxruntime.preload_dlls()


def reason(error: Exception) -> str:
    """What an exception says on its first line, without the code and path that ONNX Runtime puts before it."""
    line = first_line(error)
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .+? failed: ?)?", "", line)
