"""What is embedded for speed, and what a card's limits allow for it at best.

The ceiling of a workload is a perfect program's speed: every depth of the sentences is a step of as many rows as there
are sentences so long, and a step takes as long as the matrix units need for its operations, the memory for its bytes
or the L2 cache for what it keeps, whichever is longest. Recurrent weights are read again in each step, input weights
once a layer; launches and waits cost nothing. Nothing is shared between sentences, so that sharing can take a figure
above its ceiling. A second ceiling adds the vectors of the distinct words, each computed once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from pathlib import Path
from typing import NamedTuple

from flashelmo.benchmarks.kernels import model
from flashelmo.benchmarks.kernels.card import Card
from flashelmo.benchmarks.kernels.model import Cost
from flashelmo.benchmarks.text import REAL_TEXT, Sentences, generate
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig

GENERATED = 1 << 19  # tokens; more are the same again


@dataclass(frozen=True)
class Workload:
    """Sentences that are embedded by one call.

    Attributes:
        section, detail: as "batch", "32 sentences of 20".
        waits: whether each call is waited for: its latency counts, not how many can be queued.
    """

    section: str
    detail: str
    sentences: Sentences
    waits: bool = False

    @property
    def tokens(self) -> int:
        """All of them."""
        return sum(map(len, self.sentences))


def load_text(n_tokens: int, path: Path | None, seed: int) -> tuple[Sentences, str]:
    """At least so many tokens of a text, again from its beginning where it has fewer, and what it is.

    Sentences of different windows share nothing, so that repeating a text that is longer than a window changes little.

    Args:
        path: a file of tokenized lines; None takes the real text beside the checkout, or generated text.

    Raises:
        FlashElmoError: the file is empty.
    """
    path = path or (REAL_TEXT if REAL_TEXT.is_file() else None)
    if path is None:
        sentences, source = generate(min(n_tokens, GENERATED), seed), f"generated text, seed {seed}"
    else:
        sentences, source = [line.split() for line in path.read_text(encoding="utf-8").splitlines()], path.name
    if not any(sentences):
        raise FlashElmoError(f"{path}: expected text, found none")
    times = -(-n_tokens // sum(map(len, sentences)))
    return sentences * times, source + (f", {times} times over" if times > 1 else "")


def equal_batch(text: Sentences, n: int, length: int, section: str = "batch") -> Workload:
    """n sentences of so many tokens, cut from a text without regard to its own sentences.

    Raises:
        FlashElmoError: the text is too short.
    """
    tokens = [token for sentence in text for token in sentence]
    if len(tokens) < n * length:
        raise FlashElmoError(f"text: expected {n * length} tokens or more, found {len(tokens)}")
    cut = [tokens[k * length : (k + 1) * length] for k in range(n)]
    name = f"{n} sentences of {length}" if n > 1 else f"a sentence of {length}"
    return Workload(section, name, cut, waits=n == 1)


def ragged_batch(text: Sentences, n: int) -> Workload:
    """The text's first n sentences as they are."""
    return Workload("ragged", f"{n} sentences", text[:n])


def bulk(text: Sentences, n_tokens: int) -> Workload:
    """The text's first tokens, the last sentence cut to fit."""
    taken: Sentences = []
    left = n_tokens
    for sentence in text:
        taken.append(sentence[:left])
        left -= len(taken[-1])
        if not left:
            break
    return Workload("bulk", f"{n_tokens - left:,} tokens", taken)


class Ceilings(NamedTuple):
    """Tokens a second at best, of the LSTM alone, and with the words' vectors."""

    lstm: float
    both: float


def ceilings(config: ElmoConfig, workload: Workload, card: Card, precision: str, words_known: bool = False) -> Ceilings:
    """What the card allows for a workload; known words' vectors cost nothing."""

    def seconds(cost: Cost) -> float:
        return 1e-6 * replace(cost, launches=0).microseconds(card, precision).microseconds

    sentences = workload.sentences
    by_length = Counter(map(len, sentences))
    rows = Counter(accumulate(by_length[length] for length in range(max(by_length, default=0), 0, -1)))
    steps = sum(times * seconds(lstm_step(config, n, precision)) for n, times in rows.items())  # depths of so many rows
    once = model.D * config.projection_size * 4 * config.cell_size * model.weight_bytes(precision) / card.memory
    lstm, words = config.n_layers * (steps + once), 0.0
    if config.filters and not words_known:  # models without characters look vectors up
        distinct = {word for sentence in sentences for word in sentence}
        lengths = [min(len(word.encode()) + 2, config.max_characters) for word in distinct]
        costs = [model.characters(config, lengths, precision), model.final_projection(config, len(lengths), precision)]
        costs += [model.highway(config, len(lengths), precision)] * config.n_highway
        words = sum(map(seconds, costs))
    return Ceilings(workload.tokens / lstm, workload.tokens / (lstm + words))


def lstm_step(config: ElmoConfig, rows: int, precision: str) -> Cost:
    """All operations of one step of both directions, but of weights the recurrent ones and the projection's alone."""
    whole, recurrent = (model.step(config, rows, precision, way) for way in ("fused", "hoisted"))
    return replace(whole, weights=recurrent.weights, launches=0, products=())


def suited_tokens(config: ElmoConfig, card: Card, most: int, precision: str) -> int:
    """Tokens of bulk text that take the card about a second at half its peak: a power of two, `most` at most.

    At least a 64th of `most`, so that a slow card has whole windows too.
    """
    wanted = 0.5 * card.peak(precision) / config.lstm_flops_per_token
    suited = max(most // 64, min(most, 1 << int(max(wanted, 1)).bit_length() - 1))
    return max(1, suited)


def batches(sentences: Sequence[list[str]], size: int) -> Iterator[list[list[str]]]:
    """Runs of so many sentences in their order, the last one perhaps shorter."""
    rest = iter(sentences)
    while batch := list(islice(rest, size)):
        yield batch
