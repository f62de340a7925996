"""Peak memory, load time and import time, each in fresh processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashelmo.benchmarks.contestant import start
from flashelmo.benchmarks.fresh import import_seconds, run_fresh
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import CONTESTANTS, Settings, Subject
from flashelmo.benchmarks.text import load_sentences, write_sentences

LOADED = ("fp32", "int8")
GIB = 2**30


def measure_memory(subject: Subject, settings: Settings, folder: Path) -> list[Row]:
    """Peak memory beyond the model's file while a text and one twice as long are embedded in float32.

    Bounded memory shows in two like figures. The model's file is memory-mapped, so its pages count as soon as they are
    read; they are subtracted.
    """
    with start(subject, settings, "fp32") as worker:
        window = worker.call("window_tokens")
    common = {"section": "memory", "model": subject.name, "name": "fp32", "unit": "GiB beyond the model's file"}
    model_bytes = sum(path.stat().st_size for path in subject.folder.iterdir())
    rows = []
    for n_tokens in settings.memory_tokens or (window, 2 * window):
        text, _ = load_sentences(n_tokens, settings.text, settings.seed)
        path = write_sentences(folder / f"memory_{n_tokens}.txt", text)
        found = run_fresh("memory", subject.folder, _options("fp32", settings), path)
        beyond = (found["peak"] - model_bytes) / GIB
        note = f"loaded {found['loaded'] / GIB:.3f} GiB, model's file {model_bytes / GIB:.3f} GiB"
        rows.append(Row.of([beyond], **common, detail=f"peak of {n_tokens} tokens", note=note))
    return rows


def measure_load(subject: Subject, settings: Settings) -> list[Row]:
    """Seconds to load the native format in fresh processes, the file in the page cache, and to import.

    A first process, not counted, brings the file into the page cache and prepares what is prepared once.
    """
    rows = []
    for name in LOADED:
        if name not in settings.contestants:
            continue
        options = _options(name, settings)
        run_fresh("load", subject.folder, options)
        runs = [run_fresh("load", subject.folder, options) for _ in range(settings.load_repeats)]
        common = {"section": "load", "model": subject.name, "name": name, "unit": "s"}
        rows.append(Row.of([run["load"] for run in runs], **common, detail="load"))
        rows.append(Row.of([run["imports"] for run in runs], **common, detail="imports before it"))
    seconds = [import_seconds() for _ in range(settings.load_repeats)]
    rows.append(Row.of(seconds, section="load", model=subject.name, name="import flashelmo", unit="s"))
    return rows


def _options(name: str, settings: Settings) -> dict[str, Any]:
    return {**CONTESTANTS[name], "threads": settings.threads}
