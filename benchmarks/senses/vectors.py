"""Vectors of examples: of the layers of a model, of random weights of its shape, and static ones.

Static vectors are word2vec's (skip-grams, Mikolov et al. 2013), by gensim, from the text that models are trained on. A
word has the same one in every sentence, so its senses are distinguished by the mean of the words around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from flashelmo.benchmarks.contestant import load
from flashelmo.benchmarks.corpus import sentences_of, training_texts
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tasks import Embed, Example
from flashelmo.engine.arrays import Float32
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import MissingExtraError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import random_weights
from flashelmo.engine.model.weights import ElmoModel, ElmoWeights, expected_shapes

Static: TypeAlias = Mapping[str, Float32]
AVERAGE = "average"
SIZE, WINDOW, MIN_COUNT, EPOCHS, SEED = 256, 5, 2, 10, 1  # of word2vec
KEPT = "word2vec.npz"  # in the corpus's folder, so that they are trained once
WINDOWS = {"the 5 words on either side": 5, "the 10 words on either side": 10, "the sentence": None}


def layers(embed: Embed, examples: Sequence[Example]) -> dict[str, Float32]:
    """Return vectors [N, 2P] of the words in question, by each layer's name and in the layers' average."""
    sentences = [example.tokens for example in examples]
    found = zip(embed(sentences), examples, strict=True)
    stacked = np.stack([vectors[:, example.place].astype(np.float32) for vectors, example in found])
    return by_name(stacked)


def by_name(stacked: Float32) -> dict[str, Float32]:
    """Return vectors [N, L, 2P] by the name of their layer, and their average."""
    named = {f"layer {k}": stacked[:, k] for k in range(stacked.shape[1])}
    return {**named, AVERAGE: stacked.mean(axis=1)}


def embed_with(model: ElmoModel, settings: Settings, **options: Any) -> Embed:
    """Return the engine on the processor in float32, otherwise as the options say."""
    told: dict[str, Any] = {"device": "cpu", "precision": "fp32", "threads": settings.threads, **options}
    return ElmoEmbedder(model, **told).embed


def models(settings: Settings) -> dict[str, ElmoModel]:
    """Return the models in the settings by the last part of their path, or by all of it if two have the same name."""
    last = [Path(path).name for path in settings.models]
    names = last if len(set(last)) == len(last) else settings.models
    return {name: load(path, settings.seed) for name, path in zip(names, settings.models, strict=True)}


def random_models(found: Mapping[str, ElmoModel], settings: Settings) -> dict[str, list[ElmoModel]]:
    """Return models with random weights, for each shape and seed, by how they are drawn.

    The size of weights matters: states that forget more slowly reveal more of the words around. So there are those of
    `flashelmo init` and those of PyTorch's modules. Models with a lexicon keep it.
    """
    shapes = {model.config: model for model in found.values()}
    named = {}
    for config, model in shapes.items():
        shape = f", C {config.cell_size}, P {config.projection_size}" if len(shapes) > 1 else ""
        for kind, draw in RANDOM.items():
            seeds = range(settings.seed, settings.seed + settings.random_seeds)
            name = f"random weights{shape} ({kind})"
            named[name] = [ElmoModel(config, draw(config, k), model.lexicon, Path(name), "native") for k in seeds]
    return named


def pytorch_weights(config: ElmoConfig, seed: int) -> ElmoWeights:
    """Return the weights with which PyTorch's modules begin: embeddings normal, others uniform within 1 / sqrt(inputs).

    For an LSTM and its projection the inputs are C.
    """
    rng = np.random.default_rng(seed)
    tensors = {}
    shapes = expected_shapes(config)
    for name, shape in shapes.items():
        if name.endswith("embedding"):
            tensors[name] = rng.standard_normal(shape, np.float32)
            continue
        weight = name.removesuffix("bias") + "weight" if name.endswith(".bias") else name
        inputs = (config.cell_size,) if name.startswith("lstm.") else shapes[weight][:-1]
        tensors[name] = rng.uniform(-1, 1, shape).astype(np.float32) / np.float32(np.sqrt(np.prod(inputs)))
    if "character_embedding" in tensors:
        tensors["character_embedding"][0] = 0.0  # no token
    return ElmoWeights.from_named_tensors(tensors, config)


RANDOM: Mapping[str, Callable[[ElmoConfig, int], ElmoWeights]] = {
    "of `init`": random_weights,
    "PyTorch's": pytorch_weights,
}


def word_vectors(corpus: Path) -> Static:
    """Return vectors [256] of lower-case words that occur in the text at least twice; they are kept in the folder.

    Raises:
        MissingExtraError: gensim is not installed.
    """
    texts = training_texts(corpus)
    kept = corpus / KEPT
    if not kept.is_file():
        words, vectors = _train(texts)
        np.savez(kept, words=np.array(words), vectors=vectors)
    with np.load(kept) as found:
        return dict(zip(found["words"].tolist(), found["vectors"], strict=True))


def _train(texts: Sequence[Path]) -> tuple[list[str], Float32]:
    try:
        from gensim.models import Word2Vec
    except ImportError as error:
        raise MissingExtraError("gensim", "senses", "training static vectors") from error
    lowered = [[token.lower() for token in tokens] for tokens in sentences_of(texts)]
    found: Any = Word2Vec(
        lowered, sg=1, vector_size=SIZE, window=WINDOW, min_count=MIN_COUNT, epochs=EPOCHS, seed=SEED, workers=1
    )  # one worker: several would give other vectors each time
    return list(found.wv.index_to_key), np.asarray(found.wv.vectors, np.float32)


def of_words(static: Static, tokens: Sequence[str]) -> Float32:
    """Return [T, 256]; zeros for a word that has none."""
    absent = np.zeros(SIZE, np.float32)
    return np.array([static.get(token.lower(), absent) for token in tokens], np.float32).reshape(-1, SIZE)


def around(static: Static, examples: Sequence[Example], reach: int | None) -> Float32:
    """Return the mean vector [N, 256] of the words around the one in question, without that one.

    Args:
        reach: words on either side; None for the whole sentence.
    """
    rows = []
    for example in examples:
        start = 0 if reach is None else max(0, example.place - reach)
        stop = len(example.tokens) if reach is None else example.place + 1 + reach
        others = example.tokens[start : example.place] + example.tokens[example.place + 1 : stop]
        known = of_words(static, [token for token in others if token.lower() in static])
        rows.append(known.mean(axis=0) if len(known) else np.zeros(SIZE, np.float32))
    return np.stack(rows)
