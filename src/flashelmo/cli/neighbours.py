"""The command `flashelmo neighbours`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import typer

from flashelmo.cli.arguments import (
    Device,
    Field,
    InputFormat,
    Model,
    Options,
    Precision,
    Threads,
    Tokenizer,
    in_utf8,
    log_less,
    parse_layers,
)

if TYPE_CHECKING:
    from flashelmo.engine.bulk.parts import Reader

TOKENS_AROUND = 6  # of a neighbour, on either side


def neighbours(
    text: Annotated[
        str,
        typer.Argument(
            help="Text, in any format that `embed` reads: one sentence per line, tokens separated by whitespace; - is "
            "stdin."
        ),
    ],
    word: Annotated[str, typer.Argument(help="Word that occurs in each SENTENCE.")],
    sentences: Annotated[list[str], typer.Argument(metavar="SENTENCE", help="Sentences that contain the word.")],
    model: Model = None,
    options: Options = None,
    layers: Annotated[str, typer.Option(metavar="average|top|0", help="Layers to compare.")] = "average",
    n: Annotated[int, typer.Option("-n", min=1, help="Number of neighbours for each sentence.")] = 5,
    same_word: Annotated[bool, typer.Option("--same-word", help="Only other occurrences of the same word.")] = False,
    input_format: InputFormat = None,
    field: Field = None,
    tokenizer: Tokenizer = "whitespace",
    device: Device = "auto",
    precision: Precision = "auto",
    threads: Threads = None,
) -> None:
    """Find a word's nearest neighbours in a text. They are compared in their contexts."""
    from flashelmo.engine.bulk.records import open_reader
    from flashelmo.engine.bulk.tokenizers import lines_of, tokenizer_of
    from flashelmo.engine.embedder import ElmoEmbedder
    from flashelmo.engine.neighbours import Use, check_layers, neighbours_of

    word, *sentences = (in_utf8("word, SENTENCE", each) for each in (word, *sentences))
    reader = open_reader(text, input_format, field=field, tokenizer=tokenizer)
    tokens, offsets = tokenizer_of(tokenizer)(lines_of(sentences))
    uses = [Use.of(tokens[start:stop].to_pylist(), word, same_word) for start, stop in pairwise(offsets.tolist())]
    compared = parse_layers(layers)
    check_layers(compared)
    log_less(True)
    with closing(reader):
        elmo = ElmoEmbedder.load(model, options_file=options, device=device, precision=precision, threads=threads)
        found = neighbours_of(elmo, _sentences(reader), uses, n=n, layers=compared)
        for sentence, nearest in zip(sentences, found, strict=True):
            print(f"{word} in: {sentence}" + ("" if nearest else "\n  none found"))
            for each in nearest:
                before = " ".join(each.tokens[max(0, each.position - TOKENS_AROUND) : each.position])
                behind = " ".join(each.tokens[each.position + 1 :][:TOKENS_AROUND])
                print(f"  {each.similarity:.2f}  {before[-32:]:>32} [{each.word}] {behind[:32]}")


def _sentences(reader: Reader) -> Iterator[list[str]]:
    """The tokens of a text's sentences."""
    while (part := reader.take(1 << 12)) is not None:
        for window in part.records().windows(1 << 12, 1 << 16):
            yield from map(window.tokens, range(len(window)))
