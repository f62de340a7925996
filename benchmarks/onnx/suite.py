"""The exported file beside the engine and the PyTorch reference: speed, what a file costs, and how exact it is."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from rich.console import Console

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.contestant import REFERENCE, Contestant, engine, errors_of, options_of
from flashelmo.benchmarks.cpu.costs import measure_loads
from flashelmo.benchmarks.fresh import run_fresh
from flashelmo.benchmarks.onnx.contestants import ENTRANTS, Exported, export, onnx_file
from flashelmo.benchmarks.onnx.cuda import measure_cuda
from flashelmo.benchmarks.onnx.peak import measure_peak
from flashelmo.benchmarks.onnx.speed import measure_speed
from flashelmo.benchmarks.results import Row, new_results
from flashelmo.benchmarks.run import Run, Suite, section_jobs
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.worker import Pool

NATIVE = "native fp32"
MEGABYTE = 1e6


def measure_load(exported: Exported, settings: Settings) -> list[Row]:
    """Seconds to open each file in fresh processes, and to import what that needs; beside the native format."""
    options = {"threads": settings.threads}
    runs = {
        f"onnx {precision}": partial(run_fresh, "load", file, options) for precision, file in exported.files.items()
    }
    runs[NATIVE] = partial(run_fresh, "load", exported.subject.folder, options_of("fp32", settings))
    return measure_loads(exported.subject.name, runs, settings)


def measure_size(exported: Exported, settings: Settings) -> list[Row]:
    """Megabytes of each file with its external data, and of the native format's."""
    rows = []
    for precision, file in exported.files.items():
        external = file.with_name(f"{file.name}_data")
        parts = [path.stat().st_size for path in (file, external) if path.exists()]
        note = f"{precision}: {parts[1] / MEGABYTE:.1f} MB of it in a file of their own" if len(parts) > 1 else ""
        rows.append(_size_row(exported, f"onnx {precision}", sum(parts), note))
    native = sum(path.stat().st_size for path in exported.subject.folder.glob("*.safetensors"))
    return [*rows, _size_row(exported, NATIVE, native)]


def _size_row(exported: Exported, name: str, size: int, note: str = "") -> Row:
    return Row("size", exported.subject.name, name, "MB", "file", note=note).with_samples([size / MEGABYTE])


def measure_errors(exported: Exported, settings: Settings) -> list[Row]:
    """How far each file lies from the reference in float64."""
    folder, threads = exported.subject.folder, settings.threads
    exact = Contestant(REFERENCE, "fp64", engine, (folder, options_of(REFERENCE, settings, precision="fp64")))
    files = [
        Contestant(f"onnx {precision}", precision, onnx_file, (file, threads, False))
        for precision, file in exported.files.items()
    ]
    with Pool() as pool:
        return errors_of(exported.subject.name, files, exact, settings, pool)


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
    "The exported ONNX file beside the engine and the PyTorch reference.",
    Settings(sections=tuple(SECTIONS), contestants=tuple(ENTRANTS)[1:], rounds=4, checked=8),
    ("out", "quick", "models", "sections", "contestants", "text", "rounds", "threads", "seed", "limit_seconds"),
    command,
)
