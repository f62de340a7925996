"""What a file costs before it computes anything, its bytes, and how far its vectors lie from the exact ones."""

from __future__ import annotations

from functools import partial

from flashelmo.benchmarks.accuracy import error_rows
from flashelmo.benchmarks.contestant import Contestant, engine
from flashelmo.benchmarks.cpu.contestants import options_of
from flashelmo.benchmarks.cpu.cost import measure_loads
from flashelmo.benchmarks.fresh import run_fresh
from flashelmo.benchmarks.onnx.contestants import REFERENCE, onnx_file
from flashelmo.benchmarks.onnx.exported import Exported
from flashelmo.benchmarks.onnx.speed import count_tokens
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import load_sentences
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
    """Largest absolute and relative error of every layer of each file against the reference in float64.

    Raises:
        FlashElmoError: a vector is not finite.
    """
    text, source = load_sentences(40 * settings.sentences, settings.text, settings.seed)
    sentences, model = text[: settings.sentences], exported.subject.name
    note = f"{len(sentences)} sentences, {count_tokens([sentences])} tokens of {source}"
    options = options_of(REFERENCE, settings, precision="fp64")
    found: list[Row] = []
    with Pool() as pool:
        reference = Contestant(REFERENCE, "fp64", engine, (exported.subject.folder, options))
        exact = reference.start(pool).call("vectors", sentences)
        for precision, file in exported.files.items():
            each = Contestant(f"onnx {precision}", precision, onnx_file, (file, settings.threads, False))
            found += error_rows(model, each.name, each.start(pool).call("vectors", sentences), exact, note)
    return sorted(found, key=lambda row: row.unit)
