"""Every kernel on the card against its reference in float64, before anything is timed.

Inputs are fresh random numbers, outputs are filled with NaN beforehand, and sizes are ragged. An error is
||out - reference|| / ||reference||, where the reference has the unrounded weights and the inputs as the kernel gets
them. A NaN passes no bound. The bounds are those of whole vectors (`engine.precision`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import groupby
from typing import Any, NamedTuple

from flashelmo.benchmarks.kernels import problems
from flashelmo.benchmarks.kernels.card import Device
from flashelmo.benchmarks.kernels.lstm import PORTABLE, WAYS, LstmLayer, LstmProblem, serving
from flashelmo.benchmarks.kernels.problems import Maker, Problem
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.timing import Deadline
from flashelmo.benchmarks.worker import one_line
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.precision import PRECISIONS

# Sizes that fit no block, and the other activation.
ODD = replace(
    preset_config("original"),
    cell_size=20,
    projection_size=12,
    cell_clip=0.5,
    projection_clip=0.4,
    filters=((1, 3), (2, 4), (3, 6)),
    n_highway=1,
    activation="tanh",
    character_size=3,
    max_characters=12,
)


class Sizes(NamedTuple):
    """Rows that are checked; together they meet every tile that is timed.

    Attributes:
        steps: rows of an LSTM's depths in bf16.
        few, many: those of the hoisted and of the fused step in other precisions.
        rows: of products and highways, and words of the characters.
    """

    steps: tuple[int, ...] = (1, 9, 31, 63, 127, 255, 300, 700)
    few: tuple[int, ...] = (1, 31)
    many: tuple[int, ...] = (300,)
    rows: tuple[int, ...] = (1, 63, 200, 1003, 2051)


SIZES, ODD_SIZES = Sizes(), Sizes((1, 5), (1, 5), (35,), (3, 70))


class Check(NamedTuple):
    """One comparison: what is timed under this name and precision is timed only if all its checks pass."""

    name: str
    precision: str
    detail: str
    error: Callable[[], float]


# Kernels other than the LSTM's; whether they are checked at many sizes.
BUILDS: dict[str, tuple[Callable[..., Problem], bool]] = {
    "highway": (problems.highway, True),
    "characters": (problems.characters, True),
    "final projection": (problems.final_projection, True),
    "input": (problems.hoisted_input, False),
    "gather words": (problems.gather_words, False),
    "token layers": (problems.token_layers, False),
    "token layers, means": (partial(problems.token_layers, pooled=True), False),
}


def checks(config: ElmoConfig, sizes: Sizes, device: str, seed: int, precisions: Sequence[str]) -> Iterator[Check]:
    """All kernels at one model's sizes, kernel by kernel."""

    def error(build: Callable[..., Problem], n: int, precision: str) -> float:
        return build(config, n, Maker.of(device, precision, seed, host=True)).error()

    yield from _step_checks(config, sizes, device, seed, precisions)
    for name, (build, is_varied) in BUILDS.items():
        for precision in precisions if config.filters or not is_varied else ():
            rows = sizes.rows if precision == "bf16" else sizes.rows[1::2]
            for n in rows if is_varied else sizes.rows[-1:]:
                if precision != "tf32" or not name.startswith(("token", "gather")):  # where there is no product
                    unit = "words" if is_varied else "rows"
                    yield Check(name, precision, f"{n} {unit}", partial(error, build, n, precision))


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

    def rows_served(precision: str) -> dict[str, tuple[int, ...]]:
        served = {n: serving(layer, n, precision) for n in sizes.steps}
        return {way: tuple(n for n in sizes.steps if way in served[n]) for way in WAYS}

    for precision in precisions:
        planned = {"fused": sizes.many, "hoisted": sizes.few}
        if precision == "bf16":
            planned = dict.fromkeys(planned, sizes.steps)
        served = {way: rows for way, rows in rows_served(precision).items() if way not in PORTABLE}
        wanted = [(precision, way, rows) for way, rows in (planned | served).items()]
        if precision == "bf16":
            wanted += [("int8", way, rows) for way, rows in rows_served("int8").items()]
        for number_type, way, rows in wanted:
            if rows:
                detail = f"rows {', '.join(map(str, rows))}"
                yield Check(f"{way} step", number_type, detail, partial(error, rows, number_type, way))


def run_checks(
    found: Iterable[Check], model: str, deadline: Deadline, device: Device, passed: dict[tuple[str, str], bool]
) -> Iterator[list[Row]]:
    """The rows of each kernel, until the end or until the device is lost.

    Args:
        passed: is told of each kernel and precision whether all its checks passed so far.
    """
    for _, members in groupby(found, key=lambda check: check.name):
        rows: list[Row] = []
        for check in members:
            row = Row("error", model, f"{check.name} {check.precision}", "relative error", check.detail)
            row = _checked(row, check) if deadline.left > 0 else replace(row, note=deadline.over)
            key = check.name, check.precision
            passed[key] = passed.get(key, True) and not row.note
            rows.append(row)
            if row.failed and device.is_lost():
                yield rows
                return
        yield rows


def _checked(row: Row, check: Check) -> Row:
    """The row with the error; a kernel that does not compile or run has failed, and the others go on."""
    bound = PRECISIONS[check.precision].bounds["cuda"].relative or 0.0
    try:
        error = check.error()
    except Exception as problem:
        return replace(row, note=f"{FAILED}: {one_line(problem)}")
    row = row.with_samples([error]) if math.isfinite(error) else row
    return row if error < bound else replace(row, note=f"{FAILED}: error {error:.2g}, expected less than {bound:g}")
