"""What is timed on a GPU: our kernels through their launchers, and cuBLAS's products alone, by torch.bmm and torch.mm.

All work on random tensors of a model's sizes. An LSTM is timed as a chain of steps over a forest of equal depths with
random parents, as long as the slabs that the layer's input is multiplied for. Hoisted and persistent steps leave that
product out; it is timed by itself, as "input". Steps of dependent launches take turns with the same steps without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from flashelmo.benchmarks.kernels import model, problems
from flashelmo.benchmarks.kernels.checks import SMALL_ROWS
from flashelmo.benchmarks.kernels.graph_timing import Task
from flashelmo.benchmarks.kernels.lstm import LstmLayer, LstmProblem, has_dependent, way_in_use
from flashelmo.benchmarks.kernels.model import Cost, D
from flashelmo.benchmarks.kernels.problems import Maker, Problem, dtype_of, library_product
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.kernels.launch import Launch

DEPENDENT = "step, dependent launches"
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


@dataclass(frozen=True)
class Timed:
    """Somebody who is timed.

    Attributes:
        cost: of one call, for the model; None for a peer, as are its checks.
        checks: names of the checks that must have passed.
        peer: name of the task in the same group that does the same by other means.
        verify: called after its group was timed; raises RuntimeError if what was timed went wrong unseen.
    """

    task: Task
    precision: str
    cost: Cost | None = None
    checks: tuple[str, ...] = ()
    peer: str = ""
    verify: Callable[[], None] | None = None


class Group(NamedTuple):
    """Those who take turns: a section of the results and what they work on, as "512 rows"."""

    section: str
    detail: str
    members: list[Timed]


def runner(launches: Sequence[Launch | Problem]) -> Callable[[], None]:
    """Runs them in order."""

    def run() -> None:
        for launch in launches:
            launch.run()

    return run


def step_groups(layer: LstmLayer, rows: int, precisions: Sequence[str], chain: Chain = CHAIN) -> Iterator[Group]:
    """Gates, projection and step at so many rows, and steps of dependent launches beside plain ones."""
    sections: dict[str, dict[str, Timed]] = {"gates": {}, "projection": {}, "step": {}, DEPENDENT: {}}
    problem = LstmProblem(layer, [(rows,) * chain.depths(rows)] * D)
    members = [each for found in ways(layer, rows, precisions) for each in _members(problem, rows, *found)]
    if "bf16" in precisions and has_dependent(layer.device):
        for precision in ("bf16", "int8") if rows <= SMALL_ROWS else ("bf16",):
            members += [(DEPENDENT, each) for each in _dependent(problem, rows, precision)]
    for section, each in members:
        sections[section].setdefault(each.task.name, each)  # the projection is the same in every way
    yield from (Group(name, f"{rows} rows", list(found.values())) for name, found in sections.items() if found)


def ways(layer: LstmLayer, rows: int, precisions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Precisions and variants that are timed at so many rows; beyond bf16 and int8 the variant that is in use."""
    for precision in precisions:
        if precision != "bf16":
            yield precision, way_in_use(layer, rows, precision)
            continue
        yield from ((precision, "fused"), (precision, "hoisted"))
        if rows <= SMALL_ROWS:
            yield from ((precision, "persistent"), ("int8", "hoisted"), ("int8", "persistent"))


def ours(layer: LstmLayer, rows: int, precision: str, chain: Chain = CHAIN) -> dict[str, Timed]:
    """Gates, projection and step by our kernels, in the variant that is in use at so many rows."""
    problem = LstmProblem(layer, [(rows,) * chain.depths(rows)] * D)
    found = _members(problem, rows, precision, way_in_use(layer, rows, precision))
    return {section: each for section, each in found if each.cost is not None}


def _members(problem: LstmProblem, rows: int, precision: str, way: str) -> Iterator[tuple[str, Timed]]:
    """A variant's parts and whole, by section, each with the library's products where it has some."""
    config, checks, run = problem.layer.config, (f"{way} step",), problem.run(precision, way)
    steps, T, name = problem.steps(run, way), problem.nodes.n_depths, f"{way} {precision}"
    cost = model.step(config, rows, precision, way)
    if run.options.barrier is not None:
        task, cost = Task(name, runner(steps), T), cost + Cost(launches=1 / T)
        yield "step", Timed(task, precision, cost, checks, verify=run.options.barrier.check)
        return
    gates, projection = model.gates(config, rows, precision, way), model.projection(config, rows, precision)
    parts = {"gates": (name, steps[::2], gates), "projection": (precision, steps[1::2], projection)}
    parts["step"] = name, steps, cost
    peers = {} if precision == "int8" else _products(problem.layer, precision, way, rows)
    for section, (name, launches, cost) in parts.items():
        peer = f"cuBLAS {name}" if section in peers else ""
        yield section, Timed(Task(name, runner(launches), T), precision, cost, checks, peer)
        if peer:
            yield section, Timed(Task(peer, peers[section]), precision)


def _dependent(problem: LstmProblem, rows: int, precision: str) -> Iterator[Timed]:
    """Steps in the variant that is in use, as dependent launches and as plain ones."""
    way, T = way_in_use(problem.layer, rows, precision), problem.nodes.n_depths
    dependent, plain = (runner(problem.steps(problem.run(precision, way, each), way)) for each in (True, False))
    name, peer = f"{way} {precision}", f"plain {way} {precision}"
    cost = model.step(problem.layer.config, rows, precision, way)
    yield Timed(Task(name, dependent, T), precision, cost, (f"dependent {way} step",), peer)
    yield Timed(Task(peer, plain, T), precision)


def _products(layer: LstmLayer, precision: str, way: str, rows: int) -> dict[str, Callable[[], None]]:
    """The library's products of a step, by section."""
    C, P = layer.config.cell_size, layer.config.projection_size

    def of(inputs: int, outputs: int) -> Callable[[], None]:
        a, b = (torch.randn(D, *shape, device=layer.device) for shape in ((rows, inputs), (inputs, outputs)))
        return library_product(a.to(dtype_of(precision)), b.to(dtype_of(precision)), precision)

    gates, projection = of(2 * P if way == "fused" else P, 4 * C), of(C, P)

    def both() -> None:
        gates()
        projection()

    return {"gates": gates, "projection": projection, "step": both}


# ---------------------------------------------------------------------------------------------------- words and tokens


def word_groups(config: ElmoConfig, words: Sequence[str], precision: str, device: str, seed: int) -> Iterator[Group]:
    """Characters, a highway, the final projection, and characters with all highways, of these words."""
    make, n, detail = Maker.of(device, precision, seed), len(words), f"{len(words)} words"
    chain = [problems.characters(config, n, make, words)]
    for _ in range(config.n_highway):
        chain.append(problems.highway(config, n, make, x=chain[-1].out.normal_()))
    yield _group("characters", detail, precision, {precision: chain[0]})
    yield _group("highway", detail, precision, {precision: chain[1]})
    task = Task(precision, runner(chain))
    whole = Timed(task, precision, sum((each.cost for each in chain), Cost()), ("characters", "highway"))
    yield Group("characters and highways", detail, [whole])
    yield _group("final projection", detail, precision, {precision: problems.final_projection(config, n, make)})


def input_group(config: ElmoConfig, nodes: int, precisions: Sequence[str], device: str) -> Group:
    """The input's part of the gates of a slab, both directions."""
    found = {each: problems.hoisted_input(config, nodes, Maker.of(device, each)) for each in precisions}
    groups = [_group("input", f"{nodes} nodes", name, {name: problem}) for name, problem in found.items()]
    return groups[0]._replace(members=[member for group in groups for member in group.members])


def token_group(config: ElmoConfig, n: int, precision: str, device: str, seed: int) -> Group:
    """One mix of the layers, and all layers, of so many tokens whose nodes are scattered."""
    make, layers = Maker.of(device, precision, seed), config.n_layers + 1
    mixes = {"one mix": torch.full((1, layers), 1 / layers), "all layers": torch.eye(layers)}
    found = {f"{name} {precision}": problems.token_layers(config, n, make, mix=mix) for name, mix in mixes.items()}
    return _group("token layers", f"{n} tokens", precision, found)


def _group(section: str, detail: str, precision: str, found: dict[str, Problem]) -> Group:
    """Problems by name, each with the library's product."""
    members = []
    for name, problem in found.items():
        peer = f"cuBLAS {precision}" if problem.product else ""
        members.append(Timed(Task(name, problem.run), precision, problem.cost, (section,), peer))
        if problem.product:
            members.append(Timed(Task(peer, problem.product), precision))
    return Group(section, detail, members)
