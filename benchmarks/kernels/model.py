"""A model of each GPU kernel's time on a named card: bytes moved, operations and launches to microseconds.

    time = max(operations / matrix peak, bytes / memory bandwidth, bytes / L2 bandwidth)
           + launches * launch + barriers * barrier

Inputs and outputs come from and go to memory once. Weights, which every call reads again, are taken to stay in the L2
cache where they fill at most half of it, and to be streamed from memory otherwise; an LSTM's states, written a step
ago, are taken to be there still. That is a perfect kernel's time; a measurement far from it has a cause worth finding.

One cause the model knows: programs fetch what they multiply from the L2 cache block by block, a row again for every
block of columns and a column for every block of rows. "As tiled" is the time with these bytes in place of each once.

Letters: D directions (2), C cells, P projection, F filters, n rows of a step (in each direction), words or nodes.
`python -m benchmarks.kernels.model` prints the table.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import PRESETS, preset_config
from flashelmo.kernels.tuning import Tile, table_tile

D = 2
ROWS = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
WORDS = (1, 64, 1024, 4096)
WORD_LENGTH = 8  # characters of a distinct word with its begin and end: the mean of the Bible's, and of generated text
TOKENS = 32_768
LAYERS = 3
KEPT = 0.5  # of the L2 cache: what is read again and again and fills no more stays there

# Kind of arithmetic -> bytes of a value, and of a recurrent weight. 8-bit weights are multiplied as 16-bit numbers.
VALUE_BYTES = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4, "int8": 2}
WEIGHT_BYTES = VALUE_BYTES | {"int8": 1}
TILE_KINDS = {"bf16": "half", "fp16": "half", "tf32": "tf32", "fp32": "ieee", "int8": "int8"}
COLUMNS = {"gates": 4, "persistent gates": 4, "highway": 2}  # of the product, to one of a tile


@dataclass(frozen=True)
class Card:
    """What a GPU can do at best.

    Attributes:
        name: part of what CUDA calls it.
        half, tf32, fp32: floating-point operations a second of dense products of 16 bits, in TF32, and by FFMA.
        memory, l2: bytes a second.
        l2_bytes: size of the L2 cache.
        multiprocessors: their number.
        launch: microseconds from one kernel's last program to the next one's first, inside a CUDA graph.
        barrier: microseconds that all programs of a kernel take to meet.
    """

    name: str
    half: float
    tf32: float
    fp32: float
    memory: float
    l2: float
    l2_bytes: float
    multiprocessors: int
    launch: float
    barrier: float

    @property
    def is_hopper(self) -> bool:
        """Whether it is one of sm_90."""
        return self.name.startswith(("H100", "H200"))

    def peak(self, kind: str) -> float:
        """Operations a second of a kind of arithmetic: one of `VALUE_BYTES`."""
        if kind in ("fp32", "tf32"):
            return self.fp32 if kind == "fp32" else self.tf32
        return self.half


# Dense rates with float32 sums, and memory, from the vendor's data sheets, but for what is said beside them. No data
# sheet gives L2 bandwidth, launch and barrier: A100's whitepaper gives 5,120 bytes a clock, of which published
# microbenchmarks reach six tenths; for other cards the L2 bandwidth, and all launches and barriers, are estimates.
CARDS = (
    # half and memory: measured, with a product of 8192 x 8192 x 8192 and a copy (data sheet: 989e12, 4.8e12).
    Card("H200", 790e12, 494e12, 67e12, 4.3e12, 5.5e12, 50e6, 132, 1.3, 2.0),
    Card("H100 PCIe", 756e12, 378e12, 51e12, 2.0e12, 5.5e12, 50e6, 114, 1.3, 2.0),  # NVIDIA H100 data sheet
    Card("H100", 989e12, 494e12, 67e12, 3.35e12, 5.5e12, 50e6, 132, 1.3, 2.0),  # the same, SXM
    Card("A100-SXM4-40GB", 312e12, 156e12, 19.5e12, 1.555e12, 4.3e12, 40e6, 108, 1.5, 2.5),  # NVIDIA A100 data sheet
    Card("A100", 312e12, 156e12, 19.5e12, 2.039e12, 4.3e12, 40e6, 108, 1.5, 2.5),  # the same, 80 GB SXM
    Card("L4", 121e12, 60e12, 30.3e12, 0.3e12, 1.8e12, 48e6, 58, 1.5, 2.0),  # NVIDIA L4 data sheet, without sparsity
    Card("RTX 4090", 165e12, 82.6e12, 82.6e12, 1.008e12, 5e12, 72e6, 128, 1.5, 2.0),  # NVIDIA Ada whitepaper, app. A
    Card("B200", 2250e12, 1125e12, 75e12, 8e12, 10e12, 126e6, 148, 1.3, 2.0),  # NVIDIA DGX B200 data sheet, an eighth
    Card("RTX 5090", 209.5e12, 104.8e12, 104.8e12, 1.792e12, 6e12, 96e6, 170, 1.5, 2.0),  # RTX Blackwell whitepaper
)


def card_named(name: str) -> Card:
    """The card that CUDA calls so, as "NVIDIA H200"; the longest of our names that it contains.

    Raises:
        FlashElmoError: an unknown card.
    """
    known = [card for card in CARDS if re.search(rf"\b{card.name}\b", name, re.IGNORECASE)]
    if not known:
        raise FlashElmoError(f"card: expected one of {', '.join(card.name for card in CARDS)}, found {name!r}")
    return max(known, key=lambda card: len(card.name))


def measured(
    card: Card,
    *,
    half: float | None = None,
    tf32: float | None = None,
    fp32: float | None = None,
    memory: float | None = None,
    l2: float | None = None,
) -> Card:
    """The card with ceilings that were measured on it; None leaves the table's."""
    return replace(
        card,
        half=half or card.half,
        tf32=tf32 or card.tf32,
        fp32=fp32 or card.fp32,
        memory=memory or card.memory,
        l2=l2 or card.l2,
    )


class Prediction(NamedTuple):
    """A time in microseconds, and what it is mostly: "matrix", "memory", "L2" or "launch" (barriers too)."""

    microseconds: float
    bound: str


class Product(NamedTuple):
    """A product that is computed in tiles: `matrices` times [rows, inputs] x [inputs, columns]."""

    operation: str
    kind: str
    matrices: int
    rows: int
    columns: int
    inputs: int

    def fetched(self, card: Card) -> float:
        """Bytes that the programs fetch from the L2 cache."""
        tile = self.tile(card)
        row_blocks = -(-self.rows // tile.rows)
        column_blocks = -(-self.columns // (tile.columns * COLUMNS.get(self.operation, 1)))
        rows, columns = column_blocks * self.rows * VALUE_BYTES[self.kind], self.columns * WEIGHT_BYTES[self.kind]
        return self.matrices * self.inputs * (rows + row_blocks * columns)

    def tile(self, card: Card) -> Tile:
        """As `kernels.tuning` chooses it."""
        return table_tile(self.operation, TILE_KINDS[self.kind], self.rows, hopper=card.is_hopper)


@dataclass(frozen=True)
class Cost:
    """What a kernel, or some that follow each other, must do.

    Attributes:
        operations: floating-point operations, a multiplication and an addition being two.
        streamed: bytes of inputs and outputs, which come from memory and go there.
        weights: bytes that every call reads again.
        states: bytes written or read that the next or the last step reads or wrote.
        launches, barriers: how many.
        products: that are tiled, and not counted where costs are compared.
    """

    operations: float = 0
    streamed: float = 0
    weights: float = 0
    states: float = 0
    launches: float = 0
    barriers: float = 0
    products: tuple[Product, ...] = field(default=(), compare=False)

    def __add__(self, other: Cost) -> Cost:
        """Both, one after the other."""
        return Cost(
            operations=self.operations + other.operations,
            streamed=self.streamed + other.streamed,
            weights=self.weights + other.weights,
            states=self.states + other.states,
            launches=self.launches + other.launches,
            barriers=self.barriers + other.barriers,
            products=self.products + other.products,
        )

    def __mul__(self, times: int) -> Cost:
        """So many times."""
        return sum([self] * times, Cost())

    @property
    def bytes(self) -> float:
        """All bytes that reach a multiprocessor or leave it."""
        return self.streamed + self.weights + self.states

    def memory_bytes(self, card: Card) -> float:
        """Those of them that memory gives or takes."""
        return self.streamed + (0 if self.weights <= KEPT * card.l2_bytes else self.weights)

    def roofline(self, card: Card, kind: str) -> float:
        """Microseconds that the matrix units or the memory need at least."""
        return 1e6 * max(self.operations / card.peak(kind), self.memory_bytes(card) / card.memory)

    def microseconds(self, card: Card, kind: str) -> Prediction:
        """The model's time."""
        return self._prediction(card, kind, self.bytes)

    def as_tiled(self, card: Card, kind: str) -> Prediction:
        """The model's time with what the tiles fetch."""
        return self._prediction(card, kind, max(self.bytes, sum(each.fetched(card) for each in self.products)))

    def _prediction(self, card: Card, kind: str, l2_bytes: float) -> Prediction:
        work = {
            "matrix": 1e6 * self.operations / card.peak(kind),
            "memory": 1e6 * self.memory_bytes(card) / card.memory,
            "L2": 1e6 * l2_bytes / card.l2,
        }
        waiting = self.launches * card.launch + self.barriers * card.barrier
        bound = max(work, key=lambda name: work[name])
        return Prediction(work[bound] + waiting, "launch" if waiting > work[bound] else bound)


def gates(config: ElmoConfig, rows: int, kind: str, way: str) -> Cost:
    """The gates and cells of one step, both directions.

    Args:
        way: "fused" (the input is multiplied with the recurrent state) or "hoisted" (beforehand), as 8-bit weights are.
    """
    C, P, width = config.cell_size, config.projection_size, VALUE_BYTES[kind]
    inputs = 2 * P if way == "fused" else P
    return Cost(
        operations=D * rows * 2 * inputs * 4 * C,
        streamed=D * rows * (P * width if way == "fused" else 4 * C * 4),  # x, or its float32 part of the gates
        weights=D * inputs * 4 * C * WEIGHT_BYTES[kind],
        states=D * rows * (P * width + C * (4 + 4 + width)),  # hidden; the cell before and after; exposed
        launches=1,
        products=(Product("gates", kind, D, rows, 4 * C, inputs),),
    )


def projection(config: ElmoConfig, rows: int, kind: str) -> Cost:
    """The projection of one step, both directions, without skip connection."""
    C, P, width = config.cell_size, config.projection_size, VALUE_BYTES[kind]
    return Cost(
        operations=D * rows * 2 * C * P,
        weights=D * C * P * WEIGHT_BYTES[kind],
        states=D * rows * (C + P) * width,
        launches=1,
        products=(Product("projection", kind, D, rows, P, C),),
    )


def step(config: ElmoConfig, rows: int, kind: str, way: str) -> Cost:
    """One step of both directions: "fused" or "hoisted", two launches; "persistent", two barriers instead."""
    whole = gates(config, rows, kind, "fused" if way == "fused" else "hoisted") + projection(config, rows, kind)
    return replace(whole, launches=0, barriers=2) if way == "persistent" else whole


def linear(matrices: int, rows: int, inputs: int, outputs: int, kind: str, output_bytes: int | None = None) -> Cost:
    """A product with bias, `matrices` times [rows, inputs] x [inputs, outputs]."""
    width = VALUE_BYTES[kind]
    return Cost(
        operations=matrices * 2 * rows * inputs * outputs,
        streamed=matrices * rows * (inputs * width + outputs * (output_bytes or width)),
        weights=matrices * (inputs * width + 4) * outputs,
        launches=1,
        products=(Product("linear", kind, matrices, rows, outputs, inputs),),
    )


def hoisted_input(config: ElmoConfig, nodes: int, kind: str) -> Cost:
    """The input's part of the gates, in float32, of so many nodes in each direction."""
    return linear(D, nodes, config.projection_size, 4 * config.cell_size, kind, output_bytes=4)


def characters(config: ElmoConfig, lengths: Sequence[int], kind: str) -> Cost:
    """Character features of words, multiplied where their characters are.

    Args:
        lengths: characters of each word with its begin and end.
    """
    M, E, width = config.max_characters, config.character_size, VALUE_BYTES[kind]
    windows = sum(
        w * number * sum(min(length, M - w + 1) for length in lengths)  # one begins at each character, if it fits
        for w, number in config.filters
    )
    return Cost(
        operations=2 * E * windows,
        streamed=len(lengths) * (4 * M + config.n_filters * width),
        weights=sum(w * number for w, number in config.filters) * E * width + config.n_characters * E * width,
        launches=1,
    )


def highway(config: ElmoConfig, words: int, kind: str) -> Cost:
    """One highway layer: transform and gate."""
    F, width = config.n_filters, VALUE_BYTES[kind]
    product = Product("highway", kind, 1, words, 2 * F, F)
    return replace(linear(1, words, F, 2 * F, kind), streamed=2 * words * F * width, products=(product,))


def final_projection(config: ElmoConfig, words: int, kind: str) -> Cost:
    """The characters' projection to a word vector."""
    return linear(1, words, config.n_filters, config.projection_size, kind)


def token_layers(config: ElmoConfig, tokens: int, outputs: int, kind: str) -> Cost:
    """Token rows gathered from words and forests, mixed to so many float32 outputs."""
    P, layers = config.projection_size, config.n_layers + 1
    read = P + (layers - 1) * 2 * P  # the lowest layer is the word vector, twice
    return Cost(
        operations=2 * tokens * outputs * layers * 2 * P,
        streamed=tokens * (read * VALUE_BYTES[kind] + outputs * 2 * P * 4 + 3 * 4),
        launches=1,
    )


def table(config: ElmoConfig, card: Card) -> list[list[str]]:
    """Lines of the printed table: what, rows, kind, microseconds and what bounds them, and both as tiled."""
    lines = []

    def line(what: str, size: str, kind: str, cost: Cost) -> None:
        predicted, tiled = cost.microseconds(card, kind), cost.as_tiled(card, kind)
        times = [f"{each.microseconds:,.1f}" for each in (predicted, tiled)]
        lines.append([what, size, kind, times[0], predicted.bound, times[1], tiled.bound])

    for rows in ROWS:
        size = f"{rows} rows"
        for way in ("fused", "hoisted"):
            line(f"gates, {way}", size, "bf16", gates(config, rows, "bf16", way))
        line("projection", size, "bf16", projection(config, rows, "bf16"))
        for way in ("fused", "hoisted", "persistent"):
            line(f"step, {way}", size, "bf16", step(config, rows, "bf16", way))
        for way in ("hoisted", "persistent"):
            line(f"step, {way}", size, "int8", step(config, rows, "int8", way))
    for words in WORDS:
        size = f"{words} words"
        line("characters", size, "bf16", characters(config, [WORD_LENGTH] * words, "bf16"))
        line("highway", size, "bf16", highway(config, words, "bf16"))
        line("final projection", size, "bf16", final_projection(config, words, "bf16"))
    line("input of the gates", "2048 nodes", "bf16", hoisted_input(config, 2048, "bf16"))
    line("token layers, one mix", f"{TOKENS} tokens", "bf16", token_layers(config, TOKENS, 1, "bf16"))
    line("token layers, all", f"{TOKENS} tokens", "bf16", token_layers(config, TOKENS, LAYERS, "bf16"))
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of one model on one card; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--card", default="H200", help=f"one of {', '.join(card.name for card in CARDS)}")
    parser.add_argument("--model", default="original", choices=list(PRESETS))
    given = parser.parse_args(arguments)
    try:
        card = card_named(given.card)
    except FlashElmoError as error:
        print(f"kernels.model: {error}", file=sys.stderr)
        return 1
    print(
        f"{given.model} model on {card.name}: {card.half / 1e12:.0f} TFLOP/s in 16 bits, {card.tf32 / 1e12:.0f} in "
        f"TF32, {card.fp32 / 1e12:.1f} in float32, {card.memory / 1e12:.2f} TB/s; model, not measured"
    )
    for what, size, kind, time, bound, tiled, tiled_bound in table(preset_config(given.model), card):
        print(f"{what:24}{size:>14}{kind:>6}{time:>10} µs  {bound:8}as tiled{tiled:>10} µs  {tiled_bound}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
