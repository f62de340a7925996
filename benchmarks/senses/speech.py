"""Parts of speech by a linear classifier on frozen vectors (linear.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.senses import linear
from flashelmo.benchmarks.senses.contest import Contest
from flashelmo.benchmarks.senses.intervals import Float64, by_resampling
from flashelmo.benchmarks.senses.nearest import Bool
from flashelmo.benchmarks.senses.static import of_words, word_vectors
from flashelmo.benchmarks.senses.vectors import Embed, Float32, by_name, embed_with
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tasks import DATA, TAGGED, Tagged, draw_tokens, read_tagged


class TaggedText(NamedTuple):
    """Sentences to learn from, to choose the best epoch by, and to be judged by."""

    train: list[Tagged]
    dev: list[Tagged]
    test: list[Tagged]

    @classmethod
    def draw(cls, data: Path, n_tokens: int, seed: int) -> TaggedText:
        """Sentences of so many tokens to learn from, and of a quarter and a half as many, by the seed."""
        sizes = {"train": n_tokens, "dev": n_tokens // 4, "test": n_tokens // 2}
        return cls(*(draw_tokens(read_tagged(data / TAGGED.format(name)), n, seed) for name, n in sizes.items()))


def measure_speech(contest: Contest) -> list[Row]:
    """Parts of speech by each layer, of random weights those of the first seed."""
    settings = contest.settings
    text = TaggedText.draw(settings.data or DATA, settings.tagged_tokens, settings.seed)
    classes = sorted(set(tags(text.train)))
    numbers = [np.array([classes.index(t) if t in classes else -1 for t in tags(part)], np.int64) for part in text]
    usual = most_frequent(text.train, text.test)
    rows = score("each word's most frequent tag", np.array(usual) == np.array(tags(text.test)), text, settings)

    def learn(name: str, vectors: Sequence[Float32]) -> None:
        train, dev, test = (linear.part(each[:, None], k) for each, k in zip(vectors, numbers, strict=True))
        rows.extend(
            score(name, linear.right(linear.learn(train, dev, len(classes), settings.seed), test), text, settings)
        )

    if settings.corpus is not None:
        static = word_vectors(settings.corpus)
        own = [[of_words(static, sentence.tokens) for sentence in part] for part in text]
        learn("word2vec", [np.concatenate(part) for part in own])
        learn("word2vec, both neighbours too", [np.concatenate([*map(beside, part)]) for part in own])
    random = {name: seeds[0] for name, seeds in contest.random_models.items()}
    for name, model in {**random, **contest.models}.items():
        embed = embed_with(model, settings)
        found = [features(embed, part) for part in text]
        for layer in found[0]:
            learn(f"{name}, {layer}", [part[layer] for part in found])
    return rows


def beside(vectors: Float32) -> Float32:
    """Each token's vector [T, D] behind those of its neighbours, zeros at the ends: [T, 3 D]."""
    padded = np.pad(vectors, ((1, 1), (0, 0)))
    return np.concatenate([padded[1:-1], padded[:-2], padded[2:]], axis=1)


def tags(sentences: Sequence[Tagged]) -> list[str]:
    """Those of all tokens, end to end."""
    return [tag for sentence in sentences for tag in sentence.tags]


def features(embed: Embed, sentences: Sequence[Tagged]) -> dict[str, Float32]:
    """The vectors [tokens, 2P] of every layer by its name, and of the average."""
    found = [vectors.transpose(1, 0, 2) for vectors in embed([sentence.tokens for sentence in sentences])]
    return by_name(np.concatenate(found).astype(np.float32))


def most_frequent(train: Sequence[Tagged], test: Sequence[Tagged]) -> list[str]:
    """Every word's most frequent tag; of an unknown word, that of all words."""
    counts: dict[str, Counter[str]] = {}
    for sentence in train:
        for token, tag in zip(sentence.tokens, sentence.tags, strict=True):
            counts.setdefault(token, Counter())[tag] += 1
    overall = Counter(tags(train)).most_common(1)[0][0]
    best = {token: found.most_common(1)[0][0] for token, found in counts.items()}
    return [best.get(token, overall) for sentence in test for token in sentence.tokens]


def score(name: str, right: Bool | Float64, text: TaggedText, settings: Settings) -> list[Row]:
    """The shares of right tags among all words, ambiguous ones, and those that were not learned from.

    Intervals are over sentences, whose tokens are not independent.

    Args:
        right: of each token of the test [N].
    """
    lengths = [len(sentence.tags) for sentence in text.test]
    starts = np.cumsum([0, *lengths[:-1]])
    n_train = sum(len(sentence.tags) for sentence in text.train)
    note = f"{n_train:,} tokens to learn from, {sum(lengths):,} to be judged by; ambiguous: with several tags there"
    rows = []
    kinds = {"all": np.ones(len(right), bool), "ambiguous": ambiguous(text.train, text.test)}
    kinds["not learned from"] = unseen(text.train, text.test)
    for kind, among in kinds.items():
        row = Row("speech", "", name, "share of right tags", kind, note=note)
        weights, sums = np.add.reduceat(among * 1.0, starts), np.add.reduceat(right * among, starts)
        if (has := weights > 0).any():
            interval = by_resampling(sums[has] / weights[has], settings.resamples, weights[has])
            row = replace(row, median=float(sums.sum() / weights.sum()), interval=interval)
        rows.append(row)
    return rows


def unseen(train: Sequence[Tagged], test: Sequence[Tagged]) -> Bool:
    """Which of the test's tokens are words that the tagger did not learn from."""
    known = {token for sentence in train for token in sentence.tokens}
    return np.array([token not in known for sentence in test for token in sentence.tokens])


def ambiguous(train: Sequence[Tagged], test: Sequence[Tagged]) -> Bool:
    """Which of the test's tokens are words that have several tags in the text that the tagger learns from."""
    found: dict[str, set[str]] = {}
    for sentence in train:
        for token, tag in zip(sentence.tokens, sentence.tags, strict=True):
            found.setdefault(token, set()).add(tag)
    return np.array([len(found.get(token, ())) > 1 for sentence in test for token in sentence.tokens])
