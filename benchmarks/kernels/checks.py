"""Every kernel on the card against its reference in float64, before anything is timed.

Inputs are fresh random numbers, outputs are poisoned with NaN beforehand, and sizes are ragged. An error is
||out - reference|| / ||reference||, where the reference has the unrounded weights and the inputs as the kernel gets
them. A NaN passes no bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashelmo.benchmarks.kernels.cases import lstm_launches
from flashelmo.benchmarks.kernels.timing import Deadline, one_line
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.engine.cuda import layout
from flashelmo.engine.cuda.compute import nodes_of
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.text.schedule import Forest, Schedule
from flashelmo.kernels import reference
from flashelmo.kernels.char_cnn import Words, char_cnn_launch, group_words, pack_char_cnn
from flashelmo.kernels.highway import highway_launch, pack_highway
from flashelmo.kernels.launch import Barrier, Precision, can_depend
from flashelmo.kernels.linear import linear_launch
from flashelmo.kernels.lstm.layer import pack_lstm
from flashelmo.kernels.lstm.run import LaunchOptions, LayerRun, LstmTensors, Nodes, new_tensors
from flashelmo.kernels.lstm.weights import CanonicalLstm, LstmWeights
from flashelmo.kernels.token_layers import Tokens, token_layers_launch

# Largest error by kind of arithmetic.
BOUNDS = {
    "fp32": 1e-5,
    "tf32": 2e-3,  # Triton cuts operands to 10 bits instead of rounding: 7e-4 a product, and a step has two in a row
    "bf16": 1e-2,
    "fp16": 1e-2,
    "int8": 5e-2,
}
DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.bfloat16,
}
FLOAT_KINDS = ("bf16", "fp16", "fp32", "tf32")
N_ROOTS = 2
SMALL_ROWS = 64  # persistent steps and 8-bit weights are for few rows
# Ids of bilm-tf's alphabet: bytes are 1 to 256.
BEGIN_WORD, END_WORD, PADDING = 259, 260, 261


class Sizes(NamedTuple):
    """Rows that are checked; together they meet every tile that is timed.

    Attributes:
        steps: rows of an LSTM's depths in bf16.
        few, many: those of the hoisted and of the fused step in other kinds.
        rows: of products and highways, and words of the characters.
    """

    steps: tuple[int, ...] = (1, 9, 31, 63, 127, 255, 300, 700)
    few: tuple[int, ...] = (1, 31)
    many: tuple[int, ...] = (300,)
    rows: tuple[int, ...] = (1, 63, 200, 1003, 2051)


class Canonical(NamedTuple):
    """One layer's weights in float32: [D, 4, P, C] twice, [D, 4, C] and [D, C, P]."""

    input: Tensor
    recurrent: Tensor
    bias: Tensor
    projection: Tensor


class Check(NamedTuple):
    """One comparison.

    Attributes:
        name, kind: of the kernel: what is timed under this name and kind is timed only if all its checks pass.
        detail: sizes.
        error: computes the relative error.
    """

    name: str
    kind: str
    detail: str
    error: Callable[[], float]


class Checked(NamedTuple):
    """What checks found.

    Attributes:
        rows: the errors.
        failed: (name, kind) of kernels that failed or were not reached.
        lost: why nothing more runs on the device; empty if it still does.
    """

    rows: list[Row]
    failed: set[tuple[str, str]]
    lost: str = ""


def precision_of(kind: str) -> Precision:
    """Of float32 products."""
    return "tf32" if kind == "tf32" else "ieee"


def has_dependent(device: str) -> bool:
    """Whether dependent launches can be tried: on any card that has them, and in the interpreter, which has none."""
    return torch.device(device).type != "cuda" or can_depend(torch.device(device))


def relative_error(out: Tensor, expected: Tensor) -> float:
    """||out - expected|| / ||expected||, NaN where out has one."""
    out, expected = out.double().cpu(), expected.double().cpu()
    return float((out - expected).norm() / expected.norm())


def run_checks(
    checks: Iterator[Check], model: str, deadline: Deadline, say: Callable[[str], None], device: str
) -> Checked:
    """Check until the end or until the device is lost; failures are told."""
    rows: list[Row] = []
    failed: set[tuple[str, str]] = set()
    for check in checks:
        row = Row(
            section="error", model=model, name=f"{check.name} {check.kind}", unit="relative error", detail=check.detail
        )
        if deadline.left <= 0:
            row = replace(row, note=deadline.over)
            failed.add((check.name, check.kind))
        else:
            try:
                error = check.error()
                row = replace(row, median=float(f"{error:.3g}") if math.isfinite(error) else None)
                if not error < BOUNDS[check.kind]:
                    row = replace(row, note=f"{FAILED}: error {error:.2g}, expected less than {BOUNDS[check.kind]:g}")
            except Exception as problem:  # a kernel that does not compile or run has failed, and the others go on
                row = replace(row, note=f"{FAILED}: {one_line(problem)}")
            if row.note:
                failed.add((check.name, check.kind))
                say(f"{row.label}: {row.note}")
                if not _is_alive(device):
                    lost = f"the device is lost after {row.label}: the rest is not checked"
                    say(lost)
                    return Checked([*rows, replace(row, note=f"{row.note}; {lost}")], failed, lost)
        rows.append(row)
    return Checked(rows, failed)


def _is_alive(device: str) -> bool:
    """Whether work on the device still ends well: some errors of a kernel end its process's CUDA context."""
    if torch.device(device).type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except Exception:
            return False
    return True


def checks(config: ElmoConfig, sizes: Sizes, device: str, seed: int, kinds: Sequence[str]) -> Iterator[Check]:
    """All kernels at one model's sizes."""
    rng = torch.Generator().manual_seed(seed)
    yield from _lstm_checks(config, sizes, device, rng, kinds)
    if config.filters:
        for kind in kinds:
            for n in sizes.rows if kind == "bf16" else sizes.rows[1::2]:
                yield Check("highway", kind, f"{n} words", _bound(_highway_error, config, n, kind, device, rng))
            for n in sizes.rows if kind == "bf16" else sizes.rows[1::2]:
                yield Check("characters", kind, f"{n} words", _bound(_characters_error, config, n, kind, device, rng))
        for kind in kinds:
            for n in sizes.rows if kind == "bf16" else sizes.rows[1::2]:
                yield Check("final projection", kind, f"{n} words", _bound(_linear_error, config, n, kind, device, rng))
    for kind in kinds:
        n = sizes.rows[-1]
        yield Check("input", kind, f"{n} nodes", _bound(_input_error, config, n, kind, device, rng))
    for kind in kinds:
        if kind == "tf32":  # no product
            continue
        for pooled in (False, True):
            detail = "means of sentences" if pooled else "tokens"
            yield Check("token layers", kind, detail, _bound(_tokens_error, config, sizes, pooled, kind, device, rng))


def _bound(function: Callable[..., float], *arguments: object) -> Callable[[], float]:
    return lambda: function(*arguments)


def normal(rng: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers in the host's memory."""
    return scale * torch.randn(*shape, generator=rng)


# ---------------------------------------------------------------------------------------------------------------- LSTM


class LstmCase:
    """A random layer over ragged forests, and its states by the reference.

    Args:
        rows: nodes of each depth of the first direction; the second has about half.
    """

    def __init__(
        self,
        config: ElmoConfig,
        weights: Canonical,
        rows: Sequence[int],
        rng: torch.Generator,
    ) -> None:
        self._config, self._weights = config, weights
        self._rows, self._rng = rows, rng
        self._nodes = random_nodes([rows, [1 + n // 2 for n in rows]], N_ROOTS, rng)
        D, C, P = weights.projection.shape
        # Numbers that every type holds, so that one reference serves all.
        self._x = normal(rng, D, self._nodes.n_nodes, P).bfloat16().float()
        self._roots = normal(rng, D, N_ROOTS, P).bfloat16().float(), normal(rng, D, N_ROOTS, C)
        self._expected: Tensor | None = None

    def error(self, kind: str, way: str, device: str, dependent: bool = False) -> float:
        """Of all nodes' hidden states, computed as fused, hoisted or persistent steps, or as dependent launches."""
        weights = pack(self._weights, self._config, kind, device)
        nodes = on_device(self._nodes, device)
        tensors = self._poisoned(weights, nodes, self._x.to(device, weights.dtype))
        options = LaunchOptions(precision_of(kind), Barrier.on(device) if way == "persistent" else None, dependent)
        for launch in lstm_launches(LayerRun(weights, tensors, nodes, options=options), way):
            launch.run()
        if options.barrier is not None:
            options.barrier.check()
        return relative_error(self._real(tensors.hidden), self._real(self.expected()))

    def expected(self) -> Tensor:
        """Hidden states [D, N, P] in float64; computed once."""
        if self._expected is None:
            self._expected = self._reference()
        return self._expected

    def _poisoned(self, weights: LstmWeights, nodes: Nodes, x: Tensor) -> LstmTensors:
        tensors = new_tensors(weights, nodes, x)
        for tensor in (tensors.hidden, tensors.cell, tensors.unprojected, tensors.partial_sums):
            tensor.fill_(torch.nan)
        tensors.hidden[:, :N_ROOTS] = self._roots[0].to(x)
        tensors.cell[0, :, :N_ROOTS] = self._roots[1].to(x.device)
        return tensors

    def _reference(self) -> Tensor:
        config, weights = self._config, Canonical(*(weight.double() for weight in self._weights))
        hidden = torch.zeros(self._x.shape).double()
        cell = torch.zeros(*self._x.shape[:2], config.cell_size).double()
        hidden[:, :N_ROOTS], cell[:, :N_ROOTS] = (root.double() for root in self._roots)
        for d, starts in enumerate(self._nodes.depths):
            for before, first, last in zip(starts, starts[1:], starts[2:], strict=False):
                parents = before + self._nodes.parents[d, first:last].long()
                hidden[d, first:last], cell[d, first:last] = reference.lstm_step(
                    self._x[d, first:last].double(),
                    hidden[d, parents],
                    cell[d, parents],
                    weights.input[d],
                    weights.recurrent[d],
                    weights.bias[d],
                    weights.projection[d],
                    config.cell_clip,
                    config.projection_clip,
                )
        return hidden

    def _real(self, hidden: Tensor) -> Tensor:
        """The rows of the nodes there are, roots excepted."""
        return torch.cat([hidden[d, starts[1] : starts[-1]] for d, starts in enumerate(self._nodes.depths)])


def random_nodes(rows: Sequence[Sequence[int]], n_roots: int, rng: torch.Generator) -> Nodes:
    """Forward and backward forests of so many rows a depth, with random parents, as the engine lays them out."""
    forward, backward = (_forest(each, n_roots, rng) for each in rows)
    schedule = Schedule(forward, backward, np.empty(0, np.int32), np.zeros(n_roots + 1, np.int64))
    sizes = layout.Sizes.of(schedule, share=False, pooled=False, stateful=False)
    ints = np.empty(layout.Layout.of(sizes).size, np.int32)
    layout.fill(ints, sizes, schedule, np.arange(max(map(sum, rows)), dtype=np.int32))
    return nodes_of(layout.Layout.of(sizes).views(torch.from_numpy(ints)), sizes)


def _forest(rows: Sequence[int], n_roots: int, rng: torch.Generator) -> Forest:
    parents = [torch.randint(0, a, (n,), generator=rng) for a, n in zip((n_roots, *rows), rows, strict=False)]
    n, nothing = sum(rows), np.empty(0, np.int32)
    depths = np.array([0, *accumulate(rows)])
    return Forest(np.arange(n, dtype=np.int32), torch.cat(parents).int().numpy(), depths, nothing, depths[:0])


def on_device(nodes: Nodes, device: str) -> Nodes:
    """The same there."""
    return Nodes(nodes.starts.to(device), nodes.parents.to(device), nodes.words.to(device), nodes.depths)


def lstm_weights(config: ElmoConfig, rng: torch.Generator) -> Canonical:
    """Random weights of one layer."""
    P, C = config.projection_size, config.cell_size
    return Canonical(
        normal(rng, 2, 4, P, C, scale=P**-0.5),
        normal(rng, 2, 4, P, C, scale=P**-0.5),
        normal(rng, 2, 4, C, scale=0.1),
        normal(rng, 2, C, P, scale=2 * C**-0.5),
    )


def pack(weights: Canonical, config: ElmoConfig, kind: str, device: str) -> LstmWeights:
    """The weights as the kernels read them."""
    canonical = CanonicalLstm(*weights, config.cell_clip, config.projection_clip)
    return pack_lstm(canonical, dtype=DTYPES[kind], int8=kind == "int8", device=device)


def _lstm_checks(
    config: ElmoConfig, sizes: Sizes, device: str, rng: torch.Generator, kinds: Sequence[str]
) -> Iterator[Check]:
    weights = lstm_weights(config, rng)
    cases: dict[tuple[int, ...], LstmCase] = {}

    def check(rows: tuple[int, ...], way: str, kind: str, dependent: bool = False) -> Check:
        if rows not in cases:
            cases[rows] = LstmCase(config, weights, rows, rng)
        case = cases[rows]
        detail = f"rows {', '.join(map(str, rows))}"
        name = f"dependent {way} step" if dependent else f"{way} step"
        return Check(name, kind, detail, lambda: case.error(kind, way, device, dependent))

    for kind in kinds:
        if kind == "bf16":
            small = tuple(n for n in sizes.steps if n <= SMALL_ROWS)
            yield check(sizes.steps, "fused", kind)
            yield check(sizes.steps, "hoisted", kind)
            yield check(small, "hoisted", "int8")
            for smaller in dict.fromkeys((small, small[:2])):  # all depths of a launch have one tile
                yield check(smaller, "persistent", kind)
                yield check(smaller, "persistent", "int8")
            if has_dependent(device):
                yield check(sizes.steps, "fused", kind, dependent=True)
                yield check(sizes.steps, "hoisted", kind, dependent=True)
                yield check(small, "hoisted", "int8", dependent=True)
        else:
            yield check(sizes.few, "hoisted", kind)
            yield check(sizes.many, "fused", kind)
            yield check(sizes.few, "persistent", kind)


# ---------------------------------------------------------------------------------------------------- words and tokens


def spell(words: Sequence[str], config: ElmoConfig) -> Tensor:
    """Character ids int64 [W, M] of words in bilm-tf's alphabet, cut to M - 2 bytes."""
    ids = torch.full((len(words), config.max_characters), PADDING)
    for row, word in zip(ids, words, strict=True):
        spelled = [BEGIN_WORD, *(byte + 1 for byte in word.encode()[: config.max_characters - 2]), END_WORD]
        row[: len(spelled)] = torch.tensor(spelled)
    return ids


def random_words(config: ElmoConfig, n: int, rng: torch.Generator) -> list[str]:
    """Words of one letter, of the most that fit, and of anything between."""
    most = config.max_characters - 2
    lengths = [1, most, *torch.randint(1, most + 1, (n,), generator=rng).tolist()][:n]
    letters = torch.randint(ord("a"), ord("z") + 1, (sum(lengths),), generator=rng).tolist()
    text = "".join(map(chr, letters))
    return [text[sum(lengths[:k]) : sum(lengths[: k + 1])] for k in range(n)]


def character_weights(config: ElmoConfig, rng: torch.Generator) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """A random embedding [characters, E] and convolutions (weight [width, E, number], bias [number])."""
    E = config.character_size
    convolutions = [
        (normal(rng, width, E, number, scale=(width * E) ** -0.5), normal(rng, number, scale=0.1))
        for width, number in config.filters
    ]
    return normal(rng, config.n_characters, E), convolutions


def highway_weights(config: ElmoConfig, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random weight [F, F] and bias [F] of transform, then of gate."""
    F = config.n_filters
    return (
        normal(rng, F, F, scale=F**-0.5),
        normal(rng, F, scale=0.1),
        normal(rng, F, F, scale=F**-0.5),
        normal(rng, F, scale=0.1),
    )


def group(ids: Tensor, config: ElmoConfig, device: str) -> Words:
    """The words of these ids as the kernel reads them."""
    return group_words(ids, n_characters=config.n_characters, padding_id=PADDING, device=device)


def _characters_error(config: ElmoConfig, n: int, kind: str, device: str, rng: torch.Generator) -> float:
    ids = spell(random_words(config, n, rng), config)
    embedding, convolutions = character_weights(config, rng)
    weights = pack_char_cnn(
        embedding, convolutions, padding_id=PADDING, activation=config.activation, dtype=DTYPES[kind], device=device
    )
    out = torch.full((n, config.n_filters), torch.nan, dtype=DTYPES[kind], device=device)
    char_cnn_launch(group(ids, config, device), weights, out, precision=precision_of(kind)).run()
    doubled = [(weight.double(), bias.double()) for weight, bias in convolutions]
    return relative_error(out, reference.char_cnn(ids, embedding.double(), doubled, config.activation))


def _highway_error(config: ElmoConfig, n: int, kind: str, device: str, rng: torch.Generator) -> float:
    canonical = highway_weights(config, rng)
    x = normal(rng, n, config.n_filters).to(device, DTYPES[kind])
    out = torch.full_like(x, torch.nan)
    weights = pack_highway(*canonical, dtype=DTYPES[kind], device=device)
    highway_launch(x, weights, out, precision=precision_of(kind)).run()
    transform, transform_bias, gate, gate_bias = (tensor.double() for tensor in canonical)
    return relative_error(out, reference.highway(x.double().cpu(), (transform, transform_bias), (gate, gate_bias)))


def _linear_error(config: ElmoConfig, n: int, kind: str, device: str, rng: torch.Generator) -> float:
    F, P = config.n_filters, config.projection_size
    x, weight, bias = normal(rng, n, F), normal(rng, F, P, scale=F**-0.5), normal(rng, P)
    return _product_error(x, weight, bias, kind, device, DTYPES[kind])


def _input_error(config: ElmoConfig, n: int, kind: str, device: str, rng: torch.Generator) -> float:
    P, C = config.projection_size, config.cell_size
    x, weight, bias = normal(rng, 2, n, P), normal(rng, 2, P, 4 * C, scale=P**-0.5), normal(rng, 2, 4 * C)
    return _product_error(x, weight, bias, kind, device, torch.float32)


def _product_error(x: Tensor, weight: Tensor, bias: Tensor, kind: str, device: str, out_type: torch.dtype) -> float:
    x = x.to(DTYPES[kind])
    out = torch.full((*x.shape[:-1], weight.shape[-1]), torch.nan, dtype=out_type, device=device)
    on_device = x.to(device), weight.to(device, DTYPES[kind]), bias.to(device), out
    linear_launch(*on_device, precision=precision_of(kind)).run()
    return relative_error(out, reference.linear(x.double(), weight.double(), bias.double()))


def _tokens_error(
    config: ElmoConfig, sizes: Sizes, pooled: bool, kind: str, device: str, rng: torch.Generator
) -> float:
    n, L, P = sizes.rows[-1], config.n_layers + 1, config.projection_size
    lengths = [0, 1, n // 3, n - 1 - n // 3] if n > 1 else [n]
    offsets = torch.tensor([0, *lengths]).cumsum(0) if pooled else None
    vectors = normal(rng, n, P).to(DTYPES[kind])
    outputs = normal(rng, L - 1, 2, n + 1, P).to(DTYPES[kind])
    words, nodes = torch.randint(0, n, (n,), generator=rng), torch.randint(0, n, (2, n), generator=rng)
    mix = torch.cat([torch.eye(L), normal(rng, 1, L)])
    tokens = Tokens.of(words, nodes, offsets, n_words=n, n_nodes=n, device=device)
    out = torch.full((L + 1, len(lengths) if pooled else n, 2 * P), torch.nan, device=device)
    token_layers_launch(vectors.to(device), outputs.to(device), tokens, mix.to(device), out).run()
    expected = reference.token_layers(vectors.double(), outputs.double(), words, nodes + 1, mix.double(), offsets)
    return relative_error(out, expected)
