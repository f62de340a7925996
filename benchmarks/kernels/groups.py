"""What is timed on a GPU: our kernels through their launchers, and cuBLAS's products alone, by torch.bmm and torch.mm.

All work on random tensors of a model's sizes. An LSTM is timed as a chain of steps over a forest of equal depths with
random parents, as long as the slabs that the layer's input is multiplied for. Hoisted steps leave that product out; it
is timed by itself, as "input".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from flashelmo.benchmarks.kernels import model, problems
from flashelmo.benchmarks.kernels.graph_timing import Task
from flashelmo.benchmarks.kernels.lstm import (
    PORTABLE,
    LstmLayer,
    LstmProblem,
    kernel_name,
    kind_of_way,
    serving,
    way_in_use,
)
from flashelmo.benchmarks.kernels.model import D
from flashelmo.benchmarks.kernels.problems import Maker, Problem, dtype_of, library_product
from flashelmo.engine.model.config import ElmoConfig

OTHERS = ("fp16", "fp32", "tf32")  # precisions that are timed at few sizes


class Chain(NamedTuple):
    """How long the chains are: depths times rows are about so many nodes, within these depths."""

    nodes: int = 2048
    least: int = 4
    most: int = 64

    def depths(self, rows: int) -> int:
        """Steps of a chain."""
        return max(self.least, min(self.most, self.nodes // rows))


CHAIN = Chain()


class Group(NamedTuple):
    """Those who take turns: a section of the results and what they work on, as "512 rows"."""

    section: str
    detail: str
    members: list[Task]


def in_order(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """Calls them one after the other."""

    def run() -> None:
        for call in calls:
            call()

    return run


def step_groups(
    layers: Sequence[LstmLayer], rows: int, precisions: Sequence[str], chain: Chain = CHAIN, *, served: bool = False
) -> Iterator[Group]:
    """Gates, projection and step at so many rows.

    Args:
        layers: of one size, whose chains follow each other, so that no layer's weights stay in the L2 cache for ever.
        served: steps alone, in the variants that serve so many rows.
    """
    sections: dict[str, dict[str, Task]] = {"gates": {}, "projection": {}, "step": {}}
    problems = [LstmProblem(layer, [(rows,) * chain.depths(rows)] * D) for layer in layers]
    found = ways(layers[0], rows, precisions)
    if served:
        found = ((precision, way) for precision in precisions for way in serving(layers[0], rows, precision))
    members = [each for precision, way in found for each in _members(problems, rows, precision, way)]
    for section, each in members:
        sections[section].setdefault(each.name, each)  # the projection is the same in every way
    wanted = ("step",) if served else tuple(sections)
    yield from (Group(name, f"{rows} rows", list(sections[name].values())) for name in wanted if sections[name])


def ways(layer: LstmLayer, rows: int, precisions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Precisions and variants that are timed at so many rows; beyond bf16 and int8 the variant that is in use."""
    for precision in precisions:
        if precision != "bf16":
            yield precision, way_in_use(layer, rows, precision)
            continue
        yield from ((precision, "fused"), (precision, "hoisted"))
        yield from ((precision, way) for way in serving(layer, rows, precision) if way not in PORTABLE)
        yield from (("int8", way) for way in serving(layer, rows, "int8"))


def ours(layer: LstmLayer, rows: int, precision: str, chain: Chain = CHAIN) -> dict[str, Task]:
    """Gates, projection and step by our kernels, in the variant that is in use at so many rows."""
    problem = LstmProblem(layer, [(rows,) * chain.depths(rows)] * D)
    found = _members([problem], rows, precision, way_in_use(layer, rows, precision))
    return {section: each for section, each in found if each.cost is not None}


def _members(problems: Sequence[LstmProblem], rows: int, precision: str, way: str) -> Iterator[tuple[str, Task]]:
    """A variant's parts and whole, by section, each with the library's products where it has some."""
    layers, config, kind = [problem.layer for problem in problems], problems[0].layer.config, kind_of_way(way)
    depths, name = sum(problem.nodes.n_depths for problem in problems), f"{way} {precision}"
    steps = [launch for problem in problems for launch in problem.steps(problem.run(precision), way)]
    projections = [each for each in steps if "projection" in kernel_name(each)]
    others = [each for each in steps if "projection" not in kernel_name(each)]
    peers = {} if precision == "int8" else _products(layers, precision, kind, rows)
    for section, who, launches, cost in (
        ("gates", name, others, model.gates(config, rows, precision, kind)),
        ("projection", precision, projections, model.projection(config, rows, precision)),
        ("step", name, steps, model.step(config, rows, precision, kind)),
    ):
        peer = f"cuBLAS {who.replace(way, kind)}" if peers else ""
        yield section, Task(who, in_order([each.run for each in launches]), depths, cost, (f"{way} step",), peer)
        if peer:
            yield section, Task(peer, peers[section], len(layers))


def _products(layers: Sequence[LstmLayer], precision: str, way: str, rows: int) -> dict[str, Callable[[], None]]:
    """The library's products of a step of each layer, by section."""
    C, P = layers[0].config.cell_size, layers[0].config.projection_size

    def of(inputs: int, outputs: int, layer: LstmLayer) -> Callable[[], None]:
        a, b = (torch.randn(D, *shape, device=layer.device) for shape in ((rows, inputs), (inputs, outputs)))
        return library_product(a.to(dtype_of(precision)), b.to(dtype_of(precision)), precision)

    gates = [of(2 * P if way == "fused" else P, 4 * C, layer) for layer in layers]
    projection = [of(C, P, layer) for layer in layers]
    both = [each for of_layer in zip(gates, projection, strict=True) for each in of_layer]
    return {"gates": in_order(gates), "projection": in_order(projection), "step": in_order(both)}


# ---------------------------------------------------------------------------------------------------- words and tokens


def word_groups(config: ElmoConfig, words: Sequence[str], precision: str, device: str, seed: int) -> Iterator[Group]:
    """Characters, a highway and the final projection of these words."""
    make, n, detail = Maker.of(device, precision, seed), len(words), f"{len(words)} words"
    yield problem_group("characters", detail, {precision: problems.characters(config, n, make, words)})
    yield problem_group("highway", detail, {precision: problems.highway(config, n, make)})
    yield problem_group("final projection", detail, {precision: problems.final_projection(config, n, make)})


def input_group(config: ElmoConfig, nodes: int, precisions: Sequence[str], device: str) -> Group:
    """The input's part of the gates of a slab, both directions."""
    found = {each: problems.hoisted_input(config, nodes, Maker.of(device, each)) for each in precisions}
    return problem_group("input", f"{nodes} nodes", found)


def token_group(config: ElmoConfig, n: int, precision: str, device: str, seed: int) -> Group:
    """One mix of the layers, and all layers, of so many tokens whose nodes are scattered."""
    make, layers = Maker.of(device, precision, seed), config.n_layers + 1
    mixes = {"one mix": torch.full((1, layers), 1 / layers), "all layers": torch.eye(layers)}
    found = {f"{name} {precision}": problems.token_layers(config, n, make, mix=mix) for name, mix in mixes.items()}
    return problem_group("token layers", f"{n} tokens", found)


def problem_group(section: str, detail: str, found: Mapping[str, Problem]) -> Group:
    """Problems by name, which ends with the precision, each with the library's product."""
    members = []
    for name, problem in found.items():
        peer = f"cuBLAS {name.split()[-1]}" if problem.product else ""
        members.append(Task(name, problem.run, 1, problem.cost, (section,), peer))
        if problem.product:
            members.append(Task(peer, problem.product))
    return Group(section, detail, members)
