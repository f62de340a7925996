"""Tagged data for what a trained model knows: words by sense, parts of speech, sentences of a class.

It lies in `tasks/` and `text/` of a data folder (`Settings.data`), which is beside the checkout and not in the package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashelmo.engine.errors import FlashElmoError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SENSES = ("tasks/senses_hard_line.json", "text/senses.json")
TAGGED = "tasks/pos_masc_{}.txt"
CLASSES = ("polarity", "questions")


class Example(NamedTuple):
    """A sentence, where the word in question stands in it, and in which sense."""

    tokens: list[str]
    place: int
    sense: str


class Word(NamedTuple):
    """A word's examples; it may stand in them in any of its forms, as "lines" of "line"."""

    lemma: str
    examples: list[Example]

    @property
    def senses(self) -> set[str]:
        """Of its examples."""
        return {each.sense for each in self.examples}


class Tagged(NamedTuple):
    """A sentence and the tag of each token."""

    tokens: list[str]
    tags: list[str]


class Labelled(NamedTuple):
    """A sentence and its class."""

    tokens: list[str]
    label: str


def read_senses(path: Path) -> list[Word]:
    """The words of a file whose examples are of several senses.

    Raises:
        FlashElmoError: the file is absent, or something else.
    """

    def words(text: str) -> list[Word]:
        return [
            Word(word["lemma"], [_example(each, sense) for sense, found in word["senses"].items() for each in found])
            for word in json.loads(text)
        ]

    return [word for word in _read(path, words, "words with examples by sense") if len(word.senses) > 1]


def read_tagged(path: Path) -> list[Tagged]:
    """Sentences of a token and its tag a line, with blank lines between them.

    Raises:
        FlashElmoError: the file is absent, or something else.
    """

    def sentences(text: str) -> list[Tagged]:
        pairs = [[line.split("\t") for line in block.split("\n") if line] for block in text.split("\n\n")]
        return [Tagged(*([pair[k] for pair in block] for k in (0, 1))) for block in pairs if block]

    return _read(path, sentences, "a token and its tag a line")


def draw_tokens(sentences: Sequence[Tagged], n_tokens: int, seed: int) -> list[Tagged]:
    """Sentences of so many tokens together, the last one being whole."""
    drawn, left = [], n_tokens
    for row in np.random.default_rng(seed).permutation(len(sentences)):
        if left <= 0:
            break
        drawn.append(sentences[row])
        left -= len(sentences[row].tokens)
    return drawn


def read_labelled(path: Path) -> list[Labelled]:
    """Sentences of a file of a class and tokens a line, with a tab between them.

    Raises:
        FlashElmoError: the file is absent, or something else.
    """

    def sentences(text: str) -> list[Labelled]:
        lines = [line.split("\t") for line in text.split("\n") if line]
        return [Labelled(tokens.split(), label) for label, tokens in lines]

    return _read(path, sentences, "a class, a tab and tokens a line")


def judged_sentences(data: Path) -> Iterator[list[str]]:
    """Every sentence by which models are judged: all examples of senses, and what tasks are tested on."""
    for name in SENSES:
        for word in read_senses(data / name):
            yield from (each.tokens for each in word.examples)
    for part in ("dev", "test"):
        yield from (each.tokens for each in read_tagged(data / TAGGED.format(part)))
    for path in sorted(path for task in CLASSES for path in (data / "tasks").glob(f"{task}_*.tsv")):
        if not path.stem.endswith("_train"):
            yield from (each.tokens for each in read_labelled(path))


def _example(values: dict[str, Any], sense: str) -> Example:
    tokens, index = values["tokens"], values["index"]
    tokens[index]  # is in the sentence
    return Example(tokens, index, sense)


def _read(path: Path, parse: Callable[[str], list[Any]], expected: str) -> list[Any]:
    try:
        if found := parse(path.read_text(encoding="utf-8")):
            return found
        raise ValueError("found nothing")
    except OSError as error:
        raise FlashElmoError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FlashElmoError(f"{path}: expected {expected}: {type(error).__name__} {error}") from None
