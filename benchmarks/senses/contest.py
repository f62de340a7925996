"""All contestants' scores: how often the nearest neighbour of an example has its sense, for each group of words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.senses.nearest import (
    all_others,
    by_resampling,
    can_be_right,
    pieces,
    same_sense,
    shares,
    without_shared_words,
)
from flashelmo.benchmarks.senses.vectors import WINDOWS, around, embed_with, layers, models, random_models, word_vectors
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tasks import DATA, SENSES, Embed, Example, Word, read_senses
from flashelmo.engine.arrays import Bool, Float32, Float64
from flashelmo.engine.model.weights import ElmoModel

WORDNET = "WordNet"  # the group of the words in the second file
CHARACTERS = "layer 0"
UNIT = "share of the same sense"
Scores = dict[str, list[Float64]]  # by layer, for each group


class Group(NamedTuple):
    """Words whose examples are counted together, and which of their neighbours count: two rules."""

    name: str
    words: list[Word]
    allowed: list[Bool]
    apart: list[Bool]

    def rule(self, *, apart: bool) -> list[Bool]:
        """Return, per word, who may be whose neighbour [N, N]: all others, or those without a common word nearby."""
        return self.apart if apart else self.allowed


def groups_of(data: Path, examples: int | None) -> list[Group]:
    """Return each word of the first file by itself, and all words of the second together."""
    first, second = ([_cut(word, examples) for word in read_senses(data / name)] for name in SENSES)
    named = [*((word.lemma, [word]) for word in first), (WORDNET, second)]
    return [
        Group(name, words, [all_others(word) for word in words], [without_shared_words(word) for word in words])
        for name, words in named
    ]


def _cut(word: Word, examples: int | None) -> Word:
    """Return the word with only the first `examples` examples of each sense."""
    kept: dict[str, list[Example]] = {}
    for example in word.examples:
        kept.setdefault(example.sense, []).append(example)
    return Word(word.lemma, [example for found in kept.values() for example in found[:examples]])


@dataclass
class Contest:
    """The examples, and all contestants' scores on them, computed when first needed."""

    settings: Settings

    @cached_property
    def groups(self) -> list[Group]:
        """The groups of words."""
        return groups_of(self.settings.data or DATA, self.settings.examples)

    @cached_property
    def examples(self) -> list[Example]:
        """The examples of all groups, end to end."""
        return [example for group in self.groups for word in group.words for example in word.examples]

    @cached_property
    def models(self) -> Mapping[str, ElmoModel]:
        """The models to judge, by name."""
        return models(self.settings)

    @cached_property
    def random_models(self) -> Mapping[str, Sequence[ElmoModel]]:
        """Random models of the same shapes, by how they are drawn."""
        return random_models(self.models, self.settings)

    @cached_property
    def vectors(self) -> Mapping[str, Mapping[str, Float32]]:
        """The vectors of the models' layers [examples, 2P]."""
        return {name: layers(embed_with(model, self.settings), self.examples) for name, model in self.models.items()}

    def embedded(self, embed: Embed) -> dict[str, Float32]:
        """Return the vectors of the layers that `embed` gives."""
        return layers(embed, self.examples)

    def scores(self, vectors: Float32, *, apart: bool) -> list[Float64]:
        """Return each group's scores, for its examples that count."""
        return self._of_groups(lambda own, senses, allowed: same_sense(vectors[own], senses, allowed), apart)

    def chance(self, *, apart: bool) -> list[Float64]:
        """Return the scores of a randomly drawn neighbour."""
        return self._of_groups(lambda own, senses, allowed: shares(allowed, senses), apart)

    def _of_groups(self, judge: Callable[[slice, list[str], Bool], Float64], apart: bool) -> list[Float64]:
        """Return the results of `judge` for each word's examples; it gets their places, their senses, and the rule."""
        found, places = [], pieces([word for group in self.groups for word in group.words])
        for group in self.groups:
            parts = []
            for allowed, (word, own) in zip(group.rule(apart=apart), places, strict=False):  # `places` goes on
                senses = [example.sense for example in word.examples]
                if (counted := can_be_right(allowed, senses)).any():
                    parts.append(judge(own, senses, allowed)[counted])
            found.append(np.concatenate(parts))
        return found

    def of_layers(self, vectors: Mapping[str, Float32], *, apart: bool) -> Scores:
        """Return the scores of each layer by name."""
        return {layer: self.scores(each, apart=apart) for layer, each in vectors.items()}

    @cached_property
    def of_models(self) -> dict[bool, dict[str, Scores]]:
        """The scores of the models to judge, by whether neighbours are apart."""
        return {
            apart: {name: self.of_layers(each, apart=apart) for name, each in self.vectors.items()}
            for apart in (False, True)
        }

    @cached_property
    def of_random(self) -> dict[bool, dict[str, Scores]]:
        """The same for random weights, where an example's score is the mean over all seeds."""
        return {
            apart: {
                name: _mean([self.of_layers(vectors, apart=apart) for vectors in seeds])
                for name, seeds in self.random_vectors.items()
            }
            for apart in (False, True)
        }

    @cached_property
    def random_vectors(self) -> Mapping[str, Sequence[Mapping[str, Float32]]]:
        """The vectors of the layers of random weights, for each seed."""
        return {
            name: [self.embedded(embed_with(model, self.settings)) for model in seeds]
            for name, seeds in self.random_models.items()
        }

    def best_random(self, model: str, group: int, *, apart: bool) -> tuple[str, str]:
        """Return name and layer of the random weights of a model's shape that distinguish a group's senses best."""
        config = self.models[model].config
        scores = {
            (name, layer): float(each[group].mean())
            for name, layers in self.of_random[apart].items()
            if self.random_models[name][0].config == config
            for layer, each in layers.items()
        }
        return max(scores, key=lambda key: scores[key])

    def of_static(self, *, apart: bool) -> dict[str, list[Float64]]:
        """Return scores of the mean of static vectors around the word, by the window's name; empty without a corpus."""
        return {name: self.scores(each, apart=apart) for name, each in self._static_vectors.items()}

    @cached_property
    def _static_vectors(self) -> Mapping[str, Float32]:
        if self.settings.corpus is None:
            return {}
        static = word_vectors(self.settings.corpus)
        return {name: around(static, self.examples, reach) for name, reach in WINDOWS.items()}

    def rows(self, section: str, name: str, scores: Sequence[Float64], model: str = "", note: str = "") -> list[Row]:
        """Return a row for each group, with its interval over examples."""
        return [
            Row(
                section, model, name, UNIT, group.name, float(each.mean()),
                interval=by_resampling(each, self.settings.resamples), note=note,
            )
            for group, each in zip(self.groups, scores, strict=True)
        ]  # fmt: skip


def _mean(runs: Sequence[Scores]) -> Scores:
    """Return the mean over several runs."""
    return {
        layer: [np.mean(parts, axis=0) for parts in zip(*(run[layer] for run in runs), strict=True)]
        for layer in runs[0]
    }
