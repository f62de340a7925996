"""Every kernel on the card against its reference in float64, before anything is timed.

Inputs are fresh random numbers, outputs are filled with NaN beforehand, and sizes are ragged. An error is
||out - reference|| / ||reference||, where the reference has the unrounded weights and the inputs as the kernel gets
them. A NaN passes no bound. The bounds are those of whole vectors (`engine.precision`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

from flashelmo.benchmarks.kernels.cases import KERNELS, Kernel
from flashelmo.benchmarks.kernels.lstm import PORTABLE, WAYS, LstmLayer, LstmProblem, serving
from flashelmo.benchmarks.kernels.problems import Maker
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.worker import one_line
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.precision import PRECISIONS

# Sizes that fit no block, and the other activation.
ODD = replace(
    preset_config("original"),
    **dict[str, Any](cell_size=20, projection_size=12, cell_clip=0.5, projection_clip=0.4, n_highway=1),
    **dict[str, Any](activation="tanh", character_size=3, max_characters=12, filters=((1, 3), (2, 4), (3, 6))),
)


class Sizes(NamedTuple):
    """Sizes that are checked; together they meet every tile that is timed.

    Attributes:
        steps: rows of an LSTM's depths in bf16.
        few, many: those of the hoisted and of the fused step in other precisions.
        words: of words, and the last of nodes.
    """

    steps: tuple[int, ...] = (1, 9, 31, 63, 127, 255, 300, 700)
    few: tuple[int, ...] = (1, 31)
    many: tuple[int, ...] = (300,)
    words: tuple[int, ...] = (1, 63, 200, 1003, 2051)


SIZES, ODD_SIZES = Sizes(), Sizes((1, 5), (1, 5), (35,), (3, 70))


class Check(NamedTuple):
    """One comparison: what is timed under this name and precision is timed only if all its checks pass."""

    name: str
    precision: str
    detail: str
    error: Callable[[], float]


def checks(config: ElmoConfig, sizes: Sizes, device: str, seed: int, precisions: Sequence[str]) -> Iterator[Check]:
    """All kernels at one model's sizes, kernel by kernel."""

    def error(kernel: Kernel, n: int, precision: str) -> float:
        return kernel.problem(config, n, Maker.of(device, precision, seed, host=True)).error()

    yield from _step_checks(config, sizes, device, seed, precisions)
    for kernel in (each for each in KERNELS if each.of == "nodes" or (each.of and config.filters)):
        for precision in precisions:
            numbers = sizes.words if precision == "bf16" else sizes.words[1::2]
            for n in numbers if kernel.of == "words" else sizes.words[-1:]:
                if precision in (*kernel.full, *kernel.few) or kernel.operations:  # in TF32 where there are products
                    yield Check(kernel.name, precision, f"{n} {kernel.of}", partial(error, kernel, n, precision))


def _step_checks(
    config: ElmoConfig, sizes: Sizes, device: str, seed: int, precisions: Sequence[str]
) -> Iterator[Check]:
    layer = LstmLayer(config, device, seed, host=True)

    @cache
    def problem(rows: tuple[int, ...]) -> LstmProblem:
        """Of so many nodes in each depth of the first direction; the second has about half."""
        return LstmProblem(layer, (rows, [1 + n // 2 for n in rows]))

    def error(rows: tuple[int, ...], *given: Any) -> float:
        return problem(rows).error(*given)

    for precision in (*precisions, *(["int8"] if "bf16" in precisions else [])):
        served = {n: serving(layer, n, precision) for n in sizes.steps}
        planned = {way: tuple(n for n in sizes.steps if way in served[n]) for way in WAYS}
        if precision == "bf16":
            planned |= dict.fromkeys(PORTABLE, sizes.steps)
        elif precision != "int8":
            planned |= {"fused": sizes.many, "hoisted": sizes.few}
        for way, rows in planned.items():
            if rows:
                detail = f"rows {', '.join(map(str, rows))}"
                yield Check(f"{way} step", precision, detail, partial(error, rows, precision, way))


def check_row(check: Check, model: str) -> Row:
    """The error, and what is wrong with it; a kernel that does not compile or run has failed, and the others go on."""
    row = Row("error", model, f"{check.name} {check.precision}", "relative error", check.detail)
    bound = PRECISIONS[check.precision].bounds["cuda"].relative or 0.0
    try:
        error = check.error()
    except Exception as problem:
        return replace(row, note=f"{FAILED}: {one_line(problem)}")
    row = row.with_samples([error]) if math.isfinite(error) else row
    return row if error < bound else replace(row, note=f"{FAILED}: error {error:.2g}, expected less than {bound:g}")
