"""All contestants in each task: layers, their learned mix, static vectors, random weights, and a fine-tuned model.

All are linear in what they are given: a token's vector, or for a sentence the mean of its tokens'. A figure is the mean
over several seeds; its interval is by resampling seeds and test sentences, which contribute most of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

from flashelmo.benchmarks.downstream import tuned
from flashelmo.benchmarks.results import Row, rounded
from flashelmo.benchmarks.run import Job, Suite, run_jobs
from flashelmo.benchmarks.senses import linear
from flashelmo.benchmarks.senses.nearest import by_resampling
from flashelmo.benchmarks.senses.vectors import embed_with, models, of_words, random_models, word_vectors
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tasks import POLARITY, QUESTIONS, SPEECH, Embed, Task, load_task
from flashelmo.engine.arrays import Float64
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints.native import write_native

MIX = "mix"
STATIC, RANDOM, LAYERS, TUNED = "static", "random", "layers", "tuned"


class Participant(NamedTuple):
    """A contestant's name, and one run: from a seed to what is right on the test's labels [N], and a note."""

    name: str
    run: Callable[[int], tuple[Float64, str]]


def participants(task: Task, settings: Settings, folder: Path) -> Iterator[Participant]:
    """Yield all participants that the settings ask for."""
    found = models(settings)
    if STATIC in settings.contestants and settings.corpus is not None:
        static = word_vectors(settings.corpus)
        yield from _frozen(
            "word2vec", lambda sentences: (of_words(static, each)[None] for each in sentences), task, {"": 0}
        )
    if RANDOM in settings.contestants:
        for name, seeds in random_models(found, settings).items():
            yield from _frozen(name, embed_with(seeds[0], settings), task, {MIX: None})
    for name, model in found.items():
        layers: dict[str, int | None] = {f"layer {k}": k for k in range(model.config.n_layers + 1)}
        wanted = (layers if LAYERS in settings.contestants else {}) | (
            {MIX: None} if MIX in settings.contestants else {}
        )
        if wanted:
            yield from _frozen(name, embed_with(model, settings), task, wanted)
        if TUNED in settings.contestants:
            write_native(model, folder / name, overwrite=True)
            yield Participant(f"{name}, fine-tuned", partial(_tuned, folder / name, task))


def _frozen(name: str, embed: Embed, task: Task, layers: dict[str, int | None]) -> Iterator[Participant]:
    """Yield participants from one embedder: with one layer each, or with all."""
    vectors = [task.features(embed, samples) for samples in task.parts]
    classes = [task.numbers(samples) for samples in task.parts]

    def run(layer: int | None, title: str, seed: int) -> tuple[Float64, str]:
        chosen = slice(None) if layer is None else slice(layer, layer + 1)
        train, dev, test = (linear.part(*each, chosen) for each in zip(vectors, classes, strict=True))
        learned = linear.learn(train, dev, len(task.classes), seed)
        shares = " ".join(f"{share:.2f}" for share in learned.shares())
        note = f"{title} of layers in {task.name} (first seed): {shares}" if layer is None else ""
        return linear.right(learned, test), note

    for label, layer in layers.items():
        title = f"{name}, {label}" if label else name
        yield Participant(title, partial(run, layer, title))


def _tuned(folder: Path, task: Task, seed: int) -> tuple[Float64, str]:
    return tuned.learn(folder, task, seed).right(task.test), ""


def measure(name: str, settings: Settings) -> Iterator[list[Row]]:
    """Yield a row for every participant in one task, as they come."""
    task = load_task(name, settings)
    lengths = np.array([len(sample.labels) for sample in task.test])
    about = f"{name}: {len(task.train):,} sentences to learn from, {len(task.test):,} to be judged by"
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        for participant in participants(task, settings, Path(folder)):
            runs = [participant.run(seed) for seed in range(settings.seed, settings.seed + settings.runs)]
            right = np.stack([each for each, _ in runs])
            by_sentence = np.add.reduceat(right, np.cumsum([0, *lengths[:-1]]), axis=1) / lengths
            row = Row("downstream", "", participant.name, "share of right labels", name, rounded(right.mean()))
            interval = by_resampling(by_sentence, settings.resamples, lengths.astype(np.float64))
            samples = [rounded(each.mean()) for each in right]
            yield [replace(row, samples=samples, interval=interval, note="; ".join(filter(None, (about, runs[0][1]))))]


def command(settings: Settings, console: Console) -> int:
    """Measure; return the exit status."""
    if not settings.models:
        raise FlashElmoError("--models: expected folders of trained models, found none")
    jobs = (Job("downstream", "", name, partial(measure, name, settings)) for name in settings.sections)
    return run_jobs("downstream", settings, console, jobs).finish()


SUITE = Suite(
    "What a trained model's vectors are worth to a tagger and to classifiers, frozen and fine-tuned.",
    Settings(
        sections=(SPEECH, POLARITY, QUESTIONS), contestants=(STATIC, RANDOM, LAYERS, MIX, TUNED), models=(), rounds=1
    ),
    (
        "out", "models", "sections", "contestants", "data", "corpus", "runs", "resamples", "tagged_tokens",
        "threads", "seed", "quick",
    ),
    command,
)  # fmt: skip
