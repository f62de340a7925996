"""A text into a file of vectors: what the command line and `ElmoEmbedder.embed_file` share."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias

from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import OnProgress, Statistics, Stream
from flashelmo.engine.sinks import Sink
from flashelmo.engine.text.lines import Errors
from flashelmo.engine.text.tables import check_is_text
from flashelmo.engine.text.windows import Window, read_ahead, read_windows

OnTextProgress: TypeAlias = Callable[[float, float], None]  # bytes of text and tokens done so far


class Embedder(Protocol):
    """What is needed of an `ElmoEmbedder`, which says more of each."""

    config: ElmoConfig
    window_limits: tuple[int, int]

    @property
    def statistics(self) -> Statistics:
        """Totals of everything that was embedded."""

    @property
    def reads_ahead(self) -> bool:
        """Whether it reads further windows while one is computed."""

    def embed_windows(self, windows: Iterable[Window], on_progress: OnProgress, output: Output) -> Stream:
        """Each window with its sentences' results."""


@dataclass(frozen=True)
class Summary:
    """What was embedded; see `Statistics` for the numbers. `seconds` is the time from first to last byte."""

    sentences: int
    tokens: int
    distinct_words: int
    steps: int
    steps_saved: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Speed from text to file."""
        return self.tokens / max(self.seconds, 1e-9)


def embed_file(
    embedder: Embedder,
    source: str | Path | IO[Any],
    sink: Sink,
    *,
    errors: Errors = "strict",
    universal_newlines: bool = False,
    max_sentences: int | None = None,
    on_progress: OnTextProgress = lambda n_bytes, n_tokens: None,
) -> Summary:
    """Embed a text of one sentence a line, window by window in bounded memory, into an open sink.

    Args:
        source, errors, universal_newlines: as `read_windows` takes them.
        max_sentences: of a window, and so the rows of a stateful batch; None leaves it to the embedder.
        on_progress: called repeatedly with the bytes of text and the tokens done so far.

    Raises:
        FlashElmoError: text that is not UTF-8 or is plainly a table, a layer that the model lacks, a file that cannot
            be written.
        OSError: the text cannot be read.
    """
    sink.output.check(embedder.config.n_layers + 1)
    started = time.perf_counter()
    before = replace(embedder.statistics)
    progress = _Progress(on_progress)
    sentences_at_once, max_tokens = embedder.window_limits
    windows = read_windows(
        source,
        max_sentences=max_sentences or sentences_at_once,
        max_tokens=max_tokens,
        errors=errors,
        universal_newlines=universal_newlines,
    )
    windows = _checked(windows, str(source if isinstance(source, str | Path) else getattr(source, "name", "text")))
    if embedder.reads_ahead:
        windows = read_ahead(windows)
    for window, sentences in embedder.embed_windows(progress.follow(windows), progress.window, sink.output):
        for b, vectors in enumerate(sentences):
            sink.write(vectors, window.sentence_text(b) if sink.needs_sentences else "")
        progress.finish_window()
    after = embedder.statistics
    return Summary(
        sentences=after.sentences - before.sentences,
        tokens=after.tokens - before.tokens,
        distinct_words=after.distinct_words - before.distinct_words,
        steps=after.steps - before.steps,
        steps_saved=after.steps_saved - before.steps_saved,
        seconds=time.perf_counter() - started,
    )


def _checked(windows: Iterator[Window], name: str) -> Iterator[Window]:
    """The windows of a file of this name, the first one looked at before it is embedded."""
    for window in islice(windows, 1):
        check_is_text(window.text or b"", name)
        yield window
    yield from windows


class _Progress:
    """Adds up the windows that are written, and the computed fraction of the next one."""

    def __init__(self, report: OnTextProgress) -> None:
        self._report = report
        self._done = (0, 0)
        self._read: deque[tuple[int, int]] = deque()  # bytes and tokens of the windows that are not written yet

    def follow(self, windows: Iterator[Window]) -> Iterator[Window]:
        """Pass windows on, however far ahead they are read."""
        for window in windows:
            self._read.append((len(window.text or b""), len(window.word_ids)))
            yield window

    def window(self, computed: float) -> None:
        """The computed fraction of the first unwritten window."""
        n_bytes, n_tokens = self._read[0]
        self._report(self._done[0] + computed * n_bytes, self._done[1] + computed * n_tokens)

    def finish_window(self) -> None:
        """The first unwritten window is written."""
        self.window(1.0)
        n_bytes, n_tokens = self._read.popleft()
        self._done = (self._done[0] + n_bytes, self._done[1] + n_tokens)
