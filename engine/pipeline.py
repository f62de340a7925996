"""What all pipelines share: windows of sentences in, results out; a window's plan; and the statistics of both."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import pyarrow as pa

from flashelmo.engine.arrays import Array
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.model.weights import all_finite
from flashelmo.engine.output import Output
from flashelmo.engine.settings import Settings
from flashelmo.engine.system.processor import n_cores
from flashelmo.engine.system.threads import Background
from flashelmo.engine.text.schedule import Boundaries, Builder, Schedule, build_schedule
from flashelmo.engine.text.windows import Draft, Drafts, Window

Item = TypeVar("Item")
OnProgress: TypeAlias = Callable[[float], None]
Stream: TypeAlias = Iterator[tuple[Window, Iterator[Any]]]

CLOSED = "embedder: expected an open one, found one that was closed"
MAX_THREADS = 4  # planning threads; one plans millions of tokens a second
PLAN_INLINE_TOKENS = 1 << 12  # smaller windows are planned at once: handing them to a thread takes longer


@dataclass
class Statistics:
    """What was embedded so far, and what sharing saved.

    Attributes:
        sentences, tokens: of the input.
        words_computed: word vectors computed: those of distinct words that are in no cache. Several processes, which
            share none, may each compute a word's.
        steps: LSTM steps (of both directions, for one layer) that were run.
        steps_saved: steps that sentence-by-sentence runs would have needed beyond those.
    """

    sentences: int = 0
    tokens: int = 0
    words_computed: int = 0
    steps: int = 0
    steps_saved: int = 0

    def __sub__(self, before: Statistics) -> Statistics:
        """What was added since `before`."""
        return Statistics(*(getattr(self, field.name) - getattr(before, field.name) for field in fields(Statistics)))

    def __iadd__(self, added: Statistics) -> Statistics:
        """Add what was embedded elsewhere."""
        for field in fields(Statistics):
            setattr(self, field.name, getattr(self, field.name) + getattr(added, field.name))
        return self

    def count(self, window: Window, schedule: Schedule, n_new: int, keep_boundaries: bool) -> None:
        """Add a window whose schedule was run, and for which n_new word vectors were computed."""
        n_tokens, n_run = int(window.offsets[-1]), int(np.count_nonzero(np.diff(window.offsets)))
        alone = 2 * (n_tokens + n_run * (1 + keep_boundaries))
        self.sentences += len(window)
        self.tokens += n_tokens
        self.words_computed += n_new
        self.steps += schedule.n_nodes
        self.steps_saved += max(0, alone - schedule.n_nodes)


class WindowPipeline(Protocol):
    """Turns a stream of windows into what was asked for of their sentences. Several threads may use one at once.

    Attributes:
        statistics: totals of everything that was embedded.
        ahead: how many further windows it reads before it gives one's results; 0 where it reads none.
    """

    statistics: Statistics
    ahead: int

    def reset_state(self) -> None:
        """Let every row start at zero again."""

    def stream(
        self, windows: Iterable[Window], output: Output, on_progress: OnProgress, *, as_numpy: bool = True
    ) -> Stream:
        """Each window with an iterator of its sentences' results, in order; nothing is read before it is iterated.

        Args:
            output: layers and pooling, which the model must have (`Output.check`). A result has the shape
                `output.shape((L, T, 2P))`; it may have `output.dtype` already, or else the number type of the
                computation, float32 or float64.
            on_progress: called repeatedly with the fraction of the next window that is computed, or is there.
            as_numpy: numpy arrays; otherwise PyTorch tensors, on the device that computed them, whose values may be
                checked only when later ones are given.

        Raises:
            MissingExtraError: tensors are asked for, and PyTorch is not installed; raised by the call itself.
        """


class ClosedPipeline:
    """A `WindowPipeline` in the place of one that was let go of: it refuses everything.

    Args:
        statistics: of the one before.
    """

    ahead = 0

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics

    def reset_state(self) -> None:
        """Raise FlashElmoError."""
        raise FlashElmoError(CLOSED)

    def stream(
        self, windows: Iterable[Window], output: Output, on_progress: OnProgress, *, as_numpy: bool = True
    ) -> Stream:
        """Raise FlashElmoError."""
        raise FlashElmoError(CLOSED)


class PipelineInfo(NamedTuple):
    """A pipeline; where, with what and in what it computes now that "auto" is decided.

    Attributes:
        max_tokens: that it takes at once; None where it takes batches of `batch_size` sentences, however long.
    """

    pipeline: WindowPipeline
    device: str
    runtime: str
    precision: str
    max_tokens: int | None


@dataclass(frozen=True)
class Plan:
    """A window, its distinct words with the boundaries as the last two, its schedule, and what a runtime made of that.

    Attributes:
        packed: what a runtime's `Pack` gave.
    """

    window: Window
    words: pa.StringArray
    schedule: Schedule
    packed: Any = None


Pack: TypeAlias = Callable[[Schedule, pa.StringArray], Any]  # given a schedule and the distinct words; in any thread


class Planner:
    """Plans windows, without PyTorch.

    Args:
        boundary_words: the tokens that stand for the begin and the end of a sentence.
        settings: whether prefixes are shared, whether every sentence runs through its far boundary, as stateful runs
            must, and how many threads plan ahead: by default a core less than there are, at most 4.
        build: what makes the nodes of schedules, by default NumPy.
    """

    def __init__(self, boundary_words: tuple[str, str], settings: Settings, build: Builder | None = None) -> None:
        self._build = build
        self._boundary_words = pa.array(boundary_words, pa.string())
        self._keep_boundaries, self._share = settings.keep_sentence_boundaries, settings.shares_prefixes
        self._complete = settings.stateful
        self.threads = settings.threads or max(1, min(MAX_THREADS, n_cores() - 1))

    def plan(self, source: Window | Draft, pack: Pack | None = None) -> Plan:
        """A window's plan, or that of the window that a draft makes."""
        window = source.window() if isinstance(source, Draft) else source
        n_words = len(window.words)
        schedule = build_schedule(
            window.word_ids,
            window.offsets,
            Boundaries(begin=n_words, end=n_words + 1, keep=self._keep_boundaries),
            share=self._share,
            complete=self._complete,
            build=self._build,
        )
        words = pa.concat_arrays([window.words, self._boundary_words])
        return Plan(window, words, schedule, None if pack is None else pack(schedule, words))

    def plan_ahead(self, windows: Iterable[Window], pack: Pack | None = None) -> Iterator[Plan]:
        """Plans in order; threads make those of large windows, up to `threads` + 1 windows in advance.

        The first ones are given sooner: nothing computes yet. What the input raises is raised in its place.
        """
        waiting: deque[Background[Plan]] = deque()
        ahead = 0
        errors: list[Exception] = []
        sources: Iterable[Window | Draft] = windows.drafts if isinstance(windows, Drafts) else windows
        for window in until_error(sources, errors):
            if window.offsets[-1] < PLAN_INLINE_TOKENS:
                while waiting:
                    yield waiting.popleft().result()
                yield self.plan(window, pack)
                continue
            waiting.append(Background(partial(self.plan, window, pack)))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
                ahead = min(ahead + 1, self.threads)
        while waiting:
            yield waiting.popleft().result()
        if errors:
            raise errors.pop()


def until_error(items: Iterable[Item], errors: list[Exception]) -> Iterator[Item]:
    """Items until an exception, which is put into `errors`, so that the caller can first finish what is under way."""
    try:
        yield from items
    except Exception as error:
        errors.append(error)


def stream_windows(windows: Iterable[Window], run: Callable[[Window], Iterator[Array]], as_numpy: bool) -> Stream:
    """Each window with its results, computed when it is asked for; see `WindowPipeline.stream`.

    Raises:
        FlashElmoError: a result holds infinity or NaN, raised in its place.
    """
    stream = _stream_checked(windows, run)
    if as_numpy:
        return stream
    try:
        from torch import from_numpy
    except ImportError as error:
        raise MissingExtraError("torch", "torch", "convert_to_numpy=False") from error
    return ((window, map(from_numpy, results)) for window, results in stream)


def _stream_checked(windows: Iterable[Window], run: Callable[[Window], Iterator[Array]]) -> Stream:
    """Each window with its results, of which none holds infinity or NaN."""
    first = 0  # the number of the window's first sentence among all
    for window in windows:
        yield window, _checked(window, first, run(window))
        first += len(window)


def _checked(window: Window, first: int, results: Iterator[Array]) -> Iterator[Array]:
    """A window's results, none of which is held on to."""
    for b in range(len(window)):
        with np.errstate(over="ignore", invalid="ignore"):  # what follows says more than NumPy's warning
            result = [next(results)]
        if not all_finite(result[0]):
            raise not_finite(window, b, first)
        yield result.pop()


def not_finite(window: Window, b: int, first: int, dtype: str = "float32") -> FlashElmoError:
    """The error of a window's sentence b whose vectors overflow; `first` is the number of the window's first one."""
    expected = "finite vectors, found infinity or NaN: an overflow in the model"
    if dtype == "float16":
        expected = "finite values within float16's range, found others; use float32"
    return FlashElmoError(f"sentence {first + b} ({window.sentence_text(b)!r:.60}): expected {expected}")


def renumbered(text: str, n: int) -> str:
    """An error's text; the number of the sentence that it begins with, if any, has n added."""
    return re.sub(r"^sentence (\d+)", lambda found: f"sentence {n + int(found[1])}", text)
