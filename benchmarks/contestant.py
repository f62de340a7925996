"""One way to embed, made in a process of its own and told there what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from flashelmo.benchmarks.settings import CONTESTANTS, Settings, Subject
from flashelmo.benchmarks.text import Sentences
from flashelmo.benchmarks.worker import Worker
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.text.windows import read_windows

Key = TypeVar("Key")
PAUSE = 0.1  # seconds in which other processes' threads go to sleep


class Contestant:
    """An embedder with a clock.

    Args:
        folder: the model.
        options: what `ElmoEmbedder.load` takes.
    """

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self._embedder = ElmoEmbedder.load(folder, **options)

    def window_tokens(self) -> int:
        """Tokens of text that are computed together."""
        return self._embedder.window_limits[1]

    def vectors(self, sentences: Sentences) -> list[Array]:
        """Vectors of a few sentences."""
        return self._embedder.embed_batch(sentences)

    def bulk(self, path: Path) -> float:
        """Tokens a second from a file of tokenized lines to every sentence's vectors."""
        max_sentences, max_tokens = self._embedder.window_limits
        start = time.perf_counter()
        windows = read_windows(path, max_sentences=max_sentences, max_tokens=max_tokens)
        n_tokens = 0
        for _, vectors in self._embedder.embed_windows(windows):
            n_tokens += sum(sentence.shape[1] for sentence in vectors)
        return n_tokens / (time.perf_counter() - start)

    def single(self, sentence: Sequence[str], repeats: int) -> float:
        """Milliseconds for one sentence, the median of some calls; one more before them is not timed."""
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            self._embedder.embed_sentence(sentence)
            times.append(1e3 * (time.perf_counter() - start))
        return median(times[1:])


def start(subject: Subject, settings: Settings, name: str, **options: Any) -> Worker:
    """A worker with one of CONTESTANTS.

    Raises:
        FlashElmoError: this machine or this installation cannot run it; the message says why.
    """
    given = {**CONTESTANTS[name], "threads": settings.threads, **options}
    return Worker(Contestant, subject.folder, given)


def take_turns(rounds: int, measures: Mapping[Key, Callable[[], float]]) -> dict[Key, list[float]]:
    """Every measure once in each round, A B C A B C, so that a change of the machine's speed meets all alike."""
    samples: dict[Key, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            time.sleep(PAUSE)
            samples[name].append(measure())
    return samples
