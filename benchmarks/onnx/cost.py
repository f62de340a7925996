"""What a file costs before it computes anything: the time to open it, and its bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from flashelmo.benchmarks.fresh import run_fresh, run_python
from flashelmo.benchmarks.onnx.exported import Exported
from flashelmo.benchmarks.onnx.settings import OnnxSettings
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import CONTESTANTS

NATIVE = "native fp32"
MEGABYTE = 1e6


def measure_load(exported: Exported, settings: OnnxSettings) -> list[Row]:
    """Seconds to open each file in fresh processes, and to import what that needs; beside the native format.

    They take turns. A first process of each, not counted, brings its file into the page cache.
    """
    runs: dict[str, Callable[[], Mapping[str, float]]] = {
        f"onnx {precision}": partial(_load, file, settings.threads) for precision, file in exported.files.items()
    }
    options = {**CONTESTANTS["fp32"], "threads": settings.threads}
    runs[NATIVE] = partial(run_fresh, "load", exported.subject.folder, options)
    for run in runs.values():
        run()
    found = [{name: run() for name, run in runs.items()} for _ in range(settings.load_repeats)]
    rows = []
    for name in runs:
        common = {"section": "load", "model": exported.subject.name, "name": name, "unit": "s"}
        rows.append(Row.of([each[name]["load"] for each in found], **common, detail="load"))
        rows.append(Row.of([each[name]["imports"] for each in found], **common, detail="imports before it"))
    return rows


def _load(path: Path, threads: int | None) -> Mapping[str, float]:
    taken: dict[str, float] = json.loads(
        run_python("-m", "flashelmo.benchmarks.onnx.fresh", str(path), json.dumps(threads))
    )
    return taken


def measure_size(exported: Exported) -> list[Row]:
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
    values = {"section": "size", "model": exported.subject.name, "name": name, "detail": "file", "unit": "MB"}
    return Row.of([size / MEGABYTE], **values, note=note)
