"""What a card's host does in bulk: what takes its time, and, without a card, how fast it can be at most.

With an absent card everything is done except the card's own work: tokens become windows and schedules, kernels get
their arguments and are passed to a driver that does nothing, and results are returned. Memory is then the host's, so
that PyTorch's work for a card's memory and copies is missing, and results that go to the host are already there. On a
card, wall time beyond processor time is waiting: for the driver, memory, or other threads.

Windows are of the two sizes that cards have, all of one size; times are for 131,072 tokens of them. Also measured is
one sentence by itself, whose words are known and whose window is a graph: what a caller waits for besides the card.
"""

from __future__ import annotations

import gc
import os
import time
from collections import defaultdict, deque
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from flashelmo.benchmarks.contestant import Subject
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import load_sentences, write_sentences
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import Stream
from flashelmo.engine.text.schedule import LARGEST_WINDOW_TOKENS, MAX_WINDOW_TOKENS
from flashelmo.engine.text.sentences import grouped
from flashelmo.engine.text.windows import Draft, Drafts, read_ahead, read_windows

HOST_TOKENS = 2_500_000
PART_TOKENS = 1 << 17
SIZES = MAX_WINDOW_TOKENS, LARGEST_WINDOW_TOKENS  # of windows on a small card and on a large one
FROM_LISTS, FROM_TEXT = "token lists, layers left on the card", "text to means"
CLOCK, ALL, QUEUEING = "by the clock", "processor, all threads", "processor, the thread that queues"
# Of the queueing thread, by where it is spent; what is missing from the total is in between.
PARTS = {
    "token lists to windows": ("engine.text.windows", "Draft", "of"),
    "words": ("engine.cuda.model", "WordVectorTable", "lookup"),
    "schedule": ("engine.cuda.executor", "", "fill_words"),
    "launches": ("engine.cuda.executor", "", "compute"),
}
RESULTS = "results"
SENTENCE_TOKENS, SENTENCE_CALLS, MICROSECONDS = 20, 200, 1e6


class Host:
    """An engine, and what its host does. It changes its process, which should be a separate one.

    Args:
        model: its folder; beside it the absent card's driver is built.
        threads: that plan windows.

    Raises:
        FlashElmoError: there is no C compiler.
    """

    def __init__(self, model: Path, threads: int | None) -> None:
        os.environ["TRITON_INTERPRET"] = "0"  # before Triton is imported
        torch: Any = import_module("torch")
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        if self.device.type == "cpu":
            import_module("flashelmo.benchmarks.kernels.absent").pretend(model.parent)
            layer: Any = import_module("flashelmo.kernels.lstm.layer")
            layer.is_proven = lambda variant, run: True  # nothing computed here is right
            torch.set_num_threads(1)
        from flashelmo.engine.cuda.pipeline import CudaPipeline
        from flashelmo.engine.model.checkpoints import load_model
        from flashelmo.engine.settings import CudaSettings
        from flashelmo.engine.settings import Settings as EngineSettings

        # As in the card's benchmark: no word is known, and windows are large.
        settings = EngineSettings(
            threads=threads, window_tokens=max(SIZES), cache_bytes=0, cuda=CudaSettings(graphs=False)
        )
        loaded = load_model(model)
        self._pipeline = CudaPipeline(loaded, self.device, "bf16", settings)
        self._with_graphs = CudaPipeline(loaded, self.device, "bf16", EngineSettings(threads=threads))
        self._spent = defaultdict[str, float](float)
        for name, (module, owner, function) in PARTS.items():
            found = import_module(f"flashelmo.{module}")
            self._watch(name, getattr(found, owner) if owner else found, function)

    def seconds(self, way: str, path: Path, size: int) -> dict[str, float]:
        """Return the seconds of all windows of so many tokens: wall time, processor time, and by activity."""
        with path.open(encoding="utf-8", newline="\n") as file:  # as the engine reads lines
            text = [line.split() for line in file]
        for part in (text[: len(text) // 4], text):  # compiles, then is measured
            gc.collect()  # otherwise the many lists of tokens would trigger it at some point
            self._spent.clear()
            begin = _clocks()
            for _, results in self._stream(way, part, path, size):
                self._timed(RESULTS, deque, results, 0)
            spent = {name: now - begin[name] for name, now in _clocks().items()}
        return {**spent, **self._spent}

    def sentence_seconds(self, sentence: list[str]) -> float:
        """Return the thread's seconds from one sentence's tokens to its vectors in an array; the median of several."""
        spent = []
        for _ in range(SENTENCE_CALLS):
            begin = time.thread_time()
            for _, results in self._with_graphs.stream(Drafts([Draft.of([sentence])]), Output(), lambda fraction: None):
                deque(results, 0)
            spent.append(time.thread_time() - begin)
        return median(spent)

    def _stream(self, way: str, text: list[list[str]], path: Path, size: int) -> Stream:
        if way == FROM_LISTS:
            drafts = Drafts(map(Draft.of, grouped(iter(text), size, size, size)))
            return self._pipeline.stream(drafts, Output(), lambda fraction: None, as_numpy=False)
        windows = read_ahead(read_windows(path, max_sentences=size, max_tokens=size))
        return self._pipeline.stream(windows, Output("average", pool="mean"), lambda fraction: None)

    def _watch(self, name: str, owner: Any, function: str) -> None:
        call = getattr(owner, function)
        setattr(owner, function, lambda *arguments, **options: self._timed(name, call, *arguments, **options))

    def _timed(self, name: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        begin = time.thread_time(), time.perf_counter()
        try:
            return call(*arguments, **options)
        finally:
            self._spent[name] += time.thread_time() - begin[0]
            self._spent[f"{name}, {CLOCK}"] += time.perf_counter() - begin[1]


def _clocks() -> dict[str, float]:
    """Return wall and processor seconds."""
    return {CLOCK: time.perf_counter(), ALL: time.process_time(), QUEUEING: time.thread_time()}


def measure_host(subject: Subject, settings: Settings) -> list[Row]:
    """Measure tokens per second and milliseconds per 131,072 tokens, both ways and sizes of windows in turns."""
    text, source = load_sentences(settings.bulk_tokens or HOST_TOKENS, settings.text, settings.seed, again=True)
    path, n_tokens = write_sentences(subject.folder.parent / "host.txt", text), sum(map(len, text))
    worker = subject.pool.worker(Host, subject.folder, settings.threads)
    ways, rows = list(product((FROM_LISTS, FROM_TEXT), SIZES)), list[Row]()
    rounds = [{way: worker.call("seconds", way[0], path, way[1]) for way in ways} for _ in range(settings.rounds)]
    for way, size in ways:
        found = [each[way, size] for each in rounds]
        row = partial(Row, "host", subject.name, f"{way}, windows of {size:,} tokens", note=f"{source}, bf16")
        rows.append(row("tokens/s").with_samples([n_tokens / spent[CLOCK] for spent in found]))
        for name in dict.fromkeys(name for spent in found for name in spent):
            of_a_part = [1e3 * spent[name] * PART_TOKENS / n_tokens for spent in found]
            rows.append(row("ms", name, note=f"of {PART_TOKENS:,} tokens; {source}, bf16").with_samples(of_a_part))
    sentence = next((tokens[:SENTENCE_TOKENS] for tokens in text if len(tokens) >= SENTENCE_TOKENS), text[0])
    microseconds = [MICROSECONDS * worker.call("sentence_seconds", sentence) for _ in range(settings.rounds)]
    note = f"{len(sentence)} tokens of {source}, words known; bf16"
    rows.append(Row("host", subject.name, "one sentence", "µs", QUEUEING, note=note).with_samples(microseconds))
    return rows
