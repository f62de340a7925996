"""The words of a text whose vectors in context are nearest to that of a word in a sentence, by cosine similarity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from itertools import tee
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flashelmo.engine.arguments import flag, shown, whole_number
from flashelmo.engine.arrays import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Layers, Output
from flashelmo.engine.text.sentences import Sentence, several, tokens_of

if TYPE_CHECKING:
    from flashelmo.engine.embedder import ElmoEmbedder

MOST = 1_000_000  # neighbours: more are a mistake


class Neighbour(NamedTuple):
    """A word in its sentence.

    Attributes:
        similarity: cosine of both vectors, from -1 to 1.
        sentence: its number in the text, from 0; position: the word's in it.
        tokens: the sentence.
    """

    similarity: float
    sentence: int
    position: int
    tokens: Sequence[str]

    @property
    def word(self) -> str:
        """The word itself."""
        return self.tokens[self.position]


def find_neighbours(
    elmo: ElmoEmbedder,
    sentences: Iterable[Sentence | str],
    query: Sentence | str,
    word: str | int,
    *,
    n: int = 5,
    layers: Layers = "average",
    same_word: bool = False,
) -> list[Neighbour]:
    """The nearest word of each sentence, and of these the n nearest; a sentence that is the query itself has none.

    Args:
        sentences: of the text, as `ElmoEmbedder.embed` takes them; they are read once, in bounded memory.
        query: a sentence with the word in it.
        word: that word, the first time it stands there; or its position, from 0.
        n: neighbours.
        layers: what is compared: "top", "average" or the number of a layer.
        same_word: only that word itself, in capitals or small letters: in which of its uses is it nearest?

    Raises:
        FlashElmoError: the query does not hold the word; `layers` names more than one vector for a token; an argument
            is none of these.
    """
    if not callable(getattr(elmo, "embed", None)):
        raise FlashElmoError(f"elmo: expected an ElmoEmbedder, found {shown(elmo)}")
    if not Output(layers).single:
        raise FlashElmoError(f"layers: expected one of them, 'top' or 'average', found {shown(layers)}")
    n, tokens = whole_number("n", n, 1, MOST), tokens_of(query)
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise FlashElmoError(f"query: expected a sentence with a word in it, found {shown(query)}")
    position = _position(tokens, word)
    wanted = tokens[position].lower() if flag("same_word", same_word) else None
    (vectors,) = elmo.embed([tokens], layers=layers)
    found = _nearest(elmo, several("sentences", sentences), tokens, _unit(vectors[position]), layers, wanted)
    return nlargest(n, found, key=lambda neighbour: neighbour.similarity)


def _nearest(
    elmo: ElmoEmbedder,
    sentences: Iterable[Sentence | str],
    query: Sequence[str],
    vector: Array,
    layers: Layers,
    wanted: str | None,
) -> Iterator[Neighbour]:
    """The nearest word of every sentence that may have one."""
    numbered = enumerate(map(tokens_of, sentences))
    candidates = ((number, each) for number, each in numbered if _may_be_near(each, query, wanted))
    embedded, named = tee(candidates)
    for (number, each), vectors in zip(named, elmo.embed((each for _, each in embedded), layers=layers), strict=True):
        similarities = _unit(vectors) @ vector
        if wanted is not None:
            similarities[[token.lower() != wanted for token in each]] = -np.inf
        position = int(similarities.argmax())
        yield Neighbour(float(similarities[position]), number, position, each)


def _may_be_near(tokens: Sequence[str], query: Sequence[str], wanted: str | None) -> bool:
    if wanted is not None and wanted not in (token.lower() for token in tokens):
        return False
    return len(tokens) > 0 and list(tokens) != list(query)


def _position(tokens: Sequence[str], word: str | int) -> int:
    if isinstance(word, str):
        if word not in tokens:
            raise FlashElmoError(f"word: expected one of {' '.join(tokens)!r}, found {word!r}")
        return list(tokens).index(word)
    return whole_number("word", word, 0, len(tokens) - 1)


def _unit(vectors: Array) -> Array:
    """Of length 1, in float32; zeros stay."""
    vectors = np.asarray(vectors, np.float32)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30), np.float32)
