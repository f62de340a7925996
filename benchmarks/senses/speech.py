"""Parts of speech by a linear classifier on frozen vectors (multinomial logistic regression, by scikit-learn)."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.senses.contest import Contest
from flashelmo.benchmarks.senses.intervals import by_resampling
from flashelmo.benchmarks.senses.nearest import Bool
from flashelmo.benchmarks.senses.static import of_words, word_vectors
from flashelmo.benchmarks.senses.vectors import Embed, Float32, by_name, embed_with
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tasks import DATA, TAGGED, Tagged, read_tagged
from flashelmo.engine.errors import MissingExtraError

STRENGTH, ROUNDS = 0.1, 100  # C of the regression, and how often it looks at all tokens


class TaggedText(NamedTuple):
    """Sentences to learn from, and sentences to be judged by."""

    train: list[Tagged]
    test: list[Tagged]

    @classmethod
    def draw(cls, data: Path, n_tokens: int, seed: int) -> TaggedText:
        """Sentences of so many tokens together, and of half as many, by the seed."""
        paths = data / TAGGED.format("train"), data / TAGGED.format("test")
        return cls(
            *(_draw(read_tagged(path), n, seed) for path, n in zip(paths, (n_tokens, n_tokens // 2), strict=True))
        )


def _draw(sentences: Sequence[Tagged], n_tokens: int, seed: int) -> list[Tagged]:
    drawn, left = [], n_tokens
    for row in np.random.default_rng(seed).permutation(len(sentences)):
        if left <= 0:
            break
        drawn.append(sentences[row])
        left -= len(sentences[row].tokens)
    return drawn


def measure_speech(contest: Contest) -> list[Row]:
    """Parts of speech by each layer, of random weights those of the first seed."""
    settings = contest.settings
    text = TaggedText.draw(settings.data or DATA, settings.tagged_tokens, settings.seed)
    rows = score("each word's most frequent tag", most_frequent(*text), text, settings)

    def learn(name: str, train: Float32, test: Float32) -> None:
        rows.extend(score(name, predict(train, tags(text.train), test), text, settings))

    if settings.corpus is not None:
        static = word_vectors(settings.corpus)
        own = [[of_words(static, sentence.tokens) for sentence in part] for part in text]
        learn("word2vec", *(np.concatenate(part) for part in own))
        learn("word2vec, both neighbours too", *(np.concatenate([*map(beside, part)]) for part in own))
    random = {name: seeds[0] for name, seeds in contest.random_models.items()}
    for name, model in {**random, **contest.models}.items():
        train, test = (features(embed_with(model, settings), part) for part in text)
        for layer in train:
            learn(f"{name}, {layer}", train[layer], test[layer])
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


def predict(train: Float32, train_tags: Sequence[str], test: Float32) -> list[str]:
    """The tags of the test's vectors.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "senses", "linear classifiers") from error
    model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=ROUNDS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the rounds are the same for all
        return [str(tag) for tag in model.fit(train, list(train_tags)).predict(test)]


def most_frequent(train: Sequence[Tagged], test: Sequence[Tagged]) -> list[str]:
    """Every word's most frequent tag; of an unknown word, that of all words."""
    counts: dict[str, Counter[str]] = {}
    for sentence in train:
        for token, tag in zip(sentence.tokens, sentence.tags, strict=True):
            counts.setdefault(token, Counter())[tag] += 1
    overall = Counter(tags(train)).most_common(1)[0][0]
    best = {token: found.most_common(1)[0][0] for token, found in counts.items()}
    return [best.get(token, overall) for sentence in test for token in sentence.tokens]


def score(name: str, found: Sequence[str], text: TaggedText, settings: Settings) -> list[Row]:
    """The shares of right tags among all words, ambiguous ones, and those that were not learned from.

    Intervals are over sentences, whose tokens are not independent.
    """
    right = np.array([a == b for a, b in zip(found, tags(text.test), strict=True)], np.float64)
    lengths = [len(sentence.tags) for sentence in text.test]
    starts = np.cumsum([0, *lengths[:-1]])
    n_train = sum(len(sentence.tags) for sentence in text.train)
    note = f"{n_train:,} tokens to learn from, {sum(lengths):,} to be judged by; ambiguous: with several tags there"
    rows = []
    kinds = {"all": np.ones(len(right), bool), "ambiguous": ambiguous(*text), "not learned from": unseen(*text)}
    for kind, among in kinds.items():
        weights, sums = np.add.reduceat(among * 1.0, starts), np.add.reduceat(right * among, starts)
        interval = by_resampling(sums / np.maximum(weights, 1), settings.resamples, weights)
        share = float(sums.sum() / weights.sum())
        rows.append(Row("speech", "", name, "share of right tags", kind, share, interval=interval, note=note))
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
