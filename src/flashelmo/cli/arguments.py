"""Arguments that several commands take, and how their texts are read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.named.table import named_models
from flashelmo.engine.output import Layers
from flashelmo.engine.precision import PrecisionName
from flashelmo.engine.settings import RuntimeName

InputText = Annotated[str, typer.Argument(help="Text: a sentence a line, tokens between white space; - reads stdin.")]
Options = Annotated[Path | None, typer.Option(help="Options file of weights that have none beside them.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Say what is chosen and loaded.", callback=lambda value: log_more(value))
]
SentenceKeys = Annotated[bool, typer.Option("--use-sentence-keys", help="Sentences, not line numbers, are the keys.")]
DType: TypeAlias = Literal["float32", "float16"]
Pool: TypeAlias = Literal["mean", "max"]
Precision = Annotated[Literal["auto", PrecisionName], typer.Option(help="Of the computation.")]
Runtime = Annotated[Literal["auto", RuntimeName], typer.Option(help="What computes.")]
Threads = Annotated[int | None, typer.Option(help="Processor threads; all cores if not set.")]
WordCache = Annotated[
    Path | None, typer.Option(help="File that keeps word vectors from run to run, of one model; on the CPU.")
]
KeepBoundaries = Annotated[
    bool, typer.Option("--keep-sentence-boundaries", help="Keep the vectors of begin and end of sentence.")
]
BadRecords: TypeAlias = Literal["strict", "replace", "skip"]
Folder: TypeAlias = Literal["native", "parquet", "seqvec"]
ForgetSentences = Annotated[bool, typer.Option("--forget-sentences", help="Leave out the index of sentences.")]


def parse_layers(text: str) -> Layers:
    """A layer's number, or several; all else as it is, for `Output` to take or to refuse."""
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        return text
    return int(text) if len(numbers) == 1 else [int(number) for number in numbers]


def parse_coefficients(option: str, text: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise FlashElmoError(f"{option}: expected a number for each layer with commas, found {text!r}") from None


def parse_mix(text: str, n_layers: int) -> Sequence[float]:
    """Coefficients of n_layers layers, from "average", "top" or the numbers themselves."""
    if text == "average":
        return [1 / n_layers] * n_layers
    if text == "top":
        return [0.0] * (n_layers - 1) + [1.0]
    return parse_coefficients("--mix", text)


def parse_numbers(option: str, text: str) -> list[int]:
    """Whole numbers with commas between them."""
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise FlashElmoError(f"{option}: expected whole numbers with commas, found {text!r}")
    return [int(number) for number in numbers]


def log_more(verbose: bool) -> bool:
    """Let the engine say what it does too, for the rest of this command."""
    if verbose:
        logging.getLogger("flashelmo").setLevel(logging.INFO)
    return verbose


def complete_layers() -> list[str]:
    """What `--layers` may be, for completion in a shell."""
    return ["all", "top", "average", "0", "1", "2", "0,1,2"]


def complete_numbers() -> list[str]:
    """What `--layers` may be where none are computed from others, likewise."""
    return ["all", "0", "1", "2", "0,1,2"]


def complete_devices() -> list[str]:
    """What `--device` may be, likewise."""
    return ["auto", "cpu", "cuda", "cuda:0", "cuda:0,cuda:1"]


def complete_names() -> list[str]:
    """Names of models, likewise."""
    return ["tiny", *named_models()]
