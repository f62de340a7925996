"""The work of each kernel except the LSTM's (`lstm.py`): random tensors of a model's sizes, the launch over them, and
the expected result.

One problem serves for everything that is done with a kernel: it is compiled on tensors that take no memory, compared
with its reference in float64, and timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashelmo.benchmarks.kernels import card as costs
from flashelmo.benchmarks.kernels.card import Cost, D, value_bytes
from flashelmo.benchmarks.kernels.inputs import group_words, make_tokens
from flashelmo.benchmarks.text import spell
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.precision import PRECISIONS
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.text.spelling import BYTES
from flashelmo.kernels import reference
from flashelmo.kernels.adagrad import adagrad_launch
from flashelmo.kernels.arguments import Products
from flashelmo.kernels.carry import Ends, carry_launch
from flashelmo.kernels.char_cnn import char_cnn_launches
from flashelmo.kernels.char_cnn_weights import pack_char_cnn
from flashelmo.kernels.gather import gather_words_launch
from flashelmo.kernels.highway import highway_launch, pack_highway
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.linear import linear_launch
from flashelmo.kernels.linear_tma import linear_tma_launch
from flashelmo.kernels.lstm.training import cell_backward_launch, cell_forward_launch
from flashelmo.kernels.token_layers import token_layers_launch
from flashelmo.kernels.tuning import Tile

H200 = 132  # multiprocessors


def dtype_of(precision: str) -> torch.dtype:
    """Return the type of word vectors and states on a card."""
    found: torch.dtype = getattr(torch, PRECISIONS[precision].on("cuda").dtype)
    return found


class Maker(NamedTuple):
    """Makes tensors.

    Attributes:
        device: where the kernels find their tensors; "meta" takes no memory.
        rng: of the random numbers; if it is a host's, references can be computed.
        precision: of the kernels.
    """

    device: str
    rng: torch.Generator | None
    precision: str

    @classmethod
    def of(cls, device: str, precision: str, seed: int = 0, host: bool = False) -> Maker:
        """Return a maker whose random numbers are made on the device, or on the host."""
        where = "cpu" if host else device
        return cls(device, None if where == "meta" else torch.Generator(where).manual_seed(seed), precision)

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the kernels compute."""
        return dtype_of(self.precision)

    @property
    def products(self) -> Products:
        """How float32 values are multiplied: "tf32" or "ieee"."""
        return PRECISIONS[self.precision].on("cuda").products

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Return random numbers in float32, not yet on the kernels' device."""
        return scale * torch.randn(shape, generator=self.rng, device=self.rng.device if self.rng else "meta")

    def values(self, *shape: int) -> Tensor:
        """Return random numbers as a kernel takes them, not yet on its device."""
        return self.normal(*shape).to(self.dtype)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor for a kernel to write to."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)


class Problem(NamedTuple):
    """A kernel's work.

    Attributes:
        launch: of the kernel; first: what runs before it, if anything.
        out: what it writes.
        expected: the same in float64, from unrounded weights and the inputs as the kernel gets them.
        cost: of one launch, for the model.
        product: the library's product of the same tensors, without anything else.
    """

    launch: Launch
    out: Tensor
    expected: Callable[[], Tensor]
    cost: Cost
    product: Callable[[], object] | None = None
    first: Launch | None = None

    def run(self) -> None:
        """Run all of its launches."""
        if self.first is not None:
            self.first.run()
        self.launch.run()

    def compute(self) -> Tensor:
        """Return the output of running the launch, with NaN where nothing was written."""
        self.out.fill_(torch.nan)
        self.run()
        return self.out

    def error(self) -> float:
        """Return ||out - expected|| / ||expected|| of a run."""
        return relative_error(self.compute(), self.expected())


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Return ||out - expected|| / ||expected||, or NaN if out contains one."""
    out, expected = out.double().cpu(), expected.double().cpu()
    return float((out - expected).norm() / expected.norm())


def library_product(a: Tensor, b: Tensor, precision: str) -> Callable[[], None]:
    """Return PyTorch's product of matrices or batches of them, in float32 or TF32 according to the precision."""
    multiply = torch.bmm if a.ndim == 3 else torch.mm
    out = multiply(a, b)

    def run() -> None:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        multiply(a, b, out=out)
        torch.set_float32_matmul_precision("highest")

    return run


def characters(config: ElmoConfig, n: int, make: Maker) -> Problem:
    """Return embedding, convolutions and maximum of n words."""
    E, device = config.character_size, make.device
    spelled = WordEncoder(config, None).character_ids(words_of(config, n))
    assert spelled is not None  # as there are characters
    ids = torch.from_numpy(spelled).long()
    embedding = make.normal(config.n_characters, E)
    convolutions = [
        (make.normal(width, E, number, scale=(width * E) ** -0.5), make.normal(number, scale=0.1))
        for width, number in config.filters
    ]
    given: dict[str, Any] = {"activation": config.activation, "dtype": make.dtype, "device": device}
    weights = pack_char_cnn(embedding, convolutions, padding_id=BYTES.padding, **given)
    grouped = group_words(ids, padding_id=BYTES.padding, device=device)
    out = make.empty(n, config.n_filters)

    def expected() -> Tensor:
        doubled = [(weight.double(), bias.double()) for weight, bias in convolutions]
        return reference.char_cnn(ids, embedding.double(), doubled, config.activation)

    cost = costs.characters(config, (ids != BYTES.padding).sum(dim=1).tolist(), make.precision)
    first, launch = char_cnn_launches(grouped, weights, out, precision=make.products)
    return Problem(launch, out, expected, cost, first=first)


def highway(config: ElmoConfig, n: int, make: Maker) -> Problem:
    """Return one highway layer over n words' character features."""
    F = config.n_filters
    x = make.values(n, F)
    transform, gate = ((make.normal(F, F, scale=F**-0.5), make.normal(F, scale=0.1)) for _ in range(2))
    weights = pack_highway(*transform, *gate, dtype=make.dtype, device=make.device)
    given, out = x.to(make.device), make.empty(n, F)

    def expected() -> Tensor:
        doubled = [(weight.double(), bias.double()) for weight, bias in (transform, gate)]
        return reference.highway(x.double(), doubled[0], doubled[1])

    launch = highway_launch(given, weights, out, precision=make.products)
    product = library_product(given, weights.weight, make.precision)
    return Problem(launch, out, expected, costs.highway(config, n, make.precision), product)


def final_projection(config: ElmoConfig, n: int, make: Maker, tma: Tile | None = None) -> Problem:
    """Return the product from character features to word vectors; by bulk copies with this tile if one is given."""
    F, P = config.n_filters, config.projection_size
    weight, cost = make.normal(F, P, scale=F**-0.5), costs.final_projection(config, n, make.precision)
    return _linear(make.values(n, F), weight, make.normal(P), make.empty(n, P), cost, make, tma)


def hoisted_input(
    config: ElmoConfig, n: int, make: Maker, tma: Tile | None = None, dtype: torch.dtype = torch.float32
) -> Problem:
    """Return the input part of the gates of n nodes in each direction; the weights are laid out as the LSTM's.

    Args:
        dtype: of the result.
    """
    P, columns, width = config.projection_size, 4 * config.cell_size, value_bytes(make.precision)
    weight, out = make.normal(D, 2, P, columns, scale=P**-0.5), make.empty(D, n, columns, dtype=dtype)
    cost = costs.product((D, n, P, columns), width, D * n * (P * width + columns * out.element_size()), bias=4)
    return _linear(make.values(D, n, P), weight, make.normal(D, columns), out, cost, make, tma)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor, cost: Cost, make: Maker, tma: Tile | None) -> Problem:
    """Return a product with bias; of a weight with two axes before [K, F], the first matrices of the second axis."""
    given, packed, bias_given = x.to(make.device), weight.to(make.device, make.dtype), bias.to(make.device)
    if weight.ndim == 4:
        weight, packed = weight[:, 0], packed[:, 0]
    if tma is None:
        launch = linear_launch(given, packed, bias_given, out, precision=make.products)
    else:
        launch = linear_tma_launch(given, packed, bias_given, out, tile=tma, programs=H200)
    return Problem(
        launch,
        out,
        lambda: reference.linear(x.double(), weight.double(), bias.double()),
        cost,
        library_product(given, packed, make.precision),
    )


def token_layers(
    config: ElmoConfig, n: int, make: Maker, pool: str | None = None, mix: Tensor | None = None
) -> Problem:
    """Return mixed layers of n tokens whose nodes are scattered, or pooled over sentences.

    Args:
        pool: "mean" or "max".
        mix: [outputs, layers]; by default all layers and a random mix of them.
    """
    L, P, n_words = config.n_layers + 1, config.projection_size, max(1, n // 10)
    host = torch.Generator().manual_seed(n)
    mix = torch.cat([torch.eye(L), torch.randn(1, L, generator=host)]) if mix is None else mix
    words = torch.randint(0, n_words, (n,), generator=host)
    nodes = torch.stack([torch.randperm(n, generator=host) for _ in range(2)])
    lengths = [0, 1, n // 3, n - 1 - n // 3] if n > 1 else [n]
    offsets = torch.tensor([0, *lengths]).cumsum(0) if pool else None
    vectors, outputs = make.values(n_words, P), make.values(L - 1, 2, n + 1, P)
    tokens = make_tokens(words, nodes, offsets, device=make.device)
    out = make.empty(len(mix), len(lengths) if pool else n, 2 * P, dtype=torch.float32)
    flag, width = torch.zeros(1, dtype=torch.int32, device=make.device), value_bytes(make.precision)
    how, given = pool or "mean", (vectors.double(), outputs.double(), words, nodes + 1, mix.double(), offsets)
    on_device = (vectors.to(make.device), outputs.to(make.device), tokens, mix.to(make.device))
    return Problem(  # the lowest layer is the word vector, twice
        token_layers_launch(*on_device, out, flag, how),
        out,
        lambda: reference.token_layers(*given, how),
        Cost(2 * n * len(mix) * L * 2 * P, n * ((2 * L - 1) * P * width + len(mix) * 2 * P * 4 + 3 * 4)),
    )


def gather_words(config: ElmoConfig, n: int, make: Maker) -> Problem:
    """Return the word vectors of n nodes in each direction, whose words are scattered over a table a tenth as large."""
    host = torch.Generator().manual_seed(n)
    words = torch.randint(0, max(1, n // 10), (D, n), generator=host, dtype=torch.int32)
    table, out = make.values(max(1, n // 10), config.projection_size), make.empty(D, n, config.projection_size)
    row = config.projection_size * value_bytes(make.precision)
    return Problem(
        gather_words_launch(table.to(make.device), words.to(make.device), out),
        out,
        lambda: table.double()[words.long()],
        Cost(streamed=D * n * (row + 4), states=D * n * row),  # from a table that stays in the L2 cache
    )


def carry(config: ElmoConfig, n: int, make: Maker) -> Launch:
    """Return the launch that copies the states with which n rows of a layer end."""
    P, C = config.projection_size, config.cell_size
    ends = Ends(*(make.empty(n, dtype=torch.int32) for _ in Ends._fields))
    cells = (make.empty(*shape, dtype=torch.float32) for shape in ((2, D, n, C), (D, n, C)))
    (cell, cell_out), hidden = cells, make.empty(D, n, P)
    return carry_launch(hidden, cell, ends, make.empty(D, n, P), cell_out)


def train_cells(config: ElmoConfig, n: int, make: Maker, *, backward: bool) -> Launch:
    """Return the launch of a training time step's cells."""
    C = config.cell_size
    gates, u = make.empty(2, D, n, 4 * C), make.empty(D, n, C)
    cells = make.empty(3, D, n, C, dtype=torch.float32)
    if backward:
        return cell_backward_launch(u, cells[2], gates[0], cells[0], cells[1], gates[1], config.cell_clip)
    return cell_forward_launch(gates[0], cells[0], cells[1], u, config.cell_clip)


def adagrad(config: ElmoConfig, n: int, make: Maker) -> Launch:
    """A step for n rows of gates' weights."""
    parameter, accumulator, gradient = (make.empty(n, 4 * config.cell_size, dtype=torch.float32) for _ in range(3))
    return adagrad_launch(parameter, accumulator, gradient, *(make.empty(dtype=torch.float32) for _ in range(2)))


def words_of(config: ElmoConfig, n: int) -> list[str]:
    """Return one-letter and longest-fitting words, and generated ones with the lengths found in text."""
    return ["x", "x" * (config.max_characters - 2), *map(spell, range(n))][:n]
