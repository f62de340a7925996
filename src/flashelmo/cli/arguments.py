"""Arguments that several commands take, and how their texts are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flashelmo.engine.errors import FlashElmoError

InputText = Annotated[str, typer.Argument(help="Text: a sentence a line, tokens between white space; - reads stdin.")]
Options = Annotated[Path | None, typer.Option(help="Options file of weights that have none beside them.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SentenceKeys = Annotated[bool, typer.Option("--use-sentence-keys", help="Sentences, not line numbers, are the keys.")]
ForgetSentences = Annotated[bool, typer.Option("--forget-sentences", help="Leave out the index of sentences.")]


def parse_layers(text: str) -> Any:
    """A name, a layer's number, or several; the coefficients of a mix too, as it once was given."""
    if "," not in text:
        return int(text) if text.isdecimal() else text
    if all(number.isdecimal() for number in text.split(",")):
        return parse_numbers("--layers", text)
    return parse_coefficients("--layers", text)


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
