"""What is measured of the exported file, beside the engine and the PyTorch reference."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.onnx.contestants import ENTRANTS, REFERENCE
from flashelmo.benchmarks.onnx.cost import measure_errors, measure_load, measure_size
from flashelmo.benchmarks.onnx.cuda import measure_cuda
from flashelmo.benchmarks.onnx.exported import export
from flashelmo.benchmarks.onnx.peak import measure_peak
from flashelmo.benchmarks.onnx.speed import measure_speed
from flashelmo.benchmarks.results import new_results
from flashelmo.benchmarks.run import Run, Suite, section_jobs
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.worker import Pool

SECTIONS = {
    "speed": measure_speed,
    "peak": measure_peak,
    "load": measure_load,
    "size": measure_size,
    "error": measure_errors,
    "cuda": measure_cuda,
}


def command(settings: Settings, console: Console) -> int:
    """Measure everything that the settings ask for; the exit status."""
    card = machine.card() if "cuda" in settings.sections else None
    run = Run(settings, console, new_results(settings, "onnx", card), "onnx.json")
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder, Pool() as pool:
        run.do(section_jobs(settings, SECTIONS, lambda name: export(name, settings.seed, Path(folder), pool)))
    return run.finish()


SUITE = Suite(
    about="The exported ONNX file beside the engine and the PyTorch reference.",
    defaults=Settings(
        sections=tuple(SECTIONS),
        contestants=tuple(name for name in ENTRANTS if name != REFERENCE),
        rounds=4,
        checked=8,
    ),
    options=("out", "quick", "models", "sections", "contestants", "text", "rounds", "threads", "seed", "limit_seconds"),
    command=command,
)
