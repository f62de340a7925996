"""What a run costs beside its arithmetic: memory and load time, each in fresh processes, and the host's side of it.

The host's side is how fast text becomes schedules, on one core and on more, and each stage's share of the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

from flashelmo.benchmarks.contestant import Subject, contestant, options_of
from flashelmo.benchmarks.fresh import import_seconds, run_fresh
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import load_sentences, write_sentences
from flashelmo.benchmarks.worker import Pool
from flashelmo.engine.cpu import pipeline
from flashelmo.engine.cpu.bilstm import BiLstm
from flashelmo.engine.cpu.word_vectors import WordVectors
from flashelmo.engine.cuda.layout import Layout, Sizes, fill
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.pipeline import Plan, Planner
from flashelmo.engine.processor import n_cores
from flashelmo.engine.settings import Settings as EngineSettings
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.text.schedule import Boundaries, build_schedule
from flashelmo.engine.text.windows import Window, read_ahead, read_windows

LOADED = ("fp32", "int8")
GIB = 2**30
# Stage -> the code whose time it is. Character ids are made inside the look-up of word vectors.
STAGES = {
    "text to words": (read_windows.__code__,),
    "schedule": (build_schedule.__code__,),
    "character ids": tuple(
        each.__code__ for each in (WordEncoder.character_ids, WordEncoder.word_ids, WordEncoder.lengths)
    ),
    "word vectors": (WordVectors.lookup.__code__,),
    "LSTM": (BiLstm.run.__code__,),
    "gather": (pipeline._sentences.__code__,),
}
WINDOWS = (1 << 15, 1 << 17)  # tokens, those of the original and of the small model
MAX_SENTENCES = 1 << 16
WORDS, SCHEDULES, INPUTS = "text to words", "text to schedule", "text to a device's input"


def measure_memory(subject: Subject, settings: Settings) -> list[Row]:
    """Peak memory beyond the model's file while a text and one twice as long are embedded in float32.

    Bounded memory shows in two like figures. The model's file is memory-mapped, so its pages count as soon as they are
    read; they are subtracted.
    """
    lengths = settings.memory_tokens
    if not lengths:
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
    names = [name for name in settings.contestants if name in LOADED]
    runs = {name: partial(run_fresh, "load", subject.folder, options_of(name, settings)) for name in names}
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


class Host:
    """Text to schedules, on some of the cores."""

    def __init__(self, cores: int = 1) -> None:
        self._cores = cores
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    def speed(self, what: str, path: Path, max_tokens: int) -> float:
        """Tokens a second from a file to windows, to their forests, or to the integers that a CUDA device is given."""
        begin = time.perf_counter()
        windows: Iterator[Window] = read_windows(path, max_sentences=MAX_SENTENCES, max_tokens=max_tokens)
        if what == SCHEDULES:
            windows = map(_scheduled, windows)
        elif what == INPUTS:
            planner = Planner(("<S>", "</S>"), EngineSettings(threads=self._cores))
            windows = map(_filled, planner.plan_ahead(read_ahead(windows)))
        return sum(len(window.word_ids) for window in windows) / (time.perf_counter() - begin)


def _scheduled(window: Window) -> Window:
    n_words = len(window.words)
    build_schedule(window.word_ids, window.offsets, Boundaries(n_words, n_words + 1))
    return window


def _filled(plan: Plan) -> Window:
    sizes = Sizes.of(plan.schedule, share=True, pooled=False, stateful=False)
    plan.words.to_pylist()  # what the table of word vectors is asked for
    fill(np.empty(Layout.of(sizes).size, np.int32), sizes, plan.schedule, np.arange(len(plan.words), dtype=np.int32))
    return plan.window


def measure_host(subject: Subject, settings: Settings) -> list[Row]:
    """Tokens a second of the text's way to the schedule, and the share of every stage in the engine's time."""
    text, source = load_sentences(settings.host_tokens, settings.text, settings.seed)
    path = write_sentences(subject.folder.parent / "host.txt", text)
    rows = []
    most = n_cores()
    for cores in sorted({most, *(1 << k for k in range(most.bit_length()))}):
        with Pool() as pool:
            worker = pool.worker(Host, cores)
            for window, what in product(WINDOWS, (INPUTS,) if cores > 1 else (WORDS, SCHEDULES, INPUTS)):
                samples = [worker.call("speed", what, path, window) for _ in range(settings.rounds)]
                detail = f"{cores} core{'s' * (cores > 1)}, windows of {window} tokens"
                rows.append(Row("host", subject.name, what, "tokens/s", detail, note=source).with_samples(samples))
    for name in settings.contestants:
        try:
            rows += _stages(subject, settings, name)
        except FlashElmoError as error:
            rows.append(Row("host", subject.name, name, "% of the time", note=str(error)))
    return rows


def _stages(subject: Subject, settings: Settings, name: str) -> list[Row]:
    """Percentage of each stage in the engine's time, by Python's profiler; no word is known before."""
    worker = contestant(subject, settings, name, cache_bytes=0).start(subject.pool)
    n_tokens = settings.bulk_tokens or worker.call("window_tokens")
    text, _ = load_sentences(n_tokens, settings.text, settings.seed)
    worker.call("vectors", [["first", "calls", "prepare"]])
    total, taken = worker.call("profile", write_sentences(subject.folder.parent / "stages.txt", text))
    seconds = {
        stage: sum(taken.get((code.co_filename, code.co_firstlineno, code.co_name), 0.0) for code in codes)
        for stage, codes in STAGES.items()
    }
    seconds["word vectors"] -= seconds["character ids"]
    seconds["between"] = total - sum(seconds.values())
    return [
        Row("host", subject.name, name, "% of the time", stage).with_samples([100 * value / total])
        for stage, value in seconds.items()
    ]
