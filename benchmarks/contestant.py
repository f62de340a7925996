"""Whoever takes part: how one is made, in a process of its own or in this one, compared, and timed."""

from __future__ import annotations

import cProfile
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from flashelmo.benchmarks.accuracy import error_rows, why_wrong
from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import PASSAGE, Sentences
from flashelmo.benchmarks.worker import Here, Pool, Worker, one_line
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import Place
from flashelmo.engine.text.windows import read_windows

REFERENCE = "reference"
# Who can take part on the processor -> what `ElmoEmbedder.load` is told.
PROCESSOR: Mapping[str, Mapping[str, Any]] = {
    REFERENCE: {"runtime": "reference", "batch_size": PASSAGE},
    "fp32": {"runtime": "ort"},
    "int8": {"runtime": "ort", "precision": "int8"},
    "bf16": {"runtime": "openvino", "precision": "bf16"},
    "fp32 unshared": {"runtime": "ort", "share": False},
    "fp32 openvino": {"runtime": "openvino"},
}
SLOW_SECONDS = 0.5  # of a pass: two of them warm up enough
MOST = 100  # times as many passes as were timed before

Key = tuple[str, str]  # who takes part, and on what
Workers = dict[Key, Worker | Here]


class Way(NamedTuple):
    """One way to embed.

    Attributes:
        vectors: arrays [L, T, 2P] of a batch's sentences.
        run: what is timed, called with a piece of work: a batch, a file of tokenized lines, or whatever it knows; its
            result may stay where it was computed.
        window_tokens: tokens of text that it computes together.
        wait: until what `run` left to a device is done.
    """

    vectors: Callable[[Sentences], list[Array]]
    run: Callable[[Any], object]
    window_tokens: int = 0
    wait: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Contestant:
    """One who takes part.

    Attributes:
        name, detail: who, as "int8" or "PyTorch eager fp32", and on what, as "cold cache".
        precision: that it computes in, for its bound and its ceiling.
        make: makes its way to embed from the arguments; where it raises FlashElmoError, this machine or installation
            cannot run it.
        place: of the bounds on its vectors.
        words_known: whether words' vectors cost it nothing, for its ceiling.
        is_rival: whether others are compared with it.
    """

    name: str
    precision: str
    make: Callable[..., Way]
    arguments: tuple[Any, ...] = ()
    place: Place = "cpu"
    detail: str = ""
    words_known: bool = False
    is_rival: bool = False

    def start(self, pool: Pool) -> Worker:
        """Made in a process of its own, which the pool keeps."""
        return pool.worker(Clock, self.make, *self.arguments)

    def here(self) -> Here:
        """Made in this process."""
        return Here(Clock, self.make, *self.arguments)


class Clock:
    """A way to embed, with a clock: what a worker holds."""

    def __init__(self, make: Callable[..., Way], *arguments: Any) -> None:
        self._way = make(*arguments)

    def vectors(self, sentences: Sentences) -> list[Array]:
        """Vectors of one batch."""
        return self._way.vectors(sentences)

    def window_tokens(self) -> int:
        """Tokens of text that are computed together."""
        return self._way.window_tokens

    def seconds(self, work: Sequence[Any], at_least: float = 0.0, repeats: int = 1, warm_ups: int = 0) -> float:
        """Seconds for all pieces of the work one after the other: the median of some repeats.

        Args:
            at_least: seconds that a repeat lasts, in whole passes over the work.
            warm_ups: passes before, which are not timed: of who is slow, two at most.
        """
        for done in range(warm_ups):
            if self._timed(work, 1) > SLOW_SECONDS and done:
                break
        times = []
        for _ in range(repeats):
            passes, took = 1, self._timed(work, 1)
            while took < at_least:  # how many passes are queued on a device is decided before the first begins
                passes = min(MOST * passes, math.ceil(1.1 * passes * at_least / max(took, 1e-9)))
                took = self._timed(work, passes)
            times.append(took / passes)
        return median(times)

    def profile(self, piece: Any) -> tuple[float, dict[tuple[str, int, str], float]]:
        """Seconds for a piece of work, and those of each function in it, by the file, line and name of its code."""
        profiler = cProfile.Profile()
        begin = time.perf_counter()
        profiler.runcall(self._way.run, piece)
        took = time.perf_counter() - begin
        profiler.create_stats()
        return took, {code: figures[3] for code, figures in profiler.stats.items()}

    def _timed(self, work: Sequence[Any], passes: int) -> float:
        """Seconds of some passes, one queued behind the other where a device computes."""
        self._way.wait()
        begin = time.perf_counter()
        for _ in range(passes):
            for piece in work:
                self._way.run(piece)
        self._way.wait()
        return time.perf_counter() - begin


def line_up(
    contestants: Iterable[Contestant], sentences: Sentences, expected: Sequence[Array], pool: Pool | None = None
) -> tuple[Workers, dict[str, str]]:
    """Those who can take part and whose vectors are right, and by name why the others do not.

    Args:
        sentences, expected: a batch, and the reference's vectors of it.
        pool: keeps a process for each; None makes them in this one.
    """
    workers: Workers = {}
    absent: dict[str, str] = {}
    for each in contestants:
        try:
            worker = each.here() if pool is None else each.start(pool)
            if wrong := why_wrong(worker.call("vectors", sentences), expected, each.precision, each.place):
                absent[each.name] = f"{FAILED}: {wrong}"
            else:
                workers[each.name, each.detail] = worker
        except Exception as error:
            absent[each.name] = _why_absent(error)
    return workers, absent


def _why_absent(error: Exception) -> str:
    """Cannot run here; or has failed, as a library broke or a worker ended: in both cases the others go on."""
    return ("" if isinstance(error, FlashElmoError) else f"{FAILED}: ") + one_line(error)


def absentees(section: str, model: str, absent: Mapping[str, str], unit: str = "tokens/s") -> list[Row]:
    """A row without a figure for everybody who is left out, and why."""
    return [Row(section, model, name, unit, note=why) for name, why in absent.items()]


def errors_of(
    model: str, contestants: Iterable[Contestant], exact: Contestant, sentences: Sentences, source: str, pool: Pool
) -> list[Row]:
    """Largest absolute and relative error of every layer of each, against the exact one in float64, on some text."""
    expected, rows = exact.start(pool).call("vectors", sentences), []
    note = f"{len(sentences)} sentences, {sum(map(len, sentences))} tokens of {source}"
    for each in contestants:
        try:
            found = each.start(pool).call("vectors", sentences)
            rows += error_rows(model, each.name, found, expected, note)
        except Exception as error:
            rows += absentees("error", model, {each.name: _why_absent(error)}, "relative error")
    return sorted(rows, key=lambda row: row.unit)


def options_of(name: str, settings: Settings, **options: Any) -> dict[str, Any]:
    """What `ElmoEmbedder.load` is told of one of PROCESSOR, with all threads that the run has."""
    return {**PROCESSOR[name], "threads": settings.threads, **options}


def engine(folder: Path, options: dict[str, Any]) -> Way:
    """The engine, or the reference, on this processor: a batch, or a file from its text to every sentence's vectors."""
    embedder = ElmoEmbedder.load(folder, **options)
    max_sentences, max_tokens = embedder.window_limits

    def run(work: Sentences | Path) -> None:
        if not isinstance(work, Path):
            embedder.embed_batch(work)
            return
        windows = read_windows(work, max_sentences=max_sentences, max_tokens=max_tokens)
        for _, vectors in embedder.embed_windows(windows):
            for _ in vectors:
                pass

    return Way(embedder.embed_batch, run, max_tokens)
