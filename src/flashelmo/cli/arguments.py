"""Arguments that several commands take, and how their texts are read."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from flashelmo.engine.arguments import check, is_decimal
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.named.table import named_models
from flashelmo.engine.output import Layers
from flashelmo.engine.precision import PrecisionName
from flashelmo.engine.settings import RuntimeName
from flashelmo.engine.text.sentences import SURROGATE


def log_more(verbose: bool) -> bool:
    """Let the engine say what it does too, for the rest of this command."""
    if verbose:
        logging.getLogger("flashelmo").setLevel(logging.INFO)
    return verbose


def log_less(quiet: bool) -> bool:
    """Let the engine not say which device it chose, for the rest of this command."""
    if quiet:
        logging.getLogger("flashelmo.device").setLevel(logging.ERROR)
    return quiet


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


def in_utf8(name: str, argument: str) -> str:
    """What was given in UTF-8, as texts are, also where the locale has another encoding.

    Python keeps bytes that it cannot decode as lone surrogates, which a model would leave out of a word.
    """
    if SURROGATE.search(argument) is None:
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeDecodeError:
        raise FlashElmoError(f"{name}: expected UTF-8, found {argument!a}") from None


def read_field(parameter: typer.CallbackParam, field: str | None) -> str | None:
    """A field's or column's name, which stands in a text."""
    return None if field is None else in_utf8(parameter.opts[0], field)


InputText = Annotated[str, typer.Argument(help="Text: one sentence per line, tokens split by whitespace; - is stdin.")]
AnyModel = Annotated[Path, typer.Argument(help="Model in any format, or its name.")]
Model = Annotated[
    Path | None,
    typer.Option(
        help="Model: folder, archive, weights file or name; default: the bundled one.", autocompletion=complete_names
    ),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|cuda:1", help="Device to compute on.")]
Devices = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:0,cuda:1",
        help="Device to compute on, or several.",
        autocompletion=complete_devices,
    ),
]
Options = Annotated[Path | None, typer.Option(help="Options file, if it is not next to the weights.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON to standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, summary or notices.", callback=log_less)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what is chosen and loaded.", callback=log_more)]
SentenceKeys = Annotated[bool, typer.Option("--use-sentence-keys", help="Use sentences, not line numbers, as keys.")]
Precision = Annotated[Literal["auto", PrecisionName], typer.Option(help="Precision of the computation.")]
Runtime = Annotated[Literal["auto", RuntimeName], typer.Option(help="Computation backend.")]
InputFormat = Annotated[
    str | None,
    typer.Option(
        metavar="lines|jsonl|csv|tsv|tsv-quoted|parquet|conllu|tags|fasta",
        help="Format of the input; default: by its name's suffix.",
    ),
]
Field = Annotated[str | None, typer.Option(help="Field or column to embed; default: text.", callback=read_field)]
IdField = Annotated[str | None, typer.Option(help="Field or column with the records' ids.", callback=read_field)]
Tokenizer = Annotated[
    str, typer.Option(metavar="whitespace|characters|moses|spacy:MODEL", help="Tokenizer for raw text.")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: all cores.")]
WordCache = Annotated[
    Path | None, typer.Option(help="File that caches one model's word vectors between runs; CPU only.")
]
BatchInvariant = Annotated[
    bool, typer.Option("--batch-invariant", help="Same bits whatever else is in the batch, on GPUs too.")
]
KeepBoundaries = Annotated[
    bool, typer.Option("--keep-sentence-boundaries", help="Keep the vectors of the sentence boundaries.")
]
ForgetSentences = Annotated[bool, typer.Option("--forget-sentences", help="Omit the index of sentences.")]


def parse_layers(text: str) -> Layers:
    """A layer's number, or several; all else as it is, for `Output` to take or to refuse."""
    numbers = text.split(",")
    if not all(map(is_decimal, numbers)):
        return text
    return int(text) if len(numbers) == 1 else [int(number) for number in numbers]


def parse_coefficients(option: str, text: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(value) for value in text.split(",")]
    except ValueError:
        raise FlashElmoError(f"{option}: expected one number per layer, separated by commas, found {text!r}") from None


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
    check(all(map(is_decimal, numbers)), option, "whole numbers separated by commas", text)
    return [int(number) for number in numbers]
