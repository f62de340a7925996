"""Every GPU kernel of a model on a device: correct first, then how fast, beside its limits and cuBLAS.

All work on random tensors of the model's sizes. Beside each time stand what the card's limits allow (`costs.py`) and
the library's bare products at the same shapes. An LSTM's steps are chains over forests of equal depths with random
parents, of two layers in turn, so that no layer's weights stay in the L2 cache for ever. Hoisted steps leave the
input's product out; it is timed by itself, as "input".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch

from flashelmo.benchmarks.kernels import checks, costs
from flashelmo.benchmarks.kernels.card import CARD, Card, Device
from flashelmo.benchmarks.kernels.cases import KERNELS, Kernel
from flashelmo.benchmarks.kernels.costs import D
from flashelmo.benchmarks.kernels.graph_timing import Task, measure_ceilings, time_tasks
from flashelmo.benchmarks.kernels.lstm import PORTABLE, LstmLayer, LstmProblem, kernel_name, kind_of_way, serving
from flashelmo.benchmarks.kernels.problems import Maker, dtype_of, library_product
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.run import Job
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.kernels import tuning
from flashelmo.kernels.tuning import ANY, Tile

ROWS = (512, 32, 1, 16, 64, 128, 256, 1024)  # the most valuable first
DEPTHS = 8  # of a layer before the other's turn
OTHERS = ("fp16", "fp32", "tf32")  # precisions that steps are timed in at few sizes


class Kernels:
    """A model's kernels on a device.

    Args:
        results: say which card it is; rows: of the run: its ceilings, and checks, which decide what is timed.
        sizes: that are checked, at the model's sizes and at those that fit no block.
        depths: of a layer's chain.
    """

    def __init__(
        self,
        settings: Settings,
        config: ElmoConfig,
        device: Device,
        results: Results,
        rows: list[Row],
        sizes: tuple[checks.Sizes, checks.Sizes] = (checks.SIZES, checks.ODD_SIZES),
        depths: int = DEPTHS,
    ) -> None:
        self.settings, self.config, self.device, self.rows = settings, config, device, rows
        self.model, self._sizes, self._depths, self._results = settings.models[0], sizes, depths, results

    def jobs(self) -> Iterator[Job]:
        """Checks, the ceilings, and what is timed, the most valuable first."""
        settings = self.settings
        yield from self.check_jobs([each for each in settings.precisions if each != "int8"])
        yield from self.odd_check_jobs()
        yield Job("ceiling", CARD, "", lambda: [measure_ceilings(settings, self.device)])
        for n in settings.rows:
            yield self.steps(
                n, [each for each in settings.precisions if each not in OTHERS or n in settings.other_rows]
            )
        for kernel in (each for each in KERNELS if each.of):
            for n in settings.words if kernel.of == "words" else settings.nodes:
                yield Job(kernel.name, self.model, f"{n} {kernel.of}", partial(self._of, kernel, n))

    # ---------------------------------------------------------------------------------------------------------- checks

    def check_jobs(self, precisions: Sequence[str], steps_alone: bool = False) -> Iterator[Job]:
        """The checks at the model's sizes."""
        found = checks.checks(self.config, self._sizes[0], self.device.torch, self.settings.seed, precisions)
        yield from (self._check(self.model, each) for each in found if each.name.endswith("step") or not steps_alone)

    def odd_check_jobs(self) -> Iterator[Job]:
        """The checks at sizes that fit no block."""
        few = tuple(each for each in ("bf16", "fp32") if each in self.settings.precisions)
        found = checks.checks(checks.ODD, self._sizes[1], self.device.torch, self.settings.seed + 1, few)
        yield from (self._check("odd sizes", check) for check in found)

    def _check(self, model: str, check: checks.Check) -> Job:
        name = f"{check.name} {check.precision}, {check.detail}"
        return Job("error", model, name, lambda: [[checks.check_row(check, model)]])

    def why_not(self, task: Task) -> str:
        """Why somebody is not timed; empty if it is."""
        notes = {name: self._notes(f"{name} {task.name.split()[-1]}") for name in task.checks}
        wrong = [name for name, found in notes.items() if not found or any(found)]
        return f"not timed, as its check did not pass: {', '.join(wrong)}" if wrong else ""

    def _notes(self, name: str) -> list[str]:
        """Of all checks of a name."""
        return [row.note for row in self.rows if row.section == "error" and row.name == name]

    # -------------------------------------------------------------------------------------------------- what is timed

    def steps(self, n: int, precisions: Sequence[str]) -> Job:
        """Gates, projection and step in each variant that serves so many rows; in 8 bits too beside bf16."""
        return Job("step", self.model, f"{n} rows", partial(self._steps, n, precisions))

    def _steps(self, n: int, precisions: Sequence[str]) -> Iterator[list[Row]]:
        problems = [LstmProblem(layer, [(n,) * self._depths] * D) for layer in self._layers]
        sections: dict[str, dict[str, Task]] = {"step": {}, "gates": {}, "projection": {}}
        for precision in (*precisions, *(["int8"] if "bf16" in precisions else [])):
            for way in serving(self._layers[0], n, precision):
                for section, each in self._members(problems, n, precision, way):
                    sections[section].setdefault(each.name, each)  # the projection is the same in some ways
        yield from (self.measure(name, f"{n} rows", tasks.values()) for name, tasks in sections.items())

    @cached_property
    def _layers(self) -> list[LstmLayer]:
        return [LstmLayer(self.config, self.device.torch, self.settings.seed + k) for k in range(2)]

    def _members(
        self, problems: Sequence[LstmProblem], rows: int, precision: str, way: str
    ) -> Iterator[tuple[str, Task]]:
        """A variant's parts and whole, by section, each with the library's products where it has some."""
        kind, depths = kind_of_way(way), sum(problem.nodes.n_depths for problem in problems)
        steps = [launch for problem in problems for launch in problem.steps(problem.run(precision), way)]
        projections = [each for each in steps if "projection" in kernel_name(each)]
        gates = [each for each in steps if "projection" not in kernel_name(each)]
        peers = {} if precision == "int8" else self._products(precision, kind, rows)
        name, shared = f"{way} {precision}", precision if way in PORTABLE else f"{way} {precision}"
        for section, who, launches, cost in (
            ("gates", name, gates, costs.gates(self.config, rows, precision, kind)),
            ("projection", shared, projections, costs.projection(self.config, rows, precision)),
            ("step", name, steps, costs.step(self.config, rows, precision, kind)),
        ):
            peer = f"cuBLAS {precision if section == 'projection' else f'{kind} {precision}'}" if peers else ""
            yield section, Task(who, in_order([each.run for each in launches]), depths, cost, (f"{way} step",), peer)
            if peer:
                yield section, Task(peer, peers[section], len(problems))

    def _products(self, precision: str, kind: str, rows: int) -> dict[str, Callable[[], None]]:
        """The library's products of a step of each layer, by section."""
        C, P, dtype = self.config.cell_size, self.config.projection_size, dtype_of(precision)

        def of(inputs: int, outputs: int) -> Callable[[], None]:
            a, b = (torch.randn(D, *shape, device=self.device.torch) for shape in ((rows, inputs), (inputs, outputs)))
            return library_product(a.to(dtype), b.to(dtype), precision)

        gates = [of(2 * P if kind == "fused" else P, 4 * C) for _ in self._layers]
        projection = [of(C, P) for _ in self._layers]
        both = [each for of_layer in zip(gates, projection, strict=True) for each in of_layer]
        return {"gates": in_order(gates), "projection": in_order(projection), "step": in_order(both)}

    def _of(self, kernel: Kernel, n: int) -> Iterator[list[Row]]:
        """One kernel in each precision that was checked, each with the library's product."""
        tasks = []
        for precision in (each for each in self.settings.precisions if self._notes(f"{kernel.name} {each}")):
            problem = kernel.problem(self.config, n, Maker.of(self.device.torch, precision, self.settings.seed))
            peer = f"cuBLAS {precision}" if problem.product else ""
            tasks.append(Task(precision, problem.run, 1, problem.cost, (kernel.name,), peer))
            tasks += [Task(peer, problem.product)] if problem.product else []
        yield self.measure(kernel.name, f"{n} {kernel.of}", tasks)

    def measure(self, section: str, detail: str, tasks: Iterable[Task]) -> list[Row]:
        """A row for each task, in turns; what is wrong is not timed."""
        row, tasks = Row(section, self.model, unit="µs", detail=detail), list(tasks)
        notes = {task.name: self.why_not(task) for task in tasks}
        ready, card = [task for task in tasks if not notes[task.name]], Card.of(self._results, self.rows)
        rows = time_tasks(row, ready, self.settings, self.device, card)
        return rows + [replace(row, name=name, note=note) for name, note in notes.items() if note]


def in_order(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """Calls them one after the other."""

    def run() -> None:
        for call in calls:
            call()

    return run


def tile_of(label: str) -> tuple[str, Tile] | None:
    """An operation and its tile, as "gates 64x32x64 4w 4s" or "projection 128x64x64 8w 3s /8"; None without a label.

    Raises:
        FlashElmoError: it is something else.
    """
    operation, numbers = label.partition(" ")[0], list(map(int, re.findall(r"\d+", label)))
    if not label:
        return None
    if (operation, "half") not in tuning.TILES or len(numbers) not in (5, 6):
        known = ", ".join(dict.fromkeys(name for name, _ in tuning.TILES))
        raise FlashElmoError(f"--tile: expected one of {known} as in 'gates 64x32x64 4w 4s', found {label!r}")
    return operation, Tile(*numbers)


def use_tile(label: str) -> None:
    """Put one tile into this process's table, for every number of rows of an operation in 16 bits."""
    if found := tile_of(label):
        operation, tile = found
        tuning.TILES[operation, "half"] = ((ANY, tile),)
        tuning.HOPPER_TILES.pop((operation, "half"), None)
        tuning.TMA_TILES |= {operation: (tile,)} if operation in tuning.TMA_TILES else {}
