"""Every GPU kernel of a model on a device: checked first, then timed, compared with its limits and cuBLAS.

All work on random tensors of the model's sizes. Each time is accompanied by what the card's limits allow (`card.py`)
and the library's bare products at the same shapes. An LSTM's steps are chains over forests of equal depths with random
parents, of two layers in turn, so that no layer's weights stay in the L2 cache for ever. Hoisted steps leave out the
input's product, which is timed separately, as "input".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import product

import torch

from flashelmo.benchmarks.kernels import card as costs
from flashelmo.benchmarks.kernels.card import CARD, Card, D, Device
from flashelmo.benchmarks.kernels.cases import KERNELS, Kernel
from flashelmo.benchmarks.kernels.graph_timing import TimedTask, measure_ceilings, time_tasks
from flashelmo.benchmarks.kernels.lstm import PORTABLE, LstmLayer, LstmProblem, kernel_name, kind_of_way, serving
from flashelmo.benchmarks.kernels.problems import Maker, dtype_of, library_product
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.run import Job
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.worker import one_line
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.precision import PRECISIONS
from flashelmo.kernels import tuning
from flashelmo.kernels.tuning import ANY, Tile

ROWS = (512, 32, 1, 16, 64, 128, 256, 1024)  # the most valuable first
DEPTHS = 8  # of a layer before the other's turn
SIZES = (63, 1003)  # that kernels are checked at without being timed
MOST_CHECKED = 2051  # larger timed sizes are checked at this one, as the reference runs on the host
OTHERS = ("fp16", "fp32", "tf32")  # precisions that steps are timed in at few sizes


class Kernels:
    """A model's kernels on a device.

    Each is compared with its reference in float64, and timed if that is right: inputs are fresh random numbers, outputs
    are filled with NaN beforehand. An error is ||out - reference|| / ||reference||, where the reference has the
    unrounded weights and the inputs as the kernel gets them; the bounds are those of whole vectors.

    Args:
        card: returns the card with the limits measured so far.
        depths: of a layer's chain.
    """

    def __init__(
        self, settings: Settings, config: ElmoConfig, device: Device, card: Callable[[], Card], depths: int = DEPTHS
    ) -> None:
        self.settings, self.config, self.device, self._card = settings, config, device, card
        self.model, self._depths = settings.models[0], depths
        self._precisions = [each for each in settings.precisions if each != "int8"]

    def jobs(self) -> Iterator[Job]:
        """Yield the ceilings, and what is timed, the most valuable first."""
        settings = self.settings
        yield Job("ceiling", CARD, "", partial(measure_ceilings, settings, self.device))
        for n in settings.rows:
            yield self.steps(n, [each for each in self._precisions if each not in OTHERS or n in settings.other_rows])
        for kernel in self._kernels:
            for n in settings.words if kernel.of == "words" else settings.nodes:
                yield Job(kernel.name, self.model, f"{n} {kernel.of}", partial(self._of, kernel, n))

    @property
    def _kernels(self) -> list[Kernel]:
        """Return those that are checked and timed by themselves."""
        return [each for each in KERNELS if each.of == "nodes" or (each.of and self.config.filters)]

    # ---------------------------------------------------------------------------------------------------------- checks

    def check_jobs(self) -> Iterator[Job]:
        """Yield checks, without timing, of kernels other than the LSTM's at some sizes."""
        for kernel, precision in product(self._kernels, self._precisions):
            if precision in kernel.precisions:
                yield Job("error", self.model, f"{kernel.name} {precision}", partial(self._checks, kernel, precision))

    def _checks(self, kernel: Kernel, precision: str) -> list[Row]:
        return [self._check(kernel, precision, n) for n in SIZES]

    def _check(self, kernel: Kernel, precision: str, n: int) -> Row:
        make = Maker.of(self.device.torch, precision, self.settings.seed, host=True)
        return self._checked(
            f"{kernel.name} {precision}", f"{n} {kernel.of}", lambda: kernel.problem(self.config, n, make).error()
        )

    def _checked(self, name: str, detail: str, error: Callable[[], float]) -> Row:
        """Return the error, and what is wrong with it; a kernel that cannot be compiled or run fails; others go on."""
        row = Row("error", self.model, name, "relative error", detail)
        bound = PRECISIONS[name.split()[-1]].bounds["cuda"].relative or 0.0
        try:
            found = error()
        except Exception as problem:
            return replace(row, note=f"{FAILED}: {one_line(problem)}")
        row = row.with_samples([found] if math.isfinite(found) else [])
        return row if found < bound else replace(row, note=f"{FAILED}: error {found:.2g}, expected less than {bound:g}")

    # -------------------------------------------------------------------------------------------------- what is timed

    def steps(self, n: int, precisions: Sequence[str]) -> Job:
        """Return gates, projection and step in each variant that serves so many rows; in 8 bits too, beside bf16."""
        return Job("step", self.model, f"{n} rows", partial(self._steps, n, precisions))

    def _steps(self, n: int, precisions: Sequence[str]) -> Iterator[list[Row]]:
        ragged = LstmProblem(self._layers[0], ((n, max(1, n - 1)), (1 + n // 2, n)))
        problems = [LstmProblem(layer, [(n,) * self._depths] * D) for layer in self._layers]
        sections: dict[str, dict[str, TimedTask]] = {"step": {}, "gates": {}, "projection": {}}
        for precision in (*precisions, *(["int8"] if "bf16" in precisions else [])):
            for way in serving(self._layers[0], n, precision):
                detail, name = f"{n} rows", f"{way} step {precision}"
                checked = self._checked(name, detail, partial(ragged.error, precision, way))
                yield [checked]
                for section, each in self._members(problems, n, precision, way) if not checked.failed else ():
                    sections[section].setdefault(each.name, each)  # some ways have the same projection
        yield from (self._timed(name, f"{n} rows", list(tasks.values())) for name, tasks in sections.items())

    @cached_property
    def _layers(self) -> list[LstmLayer]:
        return [LstmLayer(self.config, self.device.torch, self.settings.seed + k, host=k == 0) for k in range(2)]

    def _members(
        self, problems: Sequence[LstmProblem], rows: int, precision: str, way: str
    ) -> Iterator[tuple[str, TimedTask]]:
        """Yield a variant's parts and whole, by section, each with the library's products if it has some."""
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
            if not projections:  # all steps of a layer are one launch, which reads its weights once
                if section != "step":
                    continue
                cost = replace(cost, weights=0, streamed=cost.streamed + cost.weights / self._depths)
            peer = f"cuBLAS {precision if section == 'projection' else f'{kind} {precision}'}" if peers else ""
            yield section, TimedTask(who, in_order([each.run for each in launches]), depths, cost, peer)
            if peer:
                yield section, TimedTask(peer, peers[section], len(problems))

    def _products(self, precision: str, kind: str, rows: int) -> dict[str, Callable[[], None]]:
        """Return the library's products of a step of each layer, by section."""
        C, P, dtype = self.config.cell_size, self.config.projection_size, dtype_of(precision)

        def of(inputs: int, outputs: int) -> Callable[[], None]:
            a, b = (torch.randn(D, *shape, device=self.device.torch) for shape in ((rows, inputs), (inputs, outputs)))
            return library_product(a.to(dtype), b.to(dtype), precision)

        gates = [of(2 * P if kind == "fused" else P, 4 * C) for _ in self._layers]
        projection = [of(C, P) for _ in self._layers]
        both = [each for of_layer in zip(gates, projection, strict=True) for each in of_layer]
        return {"gates": in_order(gates), "projection": in_order(projection), "step": in_order(both)}

    def _of(self, kernel: Kernel, n: int) -> Iterator[list[Row]]:
        """Yield one kernel in each of its precisions, each with the library's product."""
        tasks, detail = list[TimedTask](), f"{n} {kernel.of}"
        for precision in (each for each in self._precisions if each in kernel.precisions):
            checked = self._check(kernel, precision, min(n, MOST_CHECKED))
            yield [checked]
            if checked.failed:
                continue
            problem = kernel.problem(self.config, n, Maker.of(self.device.torch, precision, self.settings.seed))
            peer = f"cuBLAS {precision}" if problem.product else ""
            tasks.append(TimedTask(precision, problem.run, 1, problem.cost, peer))
            tasks += [TimedTask(peer, problem.product)] if problem.product else []
        yield self._timed(kernel.name, detail, tasks)

    def _timed(self, section: str, detail: str, tasks: Sequence[TimedTask]) -> list[Row]:
        """Return a row for each task, timed in turns."""
        row = Row(section, self.model, unit="µs", detail=detail)
        return time_tasks(row, tasks, self.settings, self.device, self._card())


def in_order(calls: Sequence[Callable[[], object]]) -> Callable[[], None]:
    """Return a function that makes the calls one after the other."""

    def run() -> None:
        for call in calls:
            call()

    return run


def tile_of(label: str) -> tuple[str, Tile] | None:
    """Return an operation and its tile, from "gates 64x32x64 4w 4s" or "projection 128x64x64 8w 3s /8"; None if empty.

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
    """Put one tile in this process's table, for every number of rows of an operation in 16 bits."""
    if found := tile_of(label):
        operation, tile = found
        tuning.TILES[operation, "half"] = ((ANY, tile),)
        tuning.HOPPER_TILES.pop((operation, "half"), None)
        tuning.TMA_TILES |= {operation: (tile,)} if operation in tuning.TMA_TILES else {}
