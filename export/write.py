"""`flashelmo export`: a folder with the verified ONNX files of a model, their reports and a model card."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashelmo.engine.arguments import check, flag, is_one_of, shown, utf8_path_of, whole_number
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.files import check_replaceable, new_folder
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import precisions_on
from flashelmo.engine.text.sentences import several
from flashelmo.export.buckets import Bucket, bucket_of
from flashelmo.export.build import build_buckets, build_onnx, metadata_of
from flashelmo.export.card import model_card
from flashelmo.export.metadata import BUCKET, BUCKET_DATA, Metadata
from flashelmo.export.open_session import Provider, available_providers
from flashelmo.export.servers.repository import write_triton_repository
from flashelmo.export.verification.report import Report
from flashelmo.export.verification.truth import Truth
from flashelmo.export.verification.verify import verify

DEFAULTS = {"steps": (16, 32, 64), "batch": (1, 8, 32)}  # of unrolled files
MOST = {"steps": 512, "batch": 1024}  # a step has about fifteen nodes per layer
# The names that deployment tools look for; the card and reports are beside them.
FILE_NAMES = {name: "model.onnx" if name == "fp32" else f"model_{name}.onnx" for name in precisions_on("onnx")}
ONNX_FILE = r"model(_fp16|_int8)?\.onnx(_data)?"
WRITTEN = re.compile(
    rf"(triton/)?README\.md|onnx/({ONNX_FILE}|model(_fp16|_int8)?\.report\.(json|md))"
    rf"|onnx/cuda_(fp32|fp16)/({BUCKET}(\.onnx|\.report\.(json|md))|{re.escape(BUCKET_DATA)})"
    r"|triton/elmo_(fp32|fp16|int8|native|onnx_text)/(config\.pbtxt|request\.json|warmup/(text|character_ids|word_ids)"
    rf"|1/({ONNX_FILE}|model\.py|model/(config\.json|model\.safetensors|lexicon\.json)))"
)


def export_onnx(
    model: ElmoModel,
    folder: str | Path,
    *,
    precisions: Sequence[str] = ("fp32",),
    target: str = "any",
    steps: Sequence[int] | None = None,
    batch: Sequence[int] | None = None,
    triton: bool = False,
    sentences: Sequence[Sequence[str]] | None = None,
    providers: str | Sequence[Provider] = "cpu",
    overwrite: bool = False,
    external_data: bool = False,
    on_progress: Callable[[str], None] = lambda what: None,
    **options: Any,
) -> list[Report]:
    """Write a model as ONNX files, each verified against the PyTorch reference before the folder gets its name.

        folder/README.md                    model card
        folder/onnx/model.onnx              fp32; model_fp16.onnx and model_int8.onnx likewise
        folder/onnx/model.report.json, .md  what the verification found
        folder/triton/                      a model repository for NVIDIA Triton Inference Server, if `triton`

    For CUDA, instead of each file, there is a folder of unrolled ones, which share their weights:

        folder/onnx/cuda_fp32/batch8_steps32.onnx   for 8 sentences of up to 32 tokens; with its report
        folder/onnx/cuda_fp32/weights.onnx_data

    Args:
        model: of any format, as `load_model` returns it.
        folder: where to write; it appears complete or not at all.
        precisions: the files to write: "fp32", "fp16" and "int8".
        target: "any" or "cuda": where the files will run.
        steps, batch: tokens per sentence, and sentences, of the files for CUDA, one for each pair; by default 16, 32
            and 64, and 1, 8 and 32.
        triton: also write the model repository.
        sentences, providers: what the verification embeds and runs on; see `verify`.
        overwrite: replace a folder that this function wrote.
        external_data: see `build_onnx`.
        on_progress: called with a few words on what is being done.
        **options: those of `metadata_of`: layers, mix, stateful, characters, reduce_range, license.

    Returns:
        The report of each file.

    Raises:
        FlashElmoError: an argument is none of these, the folder exists, or a file breaks a bound: then nothing is left
            under `folder`.
        MissingExtraError: PyTorch or ONNX Runtime, needed for verification, is not installed.
    """
    folder = utf8_path_of("folder", folder)
    overwrite, triton = flag("overwrite", overwrite), flag("triton", triton)
    external_data = flag("external_data", external_data)
    # Wrong options and missing packages are reported before the work is done.
    names = [metadata_of(model, precision, **options).precision for precision in several("precisions", precisions)]
    if not names or len(set(names)) < len(names):
        expected = f"one or more of {', '.join(FILE_NAMES)}, each once"
        raise FlashElmoError(f"precisions: expected {expected}, found {', '.join(names) or 'none'}")
    check_folder(folder, overwrite)
    check(callable(on_progress), "on_progress", "a function", on_progress)
    buckets = _check_target(target, names, steps, batch, {**options, "triton": triton})
    available_providers(providers)
    with new_folder(folder, overwrite, ours=_is_ours) as place:
        truth = Truth(model)
        metadata: list[Metadata] = []
        reports: list[Report] = []
        for precision in names:
            on_progress(f"{precision}: writing")
            built = _build(model, place / "onnx", buckets, external_data, {**options, "precision": precision})
            for path, meant in built.items():
                on_progress(f"{precision}: verifying" + f" {path.name}" * bool(buckets))
                report = verify(path, model, sentences=sentences, providers=providers, truth=truth, expected=meant)
                if not report.passed:
                    raise FlashElmoError(f"{folder}: not written: {_failures(report)}")
                metadata.append(_enter_report(path, report))
                reports.append(report)
        (place / "README.md").write_text(model_card(metadata, reports), encoding="utf-8")
        if triton:
            on_progress("writing the model repository")
            files = {name: place / "onnx" / FILE_NAMES[name] for name in names}
            write_triton_repository(place / "triton", files, model)
    return reports


def _check_target(
    target: str,
    precisions: Sequence[str],
    steps: Sequence[int] | None,
    batch: Sequence[int] | None,
    options: Mapping[str, Any],
) -> list[Bucket]:
    """Return sentences and tokens of each unrolled file; none for a general file.

    Raises:
        FlashElmoError: an argument does not go with the target.
    """
    check(is_one_of(target, "any", "cuda"), "target", "'any' or 'cuda'", target)
    given = {"steps": steps, "batch": batch}
    if target == "any":
        for name, value in given.items():
            if value is not None:
                raise FlashElmoError(f"{name}: only for target 'cuda', found {shown(value)}")
        return []
    if "int8" in precisions:
        raise FlashElmoError("precision: expected fp32 or fp16 in files for CUDA, found 'int8'")
    characters = options.get("characters")
    others = {name: options.get(name) for name in ("triton", "stateful", "reduce_range")}
    others["characters"] = characters if is_one_of(characters, "dynamic") else None
    for name, found in others.items():
        if found:
            raise FlashElmoError(f"{name}: not for target 'cuda', found {shown(found)}")
    sizes = {name: _sizes(name, DEFAULTS[name] if value is None else value) for name, value in given.items()}
    return [(sentences, tokens) for tokens in sizes["steps"] for sentences in sizes["batch"]]


def _sizes(name: str, values: Sequence[int]) -> list[int]:
    found = [whole_number(name, size, 1, MOST[name]) for size in several(name, values)]
    check(0 < len(set(found)) == len(found), name, "one or more numbers, each once", found)
    return sorted(found)


def _build(
    model: ElmoModel, folder: Path, buckets: Sequence[Bucket], external_data: bool, options: Mapping[str, Any]
) -> dict[Path, Metadata]:
    """Write a precision's file, or its unrolled ones; return their metadata."""
    precision = options["precision"]
    target = folder / f"cuda_{precision}" if buckets else folder
    target.mkdir(parents=True, exist_ok=True)
    if buckets:
        return build_buckets(model, target, buckets, **options)
    path = target / FILE_NAMES[precision]
    return {path: build_onnx(model, path, external_data=external_data, **options)}


def check_folder(folder: str | Path, overwrite: bool) -> None:
    """Raise FlashElmoError, before the work is done, if `export_onnx` could not write the folder."""
    folder = utf8_path_of("folder", folder)
    if folder.suffix == ".onnx":
        raise FlashElmoError(f"{folder}: expected a folder to write, found a file")
    check_replaceable(folder, overwrite, _is_ours)


def verify_folder(model: ElmoModel, folder: str | Path, **settings: Any) -> list[Report]:
    """Verify every file of an exported folder again: elsewhere, with other versions or on another provider.

    Args:
        model: the model that they were exported from.
        folder: as `export_onnx` wrote it.
        **settings: those of `verify`.

    Raises:
        FlashElmoError: there is no exported file, or as `verify` raises.
    """
    folder = utf8_path_of("folder", folder)
    files = [folder / "onnx" / name for name in FILE_NAMES.values()]
    found = [path for path in files if path.is_file()]
    found += [path for path in sorted(folder.glob("onnx/cuda_*/*.onnx")) if bucket_of(path) is not None]
    if not found:
        raise FlashElmoError(f"{folder}: expected an exported folder with {files[0].relative_to(folder)}, found none")
    truth = Truth(model)
    return [verify(path, model, truth=truth, **settings) for path in found]


def _is_ours(name: str) -> bool:
    return WRITTEN.fullmatch(name) is not None


def _failures(report: Report) -> str:
    """Return the first failure, and how many more there are."""
    failures = report.failures or (f"{report.file}: no token was compared",)
    return failures[0] + (f" (and {len(failures) - 1} more)" if len(failures) > 1 else "")


def _enter_report(path: Path, report: Report) -> Metadata:
    """Write a file's report beside it, and the report's digest into it; return its metadata."""
    import onnx

    path.with_suffix(".report.json").write_bytes(report.to_json().encode())  # with no other line ends on Windows
    path.with_suffix(".report.md").write_text(report.to_markdown(), encoding="utf-8")
    proto = onnx.load(path, load_external_data=False)
    properties = {entry.key: entry.value for entry in proto.metadata_props} | {"report_sha256": report.digest()}
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, properties)
    onnx.save_model(proto, path)
    return Metadata.from_properties(properties, str(path))
