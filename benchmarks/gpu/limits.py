"""What a card's limits allow for a workload at best.

That is a perfect program's speed: every depth of the sentences is a step of as many rows as there are sentences so
long, and a step takes as long as the matrix units need for its operations, the memory for its bytes or the L2 cache for
what it keeps, whichever is longest. Recurrent weights are read again in each step, input weights once a layer; launches
and waits cost nothing. Nothing is shared between sentences, so that sharing can take a figure above its ceiling. A
second ceiling adds the vectors of the distinct words, each computed once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import accumulate, chain

from flashelmo.benchmarks.kernels import model
from flashelmo.benchmarks.kernels.card import Card
from flashelmo.benchmarks.kernels.model import Cost
from flashelmo.benchmarks.text import Workload
from flashelmo.engine.model.config import ElmoConfig


def ceilings(
    config: ElmoConfig, workload: Workload, card: Card, precision: str, words_known: bool = False
) -> tuple[float, float]:
    """Tokens a second at best, of the LSTM alone, and with the words' vectors; known ones cost nothing."""

    def seconds(cost: Cost) -> float:
        return 1e-6 * replace(cost, launches=0).microseconds(card, precision).microseconds

    by_length = Counter(map(len, workload.sentences))
    rows = Counter(accumulate(by_length[length] for length in range(max(by_length, default=0), 0, -1)))
    steps = sum(times * seconds(lstm_step(config, n, precision)) for n, times in rows.items())  # depths of so many rows
    once = model.D * config.projection_size * 4 * config.cell_size * model.weight_bytes(precision) / card.memory
    lstm, words = config.n_layers * (steps + once), 0.0
    if config.filters and not words_known:  # models without characters look vectors up
        distinct = set(chain.from_iterable(workload.sentences))
        lengths = [min(len(word.encode()) + 2, config.max_characters) for word in distinct]
        costs = [model.characters(config, lengths, precision), model.final_projection(config, len(lengths), precision)]
        costs += [model.highway(config, len(lengths), precision)] * config.n_highway
        words = sum(map(seconds, costs))
    return workload.tokens / lstm, workload.tokens / (lstm + words)


def lstm_step(config: ElmoConfig, rows: int, precision: str) -> Cost:
    """All operations of one step of both directions, but of weights the recurrent ones and the projection's alone."""
    whole, recurrent = (model.step(config, rows, precision, way) for way in ("fused", "hoisted"))
    return replace(whole, weights=recurrent.weights, launches=0)


def suited_tokens(config: ElmoConfig, card: Card, most: int, precision: str) -> int:
    """Tokens of bulk text that take the card about a second at half its peak: a power of two, `most` at most.

    At least a 64th of `most`, so that a slow card has whole windows too.
    """
    wanted = 0.5 * card.peak(precision) / config.lstm_flops_per_token
    return max(1, most // 64, min(most, 1 << int(max(wanted, 1)).bit_length() - 1))
