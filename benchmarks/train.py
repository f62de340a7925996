"""Training's speed beside that of the same model in plain PyTorch, in one interleaved run: `flashelmo bench train`.

Measured are tokens per second of whole steps: loss, gradients, update, on a card if there is one. The rivals are built
from PyTorch's modules with its autograd and Adam; in bf16 under autocast. One convolves every token's characters in
both directions, as the published code does, the other only each distinct word of a batch once. All draw the same number
of negatives.

The ceiling is the matrix peak for the operations of the LSTMs' and the softmax's products, forward and backward.

`--only vocabulary` takes steps with Adagrad, as published, with the words of the text and with as many as the published
model has, and as many negatives: by the softmax rows that a step reads, and by whole gradients.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from flashelmo.benchmarks.contestant import Contestant, Entry, Subject, Way, absentees, compete, line_up, prepare
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.roofline import Roofline
from flashelmo.benchmarks.run import Suite, run_sections
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import load_sentences
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.training.corpus import EncodedCorpus, most_frequent
from flashelmo.engine.training.initial import initial_tensors
from flashelmo.engine.training.model import BiLM
from flashelmo.engine.training.recurrence import kernels_work
from flashelmo.engine.training.settings import TrainSettings
from flashelmo.engine.training.softmax import draw, log_uniform
from flashelmo.engine.training.spelling import Spelling
from flashelmo.engine.training.step import TrainingStep
from flashelmo.engine.training.streams import Streams

UNROLL, DROPOUT, RATE = 20, 0.1, 1e-3
NEGATIVES, PUBLISHED_NEGATIVES, PUBLISHED_WORDS = 4096, 8192, 793_471
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Plain(nn.Module):
    """The network of `BiLM` as one would build it from PyTorch's modules."""

    def __init__(self, config: ElmoConfig, n_words: int) -> None:
        super().__init__()
        size, filters = config.projection_size, config.n_filters
        self.characters = nn.Embedding(config.n_characters, config.character_size)
        self.convolutions = nn.ModuleList(nn.Conv1d(config.character_size, n, w) for w, n in config.filters)
        self.transforms = nn.ModuleList(nn.Linear(filters, filters) for _ in range(config.n_highway))
        self.gates = nn.ModuleList(nn.Linear(filters, filters) for _ in range(config.n_highway))
        self.projection = nn.Linear(filters, size)
        self.lstms: Any = nn.ModuleList(
            nn.ModuleList(nn.LSTM(size, config.cell_size, proj_size=size) for _ in range(config.n_layers))
            for _ in range(2)
        )
        self.softmax = nn.Linear(size, n_words)
        self.state: list[list[Any]] = [[None] * config.n_layers for _ in range(2)]

    def word_vectors(self, ids: Tensor) -> Tensor:
        """Compute words' vectors: [..., M] -> [..., P]."""
        embedded = self.characters(ids.flatten(0, -2)).transpose(1, 2)
        x = torch.cat([F.relu(convolution(embedded)).amax(-1) for convolution in self.convolutions], -1)
        for transform, gate in zip(self.transforms, self.gates, strict=True):
            g = torch.sigmoid(gate(x))
            x = g * F.relu(transform(x)) + (1 - g) * x
        result: Tensor = self.projection(x)
        return result.view(*ids.shape[:-1], -1)

    def forward(self, vectors: Tensor, targets: Tensor, probabilities: Tensor, number: int) -> Tensor:
        """Return the loss of word vectors [2, T, B, P] that should predict targets [2, T, B]."""
        outputs = []
        for d in range(2):
            x, layers = vectors[d], self.lstms[d]
            for k in range(len(self.state[d])):
                x = F.dropout(x, DROPOUT)
                h, state = layers[k](x, self.state[d][k])
                self.state[d][k] = tuple(each.detach() for each in state)
                x = h + x if k else h
            outputs.append(F.dropout(x, DROPOUT))
        hidden, target = torch.stack(outputs).flatten(0, 2), targets.flatten()
        rows, counts = draw(probabilities, number)
        logits = F.linear(hidden, self.softmax.weight[rows], self.softmax.bias[rows] - counts)
        logits = logits.masked_fill(target[:, None] == rows, -torch.inf)
        own = (hidden * self.softmax.weight[target]).sum(-1, keepdim=True) + self.softmax.bias[target][:, None]
        return F.cross_entropy(torch.cat([own, logits], 1).float(), torch.zeros_like(target))


def device() -> torch.device:
    """Return a card if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _way(run: Callable[[int], None]) -> Way:
    """Return steps of a number each, in which nothing is embedded."""
    wait: Callable[[], object] = torch.cuda.synchronize if device().type == "cuda" else (lambda: None)
    return Way(lambda sentences: [], run, wait=wait)


def ours(data: Data, precision: str, whole_gradients: bool = False) -> Way:
    """Return steps as `flashelmo train` takes them, or always with whole gradients of the softmax."""
    tensors = initial_tensors(data.config, len(data.words), seed=0)
    model = BiLM(data.config, tensors, dropout=DROPOUT, compute=TYPES[precision]).to(device())
    model.kernels = kernels_work(device())
    step = TrainingStep(model, data.settings, data.spelling, data.corpus.rows(data.words), data.streams)
    if whole_gradients:
        step._by_rows = None
    return _way(lambda number: step(data.streams[number % data.streams.batches], RATE))


def plain(data: Data, precision: str, distinct_words: bool) -> Way:
    """Return steps of the modules."""
    model = Plain(data.config, len(data.words)).to(device())
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    probabilities, rows = log_uniform(len(data.words), device()), data.corpus.rows(data.words)
    autocast = partial(torch.autocast, device().type, torch.bfloat16, enabled=precision == "bf16")

    def run(number: int) -> None:
        batch = data.streams[number % data.streams.batches]
        targets = torch.from_numpy(rows[batch.targets]).long().to(device())
        found, places = data.spelling.distinct(batch.inputs)
        ids = data.spelling.characters[found if distinct_words else batch.inputs]
        with autocast():
            vectors = model.word_vectors(torch.from_numpy(ids).to(device()))
            vectors = vectors[torch.from_numpy(places).to(device())] if distinct_words else vectors
            loss = model(vectors, targets, probabilities, data.settings.negatives)
        optimizer.zero_grad()
        (loss * UNROLL).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    return _way(run)


class Data:
    """A text in streams, as everyone reads it."""

    def __init__(
        self, config: ElmoConfig, corpus: EncodedCorpus, batch: int, n_words: int = 0, optimizer: str = "adam"
    ) -> None:
        self.config, self.corpus, self.words = config, corpus, most_frequent(corpus, 1, None)
        negatives = min(PUBLISHED_NEGATIVES if n_words else NEGATIVES, max(n_words, len(self.words)) // 2)
        self.words = [*self.words, *(f"<{k}>" for k in range(len(self.words), n_words))]  # which the text lacks
        self.settings = TrainSettings(
            batch=batch, unroll=UNROLL, negatives=negatives, dropout=DROPOUT, steps=1, optimizer=optimizer
        )
        self.streams, self.spelling = Streams(corpus, batch, UNROLL, 0), Spelling(config, corpus.words)

    @property
    def flops(self) -> int:
        """The operations of a token's products, forward and, twice as many, backward; both directions predict it."""
        softmax = 2 * 2 * self.settings.negatives * self.config.projection_size
        return 3 * (self.config.lstm_flops_per_token + softmax)


def everybody(make: Callable[..., Data], settings: Settings) -> Iterator[Contestant]:
    """Yield ours and the modules in each precision."""
    data = make()
    for precision in settings.precisions:
        yield Contestant(f"flashelmo {precision}", precision, ours, (data, precision))
        for distinct, name in ((False, "every token"), (True, "distinct words")):
            given = data, precision, distinct
            yield Contestant(f"PyTorch {precision}, {name}", precision, plain, given, is_rival=True)


def vocabularies(make: Callable[..., Data], settings: Settings) -> Iterator[Contestant]:
    """Yield ours with as many words as the text has, and as the published model, in the last precision."""
    few, many, adam = make(optimizer="adagrad"), make(PUBLISHED_WORDS, "adagrad"), make(PUBLISHED_WORDS)
    precision = settings.precisions[-1]
    for name, data in (("Adagrad", few), ("Adagrad", many), ("Adagrad, whole gradients", many), ("Adam", adam)):
        whole = "whole" in name
        yield Contestant(
            f"{name}, {len(data.words):,} words", precision, ours, (data, precision, whole), is_rival=whole
        )


def measure(
    section: str, contestants: Callable[..., Iterator[Contestant]], subject: Subject, settings: Settings
) -> list[Row]:
    """Measure tokens per second at each number of streams; contestants of the same precision are compared.

    Args:
        contestants: yields them, each with its data as the first argument; called with what makes data of a text.
    """
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    rows: list[Row] = []
    sentences, source = load_sentences(settings.text_tokens, settings.text, settings.seed)
    corpus = EncodedCorpus.of(sentences)
    peaks = Roofline(settings.threads, settings.peak_seconds).peaks() if device().type == "cpu" else {}
    for batch in settings.batches:
        entries = []
        for who in contestants(partial(Data, subject.config, corpus, batch), settings):
            data, peak = who.arguments[0], peaks.get(who.precision)
            note = f"{device().type}; {source}; {data.settings.negatives} negatives of {len(data.words)} words"
            row = Row(section, subject.name, who.name, "tokens/s", detail=f"{batch} streams", note=note)
            limits = partial(_limits, peak and peak / data.flops)
            entries.append(Entry(who, row, range(2), 2 * batch * UNROLL, limits, who.precision))
        workers, absent = line_up([entry.who for entry in entries], [], None)
        rows += absentees(section, subject.name, absent)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LSTM with projections")  # oneDNN has none: reported once
            rows += compete(entries, workers, settings, at_least=settings.sample_seconds, warm_ups=3)
    return rows


def _limits(ceiling: float | None) -> tuple[float | None, float | None]:
    return ceiling, None


SECTIONS = {name: partial(measure, name, found) for name, found in (("train", everybody), ("vocabulary", vocabularies))}


def command(settings: Settings, console: Console) -> int:
    """Measure; return the exit status."""
    return run_sections("train", settings, console, SECTIONS, prepare).finish()


SUITE = Suite(
    "Training's tokens a second beside plain PyTorch modules.",
    Settings(sections=tuple(SECTIONS), models=("tiny",), precisions=("fp32", "bf16"), batches=(64,), rounds=3),
    ("out", "sections", "models", "precisions", "batches", "text", "text_tokens", "rounds", "threads", "seed", "quick"),
    command,
)
