"""Peak memory, load time and import time, each in fresh processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from flashelmo.benchmarks.cpu.contestants import contestant, options_of
from flashelmo.benchmarks.fresh import import_seconds, run_fresh
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import Subject
from flashelmo.benchmarks.text import load_sentences, write_sentences

LOADED = ("fp32", "int8")
GIB = 2**30


def measure_memory(subject: Subject, settings: Settings) -> list[Row]:
    """Peak memory beyond the model's file while a text and one twice as long are embedded in float32.

    Bounded memory shows in two like figures. The model's file is memory-mapped, so its pages count as soon as they are
    read; they are subtracted.
    """
    lengths = settings.memory_tokens
    if lengths is None:
        window = contestant(subject, settings, "fp32").start(subject.pool).call("window_tokens")
        lengths = window, 2 * window
    model_bytes = sum(path.stat().st_size for path in subject.folder.iterdir())
    rows = []
    for n_tokens in lengths:
        text, _ = load_sentences(n_tokens, settings.text, settings.seed)
        path = write_sentences(subject.folder.parent / f"memory_{n_tokens}.txt", text)
        found = run_fresh("memory", subject.folder, options_of("fp32", settings), path)
        note = f"loaded {found['loaded'] / GIB:.3f} GiB, model's file {model_bytes / GIB:.3f} GiB"
        detail, unit = f"peak of {n_tokens} tokens", "GiB beyond the model's file"
        row = Row("memory", subject.name, "fp32", unit, detail, note=note)
        rows.append(row.with_samples([(found["peak"] - model_bytes) / GIB]))
    return rows


def measure_load(subject: Subject, settings: Settings) -> list[Row]:
    """Seconds to load the native format in fresh processes, the file in the page cache, and to import."""
    runs = {
        name: partial(run_fresh, "load", subject.folder, options_of(name, settings))
        for name in LOADED
        if name in settings.contestants
    }
    seconds = [import_seconds() for _ in range(settings.load_repeats)]
    imported = Row("load", subject.name, "import flashelmo", "s").with_samples(seconds)
    return [*measure_loads(subject.name, runs, settings), imported]


def measure_loads(model: str, runs: Mapping[str, Callable[[], Mapping[str, float]]], settings: Settings) -> list[Row]:
    """Two rows for each way to load: its seconds, and those of the imports before it. They take turns.

    A first process of each, not counted, brings its file into the page cache and prepares what is prepared once; a
    single repeat does without.
    """
    for run in runs.values() if settings.load_repeats > 1 else ():
        run()
    found = [{name: run() for name, run in runs.items()} for _ in range(settings.load_repeats)]
    return [
        Row("load", model, name, "s", detail).with_samples([each[name][key] for each in found])
        for name in runs
        for key, detail in (("load", "load"), ("imports", "imports before it"))
    ]
