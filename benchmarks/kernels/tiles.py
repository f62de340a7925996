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
from flashelmo.benchmarks.kernels.checks import Check, Sizes, checks, run_checks
from flashelmo.benchmarks.kernels.groups import Timed, ours, word_groups
from flashelmo.benchmarks.kernels.lstm import way_in_use
from flashelmo.benchmarks.kernels.suite import Kernels, text_words
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.run import Job, Run, Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.timing import Timing
from flashelmo.benchmarks.worker import one_line
from flashelmo.engine.model.initialize import preset_config
from flashelmo.kernels import tuning
from flashelmo.kernels.tuning import ANY, Tile


def tiles_of(labels: str) -> tuple[Tile, ...]:
    """Tiles by their labels, as "16x32x128 4w 3s, 128x64x64 8w 3s /8"."""
    return tuple(Tile(*map(int, re.findall(r"\d+", label))) for label in labels.split(","))


# Operation -> rows (or words) at which its candidates are timed, in 16 bits.
ROWS: dict[str, tuple[int, ...]] = dict.fromkeys(("gates", "projection"), (16, 32, 64, 128, 512, 1024))
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
    run: Run, kernels: Kernels, candidates: Mapping[str, Sequence[Tile]], rows: Mapping[str, Sequence[int]]
) -> Iterator[Job]:
    """One for each operation that is named in both, and number of rows."""
    for operation, tiles in candidates.items():
        for n in rows.get(operation, ()):
            unit = "rows" if operation in ("gates", "projection") else "words"
            fitting = [tile for tile in tiles if tile.rows <= max(16, 2 * n)]  # others would mostly hold absent rows
            rows_of = partial(_compare, run, kernels, operation, n, f"{n} {unit}", fitting)
            yield Job(operation, kernels.model, f"{n} {unit}", rows_of)


def _compare(
    run: Run, kernels: Kernels, operation: str, n: int, detail: str, tiles: Sequence[Tile]
) -> Iterator[list[Row]]:
    """A row for each tile, the fastest first."""
    check = _check(kernels, operation, n)
    found: dict[Tile, Timed | str] = {}
    for tile in tiles:
        with only(operation, tile):
            found[tile] = _correct(run, kernels, operation, n, check)
        if kernels.device.is_lost():
            break
    ready = {tile: each for tile, each in found.items() if isinstance(each, Timed) and not kernels.device.is_lost()}
    taken = kernels.timer(kernels.settings.rounds, [each.task for each in ready.values()]) if ready else []
    timings = dict(zip(ready, taken, strict=True))
    rows = []
    for tile, each in found.items():
        timing = timings.get(tile, Timing([], each if isinstance(each, str) else "not timed"))
        row = Row(operation, kernels.model, tile.label, "µs", detail, note=timing.note).with_samples(timing.samples)
        if isinstance(each, Timed) and each.cost is not None:
            row = replace(row, ceiling=float(f"{each.cost.roofline(kernels.card, each.precision):.4g}"))
        rows.append(row)
    yield sorted(rows, key=lambda row: row.median or float("inf"))


def _check(kernels: Kernels, operation: str, n: int) -> Check:
    """Of the operation at about so many rows; one for all candidates, as the LSTM's keeps its reference."""
    rows = (min(n, CHECKED_ROWS),)
    name, sizes = SECTIONS.get(operation, operation), Sizes((1,), (1,), (1,), rows)
    if operation in ("gates", "projection"):
        name, sizes = f"{way_in_use(kernels.layer, n, 'bf16')} step", Sizes(rows, rows, rows, rows)
    found = checks(kernels.config, sizes, kernels.device.torch, kernels.settings.seed, ("bf16",))
    return next(check for check in found if (check.name, check.precision) == (name, "bf16"))


def _correct(run: Run, kernels: Kernels, operation: str, n: int, check: Check) -> Timed | str:
    """Our kernel with the table's tile, or why it is not timed."""
    ((row,),) = run_checks(iter([check]), kernels.model, run.deadline, kernels.device, {})
    if row.note:
        return row.note
    try:
        if operation in ("gates", "projection"):
            return ours(kernels.layer, n, "bf16", kernels.chain)[operation]
        words = word_groups(kernels.config, text_words(n), "bf16", kernels.device.torch, kernels.settings.seed)
        group = next(group for group in words if group.section == SECTIONS.get(operation, operation))
        return group.members[0]
    except Exception as error:  # too large for the card's memory, say: one candidate's failure is its own
        return one_line(error)


def command(settings: Settings, console: Console) -> int:
    """Sweep on the current CUDA device; the exit status."""
    run, device, card = begin(settings, console, "tiles")
    kernels = Kernels(settings, preset_config(settings.models[0]), device, card)
    run.do(jobs(run, kernels, {name: CANDIDATES[name] for name in settings.operations}, ROWS))
    return run.finish()


SUITE = Suite(
    "which tile of each operation is fastest on this machine's card",
    Settings(models=("original",), operations=tuple(CANDIDATES), rounds=9, limit_seconds=270.0),
    ("operations", *RUN_OPTIONS),
    command,
)
