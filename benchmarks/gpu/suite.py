"""The suite `gpu`, and its check in minutes (check.py)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from flashelmo.benchmarks.gpu import check, tables
from flashelmo.benchmarks.gpu.engine import PARTS, SECTIONS, SWITCHES, Engine, Tools, suited
from flashelmo.benchmarks.kernels.card import RUN_OPTIONS, begin
from flashelmo.benchmarks.run import Run, Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.precision import precisions_on


def measure(run: Run, engine: Engine) -> int:
    """Measure, and say what was found, in a file beside the results too; the exit status."""
    run.say(f"text: {engine.source}")
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        engine.folder = Path(folder)
        run.do(engine.jobs())
    if "speed" in engine.settings.sections:
        run.keep(tables.targets(run.results, engine.settings.models[0], engine.first))
    written = tables.tables(run.results)
    run.say(written)
    if run.path is not None:
        run.path.with_suffix(".md").write_text(written + "\n", encoding="utf-8")
    return run.finish()


def command(settings: Settings, console: Console) -> int:
    """Measure on the current CUDA device; the exit status is 1 if vectors are wrong, a job failed or it was lost."""
    if settings.check:
        return check.command(settings, console)
    run, device, card = begin(settings, console, "gpu", suited)
    return measure(run, Engine(run.settings, device, card, run, Tools()))


SUITE = Suite(
    "The engine on this machine's card, end to end: correct first, then how fast beside its rivals.",
    Settings(
        sections=SECTIONS,
        precisions=("bf16", *(each for each in precisions_on("cuda") if each != "bf16")),
        sentences=24,
        batches=(32, 128, 512),
        bulk_tokens=1 << 21,
        sample_seconds=0.05,
        limit_seconds=480.0,
    ),
    (
        *("sections", "precisions", "text", "off", "few", "check", "part_seconds"),
        *("rows", "trace", *RUN_OPTIONS),
    ),
    command,
    known={"off": SWITCHES, "sections": (*SECTIONS, *PARTS)},
)
