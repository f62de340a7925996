"""The tasks: sentences with a label, or with a label of each token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashelmo.benchmarks.senses.vectors import Embed, Float32
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tasks import DATA, TAGGED, draw_tokens, read_labelled, read_tagged

DEV_SHARE = 10  # one in so many training sentences is for choosing, where a task has none for that
SPEECH, POLARITY, QUESTIONS = "speech", "polarity", "questions"


class Sample(NamedTuple):
    """A sentence and its labels: one, or one a token."""

    tokens: list[str]
    labels: list[str]


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
    def classes(self) -> list[str]:
        """The labels that can be learned, in order."""
        return sorted({label for sample in self.train for label in sample.labels})

    def numbers(self, samples: Iterable[Sample]) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The labels, end to end, as places in `classes`; -1 for one that cannot be learned [N]."""
        place = {label: k for k, label in enumerate(self.classes)}
        return np.array([place.get(label, -1) for sample in samples for label in sample.labels], np.int64)

    def features(self, embed: Embed, samples: Sequence[Sample]) -> Float32:
        """Vectors [N, L, D] of what has a label: of every token, or of a sentence the mean of its tokens'."""
        found = []
        for vectors in embed([sample.tokens for sample in samples]):
            by_token = vectors.transpose(1, 0, 2)
            found.append(by_token if self.by_token else by_token.mean(axis=0, keepdims=True))
        return np.concatenate(found).astype(np.float32)


def load_task(name: str, settings: Settings) -> Task:
    """A task by its name.

    Raises:
        FlashElmoError: its data are absent.
    """
    data = settings.data or DATA
    if name == SPEECH:
        tokens = {
            "train": settings.tagged_tokens,
            "dev": settings.tagged_tokens // 4,
            "test": settings.tagged_tokens // 2,
        }
        parts = [
            [Sample(*each) for each in draw_tokens(read_tagged(data / TAGGED.format(part)), number, settings.seed)]
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
    """All sentences of a file, or so many as there are examples asked for, drawn by the seed."""
    found = [Sample(each.tokens, [each.label]) for each in read_labelled(path)]
    if settings.examples is None:
        return found
    drawn = np.random.default_rng(settings.seed).permutation(len(found))[: 10 * settings.examples]
    return [found[place] for place in drawn]
