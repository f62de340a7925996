"""Everything around the computation of a corpus: what sharing saves, how fast it is fed, how processes scale.

`--only sharing` counts steps and times nothing: it gives the same figures on every machine, however busy. `--only feed`
omits the computation: text becomes a device's input, and pooled vectors are written. `--only host` is all that a card's
host does, with or without a card (`host`). `--only workers` embeds a corpus with one process, and with as many as there
are cores. `--only command` embeds it with `flashelmo embed`, compared with the engine in memory with and without
sharing, and watches the command's memory. These four need an idle machine.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from flashelmo.benchmarks.contestant import Subject, contestant, prepare
from flashelmo.benchmarks.fresh import process_of
from flashelmo.benchmarks.host import measure_host
from flashelmo.benchmarks.results import FAILED, Row, median_ratio
from flashelmo.benchmarks.run import PROCESSOR_OPTIONS, Suite, run_sections
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import REAL_TEXT, load_sentences, write_sentences
from flashelmo.benchmarks.worker import take_turns
from flashelmo.engine.bulk.records import open_reader
from flashelmo.engine.bulk.run import embed_corpus
from flashelmo.engine.bulk.units import Corpus
from flashelmo.engine.bulk.workers import embed_with_workers
from flashelmo.engine.cpu.bilstm import STEP_ROWS, WORD_TABLE_BYTES
from flashelmo.engine.cuda.layout import Layout, Sizes, fill
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.output import Output
from flashelmo.engine.pipeline import Plan, Planner, Statistics, Stream
from flashelmo.engine.settings import Settings as EngineSettings
from flashelmo.engine.system.processor import n_cores
from flashelmo.engine.text.schedule import Boundaries, Schedule, build_schedule
from flashelmo.engine.text.windows import Window, read_ahead, read_windows

GIB = 2**30
NO_LIMIT = 1 << 62
WINDOWS = tuple(1 << k for k in (10, 13, 15, 16, 17, 18, 19, 20, 22))  # tokens
SHARDS, SHARD_WINDOW = (1 << 10, 1 << 12, 1 << 14, 1 << 16), 1 << 18  # records per shard, tokens per window
PARTS = (8, 4, 2, 1)  # a text is cut to its first eighth, quarter and half
TEXTS = ("kjv.txt", "wordnet_text.txt")  # beside the checkout
READING, WRITING = "text to a device's input", "and pooled vectors to shards"
MEAN = Output("average", pool="mean")
HELD = "the largest window's float32 arrays on the CPU, of the {} model: states, cells, input products, word vectors"
WORKER_TOKENS, WORKER_RECORDS = 100_000, 256  # of the corpus for several processes, and of its shards
FEED_TOKENS, FEED_WINDOW = 600_000, 1 << 17  # of the text that is fed to cores, and of a window


# --------------------------------------------------------------------------------------------------------- sharing


class Count(NamedTuple):
    """Steps of both directions for a layer, with and without sharing, and the most bytes that a window takes."""

    steps: int
    alone: int
    n_bytes: int

    @classmethod
    def of(cls, windows: Iterable[Window], config: ElmoConfig) -> Count:
        """Count a text in windows."""
        steps = alone = n_bytes = 0
        for window in windows:
            n_words = len(window.words)
            schedule = build_schedule(window.word_ids, window.offsets, Boundaries(n_words, n_words + 1))
            steps += schedule.n_nodes
            alone += 2 * (len(window.word_ids) + int(np.count_nonzero(np.diff(window.offsets))))
            n_bytes = max(n_bytes, window_bytes(schedule, n_words, config))
        return cls(steps, alone, n_bytes)


def window_bytes(schedule: Schedule, n_words: int, config: ElmoConfig) -> int:
    """Return the float32 bytes that the CPU holds for a window: states, cells of two depths, input products, words."""
    size, cell = 4 * config.projection_size, 4 * config.cell_size
    table = max(STEP_ROWS, min(n_words, WORD_TABLE_BYTES // (4 * cell)))
    total = n_words * size
    for forest in (schedule.forward, schedule.backward):
        total += forest.n_nodes * config.n_layers * size + 2 * int(np.diff(forest.depths).max()) * cell
        total += 4 * table * cell
    return total


def texts(settings: Settings) -> dict[str, bytes]:
    """Return the texts to count, by name."""
    paths = [settings.text] if settings.text else [REAL_TEXT.with_name(name) for name in TEXTS]
    found = {path.name: path.read_bytes() for path in paths if path.is_file()}
    if not found:
        sentences, source = load_sentences(1 << 18, settings.text, settings.seed)
        return {source: "".join(" ".join(tokens) + "\n" for tokens in sentences).encode()}
    return found | ({" + ".join(found): b"".join(found.values())} if len(found) > 1 else {})


def read(data: bytes, max_tokens: int, max_sentences: int = NO_LIMIT) -> Iterator[Window]:
    """Yield a text in windows."""
    return read_windows(io.BytesIO(data), max_sentences=max_sentences, max_tokens=max_tokens)


def measure_sharing(subject: Subject, settings: Settings) -> list[Row]:
    """Measure how many times fewer steps: by window, by the shards at whose ends windows end, and as a text grows."""
    rows, held = [], []
    for name, data in texts(settings).items():
        n_tokens = len(data.split())
        row = partial(Row, "sharing", subject.name, name)
        note = f"of {n_tokens:,} tokens; a step without sharing for each token and for a boundary of each sentence"
        for size in [size for size in WINDOWS if size < 2 * n_tokens]:
            count = Count.of(read(data, size), subject.config)
            detail = f"windows of {size} tokens"
            rows.append(row("x fewer steps", detail, note=note).with_samples([count.alone / count.steps]))
            held.append(row("GiB", detail, note=HELD.format(subject.name)).with_samples([count.n_bytes / GIB]))
        lines = data.splitlines(keepends=True)
        for n in SHARDS:
            shards = (b"".join(lines[start : start + n]) for start in range(0, len(lines), n))
            count = Count.of((window for shard in shards for window in read(shard, SHARD_WINDOW)), subject.config)
            rows.append(row("x fewer steps", f"shards of {n} records").with_samples([count.alone / count.steps]))
        for part in PARTS:
            first = b"".join(lines[: len(lines) // part])
            count = Count.of(read(first, NO_LIMIT), subject.config)
            detail = "the whole text in a window" if part == 1 else f"its first 1/{part} in a window"
            rows.append(row("x fewer steps", detail).with_samples([count.alone / count.steps]))
    return rows + held


# ------------------------------------------------------------------------------------------------------------ feed


class NothingComputed:
    """The part of an embedder that `embed_corpus` uses: windows become a device's input, and the vectors are zeros."""

    reads_ahead = True
    window_limits = (FEED_WINDOW, FEED_WINDOW)
    first_tokens = FEED_WINDOW

    def __init__(self, config: ElmoConfig, threads: int) -> None:
        self.config = config
        self.statistics = Statistics()
        self.settings = EngineSettings(threads=threads)
        self._planner = Planner(("<S>", "</S>"), self.settings)

    def fingerprint(self) -> dict[str, Any]:
        """Return an empty fingerprint, as there is no model."""
        return {"stateful": False, "keep_sentence_boundaries": False}

    def embed_windows(self, windows: Iterable[Window], on_progress: Callable[[float], None], output: Output) -> Stream:
        """Yield zeros for each sentence."""
        zeros = np.zeros(output.shape((self.config.n_layers + 1, 1, self.config.output_size)), np.float32)
        for plan in self._planner.plan_ahead(windows):
            fill_input(plan)
            yield plan.window, iter([zeros] * len(plan.window))


def fill_input(plan: Plan) -> Window:
    """Make the integers that a CUDA device gets for a window."""
    sizes = Sizes.of(plan.schedule, share=True, pooled=True, stateful=False)
    plan.words.to_pylist()  # which words the table of word vectors is asked for
    fill(np.empty(Layout.of(sizes).size, np.int32), sizes, plan.schedule, np.arange(len(plan.words), dtype=np.int32))
    return plan.window


class Feed:
    """A corpus on some of the cores, without its computation."""

    def __init__(self, config: ElmoConfig, cores: int) -> None:
        self._config, self._cores = config, cores
        if sys.platform == "linux":  # elsewhere threads alone are limited
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    def speed(self, what: str, path: Path) -> float:
        """Return tokens per second."""
        embedder = NothingComputed(self._config, self._cores)
        begin = time.perf_counter()
        if what == READING:
            windows = read_ahead(read_windows(path, max_sentences=FEED_WINDOW, max_tokens=FEED_WINDOW))
            stream = embedder.embed_windows(windows, lambda fraction: None, MEAN)
            n_tokens = sum(len(window.word_ids) for window, _ in stream)
        else:
            folder = path.with_name("fed")
            shutil.rmtree(folder, ignore_errors=True)
            with closing(open_reader(path)) as reader:
                n_tokens = embed_corpus(embedder, reader, folder, MEAN, keep_tokens=False).tokens
        return n_tokens / (time.perf_counter() - begin)


def measure_feed(subject: Subject, settings: Settings) -> list[Row]:
    """Measure tokens per second that one core feeds, and several."""
    text, source = load_sentences(settings.bulk_tokens or FEED_TOKENS, settings.text, settings.seed)
    path = write_sentences(subject.folder.parent / "feed.txt", text)
    rows, most = [], settings.threads or n_cores()
    for cores in sorted({most, *(1 << k for k in range(most.bit_length()))}):
        worker = subject.pool.worker(Feed, subject.config, cores)
        for what in (READING, WRITING):
            samples = [worker.call("speed", what, path) for _ in range(settings.rounds)]
            detail = f"{cores} core{'s' * (cores > 1)}"
            rows.append(Row("feed", subject.name, what, "tokens/s", detail, note=source).with_samples(samples))
    return rows


# --------------------------------------------------------------------------------------------------------- workers


def measure_workers(subject: Subject, settings: Settings) -> list[Row]:
    """Measure tokens per second into shards by one process on all cores, and by several on their shares; in turns.

    The time is that of the whole run, from the start of the processes.
    """
    text, source = load_sentences(settings.bulk_tokens or WORKER_TOKENS, settings.text, settings.seed)
    folder, cores = subject.folder.parent, settings.threads or n_cores()
    path = write_sentences(folder / "corpus.txt", text)
    samples: dict[int, list[float]] = {n: [] for n in sorted({1, 2, cores})}
    for _, n in product(range(settings.rounds), samples):
        options, shards = {"threads": max(1, cores // n)}, folder / "shards"
        corpus = Corpus(subject.folder, str(path), shards, MEAN, shard_records=WORKER_RECORDS, options=options)
        samples[n].append(embed_with_workers(corpus, n, overwrite=True).tokens_per_second)
    rows = []
    for n, found in samples.items():
        threads = max(1, cores // n)
        name, detail = f"{n} process{'es' * (n > 1)}", f"{threads} thread{'s' * (threads > 1)} each"
        rows.append(Row("workers", subject.name, name, "tokens/s", detail, note=source).with_samples(found))
    return rows


# --------------------------------------------------------------------------------------------------------- command

COMMAND, IN_MEMORY = "command, to native shards", "engine, in memory"
UNSHARED = f"{IN_MEMORY}, without sharing"
LOOK_SECONDS = 0.05  # between two looks at a process's memory


def measure_command(subject: Subject, settings: Settings) -> list[Row]:
    """Measure tokens per second of `flashelmo embed` to native shards, all layers, and of the engine alone; in turns.

    The command's time is that of its process. Its memory is its private one: files that are mapped do not count, nor
    does what it writes. How that develops is watched in a separate run, with the same lines in another order: each
    quarter has the same kinds of text, so that what grows there would grow with any corpus. In the original order, the
    second text takes more from its beginning on: its windows have more distinct words, which have tables.
    """
    model, path = subject.folder, subject.folder.with_name("text.txt")
    name, data = list(texts(settings).items())[-1]
    path.write_bytes(data)
    n_tokens, measured = len(data.split()), list[list[int]]()
    measures: dict[str, Callable[[], float]] = {
        who: partial(contestant(subject, settings, way).start(subject.pool).call, "seconds", [path])
        for who, way in ((IN_MEMORY, "fp32"), (UNSHARED, "fp32 unshared"))
    }
    measures[COMMAND] = lambda: _run_command(model, path, settings.threads, measured)
    timings = take_turns(settings.rounds, measures)
    rates = {who: [n_tokens / seconds for seconds in timing.samples] for who, timing in timings.items()}
    row = partial(Row, "command", subject.name, note=f"{n_tokens:,} tokens of {name}, fp32")
    rows = []
    for who, found in rates.items():
        others = [other for other in (IN_MEMORY, UNSHARED) if other != who and found and rates[other]]
        ratios = {other: median_ratio(found, rates[other], "tokens/s") for other in others}
        note = f"{FAILED}: {timings[who].note}" if timings[who].note else row().note
        rows.append(row(who, "tokens/s", ratios=ratios, note=note).with_samples(found))
    rows.append(row(COMMAND, "GiB", "most").with_samples([max(looks) / GIB for looks in measured]))
    return rows + _measure_growth(subject, settings, data, row().note)


def _measure_growth(subject: Subject, settings: Settings, data: bytes, note: str) -> list[Row]:
    """Measure the most that the command holds in each quarter of a run, on a text's lines in another order."""
    lines, path, measured = data.split(b"\n"), subject.folder.with_name("mixed.txt"), list[list[int]]()
    random.Random(settings.seed).shuffle(lines)
    path.write_bytes(b"\n".join(lines))
    _run_command(subject.folder, path, settings.threads, measured)
    row = partial(Row, "command", subject.name, COMMAND, "GiB", note=f"{note}, its lines in another order")
    parts = [f"{part} quarter of mixed lines" for part in ("first", "second", "third", "last")]
    return [row(part).with_samples([held / GIB]) for part, held in zip(parts, quarters(measured[0]), strict=True)]


def quarters(looks: Sequence[int]) -> list[int]:
    """Return the most in each quarter."""
    return [max(looks[k * len(looks) // 4 : (k + 1) * len(looks) // 4]) for k in range(4)]


def _run_command(model: Path, text: Path, threads: int | None, measured: list[list[int]]) -> float:
    """Return the seconds of `flashelmo embed`; what its process held over time is added to `measured`."""
    from psutil import NoSuchProcess

    folder = text.with_name("shards")
    shutil.rmtree(folder, ignore_errors=True)
    options = ["--model", model, "--device", "cpu", "--precision", "fp32", "--quiet"]
    options += ["--threads", threads] if threads else []
    command = [sys.executable, "-m", "flashelmo.cli", "embed", text, folder, *options]
    looks, begin = list[int](), time.perf_counter()
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as running:
        process = process_of(running.pid)
        while running.poll() is None:
            with suppress(NoSuchProcess):  # it has just ended
                held = process.memory_info()
                looks.append(held.rss - held.shared)
            time.sleep(LOOK_SECONDS)
        seconds = time.perf_counter() - begin
        if running.returncode:
            assert running.stderr is not None
            raise FlashElmoError(f"flashelmo embed: {running.stderr.read().strip()}")
    measured.append(looks)
    shutil.rmtree(folder)
    return seconds


SECTIONS: dict[str, Callable[[Subject, Settings], list[Row]]] = {
    "sharing": measure_sharing,
    "feed": measure_feed,
    "workers": measure_workers,
    "host": measure_host,
    "command": measure_command,
}


def command(settings: Settings, console: Console) -> int:
    """Measure everything that the settings ask for; return the exit status."""
    return run_sections("feed", settings, console, SECTIONS, prepare).finish()


SUITE = Suite(
    "What surrounds the computation of a corpus: sharing, feeding, processes, the command.",
    Settings(sections=tuple(SECTIONS), models=("original",), rounds=3),
    tuple(name for name in PROCESSOR_OPTIONS if name != "contestants"),
    command,
)
