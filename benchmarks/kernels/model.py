"""A model of each GPU kernel's time on a card: bytes moved, operations and launches to microseconds.

    time = max(operations / matrix peak, bytes / memory bandwidth, bytes / L2 bandwidth)
           + launches * launch

Inputs and outputs come from and go to memory once. Weights, which every call reads again, are taken to stay in the L2
cache where they fill at most half of it, and to be streamed from memory otherwise; an LSTM's states, written a step
ago, are taken to be there still. That is a perfect kernel's time; a measurement far from it has a cause worth finding.

Letters: D directions (2), C cells, P projection, F filters, n rows of a step (in each direction), words or nodes.
`python -m benchmarks model` prints the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from rich.console import Console

from flashelmo.benchmarks.kernels.card import Card, card_named
from flashelmo.benchmarks.run import Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import print_table
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.precision import PRECISIONS

D = 2
ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
WORDS = (1, 64, 1024, 4096)
WORD_LENGTH = 8  # characters of a distinct word with its begin and end: the mean of the Bible's, and of generated text
TOKENS = 32_768
KEPT = 0.5  # of the L2 cache: what is read again and again and fills no more stays there
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def value_bytes(precision: str) -> int:
    """Of a word vector's or a state's number on a card."""
    return BYTES[PRECISIONS[precision].on("cuda").dtype]


def weight_bytes(precision: str) -> int:
    """Of a number in the gates' products on a card."""
    return BYTES[PRECISIONS[precision].on("cuda").lstm_weights]


def kind_of(precision: str, operation: str = "") -> str:
    """The kind of an operation's product in `kernels.tuning.TILES`."""
    arithmetic = PRECISIONS[precision].on("cuda")
    if arithmetic.lstm_weights == "int8" and operation == "gates":
        return "int8"
    return arithmetic.products if arithmetic.dtype == "float32" else "half"


class Prediction(NamedTuple):
    """A time in microseconds, and what it is mostly: "matrix", "memory", "L2" or "launch"."""

    microseconds: float
    bound: str


@dataclass(frozen=True)
class Cost:
    """What a kernel, or some that follow each other, must do.

    Attributes:
        operations: floating-point operations, a multiplication and an addition being two.
        streamed: bytes of inputs and outputs, which come from memory and go there.
        weights: bytes that every call reads again.
        states: bytes written or read that the next or the last step reads or wrote.
        launches: how many.
    """

    operations: float = 0
    streamed: float = 0
    weights: float = 0
    states: float = 0
    launches: float = 0

    def __add__(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def microseconds(self, card: Card, precision: str) -> Prediction:
        """The model's time."""
        kept = self.weights <= KEPT * card.l2_bytes
        work = {
            "matrix": 1e6 * self.operations / card.peak(precision),
            "memory": 1e6 * (self.streamed + (0 if kept else self.weights)) / card.memory,
            "L2": 1e6 * (self.streamed + self.weights + self.states) / card.l2,
        }
        waiting = self.launches * card.launch
        bound = max(work, key=lambda name: work[name])
        return Prediction(work[bound] + waiting, "launch" if waiting > work[bound] else bound)


def _product(shape: tuple[int, int, int, int], width: int, streamed: float, states: float = 0, bias: int = 0) -> Cost:
    """Of one launch: matrices [inputs, columns] of numbers of so many bytes, each times [rows, inputs]."""
    matrices, rows, inputs, columns = shape
    weights = matrices * columns * (inputs * width + bias)
    return Cost(matrices * 2 * rows * inputs * columns, streamed, weights, states, 1)


def gates(config: ElmoConfig, rows: int, precision: str, way: str) -> Cost:
    """The gates and cells of one step, both directions.

    Args:
        way: "fused" (the input is multiplied with the recurrent state, as in 8 bits) or "hoisted" (beforehand).
    """
    C, P, width = config.cell_size, config.projection_size, weight_bytes(precision)
    streamed = D * rows * (P * width if way == "fused" else 4 * C * 4)  # x, or its float32 part of the gates
    cells = C * (4 + 4 + value_bytes(precision))  # before and after; unprojected
    states = D * rows * (P * width + cells)
    return _product((D, rows, 2 * P if way == "fused" else P, 4 * C), width, streamed, states)


def projection(config: ElmoConfig, rows: int, precision: str) -> Cost:
    """The projection of one step, both directions, without skip connection."""
    C, P = config.cell_size, config.projection_size
    width = value_bytes(precision)
    return _product((D, rows, C, P), width, 0, D * rows * (C + P) * width)


def step(config: ElmoConfig, rows: int, precision: str, way: str) -> Cost:
    """One step of both directions: "fused" or "hoisted", two launches."""
    return gates(config, rows, precision, way) + projection(config, rows, precision)


def hoisted_input(config: ElmoConfig, nodes: int, precision: str) -> Cost:
    """The input's part of the gates, in float32, of so many nodes in each direction."""
    P, columns, width = config.projection_size, 4 * config.cell_size, value_bytes(precision)
    return _product((D, nodes, P, columns), width, D * nodes * (P * width + columns * 4), bias=4)


def characters(config: ElmoConfig, lengths: Sequence[int], precision: str) -> Cost:
    """Character features of words of so many characters with begin and end, multiplied where their characters are."""
    M, E, width = config.max_characters, config.character_size, value_bytes(precision)
    windows = sum(
        w * number * sum(min(length, M - w + 1) for length in lengths)  # one begins at each character, if it fits
        for w, number in config.filters
    )
    weights = sum(w * number for w, number in config.filters) * E * width + config.n_characters * E * width
    return Cost(2 * E * windows, len(lengths) * (4 * M + config.n_filters * width), weights, launches=2)


def highway(config: ElmoConfig, words: int, precision: str) -> Cost:
    """One highway layer: transform and gate."""
    F, width = config.n_filters, value_bytes(precision)
    return _product((1, words, F, 2 * F), width, 2 * words * F * width, bias=4)


def final_projection(config: ElmoConfig, words: int, precision: str) -> Cost:
    """The characters' projection to a word vector."""
    F, P, width = config.n_filters, config.projection_size, value_bytes(precision)
    return _product((1, words, F, P), width, words * (F + P) * width, bias=4)


def token_layers(config: ElmoConfig, tokens: int, outputs: int, precision: str) -> Cost:
    """Token rows gathered from words and forests, mixed to so many float32 outputs."""
    P, layers = config.projection_size, config.n_layers + 1
    read = P + (layers - 1) * 2 * P  # the lowest layer is the word vector, twice
    streamed = tokens * (read * value_bytes(precision) + outputs * 2 * P * 4 + 3 * 4)
    return Cost(2 * tokens * outputs * layers * 2 * P, streamed, launches=1)


def gather_words(config: ElmoConfig, nodes: int, precision: str) -> Cost:
    """A word vector copied to each of so many nodes in each direction, from a table that stays in the L2 cache."""
    row = config.projection_size * value_bytes(precision)
    return Cost(streamed=D * nodes * (row + 4), states=D * nodes * row, launches=1)


def table(config: ElmoConfig, card: Card) -> Iterator[list[str]]:
    """Lines of the printed table: what, of what size, precision, the model's time and its bound."""
    costs: list[tuple[str, str, str, Cost]] = []
    for n in ROWS:
        costs.append(("projection", f"{n} rows", "bf16", projection(config, n, "bf16")))
        for precision, way in (("bf16", "fused"), ("bf16", "hoisted"), ("int8", "fused")):
            for name, part in (("gates", gates), ("step", step)):
                costs.append((f"{name}, {way}", f"{n} rows", precision, part(config, n, precision, way)))
    for n in WORDS:
        costs.append(("characters", f"{n} words", "bf16", characters(config, [WORD_LENGTH] * n, "bf16")))
        for name, of_words in (("highway", highway), ("final projection", final_projection)):
            costs.append((name, f"{n} words", "bf16", of_words(config, n, "bf16")))
    costs.append(("input of the gates", "2048 nodes", "bf16", hoisted_input(config, 2048, "bf16")))
    for n in (1, config.n_layers + 1):
        cost = token_layers(config, TOKENS, n, "bf16")
        costs.append((f"token layers, {n} outputs", f"{TOKENS} tokens", "bf16", cost))
    for what, size, precision, cost in costs:
        time, bound = cost.microseconds(card, precision)
        yield [what, size, precision, f"{time:,.1f}", bound]


def command(settings: Settings, console: Console) -> int:
    """Print the table of one model on one card."""
    (name,), card = settings.models, card_named(settings.card)
    title = (
        f"{name} model on {card.name}: {card.half / 1e12:.0f} TFLOP/s in 16 bits, {card.tf32 / 1e12:.0f} in TF32, "
        f"{card.fp32 / 1e12:.1f} in float32, {card.memory / 1e12:.2f} TB/s; model, not measured"
    )
    print_table(console, title, 3, ["", "", "", "µs", "bound by"], list(table(preset_config(name), card)))
    return 0


SUITE = Suite(
    "The time that bytes, operations and launches of each GPU kernel should take on a card.",
    Settings(models=("original",)),
    ("models", "card"),
    command,
)
