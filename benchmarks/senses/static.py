"""Static vectors: word2vec (skip-grams, Mikolov et al. 2013) by gensim, of the text that models are trained on.

A word has the same vector in every sentence, so what tells its senses apart is the mean of the words around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks.corpus import sentences_of, training_texts
from flashelmo.benchmarks.senses.vectors import Float32
from flashelmo.benchmarks.tasks import Example
from flashelmo.engine.errors import MissingExtraError

SIZE, WINDOW, MIN_COUNT, EPOCHS, SEED = 256, 5, 2, 10, 1
KEPT = "word2vec.npz"  # in the corpus's folder, so that they are trained once
WINDOWS = {"the 5 words on either side": 5, "the 10 words on either side": 10, "the sentence": None}
Static = Mapping[str, Float32]


def word_vectors(corpus: Path) -> Static:
    """Vectors [256] of lower-case words that stand in the text twice or more; they are kept in the folder.

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
    )  # one worker: several give other vectors each time
    return list(found.wv.index_to_key), np.asarray(found.wv.vectors, np.float32)


def of_words(static: Static, tokens: Sequence[str]) -> Float32:
    """[T, 256]; zeros for a word that has none."""
    absent = np.zeros(SIZE, np.float32)
    return np.array([static.get(token.lower(), absent) for token in tokens], np.float32).reshape(-1, SIZE)


def around(static: Static, examples: Sequence[Example], reach: int | None) -> Float32:
    """The mean vector [N, 256] of the words around the one in question, which itself is left out.

    Args:
        reach: words on either side; None for all of the sentence.
    """
    rows = []
    for example in examples:
        start = 0 if reach is None else max(0, example.place - reach)
        stop = len(example.tokens) if reach is None else example.place + 1 + reach
        others = example.tokens[start : example.place] + example.tokens[example.place + 1 : stop]
        known = of_words(static, [token for token in others if token.lower() in static])
        rows.append(known.mean(axis=0) if len(known) else np.zeros(SIZE, np.float32))
    return np.stack(rows)
