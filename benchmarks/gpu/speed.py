"""Tokens a second of the engine on the card and of its rivals, in turns, with the card's ceiling beside.

Vectors, all layers of all tokens, stay on the device, but for "text to means", which begins at a text file and ends
with the mean of each sentence on the host. Where words are not known, their vectors are computed in every call.

Rivals do the work on the same card. Eager is the published algorithm in PyTorch, `ReferenceRuntime`: a padded batch at
a time, every token's characters, all boundaries; its vectors stay on the device. Bulk text it gets sorted by length, in
batches of several sizes and in float32 and bf16, each of which has a row: the best one is our rival.

Stacks are the LSTM alone by torch.nn.LSTM, which on a card is cuDNN's: ELMo's two directions are separate stacks of two
layers, each layer with input P, cell C and projection P, so two unidirectional LSTMs of two layers with proj_size do
the same products. They have no clips, no skip connection and no boundaries, start from vectors that are there, and read
the same order in both directions: a peer in speed alone. One runs after the other: on two streams they are no faster.
Their fp16 is a peer of our bf16 where PyTorch hands no bf16 to cuDNN: both have 16 bits.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from flashelmo.benchmarks.accuracy import beyond
from flashelmo.benchmarks.contestant import Contestant, Entry, Way, absentees, compete, line_up
from flashelmo.benchmarks.gpu.accuracy import WAYS, CardSubject, Truth, file_means, leave_on_device
from flashelmo.benchmarks.kernels.card import Card, Device, ceilings
from flashelmo.benchmarks.kernels.problems import dtype_of
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import Sentences, Workload, batches, write_sentences
from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.precision import Bound
from flashelmo.engine.reference.reference import ReferenceRuntime

UNIT = "tokens/s"
NOT_TIMED = "not timed, as its vectors were not checked or are wrong"
OURS, KNOWN = "flashelmo", "words known"
TEXT_TO_MEANS = "text to means"
EAGER, CUDNN = "PyTorch eager", "cuDNN LSTM"
BOUND = Bound(relative=0.1)  # of a rival: in bf16 rounding adds up over the steps; wrong work is off by more
MOST, LETTERS = 12, 60  # kernels of a trace that have a row, and letters of their names
WARM_UPS = 3  # before one more: the first compiles, the second may capture a graph, the third replays it


class Eager(ReferenceRuntime):
    """The reference on a device, with PyTorch's own settings (convolutions may use TF32, products do not)."""

    def __init__(self, model: ElmoModel, device: Device, precision: str) -> None:
        super().__init__(model, device=device.torch)
        self.elmo.to(dtype=dtype_of(precision))
        self._synchronize = device.synchronize

    def check(self, sentences: Sentences, expected: list[Float32]) -> Eager:
        """Itself, if its vectors are about right.

        Raises:
            FlashElmoError: they are not.
        """
        if wrong := beyond(self.vectors(sentences), expected, BOUND):
            raise FlashElmoError(f"not the reference's vectors: {wrong}")
        return self

    def way(self, batch_size: int) -> Way:
        """Embeds in batches of sentences that are about equally long, and drops the vectors on the device."""

        def run(sentences: Sentences) -> None:
            for batch in batches(sorted(sentences, key=len), batch_size):
                self.activations(batch)

        return Way(self.vectors, run, wait=self._synchronize)

    def vectors(self, batch: Sentences) -> list[Float32]:
        """Layers [L, T, 2P] of each sentence of one batch, on the host."""
        stacked = self.activations(batch).float().cpu().numpy()
        return [stacked[:, row, 1 : 1 + len(sentence)] for row, sentence in enumerate(batch)]


def lstm_stacks(config: ElmoConfig) -> list[torch.nn.LSTM]:
    """Both directions' layers as torch.nn.LSTM has them."""
    C, P = config.cell_size, config.projection_size
    return [torch.nn.LSTM(P, C, num_layers=config.n_layers, proj_size=P if P < C else 0).eval() for _ in range(2)]


def stacks(config: ElmoConfig, rows: int, steps: int, device: Device, precision: str) -> Way:
    """Both directions' stacks of layers over a batch of so many equal sentences of so many steps, by torch.nn.LSTM.

    Raises:
        FlashElmoError: on a card, PyTorch would not hand this type to cuDNN, but run kernels of its own.
    """
    dtype = dtype_of(precision)
    x = torch.randn(steps, rows, config.projection_size).to(device.torch, dtype)
    if device.is_cuda and not torch.cudnn_is_acceptable(x):
        raise FlashElmoError(f"cuDNN: PyTorch {torch.__version__} does not hand {dtype} to it")
    both = [stack.to(device.torch, dtype) for stack in lstm_stacks(config)]

    def run(sentences: Sentences) -> None:
        with torch.inference_mode():
            for stack in both:
                stack(x)

    def vectors(sentences: Sentences) -> list[Float32]:
        raise FlashElmoError("expected vectors, found a peer in speed alone")

    return Way(vectors, run, wait=device.synchronize)


class Speed:
    """Measures one model.

    Args:
        truth: what rivals are checked against.
        card: whose ceilings stand beside the figures.
        folder: takes texts.
        checked: rows of the run, whose checks decide what is timed.
    """

    def __init__(
        self, subject: CardSubject, truth: Truth, settings: Settings, card: Card, folder: Path, checked: Sequence[Row]
    ) -> None:
        self.subject, self.truth, self.settings = subject, truth, settings
        self._card, self._folder, self._checked = card, folder, checked
        self._reference = cache(self._made_reference)

    def is_right(self, precision: str) -> bool:
        """Whether a precision's batch was compared with the reference, and no way to embed was wrong."""
        names = {f"{way} {precision}" for way in WAYS}
        found = [row for row in self._checked if row.section == "error" and row.model == self.subject.name]
        found = [row for row in found if row.name in names]
        return any(row.name == f"batch {precision}" for row in found) and not any(row.failed for row in found)

    def rows(self, workload: Workload, precisions: Sequence[str], slow: bool = False) -> list[Row]:
        """The precisions and who else takes part in a section: the first one with all words known, and from a file to
        means on the host; the reference, cuDNN's LSTM for sentences of one length, and the others.

        Args:
            slow: bulk text is for the slower precisions and for the reference in batches.
        """
        subject, settings, section, first = self.subject, self.settings, workload.section, precisions[0]
        rivals = self._rival_precisions("fp32", "bf16")
        found = [self.ours(precision) for precision in precisions]
        if section in ("single", "batch", "ragged"):
            found.insert(1, self.ours(first, known=True))
            if not settings.check:
                found += [self.eager(each, len(workload.sentences)) for each in rivals]
        if section in ("single", "batch") and not settings.check:
            for each in self._rival_precisions("bf16", "fp16"):
                size = len(workload.sentences), len(workload.sentences[0])
                given = (subject.model.config, *size, subject.device, each)
                found.append(Contestant(f"{CUDNN} {each}", each, stacks, given, is_rival=True))
        if section == "bulk" and slow:
            found += [self.eager(each, n, f", {n} at once") for n in settings.eager_batches for each in rivals]
        elif section == "bulk":
            given_text = first, workload
            found.append(Contestant(f"{OURS} {first}, {TEXT_TO_MEANS}", first, self._text_to_means, given_text))
        return self.measure(workload, found)

    def measure(self, workload: Workload, contestants: Sequence[Contestant]) -> list[Row]:
        """A row for each contestant, absent ones with the reason; ours with their ratios to the rivals."""
        subject, section, detail = self.subject, workload.section, workload.detail
        subject.device.free_memory()
        if workload.waits:
            contestants = [replace(each, make=partial(_waiting, each.make)) for each in contestants]
        workers, absent = line_up(contestants, [], None)
        entries = []
        for each in contestants:
            limits = partial(ceilings, subject.model.config, workload, self._card, each.precision, each.words_known)
            entry = Entry(
                each, Row(section, subject.name, each.name, UNIT, detail), [workload.sentences], workload.tokens
            )
            entries.append(entry if each.is_rival else entry._replace(limits=limits))
        seconds = self.settings.sample_seconds
        rows = compete(entries, workers, self.settings, at_least=seconds, warm_ups=WARM_UPS, pause=0.0)
        return rows + [replace(row, detail=detail) for row in absentees(section, subject.name, absent, UNIT)]

    # ------------------------------------------------------------------------------------------------ who takes part

    def ours(self, precision: str, known: bool = False) -> Contestant:
        """The engine from token lists."""

        def make() -> Way:
            embedder = self._embedder(precision, known)
            return self._way(embedder, partial(leave_on_device, embedder))

        name = f"{OURS} {precision}" + (f", {KNOWN}" if known else "")
        return Contestant(name, precision, make, backend="cuda", words_known=known)

    def _text_to_means(self, precision: str, workload: Workload) -> Way:
        """The engine from a text file to the mean of each sentence's average of layers on the host."""
        embedder = self._embedder(precision)
        path = write_sentences(self._folder / "text.txt", workload.sentences)
        return self._way(embedder, lambda sentences: [None for _ in file_means(embedder, path)])

    def _embedder(self, precision: str, known: bool = False) -> Any:
        if not self.is_right(precision):
            raise FlashElmoError(NOT_TIMED)
        return self.subject.timed(precision, known)

    def _way(self, embedder: Any, run: Callable[[Sentences], object]) -> Way:
        return Way(lambda batch: list(embedder.embed(batch)), run, wait=self.subject.device.synchronize)

    def eager(self, precision: str, batch_size: int, how: str = "") -> Contestant:
        """The reference in batches, `how` being part of its name."""

        def make() -> Way:
            return self._reference(precision).way(batch_size)

        return Contestant(f"{EAGER} {precision}{how}", precision, make, is_rival=True)

    def _made_reference(self, precision: str) -> Eager:
        """Checked on a few sentences."""
        made = Eager(self.subject.model, self.subject.device, precision)
        few = [k for k, sentence in enumerate(self.truth.sentences) if sentence][:8]
        return made.check([self.truth.sentences[k] for k in few], [self.truth.vectors[k] for k in few])

    def _rival_precisions(self, *precisions: str) -> Sequence[str]:
        """On the CPU, float32 alone."""
        return precisions if self.subject.device.is_cuda else ("fp32",)


def _waiting(make: Callable[..., Way], *arguments: Any) -> Way:
    """A way whose every call is waited for: its latency counts."""
    way = make(*arguments)

    def run(work: Any) -> None:
        way.run(work)
        way.wait()

    return way._replace(run=run)


def trace(row: Row, run: Callable[[], object], device: str, path: Path) -> list[Row]:
    """What the device and the host do in a call of `run`, which is no first one, as PyTorch's profiler saw it.

    A row for each kernel's share of the time, the longest first. Kernels that run side by side count each by itself, so
    that shares can add up to more than a whole.

    Args:
        path: the trace is written to it, for https://ui.perfetto.dev.
    """
    on_card = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_card]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:  # PyTorch 2.11 warns without it
        begin = time.perf_counter()
        run()
        if on_card:
            torch.cuda.synchronize(device)
        microseconds = 1e6 * (time.perf_counter() - begin)
    profiler.export_chrome_trace(str(path))
    kernels: Counter[str] = Counter()
    for each in profiler.events() or ():
        if getattr(each.device_type, "name", "") == "CUDA":
            kernels[each.name] += each.time_range.end - each.time_range.start
    if not kernels:
        return [replace(row, note="the profiler saw no kernel: there is no card, or this user may not profile")]
    shares = {"device busy": kernels.total(), **{name[:LETTERS]: took for name, took in kernels.most_common(MOST)}}
    return [replace(row, detail=name).with_samples([100 * took / microseconds]) for name, took in shares.items()]
