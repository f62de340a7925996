"""Parts of speech by a linear classifier on frozen vectors (linear.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.senses import linear
from flashelmo.benchmarks.senses.contest import Contest
from flashelmo.benchmarks.senses.nearest import by_resampling
from flashelmo.benchmarks.senses.vectors import by_name, embed_with, of_words, word_vectors
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tasks import SPEECH, Sample, Task, load_task
from flashelmo.engine.arrays import Bool, Float32, Float64


def measure_speech(contest: Contest) -> list[Row]:
    """Measure parts of speech by each layer; for random weights those of the first seed."""
    settings = contest.settings
    task = load_task(SPEECH, settings)
    numbers = [task.numbers(part) for part in task.parts]
    usual = np.array(most_frequent(task.train, task.test))
    rows = score("each word's most frequent tag", usual == np.array(tags(task.test)), task, settings)

    def learn(name: str, vectors: Sequence[Float32]) -> None:
        train, dev, test = (linear.part(each[:, None], k) for each, k in zip(vectors, numbers, strict=True))
        learned = linear.learn(train, dev, len(task.classes), settings.seed)
        rows.extend(score(name, linear.right(learned, test), task, settings))

    if settings.corpus is not None:
        static = word_vectors(settings.corpus)
        own = [[of_words(static, sample.tokens) for sample in part] for part in task.parts]
        learn("word2vec", [np.concatenate(part) for part in own])
        learn("word2vec, both neighbours too", [np.concatenate([*map(beside, part)]) for part in own])
    random = {name: seeds[0] for name, seeds in contest.random_models.items()}
    for name, model in {**random, **contest.models}.items():
        embed = embed_with(model, settings)
        found = [by_name(task.features(embed, part)) for part in task.parts]
        for layer in found[0]:
            learn(f"{name}, {layer}", [part[layer] for part in found])
    return rows


def beside(vectors: Float32) -> Float32:
    """Return each token's vector [T, D] after those of its neighbours, with zeros at the ends: [T, 3 D]."""
    padded = np.pad(vectors, ((1, 1), (0, 0)))
    return np.concatenate([padded[1:-1], padded[:-2], padded[2:]], axis=1)


def tags(samples: Sequence[Sample]) -> list[str]:
    """Return the tags of all tokens, end to end."""
    return [tag for sample in samples for tag in sample.labels]


def tag_counts(samples: Sequence[Sample]) -> Mapping[str, Counter[str]]:
    """Return how often each word has each tag."""
    counts: dict[str, Counter[str]] = {}
    for sample in samples:
        for token, tag in zip(sample.tokens, sample.labels, strict=True):
            counts.setdefault(token, Counter())[tag] += 1
    return counts


def most_frequent(train: Sequence[Sample], test: Sequence[Sample]) -> list[str]:
    """Return every word's most frequent tag; for an unknown word, that of all words."""
    overall = Counter(tags(train)).most_common(1)[0][0]
    best = {token: found.most_common(1)[0][0] for token, found in tag_counts(train).items()}
    return [best.get(token, overall) for sample in test for token in sample.tokens]


def score(name: str, right: Bool | Float64, task: Task, settings: Settings) -> list[Row]:
    """Return the shares of right tags among all words, those with several tags in training, and those not in it.

    Intervals are over sentences, whose tokens are not independent.

    Args:
        right: for each token of the test [N].
    """
    lengths = [len(sample.labels) for sample in task.test]
    starts, counts = np.cumsum([0, *lengths[:-1]]), tag_counts(task.train)
    n_tags = np.array([len(counts.get(token, ())) for sample in task.test for token in sample.tokens])
    n_train = len(tags(task.train))
    note = f"{n_train:,} tokens to learn from, {sum(lengths):,} to be judged by; ambiguous: with several tags there"
    rows = []
    for kind, among in (("all", n_tags >= 0), ("ambiguous", n_tags > 1), ("not learned from", n_tags == 0)):
        row = Row("speech", "", name, "share of right tags", kind, note=note)
        weights, sums = np.add.reduceat(among * 1.0, starts), np.add.reduceat(right * among, starts)
        if (has := weights > 0).any():
            interval = by_resampling(sums[has] / weights[has], settings.resamples, weights[has])
            row = replace(row, median=float(sums.sum() / weights.sum()), interval=interval)
        rows.append(row)
    return rows
