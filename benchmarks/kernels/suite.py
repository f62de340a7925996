"""The GPU kernels by themselves on this machine's card: `python -m benchmarks kernels --out DIR`.

It is the section "kernels" of the engine's run, whose processes it shares. `--card NAME` reports what a card, which
need not be present, allows by its committed ceilings; `--tile` gives an operation another tile than the table's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from flashelmo.benchmarks.gpu import suite as gpu
from flashelmo.benchmarks.kernels import card as costs
from flashelmo.benchmarks.kernels.card import RUN_OPTIONS, Card, Cost
from flashelmo.benchmarks.kernels.cases import KERNELS
from flashelmo.benchmarks.kernels.kernels import OTHERS, ROWS, tile_of
from flashelmo.benchmarks.kernels.lstm import PORTABLE
from flashelmo.benchmarks.kernels.problems import Maker
from flashelmo.benchmarks.results import Results
from flashelmo.benchmarks.run import Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import print_table
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import preset_config

COMMITTED = "gpu-kernels-"  # prefix of files whose ceilings say what their card can do


def card_named(name: str, folder: Path = gpu.COMMITTED_FOLDER) -> Card:
    """Return the card of committed results, from the name of their file.

    Raises:
        FlashElmoError: there are none for it.
    """
    known = {path.stem.removeprefix(COMMITTED): path for path in folder.glob(f"{COMMITTED}*.json")}
    if name.lower() not in known:
        raise FlashElmoError(f"--card: expected one of {', '.join(known)}, found {name!r}")
    return Card.of(Results.read(known[name.lower()]))


def allowed(config: ElmoConfig, card: Card, settings: Settings) -> Iterator[list[str]]:
    """Yield what a card's limits allow in bf16: what, of what size, microseconds, and the limiting factor."""
    found: list[tuple[str, str, Cost]] = []
    for n in sorted(settings.rows):
        for way in PORTABLE:
            found.append((f"gates, {way}", f"{n} rows", costs.gates(config, n, "bf16", way)))
            found.append((f"step, {way}", f"{n} rows", costs.step(config, n, "bf16", way)))
    for kernel in (each for each in KERNELS if each.of):
        for n in settings.words if kernel.of == "words" else settings.nodes:
            found.append((kernel.name, f"{n} {kernel.of}", kernel.problem(config, n, Maker.of("meta", "bf16")).cost))
    for name, size, cost in found:
        took, bound = max((took, part) for part, took in cost.parts(card, "bf16").items())
        yield [name, size, f"{took:,.1f}", bound]


def command(settings: Settings, console: Console) -> int:
    """Measure on the current CUDA device, or report what a card allows; return the exit status."""
    if not settings.card:
        tile_of(settings.tile)
        return gpu.command(settings, console)
    config, card = preset_config(settings.models[0]), card_named(settings.card)
    title = f"{settings.models[0]} model in bf16 on {settings.card}: what its limits allow, not measured"
    print_table(console, title, 2, ["", "", "µs", "bound by"], list(allowed(config, card, settings)))
    return 0


SUITE = Suite(
    "Every GPU kernel on this machine's card: correct first, then how fast beside its limits and cuBLAS.",
    Settings(
        sections=("kernels",),
        models=("original",),
        precisions=("bf16", *OTHERS),
        rounds=9,
        sample_seconds=0.02,
        limit_seconds=270.0,
        rows=ROWS,
        words=(1, 64, 1024, 4096),
        nodes=(2048, 32_768),
    ),
    ("precisions", "rows", "card", "tile", *RUN_OPTIONS),
    command,
)
