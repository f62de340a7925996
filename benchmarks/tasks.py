"""Tagged data for what a trained model knows: words by sense, parts of speech, sentences by class.

It is in `tasks/` and `text/` of a data folder (`Settings.data`), which is beside the checkout and not in the package. A
task is what can be learned from it and judged by it: sentences with a label, or with a label for each token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.arrays import Array, Float32, Int64
from flashelmo.engine.errors import FlashElmoError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SENSES = ("tasks/senses_hard_line.json", "text/senses.json")
TAGGED = "tasks/pos_masc_{}.txt"
SPEECH, POLARITY, QUESTIONS = "speech", "polarity", "questions"
CLASSES = (POLARITY, QUESTIONS)
DEV_SHARE = 10  # one in this many training sentences is for choosing, if a task has none for that

Embed = Callable[[Iterable[list[str]]], Iterator[Array]]  # sentences to [L, T, 2P] of each


class Example(NamedTuple):
    """A sentence, the place of the word in question, and its sense."""

    tokens: list[str]
    place: int
    sense: str


class Word(NamedTuple):
    """A word's examples; it may occur in them in any of its forms, such as "lines" for "line"."""

    lemma: str
    examples: list[Example]

    @property
    def senses(self) -> set[str]:
        """Return the senses of its examples."""
        return {each.sense for each in self.examples}


class Sample(NamedTuple):
    """A sentence and its labels: one, its class, or one per token, its tag."""

    tokens: list[str]
    labels: list[str]


def read_senses(path: Path) -> list[Word]:
    """Return the words of a file whose examples are of several senses.

    Raises:
        FlashElmoError: the file is missing, or something else.
    """

    def words(text: str) -> list[Word]:
        return [
            Word(word["lemma"], [_example(each, sense) for sense, found in word["senses"].items() for each in found])
            for word in json.loads(text)
        ]

    return [word for word in _read(path, words, "words with examples by sense") if len(word.senses) > 1]


def read_tagged(path: Path) -> list[Sample]:
    """Return sentences from a file with a token and its tag per line, with blank lines between sentences.

    Raises:
        FlashElmoError: the file is missing, or something else.
    """

    def sentences(text: str) -> list[Sample]:
        pairs = [[line.split("\t") for line in block.split("\n") if line] for block in text.split("\n\n")]
        return [Sample(*([pair[k] for pair in block] for k in (0, 1))) for block in pairs if block]

    return _read(path, sentences, "a token and its tag a line")


def draw_tokens(sentences: Sequence[Sample], n_tokens: int, seed: int) -> list[Sample]:
    """Draw sentences of this many tokens in total, the last one being whole."""
    drawn, left = [], n_tokens
    for row in np.random.default_rng(seed).permutation(len(sentences)):
        if left <= 0:
            break
        drawn.append(sentences[row])
        left -= len(sentences[row].tokens)
    return drawn


def read_labelled(path: Path) -> list[Sample]:
    """Return sentences from a file with a class and tokens per line, separated by a tab.

    Raises:
        FlashElmoError: the file is missing, or something else.
    """

    def sentences(text: str) -> list[Sample]:
        lines = [line.split("\t") for line in text.split("\n") if line]
        return [Sample(tokens.split(), [label]) for label, tokens in lines]

    return _read(path, sentences, "a class, a tab and tokens a line")


def judged_sentences(data: Path) -> Iterator[list[str]]:
    """Yield every sentence by which models are judged: all examples of senses, and what tasks are tested on."""
    for name in SENSES:
        for word in read_senses(data / name):
            yield from (each.tokens for each in word.examples)
    for part in ("dev", "test"):
        yield from (each.tokens for each in read_tagged(data / TAGGED.format(part)))
    for path in sorted(path for task in CLASSES for path in (data / "tasks").glob(f"{task}_*.tsv")):
        if not path.stem.endswith("_train"):
            yield from (each.tokens for each in read_labelled(path))


class Task(NamedTuple):
    """Sentences to learn from, to choose the best epoch by, and to be judged by.

    Attributes:
        by_token: whether every token has a label, not the sentence.
        classes: the labels, in order.
    """

    name: str
    by_token: bool
    train: list[Sample]
    dev: list[Sample]
    test: list[Sample]

    @property
    def parts(self) -> tuple[list[Sample], list[Sample], list[Sample]]:
        """Return the sentences to learn from, to choose by, and to be judged by."""
        return self.train, self.dev, self.test

    @property
    def classes(self) -> list[str]:
        """The labels that can be learned, in order."""
        return sorted({label for sample in self.train for label in sample.labels})

    def numbers(self, samples: Iterable[Sample]) -> Int64:
        """Return the labels, end to end, as indices in `classes`; -1 for those that cannot be learned [N]."""
        place = {label: k for k, label in enumerate(self.classes)}
        return np.array([place.get(label, -1) for sample in samples for label in sample.labels], np.int64)

    def features(self, embed: Embed, samples: Sequence[Sample]) -> Float32:
        """Return vectors [N, L, D] of what is labelled: every token, or for a sentence the mean of its tokens'."""
        found = []
        for vectors in embed([sample.tokens for sample in samples]):
            by_token = vectors.transpose(1, 0, 2)
            found.append(by_token if self.by_token else by_token.mean(axis=0, keepdims=True))
        return np.concatenate(found).astype(np.float32)


def load_task(name: str, settings: Settings) -> Task:
    """Return the named task.

    Raises:
        FlashElmoError: its data are missing.
    """
    data = settings.data or DATA
    if name == SPEECH:
        n_tokens = settings.tagged_tokens
        tokens = {"train": n_tokens, "dev": n_tokens // 4, "test": n_tokens // 2}
        parts = [
            draw_tokens(read_tagged(data / TAGGED.format(part)), number, settings.seed)
            for part, number in tokens.items()
        ]
        return Task(name, True, *parts)
    train, test = (_labelled(data / f"tasks/{name}_{part}.tsv", settings) for part in ("train", "test"))
    dev_file = data / f"tasks/{name}_dev.tsv"
    if dev_file.is_file():
        return Task(name, False, train, _labelled(dev_file, settings), test)
    order = np.random.default_rng(settings.seed).permutation(len(train))
    chosen = {int(place) for place in order[: max(1, len(train) // DEV_SHARE)]}
    dev = [sample for place, sample in enumerate(train) if place in chosen]
    return Task(name, False, [sample for place, sample in enumerate(train) if place not in chosen], dev, test)


def _labelled(path: Path, settings: Settings) -> list[Sample]:
    """Return all sentences of a file, or as many examples as requested, drawn with the seed."""
    found = read_labelled(path)
    if settings.examples is None:
        return found
    drawn = np.random.default_rng(settings.seed).permutation(len(found))[: 10 * settings.examples]
    return [found[place] for place in drawn]


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
