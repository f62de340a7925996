"""How often the nearest neighbour of a word's example, among the word's other examples, has the same sense.

Nearness is the cosine. If several others are equally near, as in the layer of the characters, which knows nothing of
the sentence, their share of the same sense counts. The spread of such figures is estimated by resampling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from flashelmo.benchmarks.tasks import Example, Word
from flashelmo.engine.arrays import Array, Bool, Float64

REACH = 2  # words on either side that a pair must not share, where neighbours do not count
SEED, CONFIDENCE = 0, 0.95  # of intervals
AT_ONCE = 1 << 22  # drawn indices that are in memory
EQUAL = 1e-6  # cosines closer than this are equal: rounding of float32


def same_sense(vectors: Array, senses: Sequence[str], allowed: Bool) -> Float64:
    """Return, for each example, the share of its sense among its nearest neighbours, 0 or 1 if there is only one [N].

    Args:
        vectors: [N, D].
        senses: N.
        allowed: [N, N], which others may be neighbours of each; at least one.
    """
    unit = vectors.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    cosines = np.where(allowed, unit @ unit.T, -np.inf)
    nearest = cosines >= cosines.max(axis=1, keepdims=True) - EQUAL
    return shares(nearest & allowed, senses)


def shares(chosen: Bool, senses: Sequence[str]) -> Float64:
    """Return, for each example, the share of its sense among those chosen for it [N, N]: chance, if all are chosen."""
    same = _same(senses)
    share: Float64 = (chosen & same).sum(axis=1) / np.maximum(chosen.sum(axis=1), 1)
    return share


def all_others(word: Word) -> Bool:
    """Return everyone except oneself [N, N]."""
    return ~np.eye(len(word.examples), dtype=bool)


def without_shared_words(word: Word) -> Bool:
    """Return those whose neighbouring words, two on either side, are all different from one's own [N, N]."""
    around = [neighbours(example) for example in word.examples]
    known = {token: row for row, token in enumerate(sorted(set().union(*around)))}
    has = np.zeros((len(around), len(known)), np.float32)
    for row, tokens in enumerate(around):
        has[row, [known[token] for token in tokens]] = 1
    shares_one: Bool = np.asarray(has @ has.T > 0)
    return ~shares_one & all_others(word)


def neighbours(example: Example, reach: int = REACH) -> set[str]:
    """Return words on either side of the one in question, in lower case."""
    tokens, place = example.tokens, example.place
    return {token.lower() for token in (*tokens[max(0, place - reach) : place], *tokens[place + 1 : place + 1 + reach])}


def can_be_right(allowed: Bool, senses: Sequence[str]) -> Bool:
    """Return which examples have a neighbour of their sense [N]; the others are not counted."""
    right: Bool = np.asarray((allowed & _same(senses)).any(axis=1))
    return right


def pieces(words: Sequence[Word]) -> Iterator[tuple[Word, slice]]:
    """Yield each word, and which of all words' examples, end to end, are its own."""
    start = 0
    for word in words:
        yield word, slice(start, start + len(word.examples))
        start += len(word.examples)


def _same(senses: Sequence[str]) -> Bool:
    _, numbers = np.unique(list(senses), return_inverse=True)
    same: Bool = numbers[:, None] == numbers[None, :]
    return same


def by_resampling(scores: Float64, resamples: int, weights: Float64 | None = None) -> list[float]:
    """Return quantiles of the mean of scores, from means of equally many drawn with replacement (the bootstrap).

    Args:
        scores: [N], or of several runs [runs, N], which are drawn again too.
        weights: [N], for a weighted mean, such as the tokens of sentences whose shares of right ones are the scores.
    """
    rng = np.random.default_rng(SEED)
    runs = np.atleast_2d(scores)
    n_runs, n = runs.shape
    weights = np.ones(n) if weights is None else weights
    means, step = np.empty(resamples), max(1, AT_ONCE // n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn, drawn_runs = rng.integers(n, size=(size, n)), rng.integers(n_runs, size=(size, n_runs))
        sums = np.stack([(run * weights)[drawn].sum(axis=1) for run in runs])  # [runs, size]
        over_runs = np.take_along_axis(sums.T, drawn_runs, axis=1).mean(axis=1)
        means[start : start + size] = over_runs / weights[drawn].sum(axis=1)
    return [float(quantile) for quantile in np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])]
