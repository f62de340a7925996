"""Log-probabilities of every word in both directions, and perplexity, by the full softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from flashelmo.engine.arrays import Float32, Int32, Int64
from flashelmo.engine.system.autocast import without_autocast
from flashelmo.engine.training.corpus import BEGIN, UNKNOWN, EncodedCorpus
from flashelmo.engine.training.model import BiLM, State
from flashelmo.engine.training.softmax import cross_entropy
from flashelmo.engine.training.spelling import Spelling

BATCH_TOKENS = 8192  # including padding; of a longer sentence, so many at a time
MAX_LOSS = 700.0  # its exponential is still finite


@dataclass(frozen=True)
class Scores:
    """Perplexities of a text by direction, over its words and one boundary per sentence.

    Attributes:
        forward, backward: exp of the mean negative log-probability.
        predictions: the number of tokens and sentences together.
        unknown: share of the tokens that are not in the softmax's vocabulary; <UNK> is scored in their place.
    """

    forward: float
    backward: float
    predictions: int
    unknown: float


def scores_of(model: BiLM, corpus: EncodedCorpus, words: Sequence[str]) -> Scores:
    """Return the perplexities of a text, with each sentence from a fresh state; `words` are those of the softmax."""
    rows = corpus.rows(words)
    means = (float(np.mean(each, dtype=np.float64)) for each in log_probabilities(model, corpus, rows))
    forward, backward = (math.exp(min(MAX_LOSS, -mean)) for mean in means)
    unknown = float(np.mean(rows[corpus.word_ids] == UNKNOWN))
    return Scores(forward, backward, corpus.n_tokens + len(corpus), unknown)


def log_probabilities(model: BiLM, corpus: EncodedCorpus, rows: Int32) -> tuple[Float32, Float32]:
    """Return natural logarithms of probabilities [predictions], forward and backward, sentence after sentence.

    Sentence s of n words has n + 1, at corpus.offsets[s] + s: forward those of w1 .. wn and </S>, each given the words
    before it; backward those of <S> and w1 .. wn, each given the words after it.

    Args:
        model: on any device.
        corpus: the text.
        rows: each of its words' row in the softmax [W].
    """
    lengths = np.diff(corpus.offsets) + 1
    begins = np.asarray(corpus.offsets[:-1]) + np.arange(len(corpus))
    forward, backward = (np.empty(int(lengths.sum()), np.float32) for _ in range(2))
    trains, compute = model.training, model.compute
    model.eval()
    first = next(iter(model.parameters()))
    model.compute = first.dtype
    try:
        with torch.inference_mode(), without_autocast(first.device):
            spelling = Spelling(model.config, corpus.words)
            for chosen in _batches(lengths):
                _fill(model, corpus, spelling, rows, chosen, begins, forward, backward)
    finally:
        model.train(trains)
        model.compute = compute
    return forward, backward


def _batches(lengths: Int64) -> Iterator[Int64]:
    """Yield batches of sentences of similar lengths [B]."""
    order = np.argsort(lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and (stop - start + 1) * lengths[order[stop]] <= BATCH_TOKENS:
            stop += 1
        yield order[start:stop]
        start = stop


def _fill(model: BiLM, corpus: EncodedCorpus, spelling: Spelling, rows: Int32, chosen: Int64, begins: Int64,
          forward: Float32, backward: Float32) -> None:  # fmt: skip
    """Compute the predictions of some sentences, and put them in their places."""
    length = np.diff(corpus.offsets)[chosen]
    first = next(iter(model.parameters()))
    state = State.zero(model.config, len(chosen), first)
    end, steps = int(length.max()) + 1, max(1, BATCH_TOKENS // len(chosen))
    for t in (np.arange(begin, min(begin + steps, end))[:, None] for begin in range(0, end, steps)):
        is_prediction = t <= length
        inputs, targets = (np.where(is_prediction, each, BEGIN) for each in corpus.predictions(chosen, t))
        distinct, places = spelling.distinct(inputs)
        vectors = model.word_vectors([piece.to(first.device) for piece in spelling.pieces(distinct)])
        hidden, state = model.hidden(vectors, torch.from_numpy(places).to(first.device), state)
        wanted = torch.from_numpy(np.ascontiguousarray(is_prediction)).to(first.device)
        softmax_rows = torch.from_numpy(rows[targets].astype(np.int64)).to(first.device)
        for top, row, values, reverse in zip(hidden[-1], softmax_rows, (forward, backward), (False, True), strict=True):
            _, losses = cross_entropy(
                top[wanted], row[wanted], model.tensors["softmax_weight"], model.tensors["softmax_bias"]
            )
            places = begins[chosen] + (length - t if reverse else t)
            values[places[is_prediction]] = -losses.cpu().numpy()
