"""What a trained model knows of words in context, compared with random weights of its shape, static vectors and chance.

senses      nearest neighbours by sense (nearest.py): *hard* and *line* in news text, and words in WordNet's examples
apart       the same, where an example's neighbours are only those with which it shares no word at ±2
gain        trained minus random weights, example by example
training    the first again, for snapshots of a model in training
speech      parts of speech (speech.py)
precision   the first again, in every available precision (precisions.py)
perplexity  of held-out text, in every precision (the same)
picture     one word's examples in the plane of their first two principal components (../plots.py)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from flashelmo.benchmarks.contestant import load
from flashelmo.benchmarks.plots import plane
from flashelmo.benchmarks.results import Row, rounded
from flashelmo.benchmarks.run import Job, Suite, run_jobs
from flashelmo.benchmarks.senses.contest import CHARACTERS, Contest
from flashelmo.benchmarks.senses.precisions import measure_perplexity, measure_precision
from flashelmo.benchmarks.senses.speech import measure_speech
from flashelmo.benchmarks.senses.vectors import embed_with
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.errors import FlashElmoError

CURVE = "curve.json"  # written by `flashelmo train`
PICTURE_WORD, PICTURE_EXAMPLES = "line", 60  # per sense


def measure_senses(contest: Contest, *, apart: bool) -> list[Row]:
    """Measure all contestants, by one rule for who may be a neighbour."""
    section = "apart" if apart else "senses"
    chance = contest.chance(apart=apart)
    counted = ", ".join(f"{len(each):,} of {group.name}" for group, each in zip(contest.groups, chance, strict=True))
    note = f"{counted} are counted, which have a neighbour of their sense; random weights: mean of {{}} seeds"
    rows = contest.rows(section, "chance", chance, note=note.format(contest.settings.random_seeds))
    for name, scores in contest.of_static(apart=apart).items():
        rows += contest.rows(section, f"word2vec, mean of {name}", scores)
    for names in (contest.of_random[apart], contest.of_models[apart]):
        for name, layers in names.items():
            rows += [row for layer, each in layers.items() for row in contest.rows(section, f"{name}, {layer}", each)]
    return rows


def measure_gain(contest: Contest) -> list[Row]:
    """Measure each LSTM layer of a model, minus the best random weights of its shape in the column, by example."""
    rows = []
    for apart, rule in ((False, ""), (True, ", no shared word")):
        for name, layers in contest.of_models[apart].items():
            base = []
            for group in range(len(contest.groups)):
                random, layer = contest.best_random(name, group, apart=apart)
                base.append(contest.of_random[apart][random][layer][group])
            for layer in [layer for layer in layers if layer != CHARACTERS]:
                difference = [a - b for a, b in zip(layers[layer], base, strict=True)]
                rows += contest.rows("gain", f"{name}, {layer}{rule}", difference)
    return rows


def measure_training(contest: Contest) -> list[Row]:
    """Measure every snapshot, in the order of training."""
    progress = {path: progress_of(Path(path)) for path in contest.settings.snapshots}
    rows = []
    for path in sorted(progress, key=lambda path: progress[path]):
        vectors = contest.embedded(embed_with(load(path, 0), contest.settings))
        amount, unit = progress[path]
        for layer, scores in contest.of_layers(vectors, apart=False).items():
            if layer != CHARACTERS:
                rows += contest.rows("training", f"{amount:g} {unit}, {layer}", scores)
    return rows


def progress_of(folder: Path) -> tuple[float, str]:
    """Return a snapshot's progress: millions of tokens by the curve in it, else the last number in its name.

    Raises:
        FlashElmoError: there is neither.
    """
    if (folder / CURVE).is_file():
        points = json.loads((folder / CURVE).read_text(encoding="utf-8"))["points"]
        return (rounded(points[-1]["tokens"] / 1e6) if points else 0.0), "million tokens"
    if numbers := re.findall(r"\d+", folder.name):
        return float(numbers[-1]), "steps"
    raise FlashElmoError(f"--snapshots: expected {CURVE} in the folder or a number in its name, found {folder}")


def measure_picture(contest: Contest) -> list[Row]:
    """Measure two coordinates of examples, in the layer that best distinguishes the word's senses; random weights' too.

    Only one of the word's forms is shown, as the spelling would otherwise be the largest difference.
    """
    index = [group.name for group in contest.groups].index(PICTURE_WORD)
    start = sum(len(word.examples) for group in contest.groups[:index] for word in group.words)
    members: dict[str, list[int]] = {}
    for place, example in enumerate(contest.groups[index].words[0].examples, start):
        if example.tokens[example.place].lower() == PICTURE_WORD:
            members.setdefault(example.sense, []).append(place)
    shown = {sense: found[:PICTURE_EXAMPLES] for sense, found in members.items()}
    rows = []
    for name, layers in contest.of_models[False].items():
        best = max(layers, key=lambda layer: float(layers[layer][index].mean()))
        random, layer = contest.best_random(name, index, apart=False)
        others = contest.random_vectors[random][0][layer]
        for title, vectors in ((f"{random}, {layer}", others), (f"{name}, {best}", contest.vectors[name][best])):
            points = iter(plane(vectors[np.concatenate(list(shown.values()))]))
            for sense, found in shown.items():
                xy = np.array([next(points) for _ in found])
                for axis, letter in enumerate("xy"):
                    row = Row("picture", f"{PICTURE_WORD}: {title}", sense, detail=letter)
                    rows.append(row.with_samples(xy[:, axis].tolist()))
    return rows


SECTIONS: Mapping[str, Callable[[Contest], list[Row]]] = {
    "senses": partial(measure_senses, apart=False),
    "apart": partial(measure_senses, apart=True),
    "gain": measure_gain,
    "training": measure_training,
    "speech": measure_speech,
    "precision": measure_precision,
    "perplexity": measure_perplexity,
    "picture": measure_picture,
}


def command(settings: Settings, console: Console) -> int:
    """Measure; return the exit status."""
    if not settings.models:
        raise FlashElmoError("--models: expected folders of trained models, found none")
    contest = Contest(settings)
    jobs = (Job(section, "", "", partial(SECTIONS[section], contest)) for section in settings.sections)
    return run_jobs("senses", settings, console, jobs).finish()


SUITE = Suite(
    "What a trained model knows of words in context, beside random weights, static vectors and chance.",
    Settings(sections=tuple(SECTIONS), models=(), rounds=1),
    (
        "out", "models", "snapshots", "sections", "data", "corpus", "examples", "random_seeds", "resamples",
        "tagged_tokens", "heldout", "threads", "seed", "quick",
    ),
    command,
)  # fmt: skip
