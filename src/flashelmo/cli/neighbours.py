"""The command `flashelmo neighbours`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated

import typer

from flashelmo.cli.arguments import Device, InputText, Model, Options, Precision, Threads, log_less, parse_layers
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.sentences import SURROGATE
from flashelmo.engine.text.windows import read_windows

TOKENS_AROUND = 6  # of a neighbour, on either side


def neighbours(
    text: InputText,
    word: Annotated[str, typer.Argument(help="Word that occurs in each SENTENCE.")],
    sentences: Annotated[list[str], typer.Argument(metavar="SENTENCE", help="Sentences that contain the word.")],
    model: Model = None,
    options: Options = None,
    layers: Annotated[str, typer.Option(metavar="average|top|0", help="Layers to compare.")] = "average",
    n: Annotated[int, typer.Option("-n", min=1, help="Number of neighbours for each sentence.")] = 5,
    same_word: Annotated[bool, typer.Option("--same-word", help="Only other occurrences of the same word.")] = False,
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
) -> None:
    """Find a word's nearest neighbours in a text. They are compared in their contexts."""
    from flashelmo.engine.embedder import ElmoEmbedder
    from flashelmo.engine.neighbours import Use, check_layers, neighbours_of

    word, *sentences = map(_in_utf8, (word, *sentences))
    compared, uses = parse_layers(layers), [Use.of(sentence, word, same_word) for sentence in sentences]
    check_layers(compared)
    log_less(True)
    elmo = ElmoEmbedder.load(model, options_file=options, device=device, precision=precision, threads=threads)
    found = neighbours_of(elmo, _tokens(text), uses, n=n, layers=compared)
    for sentence, nearest in zip(sentences, found, strict=True):
        print(f"{word} in: {sentence}" + ("" if nearest else "\n  none found"))
        for each in nearest:
            before = " ".join(each.tokens[max(0, each.position - TOKENS_AROUND) : each.position])
            behind = " ".join(each.tokens[each.position + 1 :][:TOKENS_AROUND])
            print(f"  {each.similarity:.2f}  {before[-32:]:>32} [{each.word}] {behind[:32]}")


def _in_utf8(argument: str) -> str:
    """What was given in UTF-8, as texts are, also where the locale has another encoding.

    Python keeps bytes that it cannot decode as lone surrogates, which a model would leave out of a word.
    """
    if SURROGATE.search(argument) is None:
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeDecodeError:
        raise FlashElmoError(f"word, SENTENCE: expected UTF-8, found {argument!a}") from None


def _tokens(text: str) -> Iterator[list[str]]:
    """The sentences of a text."""
    for window in read_windows(text, max_sentences=1 << 12, max_tokens=1 << 16):
        yield from map(window.tokens, range(len(window)))
