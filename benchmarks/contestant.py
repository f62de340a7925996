"""Contestants: how one is made, in its own process or in this one, compared, and timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flashelmo.benchmarks.accuracy import error_rows, layers, why_wrong
from flashelmo.benchmarks.results import FAILED, Row, median_ratio
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import PASSAGE, Sentences
from flashelmo.benchmarks.worker import Here, Pool, Timing, Worker, one_line, take_turns
from flashelmo.engine.arrays import Float32
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import PRESETS, random_model
from flashelmo.engine.model.named.locate import TINY
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import Backend
from flashelmo.engine.text.windows import read_windows

REFERENCE = "reference"
# Contestants on the processor -> options of `ElmoEmbedder.load`.
PROCESSOR: Mapping[str, Mapping[str, Any]] = {
    REFERENCE: {"runtime": "reference", "batch_size": PASSAGE},
    "fp32": {"runtime": "ort"},
    "int8": {"device": "cpu", "precision": "int8"},
    "bf16": {"device": "cpu", "precision": "bf16"},
    "int8 ort": {"runtime": "ort", "precision": "int8"},
    "bf16 openvino": {"runtime": "openvino", "precision": "bf16"},
    "fp32 unshared": {"runtime": "ort", "share": False},
    "fp32 openvino": {"runtime": "openvino"},
}
UNITS = {"ms": 1e3, "µs": 1e6}  # per second
SLOW_SECONDS = 0.5  # of a pass: then two of them are warm-up enough
MOST = 100  # times as many passes as in the last timing

Key = tuple[str, str]  # which contestant, and on what
Workers = dict[Key, Worker | Here]


class Way(NamedTuple):
    """One way to embed.

    Attributes:
        vectors: returns arrays [L, T, 2P] of a batch's sentences.
        run: what is timed, called with a piece of work: a batch, a file of tokenized lines, or anything it knows; its
            result may stay where it was computed.
        window_tokens: tokens of text that it computes together.
        wait: waits until what `run` left to a device is done.
    """

    vectors: Callable[[Sentences], list[Float32]]
    run: Callable[[Any], object]
    window_tokens: int = 0
    wait: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Contestant:
    """A contestant.

    Attributes:
        name, detail: who, such as "int8" or "PyTorch eager fp32", and on what, such as "cold cache".
        precision: in which it computes, for its bound and its ceiling.
        make: makes its way to embed from the arguments; if it raises FlashElmoError, this machine or installation
            cannot run it.
        backend: of the bounds on its vectors.
        words_known: whether words' vectors cost it nothing, for its ceiling.
        is_rival: whether others are compared with it.
    """

    name: str
    precision: str
    make: Callable[..., Way]
    arguments: tuple[Any, ...] = ()
    backend: Backend = "cpu"
    detail: str = ""
    words_known: bool = False
    is_rival: bool = False

    def start(self, pool: Pool) -> Worker:
        """Make it in its own process, which the pool keeps."""
        return pool.worker(Clock, self.make, *self.arguments)


class Clock:
    """A way to embed, with a clock: the object in a worker."""

    def __init__(self, make: Callable[..., Way], *arguments: Any) -> None:
        self._way = make(*arguments)

    def vectors(self, sentences: Sentences) -> list[Float32]:
        """Return the vectors of one batch."""
        return self._way.vectors(sentences)

    def window_tokens(self) -> int:
        """Return the tokens of text that are computed together."""
        return self._way.window_tokens

    def seconds(self, work: Sequence[Any], at_least: float = 0.0) -> float:
        """Return the seconds for all pieces of the work, in order, from as many passes as together last `at_least`."""
        passes, took = 1, self._timed(work, 1)
        while took < at_least:  # a device's passes are queued, so their number is decided before the first
            passes = min(MOST * passes, math.ceil(1.1 * passes * at_least / max(took, 1e-9)))
            took = self._timed(work, passes)
        return took / passes

    def warm_up(self, work: Sequence[Any], passes: int) -> float:
        """Do passes that are not timed; at most two if they are slow."""
        for done in range(passes):
            if self._timed(work, 1) > SLOW_SECONDS and done:
                break
        return 0.0

    def _timed(self, work: Sequence[Any], passes: int) -> float:
        """Return the seconds of some passes, queued one after the other if a device computes."""
        self._way.wait()
        begin = time.perf_counter()
        for _ in range(passes):
            for piece in work:
                self._way.run(piece)
        self._way.wait()
        return time.perf_counter() - begin


def line_up(
    contestants: Iterable[Contestant],
    sentences: Sentences,
    expected: Sequence[Float32] | None,
    pool: Pool | None = None,
) -> tuple[Workers, dict[str, str]]:
    """Return those who can take part and whose vectors are right, and, by name, why the others do not: they cannot run
    here, or have failed, because a library broke or a worker ended.

    Args:
        sentences, expected: a batch, and the reference's vectors of it; None if they were already compared.
        pool: keeps a process for each; None makes them in this one.
    """
    workers: Workers = {}
    absent: dict[str, str] = {}
    for each in contestants:
        try:
            worker = Here(Clock, each.make, *each.arguments) if pool is None else each.start(pool)
            wrong = expected and why_wrong(worker.call("vectors", sentences), expected, each.precision, each.backend)
            if wrong:
                absent[each.name] = f"{FAILED}: {wrong}"
            else:
                workers[each.name, each.detail] = worker
        except Exception as error:
            excused = each.is_rival or isinstance(error, FlashElmoError)
            absent[each.name] = ("" if excused else f"{FAILED}: ") + one_line(error)
    return workers, absent


class Entry(NamedTuple):
    """One contestant's turns.

    Attributes:
        who: the contestant.
        row: of the results, without figures.
        work: pieces that are timed together; amount: of the row's unit per second in all of them, such as tokens, or
            calls.
        limits: both ceilings of the row, once the machine's limits have been measured.
        group: of those who are compared with each other.
    """

    who: Contestant
    row: Row
    work: Sequence[Any]
    amount: float = 1
    limits: Callable[[], tuple[float | None, float | None]] = lambda: (None, None)
    group: str = ""

    def timed(self, timing: Timing) -> Row:
        """Return the row with a timing's figures and its ceilings; a rival that breaks is not our failure."""
        if not timing.samples:
            return replace(self.row, note=timing.note if self.who.is_rival else f"{FAILED}: {timing.note}")
        ceiling, both = self.limits()
        row = replace(self.row, ceiling=ceiling, ceiling_both=both)
        if row.unit.endswith("/s"):
            return row.with_samples([self.amount / seconds for seconds in timing.samples])
        return row.with_samples([UNITS[row.unit] * seconds / self.amount for seconds in timing.samples])


def compete(
    entries: Sequence[Entry],
    workers: Mapping[Key, Worker | Here],
    settings: Settings,
    limits: Mapping[str, Callable[[], float]] | None = None,
    *,
    at_least: float = 0.0,
    warm_ups: int = 0,
    pause: float | None = None,
) -> list[Row]:
    """Return rows of the entries that have a worker, timed in turns; ours have ratios to the rivals of their group.

    Args:
        limits: measure the machine's limits, in the same turns.
        at_least: seconds that each is timed in a round; warm_ups: passes before all rounds.
    """
    there = {(each.who.name, k): each for k, each in enumerate(entries) if (each.who.name, each.who.detail) in workers}
    calls = {key: partial(workers[each.who.name, each.who.detail].call) for key, each in there.items()}
    warm = {key: partial(call, "warm_up", there[key].work, warm_ups) for key, call in calls.items() if warm_ups}
    failed = {key: timing for key, timing in take_turns(1, warm, pause).items() if timing.note}
    measures: dict[Any, Callable[[], float]] = dict(limits or {})
    measures |= {
        key: partial(call, "seconds", there[key].work, at_least) for key, call in calls.items() if key not in failed
    }
    timings = take_turns(settings.rounds, measures, pause) | failed
    found = [(each, each.timed(timings[key])) for key, each in there.items()]
    rivals = [(each.group, row) for each, row in found if each.who.is_rival and row.samples]
    return [
        row if each.who.is_rival else _compared(row, [rival for group, rival in rivals if group == each.group])
        for each, row in found
    ]


def _compared(row: Row, rivals: Sequence[Row]) -> Row:
    """Return the row with its speed relative to each rival, whose detail is given if it differs."""
    ratios = {
        rival.name if rival.detail == row.detail else rival.label: median_ratio(row.samples, rival.samples, row.unit)
        for rival in (rivals if row.samples else ())
    }
    return replace(row, ratios=ratios)


def absentees(section: str, model: str, absent: Mapping[str, str], unit: str = "tokens/s") -> list[Row]:
    """Return a row without a figure for every absent contestant, with the reason."""
    return [Row(section, model, name, unit, note=why) for name, why in absent.items()]


def errors_of(
    model: str, contestants: Iterable[Contestant], exact: Contestant, sentences: Sentences, source: str, pool: Pool
) -> list[Row]:
    """Return each one's largest absolute and relative error in every layer, against the exact one in float64."""
    expected, rows = exact.start(pool).call("vectors", sentences), []
    note = f"{len(sentences)} sentences, {sum(map(len, sentences))} tokens of {source}"
    for each in contestants:
        workers, absent = line_up([each], [], None, pool)
        rows += absentees("error", model, absent, "relative error")
        for worker in workers.values():
            found = layers(worker.call("vectors", sentences), expected)
            rows += error_rows(Row("error", model, each.name, note=note), found)
    return sorted(rows, key=lambda row: row.unit)


@dataclass(frozen=True)
class Subject:
    """A model's name, its folder, beside which texts go, its dimensions, and workers that several sections measure."""

    name: str
    folder: Path
    config: ElmoConfig
    pool: Pool


def load(name: str, seed: int) -> ElmoModel:
    """Return a model from a path, "tiny", which comes with the package, or a random one of another preset."""
    is_random = name in PRESETS and name != TINY and not Path(name).exists()
    return random_model(name, seed) if is_random else load_model(Path(name))


def prepare(name: str, seed: int, folder: Path, pool: Pool) -> Subject:
    """Return a model, by preset or path, in the native format in `folder`; the pool closes its previous workers."""
    pool.close()
    model, target = load(name, seed), folder / Path(name).name
    write_native(model, target)
    return Subject(target.name, target, model.config, pool)


def options_of(name: str, settings: Settings, **options: Any) -> dict[str, Any]:
    """Return the options of `ElmoEmbedder.load` for one of PROCESSOR, with all threads of the run."""
    return {**PROCESSOR[name], "threads": settings.threads, **options}


def contestant(subject: Subject, settings: Settings, name: str, detail: str = "", **options: Any) -> Contestant:
    """Return one of PROCESSOR, otherwise as the options say."""
    told = options_of(name, settings, **options)
    is_rival, precision = name == REFERENCE, told.get("precision", "fp32")
    return Contestant(name, precision, engine, (subject.folder, told), detail=detail, is_rival=is_rival)


def engine(folder: Path, options: dict[str, Any]) -> Way:
    """Return the engine, or the reference, on this processor: for a batch, or a file up to every sentence's vectors."""
    embedder = ElmoEmbedder.load(folder, **options)
    max_sentences, max_tokens = embedder.window_limits

    def run(work: Sentences | Path) -> None:
        if not isinstance(work, Path):
            embedder.embed_batch(work)
            return
        windows = read_windows(
            work, max_sentences=max_sentences, max_tokens=max_tokens, first_tokens=embedder.first_tokens
        )
        for _, vectors in embedder.embed_windows(windows):
            for _ in vectors:
                pass

    return Way(embedder.embed_batch, run, max_tokens)
