"""What is timed on a GPU: our kernels through their launchers, and what else can do the same work.

    cuBLAS          the products alone, without gather, gates, cell, clip or bias: torch.bmm and torch.mm
    torch.compile   the reference's step, both directions, without gather

All work on random tensors of a model's sizes. An LSTM is timed as a chain of steps over a forest of equal depths with
random parents, as long as the slabs that the layer's input is multiplied for. Hoisted and persistent steps leave that
product out; it is timed by itself, as "input". Steps of dependent launches take turns with the same steps without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flashelmo.benchmarks.kernels import model
from flashelmo.benchmarks.kernels.cases import lstm_launches
from flashelmo.benchmarks.kernels.checks import (
    DTYPES,
    PADDING,
    SMALL_ROWS,
    Canonical,
    character_weights,
    group,
    has_dependent,
    highway_weights,
    lstm_weights,
    on_device,
    pack,
    precision_of,
    random_nodes,
    spell,
)
from flashelmo.benchmarks.kernels.timing import Task
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.kernels import reference
from flashelmo.kernels.char_cnn import char_cnn_launch, pack_char_cnn
from flashelmo.kernels.highway import highway_launch, pack_highway
from flashelmo.kernels.launch import Barrier, Launch
from flashelmo.kernels.linear import linear_kernel, linear_launch
from flashelmo.kernels.lstm.run import LaunchOptions, LayerRun, Nodes, new_tensors
from flashelmo.kernels.lstm.weights import LstmWeights
from flashelmo.kernels.token_layers import Tokens, token_layers_launch
from flashelmo.kernels.tuning import is_hoisted

DEPENDENT = "step, dependent launches"
OTHER_KINDS = ("fp16", "fp32", "tf32")
D = model.D


@dataclass(frozen=True)
class Contestant:
    """Somebody who is timed.

    Attributes:
        task: the work.
        kind: of arithmetic.
        cost: of one call, for the model; None for a peer.
        checks: names of the checks that must have passed; none for a peer.
        peer: name of the task in the same group that does the same by other means.
        verify: called after its group was timed; raises RuntimeError if what was timed went wrong unseen.
    """

    task: Task
    kind: str
    cost: model.Cost | None = None
    checks: tuple[str, ...] = ()
    peer: str = ""
    verify: Callable[[], None] | None = None


class Group(NamedTuple):
    """Contestants that take turns: a section of the results and what they work on, as "512 rows"."""

    section: str
    detail: str
    contestants: list[Contestant]


class Chain(NamedTuple):
    """How long the chains are: depths times rows are about so many nodes, within these depths."""

    nodes: int = 2048
    least: int = 4
    most: int = 64

    def depths(self, rows: int) -> int:
        """Steps of a chain."""
        return max(self.least, min(self.most, self.nodes // rows))


def runner(launches: Sequence[Launch]) -> Callable[[], None]:
    """Runs them in order."""

    def run() -> None:
        for launch in launches:
            launch.run()

    return run


def product(a: Tensor, b: Tensor, out: Tensor, kind: str) -> Callable[[], None]:
    """The library's product into `out`, in float32 or TF32 as the kind says."""

    multiply = torch.bmm if a.ndim == 3 else torch.mm

    def run() -> None:
        torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
        multiply(a, b, out=out)
        torch.set_float32_matmul_precision("highest")

    return run


# ------------------------------------------------------------------------------------------------------------ ceilings


def ceiling_groups(device: str, size: int, copies: tuple[int, int], kinds: Sequence[str]) -> Iterator[Group]:
    """Square products of each kind, a copy far larger than any cache, and one that the L2 cache holds.

    Args:
        copies: bytes of the two copies.
    """
    for kind in kinds:
        a, b = (torch.randn(size, size, device=device).to(DTYPES[kind]) for _ in range(2))
        task = Task(f"torch.mm {kind}", product(a, b, torch.empty_like(a), kind))
        yield Group("ceiling", f"{size} x {size} x {size}", [Contestant(task, kind)])
    for name, n_bytes, kind in zip(("copy", "copy in L2"), copies, ("bytes", "L2 bytes"), strict=True):
        source = torch.randint(256, (n_bytes,), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        task = Task(name, partial(target.copy_, source))
        yield Group("ceiling", f"{n_bytes >> 20} MiB", [Contestant(task, kind)])


# ---------------------------------------------------------------------------------------------------------------- LSTM


class Layer:
    """One random LSTM layer; its packed weights are kept, as every number of rows uses them."""

    def __init__(self, config: ElmoConfig, device: str, chain: Chain, seed: int) -> None:
        self.config, self.device = config, device
        self._chain = chain
        self._rng = torch.Generator().manual_seed(seed)
        self._canonical = lstm_weights(config, self._rng)
        self._packed: dict[str, LstmWeights] = {}

    def weights(self, kind: str) -> LstmWeights:
        """As the kernels read them."""
        if kind not in self._packed:
            self._packed[kind] = pack(self._canonical, self.config, kind, self.device)
        return self._packed[kind]

    def random(self, *shape: int, kind: str = "fp32") -> Tensor:
        """Random numbers on the device."""
        return torch.randn(shape, device=self.device).to(DTYPES[kind])

    def groups(self, rows: int, kinds: Sequence[str]) -> Iterator[Group]:
        """Gates, projection and step at so many rows."""
        sections: dict[str, list[Contestant]] = {"gates": [], "projection": [], "step": []}
        T = self._chain.depths(rows)
        nodes = self._nodes(rows, T)
        for kind, way in ways(self.config, rows, kinds):
            for section, contestant in self._contestants(kind, way, rows, nodes):
                if all(contestant.task.name != other.task.name for other in sections[section]):
                    sections[section].append(contestant)  # the projection is the same in every way
        for section, contestants in sections.items():
            yield Group(section, f"{rows} rows", contestants)
        if "bf16" in kinds and has_dependent(self.device):
            yield Group(DEPENDENT, f"{rows} rows", list(self._dependent(rows, nodes)))

    def ours(self, rows: int, kind: str) -> dict[str, Contestant]:
        """Gates, projection and step by our kernels, in the way that is in use at so many rows."""
        way = "hoisted" if is_hoisted(rows, self.config.projection_size, DTYPES[kind]) else "fused"
        found = self._contestants(kind, way, rows, self._nodes(rows, self._chain.depths(rows)))
        return {section: contestant for section, contestant in found if contestant.cost is not None}

    def compiled(self, rows: int) -> Group:
        """The step as the table would run it, and torch.compile of the reference's."""
        config, ours = self.config, self.ours(rows, "bf16")["step"]
        weights = Canonical(*(weight.to(self.device, DTYPES["bf16"]) for weight in self._canonical))
        x = self.random(D, rows, config.projection_size, kind="bf16")
        hidden = self.random(D, rows, config.projection_size, kind="bf16")
        cell = self.random(D, rows, config.cell_size, kind="bf16")
        compiled = torch.compile(both_directions, dynamic=False)

        def run() -> None:
            with torch.no_grad():
                compiled(x, hidden, cell, weights, config.cell_clip, config.projection_clip)

        peer = "torch.compile bf16"
        return Group("compiled step", f"{rows} rows", [replace(ours, peer=peer), Contestant(Task(peer, run), "bf16")])

    def _contestants(self, kind: str, way: str, rows: int, nodes: Nodes) -> Iterator[tuple[str, Contestant]]:
        config = self.config
        T, checks = nodes.n_depths, (f"{way} step",)
        step_cost = model.step(config, rows, kind, way)
        if way == "persistent":
            barrier = Barrier.on(self.device)
            launches = self._steps(kind, way, nodes, barrier=barrier)
            cost = step_cost + model.Cost(launches=1 / T)
            task = Task(f"{way} {kind}", runner(launches), T)
            yield "step", Contestant(task, kind, cost, checks, verify=barrier.check)
            return
        both = self._steps(kind, way, nodes)
        gates, projections = both[::2], both[1::2]
        peers = {} if kind == "int8" else self._products(kind, way, rows)
        costs = {
            "gates": model.gates(config, rows, kind, way),
            "projection": model.projection(config, rows, kind),
            "step": step_cost,
        }
        for section, launches in (("gates", gates), ("projection", projections), ("step", both)):
            name = f"{way} {kind}"
            if section == "projection":
                name = kind
            peer = peers.get(section)
            task = Task(name, runner(launches), T)
            yield section, Contestant(task, kind, costs[section], checks, peer.name if peer else "")
            if peer:
                yield section, Contestant(peer, kind)

    def _dependent(self, rows: int, nodes: Nodes) -> Iterator[Contestant]:
        """Steps in the way that is in use, each kind as dependent launches and as plain ones."""
        for kind in ("bf16", "int8") if rows <= SMALL_ROWS else ("bf16",):
            hoisted = kind == "int8" or is_hoisted(rows, self.config.projection_size, DTYPES[kind])
            way = "hoisted" if hoisted else "fused"
            plain, dependent = (runner(self._steps(kind, way, nodes, dependent=d)) for d in (False, True))
            name, peer = f"{way} {kind}", f"plain {way} {kind}"
            cost, T = model.step(self.config, rows, kind, way), nodes.n_depths
            yield Contestant(Task(name, dependent, T), kind, cost, (f"dependent {way} step",), peer)
            yield Contestant(Task(peer, plain, T), kind)

    def _steps(
        self, kind: str, way: str, nodes: Nodes, *, dependent: bool = False, barrier: Barrier | None = None
    ) -> list[Launch]:
        """All launches but those of the input's part, which is computed here: gates and projection of each depth."""
        weights = self.weights(kind)
        x = self.random(D, nodes.n_nodes, self.config.projection_size).to(weights.dtype)
        tensors = new_tensors(weights, nodes, x)
        for tensor in (tensors.hidden, tensors.cell, tensors.unprojected):
            tensor.normal_()
        options = LaunchOptions(precision_of(kind), barrier, dependent)
        launches = lstm_launches(LayerRun(weights, tensors, nodes, options=options), way)
        for launch in launches:
            if launch.kernel is linear_kernel:
                launch.run()
        return [launch for launch in launches if launch.kernel is not linear_kernel]

    def _products(self, kind: str, way: str, rows: int) -> dict[str, Task]:
        """The library's products of a step."""
        config = self.config
        C, P = config.cell_size, config.projection_size
        K = 2 * P if way == "fused" else P

        def of(inputs: int, outputs: int) -> Callable[[], None]:
            a, b, out = (
                self.random(D, *shape, kind=kind) for shape in ((rows, inputs), (inputs, outputs), (rows, outputs))
            )
            return product(a, b, out, kind)

        gates, projection = of(K, 4 * C), of(C, P)

        def both() -> None:
            gates()
            projection()

        name = f"cuBLAS {way} {kind}"
        return {"gates": Task(name, gates), "projection": Task(f"cuBLAS {kind}", projection), "step": Task(name, both)}

    def _nodes(self, rows: int, depths: int) -> Nodes:
        """Forests of equal depths, with random parents."""
        return on_device(random_nodes([[rows] * depths] * D, 1, self._rng), self.device)


def both_directions(
    x: Tensor, hidden: Tensor, cell: Tensor, weights: Canonical, cell_clip: float | None, projection_clip: float | None
) -> list[tuple[Tensor, Tensor]]:
    """The reference's step in each direction; every tensor has a first axis D."""
    return [
        reference.lstm_step(
            x[d],
            hidden[d],
            cell[d],
            weights.input[d],
            weights.recurrent[d],
            weights.bias[d],
            weights.projection[d],
            cell_clip,
            projection_clip,
        )
        for d in range(D)
    ]


def ways(config: ElmoConfig, rows: int, kinds: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Which kinds and ways are timed at so many rows; those beyond bf16 and int8 in the one way that is in use."""
    for kind in kinds:
        if kind == "bf16":
            yield from ((kind, "fused"), (kind, "hoisted"))
            if rows <= SMALL_ROWS:
                yield from ((kind, "persistent"), ("int8", "hoisted"), ("int8", "persistent"))
        else:
            yield kind, "hoisted" if is_hoisted(rows, config.projection_size, DTYPES[kind]) else "fused"


# ---------------------------------------------------------------------------------------------------- words and tokens


def word_groups(config: ElmoConfig, words: Sequence[str], kind: str, device: str, seed: int) -> Iterator[Group]:
    """Characters, a highway, the final projection, and characters with all highways, of these words."""
    rng = torch.Generator().manual_seed(seed)
    n, F, P, dtype = len(words), config.n_filters, config.projection_size, DTYPES[kind]
    detail, precision = f"{n} words", precision_of(kind)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    embedding, convolutions = character_weights(config, rng)
    cnn = pack_char_cnn(
        embedding, convolutions, padding_id=PADDING, activation=config.activation, dtype=dtype, device=device
    )
    layer = pack_highway(*highway_weights(config, rng), dtype=dtype, device=device)
    a, b, vectors = random(n, F), random(n, F), random(n, P)
    ids = spell(words, config)
    characters = char_cnn_launch(group(ids, config, device), cnn, a, precision=precision)
    one_highway = highway_launch(a, layer, b, precision=precision)
    lengths = (ids != PADDING).sum(dim=1).tolist()
    character_cost, highway_cost = model.characters(config, lengths, kind), model.highway(config, n, kind)
    yield Group(
        "characters", detail, [Contestant(Task(kind, characters.run), kind, character_cost, checks=("characters",))]
    )
    wide, both = random(F, 2 * F), random(n, 2 * F)
    yield Group(
        "highway",
        detail,
        [
            Contestant(Task(kind, one_highway.run), kind, highway_cost, ("highway",), f"cuBLAS {kind}"),
            Contestant(Task(f"cuBLAS {kind}", product(a, wide, both, kind)), kind),
        ],
    )
    chain = [characters, one_highway, highway_launch(b, layer, a, precision=precision)]
    highways = (chain[1:] * config.n_highway)[: config.n_highway]
    yield Group(
        "characters and highways",
        detail,
        [
            Contestant(
                Task(kind, runner([characters, *highways])),
                kind,
                character_cost + highway_cost * config.n_highway,
                ("characters", "highway"),
            )
        ],
    )
    weight, bias = random(F, P), torch.randn(P, device=device)
    linear = linear_launch(a, weight, bias, vectors, precision=precision)
    cost = model.final_projection(config, n, kind)
    yield Group(
        "final projection",
        detail,
        [
            Contestant(Task(kind, linear.run), kind, cost, ("final projection",), f"cuBLAS {kind}"),
            Contestant(Task(f"cuBLAS {kind}", product(a, weight, torch.empty_like(vectors), kind)), kind),
        ],
    )


def input_group(config: ElmoConfig, nodes: int, kinds: Sequence[str], device: str) -> Group:
    """The input's part of the gates of a slab, both directions."""
    P, C = config.projection_size, config.cell_size
    contestants = []
    for kind in kinds:
        x, weight = (torch.randn(shape, device=device).to(DTYPES[kind]) for shape in ((D, nodes, P), (D, P, 4 * C)))
        bias, out = torch.randn(D, 4 * C, device=device), torch.empty(D, nodes, 4 * C, device=device)
        launch = linear_launch(x, weight, bias, out, precision=precision_of(kind))
        cost = model.hoisted_input(config, nodes, kind)
        peer = product(x, weight, torch.empty_like(out, dtype=DTYPES[kind]), kind)
        contestants += [
            Contestant(Task(kind, launch.run), kind, cost, ("input",), f"cuBLAS {kind}"),
            Contestant(Task(f"cuBLAS {kind}", peer), kind),
        ]
    return Group("input", f"{nodes} nodes", contestants)


def token_group(config: ElmoConfig, n: int, kind: str, device: str, seed: int) -> Group:
    """One mix of the layers, and all layers, of so many tokens whose nodes are scattered."""
    rng = torch.Generator().manual_seed(seed)
    L, P, dtype = config.n_layers + 1, config.projection_size, DTYPES[kind]
    n_words = max(1, n // 10)
    vectors = torch.randn(n_words, P, device=device).to(dtype)
    outputs = torch.randn(L - 1, 2, n + 1, P, device=device).to(dtype)
    words = torch.randint(0, n_words, (n,), generator=rng)
    nodes = torch.stack([torch.randperm(n, generator=rng) for _ in range(2)])
    tokens = Tokens.of(words, nodes, None, n_words=n_words, n_nodes=n, device=device)
    contestants = []
    for name, mix in (("one mix", torch.randn(1, L)), ("all layers", torch.eye(L))):
        out = torch.empty(len(mix), n, 2 * P, device=device)
        launch = token_layers_launch(vectors, outputs, tokens, mix.to(device), out)
        cost = model.token_layers(config, n, len(mix), kind)
        contestants.append(Contestant(Task(f"{name} {kind}", launch.run), kind, cost, ("token layers",)))
    return Group("token layers", f"{n} tokens", contestants)
