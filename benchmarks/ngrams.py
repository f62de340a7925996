"""Perplexity of interpolated n-grams on held-out text, which a language model must beat.

Interpolated modified Kneser-Ney (Chen and Goodman 1998), the strongest of its kind, with NumPy over whole texts. No
library that pip installs trains one of this size: KenLM's reads what its command line has trained, and NLTK's counts
anew for every prediction.

Counted as for a language model: in each sentence every word and the end are predicted, from the words before them in
the sentence and its begin. A word that is not in the vocabulary is `<UNK>`, both in learning and in prediction.
Backward, every word and the begin are predicted from the words after them: the same with each sentence reversed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from flashelmo.benchmarks.corpus import HELDOUT, sentences_of, training_texts
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.run import Job, Suite, run_jobs
from flashelmo.benchmarks.senses.precisions import DIRECTIONS, perplexity_rows, softmax_of
from flashelmo.benchmarks.senses.vectors import embed_with, models
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.arrays import Float64, Int64
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.training.corpus import BEGIN, END, UNKNOWN, read_vocabulary
from flashelmo.engine.training.softmax_files import VOCABULARY_FILE

DISCOUNTS = 3  # of n-grams that are counted once, twice, and more often


class Text(NamedTuple):
    """Sentences end to end, each between begin and end.

    Attributes:
        ids: of words, [N].
        depth: how many tokens precede each one in its sentence, [N].
    """

    ids: Int64
    depth: Int64

    @classmethod
    def of(cls, sentences: Iterable[Sequence[str]], row_of: dict[str, int], *, backward: bool = False) -> Text:
        """Return the text with the rows of a vocabulary; backward, every sentence is reversed."""
        ids: list[int] = []
        lengths: list[int] = []
        for tokens in sentences:
            if len(tokens):
                found = [row_of.get(token, UNKNOWN) for token in tokens]
                ids += [BEGIN, *(reversed(found) if backward else found), END]
                lengths.append(len(tokens) + 2)
        if not lengths:
            raise FlashElmoError("text: expected sentences, found none")
        ends = np.cumsum(lengths)
        return cls(np.array(ids, np.int64), np.arange(len(ids)) - np.repeat(ends - lengths, lengths))


@dataclass(frozen=True)
class Order:
    """All n-grams of one length.

    Attributes:
        keys: sorted; an n-gram's number is its index. A key is the number of all but the last word, times the size of
            the vocabulary, plus the last word.
        probability: of each n-gram's last word after the others, interpolated with shorter n-grams [n-grams].
        rest: of each context, which is a shorter n-gram, the weight of shorter n-grams; 1 if it was never seen with a
            word after it [contexts].
    """

    keys: Int64
    probability: Float64
    rest: Float64


@dataclass(frozen=True)
class Ngrams:
    """An interpolated model: `unigrams` [V], and the longer n-grams, 2 words first."""

    unigrams: Float64
    orders: tuple[Order, ...]

    @classmethod
    def learn(cls, text: Text, n_words: int, order: int) -> Ngrams:
        """Learn from a text with a vocabulary of n_words, with n-grams of up to `order` words."""
        numbers, keys = _number(text, n_words, order)
        suffixes = [_suffixes(numbers[k], numbers[k - 1], len(keys[k])) for k in range(1, order)]
        counts = []
        for k in range(order):  # n-grams of k + 1 words
            seen = np.bincount(numbers[k][numbers[k] >= 0], minlength=len(keys[k]))
            if k + 1 < order:  # number of distinct words that precede it; before the begin there is none
                before = np.bincount(suffixes[k], minlength=len(keys[k]))
                seen = np.where(before > 0, before, seen)
            counts.append(seen)
        counts[0][BEGIN] = 0  # is never predicted
        is_context = np.zeros(n_words, np.int64)
        kept, rest = _discounted(counts[0], is_context, 1)
        unigrams = kept + rest[0] * np.where(np.arange(n_words) == BEGIN, 0.0, 1 / (n_words - 1))
        shorter, orders = unigrams, []
        for k in range(1, order):
            kept, rest = _discounted(counts[k], keys[k] // n_words, len(keys[k - 1]))
            shorter = kept + rest[keys[k] // n_words] * shorter[suffixes[k - 1]]
            orders.append(Order(keys[k], shorter, rest))
        return cls(unigrams, tuple(orders))

    def log_probabilities(self, text: Text) -> list[Float64]:
        """Return the log-probability of every predicted token, with n-grams of up to 1, 2, … words."""
        predicted = text.depth > 0
        n_words, number = len(self.unigrams), text.ids
        probability = self.unigrams[text.ids]
        found = [np.log(probability[predicted])]
        for k, order in enumerate(self.orders, 1):
            context = np.concatenate([[-1], number[:-1]])
            has_context = (text.depth >= k) & (context >= 0)
            number = np.where(has_context, _place(order.keys, context * n_words + text.ids), -1)
            rest = np.where(has_context, order.rest[np.where(has_context, context, 0)], 1.0)
            probability = np.where(number >= 0, order.probability[number], rest * probability)
            found.append(np.log(probability[predicted]))
        return found


def _number(text: Text, n_words: int, order: int) -> tuple[list[Int64], list[Int64]]:
    """Return, for each length, the number of the n-gram that ends at each token, -1 without one, and their keys."""
    numbers, keys = [text.ids], [np.arange(n_words)]
    for k in range(1, order):
        there = text.depth >= k
        key = np.concatenate([[0], numbers[-1][:-1]])[there] * n_words + text.ids[there]
        distinct, inverse = np.unique(key, return_inverse=True)
        number = np.full(len(text.ids), -1, np.int64)
        number[there] = inverse
        numbers.append(number)
        keys.append(distinct)
    return numbers, keys


def _suffixes(numbers: Int64, shorter: Int64, n: int) -> Int64:
    """Return, for each n-gram, the number of the one without its first word [n]."""
    suffixes = np.zeros(n, np.int64)
    there = numbers >= 0
    suffixes[numbers[there]] = shorter[there]
    return suffixes


def _discounted(counts: Int64, contexts: Int64, n_contexts: int) -> tuple[Float64, Float64]:
    """Return each n-gram's discounted share of its context's counts, and what is left over in each context."""
    of_counts = [max(int((counts == count).sum()), 1) for count in range(1, DISCOUNTS + 2)]
    ratio = of_counts[0] / (of_counts[0] + 2 * of_counts[1])
    discounts = [0.0] + [
        min(max(k - (k + 1) * ratio * of_counts[k] / of_counts[k - 1], 0.0), float(k)) for k in range(1, DISCOUNTS + 1)
    ]
    discount = np.array(discounts)[np.minimum(counts, DISCOUNTS)]
    totals = np.bincount(contexts, counts, n_contexts)
    left = np.bincount(contexts, discount, n_contexts)
    rest = np.where(totals > 0, left / np.maximum(totals, 1), 1.0)
    return (counts - discount) / np.maximum(totals, 1)[contexts], rest


def _place(keys: Int64, wanted: Int64) -> Int64:
    """Return the index of each wanted key; -1 if it is missing."""
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def measure(settings: Settings) -> list[Row]:
    """Measure perplexities by the length of n-grams, in both directions."""
    corpus, path = _corpus(settings), settings.vocabulary
    if path is None and not settings.models:
        raise FlashElmoError("--vocabulary: expected one, or models that have one, found neither")
    words = read_vocabulary(path or Path(settings.models[0]) / VOCABULARY_FILE)
    row_of = {word: row for row, word in enumerate(words)}
    texts, heldout, rows = training_texts(corpus), list(sentences_of([corpus / HELDOUT])), []
    for direction in DIRECTIONS:
        backward = direction == "backward"
        text = Text.of(sentences_of(texts), row_of, backward=backward)
        judged = Text.of(heldout, row_of, backward=backward)
        found = Ngrams.learn(text, len(row_of), settings.order).log_probabilities(judged)
        n_unknown, n_predicted = int((judged.ids == UNKNOWN).sum()), int((judged.depth > 0).sum())
        note = f"{n_predicted:,} predictions, of which {n_unknown:,} of <UNK>; a vocabulary of {len(row_of):,}"
        for n, each in enumerate(found, 1):
            row = Row(
                "ngrams", "", f"n-grams of up to {n} word{'s' if n > 1 else ''}", "perplexity", direction, note=note
            )
            rows.append(row.with_samples([float(np.exp(-each.mean()))]))
    return rows


def measure_models(settings: Settings) -> list[Row]:
    """Measure, on the same predictions, the perplexities of models with a softmax."""
    heldout = [tokens for tokens in sentences_of([_corpus(settings) / HELDOUT]) if tokens]
    rows: list[Row] = []
    for name, model in models(settings).items():
        embed = embed_with(model, settings, keep_sentence_boundaries=True)
        rows += perplexity_rows(Row("ngrams", "", name, "perplexity"), embed, heldout, softmax_of(model))
    return rows


def _corpus(settings: Settings) -> Path:
    if settings.corpus is None:
        raise FlashElmoError("--corpus: expected a folder that `python -m benchmarks corpus` wrote, found none")
    return settings.corpus


def command(settings: Settings, console: Console) -> int:
    """Measure; return the exit status."""
    parts = {"n-grams": measure} | ({"models": measure_models} if settings.models else {})
    jobs = (Job("ngrams", "", part, partial(rows_of, settings)) for part, rows_of in parts.items())
    return run_jobs("ngrams", settings, console, jobs).finish()


SUITE = Suite(
    "Perplexity of interpolated n-grams on held-out text, and of language models beside them.",
    Settings(models=(), rounds=1),
    ("out", "models", "corpus", "vocabulary", "order", "threads"),
    command,
)
