"""A text into a file of vectors: what the command line and `ElmoEmbedder.embed_file` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from flashelmo.engine.sinks import Sink
from flashelmo.engine.text import Errors, Window, read_windows

if TYPE_CHECKING:
    from flashelmo.engine.embedder import ElmoEmbedder

Progress = Callable[[float, float], None]


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
    embedder: ElmoEmbedder,
    source: str | Path | IO[Any],
    sink: Sink,
    *,
    errors: Errors = "strict",
    max_sentences: int | None = None,
    on_progress: Progress = lambda n_bytes, n_tokens: None,
) -> Summary:
    """Embed a text of one sentence a line, window by window in bounded memory, into an open sink.

    Args:
        source, errors: as `read_windows` takes them.
        max_sentences: of a window, and so the rows of a stateful batch; None leaves it to the embedder.
        on_progress: called again and again with the bytes of text and the tokens done so far.

    Raises:
        FlashElmoError: text that is not UTF-8, a layer that the model lacks, a file that cannot be written.
        OSError: the text cannot be read.
    """
    sink.output.check(embedder.config.n_layers + 1)
    started = time.perf_counter()
    before = replace(embedder.statistics)
    progress = _Progress(on_progress)
    sentences_at_once, max_tokens = embedder.window_limits
    windows = read_windows(
        source, max_sentences=max_sentences or sentences_at_once, max_tokens=max_tokens, errors=errors
    )
    for window, sentences in embedder.embed_windows(progress.follow(windows), progress.share):
        for b, vectors in enumerate(sentences):
            sink.write(vectors, window.sentence_text(b) if sink.needs_sentences else "")
    after = embedder.statistics
    return Summary(
        sentences=after.sentences - before.sentences,
        tokens=after.tokens - before.tokens,
        distinct_words=after.distinct_words - before.distinct_words,
        steps=after.steps - before.steps,
        steps_saved=after.steps_saved - before.steps_saved,
        seconds=time.perf_counter() - started,
    )


class _Progress:
    """Adds up windows, of the latest one the share that is done."""

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._done = (0, 0)
        self._window = (0, 0)

    def follow(self, windows: Iterator[Window]) -> Iterator[Window]:
        """Pass windows on; a window that is asked for means that the one before is done."""
        for window in windows:
            self._window = (len(window.text or b""), len(window.word_ids))
            yield window
            self.share(1.0)
            self._done = (self._done[0] + self._window[0], self._done[1] + self._window[1])

    def share(self, share: float) -> None:
        """The share of the latest window that is done."""
        self._report(self._done[0] + share * self._window[0], self._done[1] + share * self._window[1])
