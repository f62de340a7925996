"""The host side: how fast text becomes a schedule on one core, and each stage's share of the engine's time."""

from __future__ import annotations

import cProfile
import os
import pstats
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashelmo.benchmarks.contestant import Contestant
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import CONTESTANTS, Settings, Subject
from flashelmo.benchmarks.text import load_sentences, write_sentences
from flashelmo.benchmarks.worker import Worker
from flashelmo.engine import pipeline
from flashelmo.engine.bilstm import BiLstm
from flashelmo.engine.characters import WordEncoder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.schedule import Boundaries, build_schedule
from flashelmo.engine.text import Window, read_windows
from flashelmo.engine.word_vectors import WordVectors

# Stage -> the functions whose time it is. Character ids are made inside the look-up of word vectors.
STAGES: dict[str, tuple[Callable[..., Any], ...]] = {
    "text to words": (read_windows,),
    "schedule": (build_schedule,),
    "character ids": (WordEncoder.character_ids, WordEncoder.word_ids, WordEncoder.lengths),
    "word vectors": (WordVectors.lookup,),
    "LSTM": (BiLstm.run,),
    "gather": (pipeline._sentences,),
}
WINDOWS = (1 << 15, 1 << 17)  # tokens, those of the original and of the small model
MAX_SENTENCES = 1 << 16


class Host:
    """Text to schedule, on one core."""

    def __init__(self) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    def windows(self, path: Path, max_tokens: int) -> float:
        """Tokens a second from a file to windows of distinct words and word ids."""
        return self._speed(path, max_tokens, lambda window: None)

    def schedules(self, path: Path, max_tokens: int) -> float:
        """Tokens a second from a file to the forests of its windows."""
        return self._speed(path, max_tokens, _schedule)

    def _speed(self, path: Path, max_tokens: int, use: Callable[[Window], object]) -> float:
        begin = time.perf_counter()
        n_tokens = 0
        for window in read_windows(path, max_sentences=MAX_SENTENCES, max_tokens=max_tokens):
            use(window)
            n_tokens += len(window.word_ids)
        return n_tokens / (time.perf_counter() - begin)


class Profiled(Contestant):
    """An embedder whose stages are timed by Python's profiler, from outside."""

    def profile(self, path: Path) -> dict[str, float]:
        """Seconds of every stage, and "all" of them with what is between."""
        self.vectors([["first", "calls", "prepare"]])
        profiler = cProfile.Profile()
        begin = time.perf_counter()
        profiler.runcall(self.bulk, path)
        seconds = {"all": time.perf_counter() - begin}
        stats: dict[tuple[str, int, str], tuple[int, int, float, float, Any]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
        for stage, functions in STAGES.items():
            codes = [function.__code__ for function in functions]
            keys = [(code.co_filename, code.co_firstlineno, code.co_name) for code in codes]
            seconds[stage] = sum(stats[key][3] for key in keys if key in stats)
        seconds["word vectors"] -= seconds["character ids"]
        return seconds


def measure_host(subject: Subject, settings: Settings, folder: Path) -> list[Row]:
    """Tokens a second of the text's way to the schedule, and the share of every stage in the engine's time."""
    text, source = load_sentences(settings.host_tokens, settings.text, settings.seed)
    path = write_sentences(folder / "host.txt", text)
    rows = []
    with Worker(Host) as worker:
        for window in WINDOWS:
            for name, method in ("text to words", "windows"), ("text to schedule", "schedules"):
                samples = [worker.call(method, path, window) for _ in range(settings.rounds)]
                detail = f"one core, windows of {window} tokens"
                common = {"section": "host", "model": subject.name, "name": name, "unit": "tokens/s", "note": source}
                rows.append(Row.of(samples, **common, detail=detail))
    for name in settings.contestants:
        try:
            rows += _stages(subject, settings, name, folder)
        except FlashElmoError as error:
            rows.append(Row("host", subject.name, name, "% of the time", note=str(error)))
    return rows


def _stages(subject: Subject, settings: Settings, name: str, folder: Path) -> list[Row]:
    options = {**CONTESTANTS[name], "threads": settings.threads, "cache_bytes": 0}
    with Worker(Profiled, subject.folder, options) as worker:
        n_tokens = settings.bulk_tokens or worker.call("window_tokens")
        text, _ = load_sentences(n_tokens, settings.text, settings.seed)
        seconds = worker.call("profile", write_sentences(folder / "stages.txt", text))
    total = seconds.pop("all")
    seconds["between"] = total - sum(seconds.values())
    common = {"section": "host", "model": subject.name, "name": name, "unit": "% of the time"}
    return [Row.of([100 * value / total], **common, detail=stage) for stage, value in seconds.items()]


def _schedule(window: Window) -> object:
    n_words = len(window.words)
    return build_schedule(window.word_ids, window.offsets, Boundaries(n_words, n_words + 1))
