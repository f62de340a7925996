"""What is measured on the processor: the engine in its precisions, in turns with the PyTorch reference."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from flashelmo.benchmarks.cpu.contestants import CONTESTANTS, REFERENCE
from flashelmo.benchmarks.cpu.cost import measure_load, measure_memory
from flashelmo.benchmarks.cpu.errors import measure_errors
from flashelmo.benchmarks.cpu.host import measure_host
from flashelmo.benchmarks.cpu.speed import measure_bulk, measure_single
from flashelmo.benchmarks.results import new_results
from flashelmo.benchmarks.run import Run, Suite, section_jobs
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import prepare
from flashelmo.benchmarks.worker import Pool

SECTIONS = {
    "bulk": measure_bulk,
    "single": measure_single,
    "memory": measure_memory,
    "load": measure_load,
    "host": measure_host,
    "error": measure_errors,
}


def command(settings: Settings, console: Console) -> int:
    """Measure everything that the settings ask for; the exit status."""
    run = Run(settings, console, new_results(settings, "cpu"), "cpu.json")
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder, Pool() as pool:
        run.do(section_jobs(settings, SECTIONS, lambda name: prepare(name, settings.seed, Path(folder), pool)))
    return run.finish()


SUITE = Suite(
    about="The engine beside the PyTorch reference and this machine's limits.",
    defaults=Settings(sections=tuple(SECTIONS), contestants=("fp32", "int8", "bf16")),
    options=("out", "quick", "models", "sections", "contestants", "text", "rounds", "threads", "seed", "limit_seconds"),
    command=command,
    known={"contestants": [name for name in CONTESTANTS if name != REFERENCE]},
)
