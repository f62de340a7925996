"""Which tile is fastest on this machine's card: `python -m benchmarks tiles --out DIR`.

Every candidate is put into the kernels' table alone, launched through the public launcher, and timed in turn with the
others of its operation and size. The fastest go by hand into `kernels/tuning.py`, each with its reason, and `benchmarks
resources` then says whether they spill on some other card. Results go to DIR/gpu-tiles-CARD.json, best first. A
candidate that does not fit the card, or whose result is wrong, is a line that says so and has no time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from unittest import mock

from rich.console import Console

from flashelmo.benchmarks.kernels.card import RUN_OPTIONS, begin
from flashelmo.benchmarks.kernels.checks import Check, Sizes, check_row, checks
from flashelmo.benchmarks.kernels.graph_timing import Task
from flashelmo.benchmarks.kernels.groups import ours, word_groups
from flashelmo.benchmarks.kernels.lstm import way_in_use
from flashelmo.benchmarks.kernels.suite import Kernels, text_words
from flashelmo.benchmarks.results import Row, rounded
from flashelmo.benchmarks.run import Job, Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.worker import one_line
from flashelmo.engine.model.initialize import preset_config
from flashelmo.kernels import tuning
from flashelmo.kernels.tuning import ANY, Tile


def tiles_of(labels: str) -> tuple[Tile, ...]:
    """Tiles by their labels, as "16x32x128 4w 3s, 128x64x64 8w 3s /8"."""
    return tuple(Tile(*map(int, re.findall(r"\d+", label))) for label in labels.split(","))


OF_ROWS = ("gates", "projection")  # operations of rows; the others are of words
# Operation -> rows (or words) at which its candidates are timed, in 16 bits.
ROWS: dict[str, tuple[int, ...]] = dict.fromkeys(OF_ROWS, (16, 32, 64, 128, 512, 1024))
ROWS |= dict.fromkeys(("highway", "linear", "characters"), (64, 1024, 4096))
CANDIDATES = {
    "gates": tiles_of(
        "16x32x128 4w 3s, 16x32x64 4w 5s, 16x64x64 8w 4s, 32x32x64 4w 4s, 32x64x64 8w 4s, 64x32x64 4w 4s,"
        "64x64x64 8w 4s, 128x32x64 8w 3s, 128x32x64 8w 4s, 128x64x64 8w 3s, 128x64x64 8w 4s, 128x64x32 16w 5s"
    ),
    "projection": tiles_of(
        "16x32x128 4w 4s /8, 16x32x128 4w 4s /4, 16x64x128 4w 4s /8, 32x64x128 4w 3s /8, 64x64x64 4w 4s /8,"
        "64x64x64 4w 4s /4, 128x64x64 8w 3s /8, 128x128x64 8w 3s /8, 128x128x64 8w 3s /4, 128x128x64 8w 4s /2,"
        "128x256x64 8w 4s /8"
    ),
    "highway": tiles_of(
        "16x16x128 4w 4s, 32x32x128 4w 3s, 64x32x64 4w 4s, 64x64x64 4w 4s, 128x64x64 8w 3s, 128x64x64 8w 4s,"
        "128x128x64 8w 3s, 128x128x64 8w 4s"
    ),
    "linear": tiles_of(
        "16x32x128 4w 3s, 32x64x128 4w 3s, 64x64x64 4w 4s, 64x128x64 4w 4s, 128x128x64 8w 3s, 128x128x64 8w 4s,"
        "128x256x64 8w 3s, 128x256x64 8w 4s"
    ),
    "characters": tiles_of(
        "16x32x128 4w 3s, 32x64x128 4w 3s, 64x64x128 4w 3s, 64x128x128 8w 3s, 64x128x128 8w 4s, 64x256x128 8w 3s,"
        "128x128x128 8w 2s"
    ),
}
SECTIONS = {"linear": "final projection"}  # of groups and checks, where it is not the operation's name
CHECKED_ROWS = 1003  # at most: what is timed on more rows is checked on so many, as the reference runs on the host


@contextmanager
def only(operation: str, tile: Tile) -> Iterator[None]:
    """The table with this tile for every number of rows of an operation in 16 bits."""
    key = operation, "half"
    without = {other: entry for other, entry in tuning.HOPPER_TILES.items() if other != key}
    hopper = mock.patch.dict(tuning.HOPPER_TILES, without, clear=True)
    by_tma = mock.patch.dict(tuning.TMA_TILES, {operation: (tile,)} if operation in tuning.TMA_TILES else {})
    with mock.patch.dict(tuning.TILES, {key: ((ANY, tile),)}), hopper, by_tma:
        yield


def jobs(
    kernels: Kernels, candidates: Mapping[str, Sequence[Tile]], rows: Mapping[str, Sequence[int]]
) -> Iterator[Job]:
    """One for each operation that is named in both, and number of rows."""
    for operation, tiles in candidates.items():
        for n in rows.get(operation, ()):
            detail = f"{n} {'rows' if operation in OF_ROWS else 'words'}"
            fitting = [tile for tile in tiles if tile.rows <= max(16, 2 * n)]  # others would mostly hold absent rows
            yield Job(operation, kernels.model, detail, partial(_compare, kernels, operation, n, detail, fitting))


def _compare(kernels: Kernels, operation: str, n: int, detail: str, tiles: Sequence[Tile]) -> Iterator[list[Row]]:
    """A row for each tile, the fastest first."""
    check, ready, rows = _check(kernels, operation, n), dict[Tile, Task](), dict[Tile, Row]()
    for tile in tiles:
        rows[tile] = Row(operation, kernels.model, tile.label, "µs", detail, note="not timed")
        try:  # a candidate that is wrong, or too large for the card's memory, is a line of its own
            with only(operation, tile):
                checked = check_row(check, kernels.model)
                rows[tile] = replace(rows[tile], note=checked.note)
                if not checked.note:
                    ready[tile] = _timed(kernels, operation, n)
        except Exception as error:
            rows[tile] = replace(rows[tile], note=one_line(error))
        if kernels.device.is_lost():
            ready.clear()
            break
    taken = kernels.timer(kernels.settings.rounds, list(ready.values())) if ready else []
    for tile, timing in zip(ready, taken, strict=True):
        each, row = ready[tile], replace(rows[tile], note=timing.note).with_samples(timing.samples)
        if each.cost is not None:
            row = replace(row, ceiling=rounded(each.cost.microseconds(kernels.card, each.precision).microseconds))
        rows[tile] = row
    yield sorted(rows.values(), key=lambda row: row.median or float("inf"))


def _check(kernels: Kernels, operation: str, n: int) -> Check:
    """Of the operation at about so many rows; one for all candidates, as the LSTM's keeps its reference."""
    rows = (min(n, CHECKED_ROWS),)
    name, sizes = SECTIONS.get(operation, operation), Sizes((1,), (1,), (1,), rows)
    if operation in OF_ROWS:
        name, sizes = f"{way_in_use(kernels.layer, n, 'bf16')} step", Sizes(rows, rows, rows, rows)
    found = checks(kernels.config, sizes, kernels.device.torch, kernels.settings.seed, ("bf16",))
    return next(check for check in found if (check.name, check.precision) == (name, "bf16"))


def _timed(kernels: Kernels, operation: str, n: int) -> Task:
    """Our kernel with the table's tile."""
    if operation in OF_ROWS:
        return ours(kernels.layer, n, "bf16", kernels.chain)[operation]
    words = word_groups(kernels.config, text_words(n), "bf16", kernels.device.torch, kernels.settings.seed)
    return next(group for group in words if group.section == SECTIONS.get(operation, operation)).members[0]


def command(settings: Settings, console: Console) -> int:
    """Sweep on the current CUDA device; the exit status."""
    run, device, card = begin(settings, console, "tiles")
    kernels = Kernels(settings, preset_config(settings.models[0]), device, card)
    run.do(jobs(kernels, {name: CANDIDATES[name] for name in settings.operations}, ROWS))
    return run.finish()


SUITE = Suite(
    "which tile of each operation is fastest on this machine's card",
    Settings(models=("original",), operations=tuple(CANDIDATES), rounds=9, limit_seconds=270.0),
    ("operations", *RUN_OPTIONS),
    command,
)
