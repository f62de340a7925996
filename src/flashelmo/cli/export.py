"""The command `flashelmo export`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flashelmo.cli.arguments import (
    AnyModel,
    Json,
    Options,
    Overwrite,
    Quiet,
    Verbose,
    complete_numbers,
    parse_coefficients,
    parse_mix,
    parse_numbers,
)
from flashelmo.cli.terminal import readable_size, say
from flashelmo.engine.arguments import path_of
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import precisions_on
from flashelmo.engine.system.threads import openmp_polls_briefly
from flashelmo.engine.text.windows import read_windows

if TYPE_CHECKING:
    from flashelmo.export.verification.report import Report

MAX_VERIFIED = 10_000  # sentences or tokens to verify with: the reference computes some hundreds of tokens a second


def export(
    model: AnyModel,
    destination: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder.")],
    options: Options = None,
    precision: Annotated[
        str, typer.Option(metavar="|".join(precisions_on("onnx")), help="One, or several separated by commas.")
    ] = "fp32",
    all_precisions: Annotated[bool, typer.Option("--all", help="One file for every precision.")] = False,
    target: Annotated[
        Literal["any", "cuda"], typer.Option("--for", help="One file for any machine, or unrolled files for CUDA.")
    ] = "any",
    steps: Annotated[
        str | None, typer.Option(metavar="16,32,64", help="Tokens per sentence of the CUDA files.")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(metavar="1,8,32", help="Sentences per batch of the CUDA files, for each of --steps.")
    ] = None,
    layers: Annotated[
        str, typer.Option(metavar="all|0,1,2", help="Hidden states to output.", autocompletion=complete_numbers)
    ] = "all",
    mix: Annotated[str, typer.Option(metavar="average|top|W0,W1,W2", help="Mix for token_embeddings.")] = "average",
    stateful: Annotated[bool, typer.Option("--stateful", help="Make LSTM states inputs and outputs.")] = False,
    characters: Annotated[
        str | None, typer.Option(metavar="dynamic|50", help="Characters per word: any number, or the model's.")
    ] = None,
    reduce_range: Annotated[
        bool | None,
        typer.Option("--reduce-range/--full-range", help="7-bit int8 weights, for x86 without VNNI, or 8-bit."),
    ] = None,
    external_data: Annotated[bool, typer.Option("--external-data", help="Write weights to a separate file.")] = False,
    license: Annotated[str, typer.Option(help="Licence of the weights, for the model card.")] = "unknown",
    triton: Annotated[bool, typer.Option("--triton", help="Also write a repository for NVIDIA Triton.")] = False,
    text: Annotated[Path | None, typer.Option(help="Tokenized text to verify with: its first 10,000 tokens.")] = None,
    provider: Annotated[Literal["cpu", "cuda"], typer.Option(help="ONNX Runtime provider to verify on.")] = "cpu",
    verify_only: Annotated[bool, typer.Option("--verify-only", help="Verify the files in OUT; write nothing.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Export a model as ONNX files, verified against PyTorch."""
    openmp_polls_briefly()
    from flashelmo.engine.model.checkpoints import load_model
    from flashelmo.export.metadata import BUCKET_DATA
    from flashelmo.export.write import check_folder, export_onnx, verify_folder

    tell: Callable[[str], None] = (lambda text: None) if quiet or as_json else say
    destination = path_of("OUT", destination)
    if not verify_only:
        check_folder(destination, overwrite)
    numbers = {
        name: None if text is None else parse_numbers(f"--{name}", text)
        for name, text in (("steps", steps), ("batch", batch), ("layers", None if layers == "all" else layers))
    }
    if mix not in ("average", "top"):
        parse_coefficients("--mix", mix)
    loaded = load_model(model, options)
    sentences = None if text is None else _sentences(text)
    if verify_only:
        reports = verify_folder(loaded, destination, sentences=sentences, providers=provider)
        if as_json:
            _print_json(reports)
        for report in [] if as_json else reports:
            print(report.to_markdown())
        if failed := [report.failures[0] for report in reports if not report.passed]:
            raise FlashElmoError(failed[0])
        return
    reports = export_onnx(
        loaded,
        destination,
        precisions=_all_precisions(target) if all_precisions else precision.split(","),
        target=target,
        **numbers,
        mix=parse_mix(mix, loaded.config.n_layers + 1),
        stateful=stateful,
        characters=characters,
        reduce_range=reduce_range,
        external_data=external_data,
        license=license,
        triton=triton,
        sentences=sentences,
        providers=provider,
        overwrite=overwrite,
        on_progress=tell,
    )
    if as_json:
        _print_json(reports)
    for report in reports:
        size = sum(path.stat().st_size for path in destination.glob(f"{report.file}*"))
        shared = destination / Path(report.file).with_name(BUCKET_DATA)
        weights = f" beside {readable_size(shared.stat().st_size)} of weights" if shared.is_file() else ""
        worst = max(report.outputs, key=lambda error: error.relative)
        errors = f"relative error at most {worst.relative:.2g} ({worst.name})"
        sizes = f"{readable_size(size)}{weights}"
        tell(f"{destination / report.file}: {sizes}, {report.tokens:,} tokens verified, {errors}")


def _all_precisions(target: str) -> list[str]:
    """Those that have kernels there."""
    return [name for name in precisions_on("onnx") if target != "cuda" or name != "int8"]


def _print_json(reports: Sequence[Report]) -> None:
    """The reports of all files, as they stand beside each."""
    print(json.dumps([report.to_dict() for report in reports], ensure_ascii=False, indent=2))


def _sentences(path: Path) -> list[list[str]]:
    """The text's first sentences."""
    for window in read_windows(path, max_sentences=MAX_VERIFIED, max_tokens=MAX_VERIFIED):
        return [window.tokens(b) for b in range(len(window))]
    raise FlashElmoError(f"{path}: expected tokenized lines, found none")
