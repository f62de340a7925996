"""A text file into a file of vectors: what the command line and `ElmoEmbedder.embed_file` share."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeAlias

from flashelmo.engine.arrays import Array
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import OnProgress, Statistics, Stream
from flashelmo.engine.sinks import Sink
from flashelmo.engine.sinks.files import check_space
from flashelmo.engine.text.lines import Errors
from flashelmo.engine.text.tables import check_is_text
from flashelmo.engine.text.windows import Window, read_ahead, read_windows

if TYPE_CHECKING:
    from flashelmo.engine.sinks.seqvec import SeqVecSink

OnTextProgress: TypeAlias = Callable[[float, float], None]  # bytes of text and tokens done so far


class Embedder(Protocol):
    """The part of `ElmoEmbedder`'s interface that is needed here; documented there."""

    config: ElmoConfig
    window_limits: tuple[int, int]
    settings: Any

    @property
    def statistics(self) -> Statistics:
        """Totals of everything embedded."""

    @property
    def reads_ahead(self) -> bool:
        """Whether it reads further windows while one is being computed."""

    @property
    def first_tokens(self) -> int:
        """Token limit of a stream's first window."""

    def embed_windows(self, windows: Iterable[Window], on_progress: OnProgress, output: Output) -> Stream:
        """Yield each window with its sentences' results."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what its vectors depend on."""


@dataclass
class Summary(Statistics):
    """What was embedded; see `Statistics` for the numbers.

    Attributes:
        skipped: records that could not be read.
        seconds: from the first byte to the last.
    """

    skipped: int = 0
    seconds: float = 0.0

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
    """Embed a text of one sentence per line, window by window in bounded memory, into an open sink.

    Args:
        source, errors, universal_newlines: as `read_windows` takes them.
        max_sentences: of a window, and so the rows of a stateful batch; None leaves it to the embedder.
        on_progress: called repeatedly with the bytes of text and the tokens done so far.

    Raises:
        FlashElmoError: the text is not UTF-8 or is clearly a table, the model lacks a layer, or a file cannot be
            written.
        OSError: the text cannot be read.
    """
    sentences_at_once, max_tokens = embedder.window_limits
    windows = read_windows(
        source,
        max_sentences=max_sentences or sentences_at_once,
        max_tokens=max_tokens,
        first_tokens=embedder.first_tokens,
        errors=errors,
        universal_newlines=universal_newlines,
    )
    name = str(source if isinstance(source, str | Path) else getattr(source, "name", "text"))
    found = _checked(windows, name, partial(_check_disk, embedder, sink, _size_of(source)))
    if embedder.reads_ahead:
        found = read_ahead(found)

    def write(window: Window, b: int, vectors: Array) -> None:
        sink.write(vectors, window.sentence_text(b) if sink.needs_sentences else "")

    return write_all(embedder, found, write, sink.output, on_progress)


def write_all(
    embedder: Embedder,
    windows: Iterator[tuple[Window, float]],
    write: Callable[[Window, int, Array], None],
    output: Output,
    on_progress: OnTextProgress,
) -> Summary:
    """Embed windows, each with its size in bytes, and write the vectors of each sentence b of a window.

    Raises:
        FlashElmoError: the model lacks a layer of the output; or as `write` raises.
    """
    output.check(embedder.config.n_layers + 1)
    started = time.perf_counter()
    before = replace(embedder.statistics)
    progress = TextProgress(on_progress)

    def followed() -> Iterator[Window]:
        begin = 0.0
        for window, n_bytes in windows:
            progress.add(begin, begin + n_bytes, len(window.word_ids))
            begin += n_bytes
            yield window

    for window, sentences in embedder.embed_windows(followed(), progress.window, output):
        for b, vectors in enumerate(sentences):
            write(window, b, vectors)
        progress.finish_window()
    added = embedder.statistics - before
    return Summary(**asdict(added), seconds=time.perf_counter() - started)


def check_disk(
    embedder: Embedder,
    sink: Sink | SeqVecSink,
    n_tokens: int,
    n_sentences: int,
    n_bytes: float,
    total_bytes: float | None,
) -> None:
    """Raise FlashElmoError if the disk has less room than the vectors of a text will take.

    Args:
        n_tokens, n_sentences, n_bytes: of the beginning of the text.
        total_bytes: of the whole text, to which the need is scaled up. With None, or `n_bytes` 0, only the beginning
            counts.
    """
    n_rows = n_tokens + 2 * n_sentences * bool(embedder.settings.keep_sentence_boundaries)
    needed = sink.n_bytes(embedder.config.n_layers + 1, embedder.config.output_size, n_rows, n_sentences)
    check_space(sink.path, needed * max(1.0, (total_bytes or 0.0) / n_bytes if n_bytes else 1.0), sink.output)


def _check_disk(embedder: Embedder, sink: Sink, total_bytes: float | None, window: Window) -> None:
    n_tokens, n_bytes = len(window.word_ids), len(window.text or b"")
    check_disk(embedder, sink, n_tokens, len(window), n_bytes, total_bytes)


def _size_of(source: str | Path | IO[Any]) -> int | None:
    """Return the size of a regular file in bytes; None for anything else."""
    try:
        status = os.stat(source) if isinstance(source, str | Path) else os.fstat(source.fileno())
    except (AttributeError, OSError, ValueError):
        return None
    return status.st_size if S_ISREG(status.st_mode) else None


def _checked(windows: Iterator[Window], name: str, check: Callable[[Window], None]) -> Iterator[tuple[Window, float]]:
    """Yield the windows of the file of this name with their bytes, checking the first before it is embedded."""
    for window in islice(windows, 1):
        check_is_text(window.text or b"", name)
        check(window)
        yield window, len(window.text or b"")
    for window in windows:
        yield window, len(window.text or b"")


class TextProgress:
    """The position of the computation in the input, in bytes, and the number of tokens done.

    Args:
        report: called with both.
    """

    def __init__(self, report: OnTextProgress) -> None:
        self._report = report
        self._n_tokens = 0
        self._read: deque[tuple[float, float, int]] = deque()  # of the windows not yet done

    def add(self, begin: float, end: float, n_tokens: int) -> None:
        """Add a window that was read: its bytes of the input, from `begin` to `end`, and its tokens."""
        self._read.append((begin, end, n_tokens))

    def window(self, computed: float) -> None:
        """Report the computed fraction of the oldest window not yet done."""
        begin, end, n_tokens = self._read[0]
        self._report(begin + computed * (end - begin), self._n_tokens + computed * n_tokens)

    def finish_window(self) -> None:
        """Count that window as done."""
        self.window(1.0)
        self._n_tokens += self._read.popleft()[2]
