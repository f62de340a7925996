"""Which tile is fastest on this machine's card: `python -m benchmarks.kernels.tiles --out DIR`.

Every candidate is put into the kernels' table alone, launched through the public launcher, and timed in turn with the
others of its operation and size. The fastest go by hand into `kernels/tuning.py`, each with its reason, and
`benchmarks.kernels.resources` then says whether they spill on some other card. Results go to DIR/gpu-tiles-CARD.json,
best first. A candidate that does not fit the card, or whose result is wrong, is a line that says so and has no time.
The exit status is 1 if the device was lost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from flashelmo.benchmarks.kernels import report as gpu_report
from flashelmo.benchmarks.kernels.checks import Check, Sizes, checks, run_checks
from flashelmo.benchmarks.kernels.contestants import Chain, Contestant, Layer, word_groups
from flashelmo.benchmarks.kernels.measure import (
    NO_DEVICE,
    GpuSettings,
    card_of,
    gpu,
    new_results,
    text_words,
    why_no_folder,
)
from flashelmo.benchmarks.kernels.model import Card
from flashelmo.benchmarks.kernels.timing import Deadline, GraphTimer, Timer, Timing, one_line
from flashelmo.benchmarks.results import Results, Row
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import PRESETS, preset_config
from flashelmo.kernels import tuning
from flashelmo.kernels.tuning import ANY, Tile, is_hoisted

# Operation -> rows (or words) at which its candidates are timed, in 16 bits.
ROWS = {
    "gates": (16, 32, 64, 128, 512, 1024),
    "projection": (16, 32, 64, 128, 512, 1024),
    "highway": (64, 1024, 4096),
    "linear": (64, 1024, 4096),
    "characters": (64, 1024, 4096),
}
CANDIDATES: dict[str, tuple[Tile, ...]] = {
    "gates": (
        Tile(16, 32, 128, 4, 3),
        Tile(16, 32, 64, 4, 5),
        Tile(16, 64, 64, 8, 4),
        Tile(32, 32, 64, 4, 4),
        Tile(32, 64, 64, 8, 4),
        Tile(64, 32, 64, 4, 4),
        Tile(64, 64, 64, 8, 4),
        Tile(128, 32, 64, 8, 3),
        Tile(128, 32, 64, 8, 4),
        Tile(128, 64, 64, 8, 3),
        Tile(128, 64, 64, 8, 4),
        Tile(128, 64, 32, 16, 5),
    ),
    "projection": (
        Tile(16, 32, 128, 4, 4, splits=8),
        Tile(16, 32, 128, 4, 4, splits=4),
        Tile(16, 64, 128, 4, 4, splits=8),
        Tile(32, 64, 128, 4, 3, splits=8),
        Tile(64, 64, 64, 4, 4, splits=8),
        Tile(64, 64, 64, 4, 4, splits=4),
        Tile(128, 64, 64, 8, 3, splits=8),
        Tile(128, 128, 64, 8, 3, splits=8),
        Tile(128, 128, 64, 8, 3, splits=4),
        Tile(128, 128, 64, 8, 4, splits=2),
        Tile(128, 256, 64, 8, 4, splits=8),
    ),
    "highway": (
        Tile(16, 16, 128, 4, 4),
        Tile(32, 32, 128, 4, 3),
        Tile(64, 32, 64, 4, 4),
        Tile(64, 64, 64, 4, 4),
        Tile(128, 64, 64, 8, 3),
        Tile(128, 64, 64, 8, 4),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 128, 64, 8, 4),
    ),
    "linear": (
        Tile(16, 32, 128, 4, 3),
        Tile(32, 64, 128, 4, 3),
        Tile(64, 64, 64, 4, 4),
        Tile(64, 128, 64, 4, 4),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 128, 64, 8, 4),
        Tile(128, 256, 64, 8, 3),
        Tile(128, 256, 64, 8, 4),
    ),
    "characters": (
        Tile(16, 32, 128, 4, 5),
        Tile(32, 64, 128, 4, 5),
        Tile(64, 64, 128, 4, 5),
        Tile(64, 128, 128, 8, 3),
        Tile(64, 128, 128, 8, 5),
        Tile(128, 128, 128, 8, 3),
    ),
}
SECTIONS = {"linear": "final projection"}  # of contestants and checks, where it is not the operation's name
CHECKED_ROWS = 1003  # at most: what is timed on more rows is checked on so many, as the reference runs on the host


@contextmanager
def only(operation: str, tile: Tile) -> Iterator[None]:
    """The table with this tile for every number of rows of an operation in 16 bits."""
    key = operation, "half"
    tiles = mock.patch.dict(tuning.TILES, {key: ((ANY, tile),)})
    without = {other: entry for other, entry in tuning.HOPPER_TILES.items() if other != key}
    with tiles, mock.patch.dict(tuning.HOPPER_TILES, without, clear=True):
        yield


class Sweep:
    """Times candidates; rows are kept and said as they come."""

    def __init__(
        self,
        config: ElmoConfig,
        results: Results,
        card: Card,
        *,
        device: str,
        timer: Timer,
        seed: int,
        deadline: Deadline,
        path: Path,
        say: Callable[[str], None],
        chain: Chain | None = None,
    ) -> None:
        self._config, self._results, self._card = config, results, card
        self._device, self._timer, self._seed, self._deadline = device, timer, seed, deadline
        self._path, self._say = path, say
        self._layer = Layer(config, device, chain or Chain(), seed)
        self._lost = ""

    def run(self, candidates: Mapping[str, Sequence[Tile]], rows: Mapping[str, Sequence[int]]) -> bool:
        """All candidates of all operations that are named in both; whether the device lived to the end."""
        for operation, tiles in candidates.items():
            for n in rows.get(operation, ()):
                self._compare(operation, n, tiles)
                if self._lost:
                    self._say(self._lost)
                    return False
        return True

    def _compare(self, operation: str, n: int, tiles: Sequence[Tile]) -> None:
        unit = "rows" if operation in ("gates", "projection") else "words"
        if self._deadline.left <= 0:
            self._keep([Row(operation, "tiles", "all", "µs", f"{n} {unit}", note=self._deadline.over)])
            return
        fitting = [tile for tile in tiles if tile.rows <= max(16, 2 * n)]  # others would mostly hold absent rows
        check = self._check(operation, n)
        found: dict[Tile, Contestant | str] = {}
        for tile in fitting:
            with only(operation, tile):
                found[tile] = self._correct(operation, n, check)
            if self._lost:
                break
        ready = [] if self._lost else [tile for tile, each in found.items() if isinstance(each, Contestant)]
        tasks = [each.task for each in found.values() if isinstance(each, Contestant)]
        timings = dict(zip(ready, self._timer.time(tasks), strict=True)) if ready else {}
        rows = []
        for tile, each in found.items():
            timing = timings.get(tile, Timing([], each if isinstance(each, str) else "not timed"))
            row = Row(operation, "tiles", tile.label, "µs", f"{n} {unit}", note=timing.note)
            if timing.samples:
                row = replace(Row.of(timing.samples, **_named(row)), note=timing.note)
            if isinstance(each, Contestant) and each.cost is not None:
                row = replace(row, ceiling=float(f"{each.cost.roofline(self._card, each.kind):.4g}"))
            rows.append(row)
        self._keep(sorted(rows, key=lambda row: row.median or float("inf")))

    def _check(self, operation: str, n: int) -> Check:
        """Of the operation at about so many rows; one for all candidates, as the LSTM's keeps its reference."""
        rows = (min(n, CHECKED_ROWS),)
        if operation in ("gates", "projection"):
            way = "hoisted" if is_hoisted(n, self._config.projection_size, torch.bfloat16) else "fused"
            name, sizes = f"{way} step", Sizes(rows, rows, rows, rows)
        else:
            name, sizes = SECTIONS.get(operation, operation), Sizes((1,), (1,), (1,), rows)
        found = checks(self._config, sizes, self._device, self._seed, ("bf16",))
        return next(check for check in found if (check.name, check.kind) == (name, "bf16"))

    def _correct(self, operation: str, n: int, check: Check) -> Contestant | str:
        """Our kernel with the table's tile, or why it is not timed."""
        checked = run_checks(iter([check]), "tiles", self._deadline, lambda line: None, self._device)
        self._lost = checked.lost
        if checked.failed:
            return checked.rows[0].note
        try:
            return self._contestant(operation, n)
        except Exception as error:  # too large for the card's memory, say: one candidate's failure is its own
            return one_line(error)

    def _contestant(self, operation: str, n: int) -> Contestant:
        """Our kernel at so many rows, launched with the table's tile."""
        if operation in ("gates", "projection"):
            return self._layer.ours(n, "bf16")[operation]
        section = SECTIONS.get(operation, operation)
        groups = word_groups(self._config, text_words(n), "bf16", self._device, self._seed)
        group = next(group for group in groups if group.section == section)
        return next(each for each in group.contestants if each.cost is not None)

    def _keep(self, rows: Sequence[Row]) -> None:
        self._results.rows.extend(rows)
        self._results.write(self._path)
        for line in gpu_report.lines(rows):
            self._say(line)


def _named(row: Row) -> dict[str, str]:
    return {"section": row.section, "model": row.model, "name": row.name, "unit": row.unit, "detail": row.detail}


def main(arguments: Sequence[str] | None = None) -> int:
    """Sweep on the current CUDA device; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    parser.add_argument("--model", choices=list(PRESETS), default="original", help="default: %(default)s")
    parser.add_argument("--operations", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    parser.add_argument("--limit-seconds", type=float, default=270.0, help="default: %(default)s")
    parser.add_argument("--commit", metavar="ID", help="of the sources, where they are no checkout")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"kernels.tiles: {NO_DEVICE}", file=sys.stderr)
        return 1
    if problem := why_no_folder(given.out):
        print(f"kernels.tiles: {problem}", file=sys.stderr)
        return 1

    def say(line: str) -> None:
        print(line, flush=True)

    device = torch.device("cuda", torch.cuda.current_device())
    found, settings = gpu(device), GpuSettings(model=given.model)
    results = new_results(settings, found, given.commit)
    say(gpu_report.head(results))
    sweep = Sweep(
        preset_config(given.model),
        results,
        card_of(found, say),
        device=str(device),
        timer=GraphTimer(settings.rounds),
        seed=settings.seed,
        deadline=Deadline(given.limit_seconds),
        path=given.out / f"gpu-tiles-{gpu_report.slug(found['name'])}.json",
        say=say,
    )
    return 0 if sweep.run({name: CANDIDATES[name] for name in given.operations}, ROWS) else 1


if __name__ == "__main__":
    sys.exit(main())
