"""The exported file beside the engine and the PyTorch reference: speed, what a file costs, and how exact it is."""

from __future__ import annotations

from functools import partial

from rich.console import Console

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.contestant import REFERENCE, Contestant, contestant, errors_of, options_of
from flashelmo.benchmarks.cpu.costs import measure_loads
from flashelmo.benchmarks.fresh import run_fresh
from flashelmo.benchmarks.onnx.contestants import CONTESTANTS, Exported, export, onnx_file
from flashelmo.benchmarks.onnx.speed import measure_cuda, measure_peak, measure_speed
from flashelmo.benchmarks.results import Row, new_results
from flashelmo.benchmarks.run import PROCESSOR_OPTIONS, Suite, run_sections
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import first_sentences
from flashelmo.benchmarks.worker import Pool

NATIVE = "native fp32"
MEGABYTE = 1e6


def measure_load(exported: Exported, settings: Settings) -> list[Row]:
    """Seconds to open each file in fresh processes, and to import what that needs; beside the native format."""
    options = {"threads": settings.threads}
    runs = {f"onnx {name}": partial(run_fresh, "load", file, options) for name, file in exported.files.items()}
    runs[NATIVE] = partial(run_fresh, "load", exported.subject.folder, options_of("fp32", settings))
    return measure_loads(exported.subject.name, runs, settings)


def measure_size(exported: Exported, settings: Settings) -> list[Row]:
    """Megabytes of each file with its external data, and of the native format's."""
    sizes = {NATIVE: [path.stat().st_size for path in exported.subject.folder.glob("*.safetensors")]}
    for precision, file in exported.files.items():
        parts = file, file.with_name(f"{file.name}_data")
        sizes[f"onnx {precision}"] = [path.stat().st_size for path in parts if path.exists()]
    rows = []
    for name, (first, *external) in sizes.items():
        note = f"{name}: {sum(external) / MEGABYTE:.1f} MB of it in a file of their own" if external else ""
        row = Row("size", exported.subject.name, name, "MB", "file", note=note)
        rows.append(row.with_samples([(first + sum(external)) / MEGABYTE]))
    return rows


def measure_errors(exported: Exported, settings: Settings) -> list[Row]:
    """How far each file lies from the reference in float64."""
    exact = contestant(exported.subject, settings, REFERENCE, precision="fp64")
    files = [
        Contestant(f"onnx {name}", name, onnx_file, (file, settings.threads, False))
        for name, file in exported.files.items()
    ]
    with Pool() as pool:
        return errors_of(exported.subject.name, files, exact, *first_sentences(settings), pool)


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
    return run_sections(settings, console, new_results(settings, "onnx", card), SECTIONS, export)


SUITE = Suite(
    "The exported ONNX file beside the engine and the PyTorch reference.",
    Settings(sections=tuple(SECTIONS), contestants=CONTESTANTS, rounds=4, checked=8),
    PROCESSOR_OPTIONS,
    command,
)
