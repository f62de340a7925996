"""A card's limits, as measured in the run that uses it; what GPU kernels must at least do, and how long that takes.

    time = max(operations / matrix peak, bytes / memory bandwidth, bytes / L2 bandwidth)

Inputs and outputs are read from and written to memory once. Weights, which every call reads again, stay in the L2 cache
if they fill at most half of it, and are otherwise streamed from memory; an LSTM's states, written one step ago, are
still there. Launches cost nothing. This is a perfect kernel's time; if a measurement is far from it, the cause is worth
finding.

Letters: D directions (2), C cells, P projection, F filters, n rows of a step (in each direction), words or nodes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from itertools import accumulate, chain
from math import inf
from typing import NamedTuple

import torch
import triton

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.results import Results, Row, new_results
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import Workload
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.precision import PRECISIONS
from flashelmo.kernels.tuning import EXCHANGED_ROWS

CARD = "card"  # instead of the model, for rows that do not depend on one
RUN_OPTIONS = ("out", "models", "rounds", "seed", "limit_seconds", "commit")  # of every run on a card
# What is measured of a card -> its limit; fp16's products are as fast as bf16's.
LIMITS = {
    "torch.mm bf16": "half",
    "torch.mm fp32": "fp32",
    "torch.mm tf32": "tf32",
    "copy": "memory",
    "copy in L2": "l2",
}
SCALES = {"TFLOP/s": 1e12, "GB/s": 1e9}


@dataclass(frozen=True)
class Card:
    """What a GPU can do at best; what was not measured is no limit.

    Attributes:
        half, tf32, fp32: floating-point operations per second of dense products of 16 bits, in TF32, and with FFMA.
        memory, l2: bytes per second.
        l2_bytes: size of the L2 cache.
    """

    half: float = inf
    tf32: float = inf
    fp32: float = inf
    memory: float = inf
    l2: float = inf
    l2_bytes: float = 0

    def peak(self, precision: str) -> float:
        """Return operations per second in a precision; 8-bit products count as 16-bit ones, twice as slow."""
        if precision in ("fp32", "tf32"):
            return self.fp32 if precision == "fp32" else self.tf32
        return self.half

    @classmethod
    def of(cls, results: Results, rows: Iterable[Row] | None = None) -> Card:
        """Return the card of some results, from their ceilings, or from those among the given rows."""
        found = [row for row in (results.rows if rows is None else rows) if row.section == "ceiling" and row.median]
        limits = {LIMITS[row.name]: SCALES[row.unit] * (row.median or inf) for row in found if row.name in LIMITS}
        return cls(l2_bytes=results.machine["gpu"]["l2_bytes"], **limits)


class Device(NamedTuple):
    """Where a run computes: the device given to `ElmoEmbedder`, such as "cuda", and PyTorch's name, as "cuda:0"."""

    engine: str
    torch: str

    @property
    def is_cuda(self) -> bool:
        """Whether there is a card."""
        return self.torch.startswith("cuda")

    def synchronize(self) -> None:
        """Wait until the device has done what was queued; raise its errors."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def is_lost(self) -> bool:
        """Whether the device can no longer work: some kernel errors end the process's CUDA context."""
        try:
            self.synchronize()
        except Exception:
            return True
        return False

    def free_memory(self) -> None:
        """Return unused memory to the device."""
        if self.is_cuda:
            torch.cuda.empty_cache()


def begin(settings: Settings) -> tuple[Settings, Device, Results]:
    """Return the settings adapted to the current CUDA device, that device, and results without rows.

    Raises:
        FlashElmoError: there is no device.
    """
    found = machine.card()
    if found is None:
        raise FlashElmoError("no CUDA device: this benchmark needs one")
    device = Device("cuda", f"cuda:{torch.cuda.current_device()}")
    free, _ = torch.cuda.mem_get_info(device.torch)
    settings = replace(settings, copy_bytes=min(settings.copy_bytes, free // 8))
    results = new_results(settings, "kernels" if settings.sections == ("kernels",) else "gpu", found)
    versions = results.versions | {"triton": triton.__version__, "cuda": torch.version.cuda}
    return settings, device, replace(results, versions=versions)


# ---------------------------------------------------------------------------------------------------------------- costs


D = 2
KEPT = 0.5  # of the L2 cache: what is read repeatedly and fills no more stays there
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def value_bytes(precision: str) -> int:
    """Return the bytes of a number in a word vector or state on a card."""
    return BYTES[PRECISIONS[precision].on("cuda").dtype]


@dataclass(frozen=True)
class Cost:
    """What a kernel, or several in succession, must do.

    Attributes:
        operations: floating-point operations; a multiplication and an addition are two.
        streamed: bytes of inputs and outputs, which are read from or written to memory.
        weights: bytes that every call reads again.
        states: bytes written for the next step or read from the previous one.
    """

    operations: float = 0
    streamed: float = 0
    weights: float = 0
    states: float = 0

    def __add__(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other."""
        return Cost(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def parts(self, card: Card, precision: str) -> dict[str, float]:
        """Return the microseconds that the matrix units, the memory and the L2 cache take."""
        kept = self.weights <= KEPT * card.l2_bytes
        return {
            "matrix": 1e6 * self.operations / card.peak(precision),
            "memory": 1e6 * (self.streamed + (0 if kept else self.weights)) / card.memory,
            "L2": 1e6 * (self.streamed + self.weights + self.states) / card.l2,
        }

    def microseconds(self, card: Card, precision: str) -> float:
        """Return the longest of these."""
        return max(self.parts(card, precision).values())


def product(shape: tuple[int, int, int, int], width: int, streamed: float, states: float = 0, bias: int = 0) -> Cost:
    """Return the cost of matrices [inputs, columns], with `width` bytes per number, each times [rows, inputs]."""
    matrices, rows, inputs, columns = shape
    return Cost(matrices * 2 * rows * inputs * columns, streamed, matrices * columns * (inputs * width + bias), states)


def gates(config: ElmoConfig, rows: int, precision: str, way: str) -> Cost:
    """Return the cost of the gates and cells of one step, both directions.

    Args:
        way: "fused" (the input is multiplied with the recurrent state, as in 8 bits) or "hoisted" (beforehand).
    """
    C, P, width = config.cell_size, config.projection_size, BYTES[PRECISIONS[precision].on("cuda").lstm_weights]
    streamed = D * rows * (P * width if way == "fused" else 4 * C * 4)  # x, or its float32 part of the gates
    cells = C * (4 + 4 + value_bytes(precision))  # before and after; unprojected
    states = D * rows * (P * width + cells)
    return product((D, rows, 2 * P if way == "fused" else P, 4 * C), width, streamed, states)


def projection(config: ElmoConfig, rows: int, precision: str) -> Cost:
    """Return the cost of the projection of one step, both directions, without skip connection."""
    C, P, width = config.cell_size, config.projection_size, value_bytes(precision)
    return product((D, rows, C, P), width, 0, D * rows * (C + P) * width)


def step(config: ElmoConfig, rows: int, precision: str, way: str) -> Cost:
    """Return the cost of one step of both directions: "fused" or "hoisted"."""
    return gates(config, rows, precision, way) + projection(config, rows, precision)


def characters(config: ElmoConfig, lengths: Iterable[int], precision: str) -> Cost:
    """Return the cost of character features of words of these lengths, with begin and end; padding costs nothing."""
    M, E, width, lengths = config.max_characters, config.character_size, value_bytes(precision), list(lengths)
    windows = sum(
        w * number * sum(min(length, M - w + 1) for length in lengths)  # a window begins at each character, if it fits
        for w, number in config.filters
    )
    weights = sum(w * number for w, number in config.filters) * E * width + config.n_characters * E * width
    return Cost(2 * E * windows, len(lengths) * (4 * M + config.n_filters * width), weights)


def highway(config: ElmoConfig, words: int, precision: str) -> Cost:
    """Return the cost of one highway layer: transform and gate."""
    F, width = config.n_filters, value_bytes(precision)
    return product((1, words, F, 2 * F), width, 2 * words * F * width, bias=4)


def final_projection(config: ElmoConfig, words: int, precision: str) -> Cost:
    """Return the cost of the characters' projection to a word vector."""
    F, P, width = config.n_filters, config.projection_size, value_bytes(precision)
    return product((1, words, F, P), width, words * (F + P) * width, bias=4)


# ----------------------------------------------------------------------------------------------------------- workloads


def ceilings(
    config: ElmoConfig, workload: Workload, card: Card, precision: str, words_known: bool = False
) -> tuple[float | None, float | None]:
    """Return the best possible tokens per second, of the LSTM alone, and including vectors of distinct unknown words.

    Every depth of the sentences is a step with as many rows as there are sentences that long. Recurrent weights are
    read again in each, but only once per layer if `persistent` may do all; input weights once per layer. Nothing is
    shared between sentences, so sharing can take a figure above its ceiling.
    """
    by_length = Counter(map(len, workload.sentences))
    rows = Counter(accumulate(by_length[length] for length in range(max(by_length, default=0), 0, -1)))
    steps = {n: lstm_step(config, n, precision) for n in rows}
    once = gates(config, 0, precision, "hoisted").weights  # the input's, as large as the recurrent ones
    stay = [n for n in rows if n <= EXCHANGED_ROWS and value_bytes(precision) == 2]
    once += max((steps[n].weights for n in stay), default=0)
    steps |= {n: replace(steps[n], weights=0) for n in stay}
    seconds = sum(1e-6 * times * steps[n].microseconds(card, precision) for n, times in rows.items())
    lstm, words = config.n_layers * (seconds + once / card.memory), 0.0
    if config.filters and not words_known:  # models without characters look vectors up
        distinct = set(chain.from_iterable(workload.sentences))
        lengths = [min(len(word.encode()) + 2, config.max_characters) for word in distinct]
        costs = [characters(config, lengths, precision), final_projection(config, len(lengths), precision)]
        costs += [highway(config, len(lengths), precision)] * config.n_highway
        words = 1e-6 * sum(cost.microseconds(card, precision) for cost in costs)
    return (workload.tokens / lstm, workload.tokens / (lstm + words)) if lstm else (None, None)


def lstm_step(config: ElmoConfig, rows: int, precision: str) -> Cost:
    """Return the cost of one step of both directions, counting only recurrent and projection weights."""
    whole, recurrent = (step(config, rows, precision, way) for way in ("fused", "hoisted"))
    return replace(whole, weights=recurrent.weights)


def suited_tokens(config: ElmoConfig, card: Card, most: int, precision: str) -> int:
    """Return tokens of bulk text that take the card about a second at half its peak: a power of two, at most `most`.

    It is at least a 64th of `most`, so that a slow card has whole windows too.
    """
    wanted = min(0.5 * card.peak(precision) / config.lstm_flops_per_token, most)
    return max(1, most // 64, min(most, 1 << int(max(wanted, 1)).bit_length() - 1))
