"""Whoever takes part: how one is made, in a process of its own or in this one, compared, and timed."""

from __future__ import annotations

import cProfile
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from flashelmo.benchmarks.accuracy import error_rows, layers, why_wrong
from flashelmo.benchmarks.results import FAILED, Row, median_ratio
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import PASSAGE, Sentences
from flashelmo.benchmarks.timing import Timing, take_turns
from flashelmo.benchmarks.worker import Here, Pool, Worker, one_line
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import PRESETS, random_model
from flashelmo.engine.model.weights import ElmoModel
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
    contestants: Iterable[Contestant], sentences: Sentences, expected: Sequence[Array] | None, pool: Pool | None = None
) -> tuple[Workers, dict[str, str]]:
    """Those who can take part and whose vectors are right, and by name why the others do not.

    Args:
        sentences, expected: a batch, and the reference's vectors of it; None where they were compared before.
        pool: keeps a process for each; None makes them in this one.
    """
    workers: Workers = {}
    absent: dict[str, str] = {}
    for each in contestants:
        try:
            worker = each.here() if pool is None else each.start(pool)
            wrong = expected and why_wrong(worker.call("vectors", sentences), expected, each.precision, each.place)
            if wrong:
                absent[each.name] = f"{FAILED}: {wrong}"
            else:
                workers[each.name, each.detail] = worker
        except Exception as error:
            absent[each.name] = _why_absent(error, each.is_rival)
    return workers, absent


def _why_absent(error: Exception, is_rival: bool = False) -> str:
    """Cannot run here; or has failed, as a library broke or a worker ended: in both cases the others go on."""
    return ("" if is_rival or isinstance(error, FlashElmoError) else f"{FAILED}: ") + one_line(error)


class Entry(NamedTuple):
    """Somebody's turns.

    Attributes:
        who: takes them.
        row: of the results, without figures; its unit is "tokens/s", or "ms".
        work: pieces that are timed together; tokens: in all of them.
        limits: both ceilings of the row, once the machine's limits have been measured.
        group: of those who are compared with each other.
    """

    who: Contestant
    row: Row
    work: Sequence[Any]
    tokens: int = 0
    limits: Callable[[], tuple[float | None, float | None]] = lambda: (None, None)
    group: str = ""

    @property
    def key(self) -> Key:
        """Of the worker."""
        return self.who.name, self.who.detail

    def timed(self, timing: Timing) -> Row:
        """The row with a timing's figures and its ceilings; a rival that breaks is no failure of ours."""
        if self.who.is_rival and not timing.samples:
            return replace(self.row, note=timing.note)
        ceiling, both = self.limits() if timing.samples else (None, None)
        row = replace(self.row, ceiling=ceiling, ceiling_both=both)
        return row.timed(timing, lambda seconds: self.tokens / seconds if row.unit == "tokens/s" else 1e3 * seconds)


def compete(
    entries: Sequence[Entry],
    workers: Mapping[Key, Worker | Here],
    settings: Settings,
    limits: Mapping[str, Callable[[], float]] | None = None,
    *,
    clock: tuple[Any, ...] = (),
    warm_ups: int = 0,
    pause: float | None = None,
) -> list[Row]:
    """Rows of those entries who have a worker, timed in turns, ours with their ratios to the rivals of their group.

    Args:
        limits: measure the machine's limits, in the same turns.
        clock: what `Clock.seconds` is told beside the work; warm_ups: passes before all rounds.
    """
    there = [each for each in entries if each.key in workers]
    keys = [(each.who.name, k) for k, each in enumerate(there)]
    calls = {key: partial(workers[each.key].call, "seconds", each.work) for key, each in zip(keys, there, strict=True)}
    warm = take_turns(1, {key: partial(call, 0.0, 1, warm_ups) for key, call in calls.items() if warm_ups}, pause)
    failed: dict[Any, Timing] = {key: timing for key, timing in warm.items() if timing.note}
    measures: dict[Any, Callable[[], float]] = dict(limits or {})
    measures |= {key: partial(call, *clock) for key, call in calls.items() if key not in failed}
    timings = take_turns(settings.rounds, measures, pause) | failed
    rows = [each.timed(timings[key]) for key, each in zip(keys, there, strict=True)]
    found = list(zip(there, rows, strict=True))
    for k, (each, row) in enumerate(found):
        rivals = [other for who, other in found if who.who.is_rival and who.group == each.group and other.samples]
        ratios = {
            other.name if other.detail == row.detail else other.label: median_ratio(
                row.samples, other.samples, row.unit
            )
            for other in (rivals if row.samples and not each.who.is_rival else ())
        }
        rows[k] = replace(row, ratios=ratios)
    return rows


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
            rows += error_rows(Row("error", model, each.name, note=note), layers(found, expected))
        except Exception as error:
            rows += absentees("error", model, {each.name: _why_absent(error)}, "relative error")
    return sorted(rows, key=lambda row: row.unit)


@dataclass(frozen=True)
class Subject:
    """A model's name, its folder, beside which texts go, its dimensions, and workers that several sections measure."""

    name: str
    folder: Path
    config: ElmoConfig
    pool: Pool


def load(name: str, seed: int) -> ElmoModel:
    """A model from a path, or a random one of a preset."""
    return random_model(name, seed) if name in PRESETS and not Path(name).exists() else load_model(Path(name))


def prepare(name: str, seed: int, folder: Path, pool: Pool) -> Subject:
    """A model by its preset or path, in the native format in `folder`; the pool lets go of those before it."""
    pool.close()
    model, target = load(name, seed), folder / Path(name).name
    write_native(model, target)
    return Subject(target.name, target, model.config, pool)


def options_of(name: str, settings: Settings, **options: Any) -> dict[str, Any]:
    """What `ElmoEmbedder.load` is told of one of PROCESSOR, with all threads that the run has."""
    return {**PROCESSOR[name], "threads": settings.threads, **options}


def contestant(subject: Subject, settings: Settings, name: str, detail: str = "", **options: Any) -> Contestant:
    """One of PROCESSOR, in other respects as the options say."""
    told = options_of(name, settings, **options)
    is_rival, precision = name == REFERENCE, told.get("precision", "fp32")
    return Contestant(name, precision, engine, (subject.folder, told), detail=detail, is_rival=is_rival)


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
