"""The words of a text whose contextual vectors are nearest to that of a word in a sentence, by cosine similarity."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappush, heappushpop
from itertools import tee
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from flashelmo.engine.arguments import expect_no_state, flag, shown, whole_number
from flashelmo.engine.arrays import Array
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Layers, Output
from flashelmo.engine.text.sentences import Sentence, tokenized, tokens_of

MOST = 1_000_000  # neighbours: more are a mistake


class Neighbour(NamedTuple):
    """A word in its sentence.

    Attributes:
        similarity: cosine of the two vectors, from -1 to 1.
        sentence: the sentence's number in the text, from 0; position: the word's position in it.
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


@dataclass(frozen=True)
class Use:
    """A word in a sentence whose neighbours are wanted.

    Attributes:
        tokens: the sentence.
        position: the word's position in it, from 0.
        same_word: only consider uses of the same word, ignoring case and how accents are encoded.
    """

    tokens: Sequence[str]
    position: int
    same_word: bool = False

    @classmethod
    def of(cls, query: Sentence | str, word: str | int, same_word: bool = False) -> Use:
        """The use of a word in a sentence, as `find_neighbours` takes both.

        Raises:
            FlashElmoError: the sentence does not contain the word, or is neither text nor tokens.
        """
        tokens = tokens_of(query)
        if not tokens or not all(isinstance(token, str) for token in tokens):
            raise FlashElmoError(f"query: expected a sentence with a word in it, found {shown(query)}")
        return cls(tokens, _position(tokens, word), flag("same_word", same_word))

    def candidates(self, tokens: Sequence[str]) -> list[int]:
        """Positions of the words in a sentence that may be its neighbours; none in the use's own sentence."""
        if list(tokens) == list(self.tokens):
            return []
        word = _folded(self.tokens[self.position])
        # What is no text is left for the embedder to refuse.
        return [
            k
            for k, token in enumerate(tokens)
            if not (self.same_word and isinstance(token, str)) or _folded(token) == word
        ]


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
    """Find the words of a text that are nearest to a word in a sentence, by the cosine of their contextual vectors.

    Each sentence of the text contributes its nearest word, and the n nearest of these are returned, best first. A
    sentence equal to the query contributes none.

    Args:
        elmo: the embedder; it must not be stateful.
        sentences: the text, as for `ElmoEmbedder.embed`; it is read once, in bounded memory.
        query: a sentence that contains the word.
        word: the word, of which the first occurrence counts; or its position, from 0.
        n: the number of neighbours.
        layers: which vectors to compare: "top", "average" or a layer's number.
        same_word: only consider uses of the same word, ignoring case: in which of them is it nearest?

    Raises:
        FlashElmoError: the query does not contain the word; `layers` selects several vectors per token; the embedder is
            stateful; an argument is invalid.
    """
    if not isinstance(elmo, ElmoEmbedder):
        raise FlashElmoError(f"elmo: expected an ElmoEmbedder, found {shown(elmo)}")
    check_layers(layers)
    n = whole_number("n", n, 1, MOST)
    (found,) = neighbours_of(elmo, sentences, [Use.of(query, word, same_word)], n=n, layers=layers)
    return found


def neighbours_of(
    elmo: ElmoEmbedder,
    sentences: Iterable[Sentence | str],
    uses: Sequence[Use],
    *,
    n: int = 5,
    layers: Layers = "average",
) -> list[list[Neighbour]]:
    """Return what `find_neighbours` does, for each of several uses; the text is embedded only once.

    Raises:
        FlashElmoError: as for `find_neighbours`.
    """
    check_layers(layers)
    expect_no_state(elmo.settings.stateful, "a neighbour's vector depends on its sentence alone")
    numbered = enumerate(tokenized("sentences", sentences))
    queries = _embedded(elmo, (use.tokens for use in uses), layers)
    wanted = [vectors[use.position] for use, vectors in zip(uses, queries, strict=True)]
    nearest: list[list[tuple[float, int, Neighbour]]] = [[] for _ in uses]  # heaps of n at most; the first wins a tie
    embedded, named = tee((number, each) for number, each in numbered if any(use.candidates(each) for use in uses))
    results = _embedded(elmo, (each for _, each in embedded), layers)
    for (number, each), vectors in zip(named, results, strict=True):
        for use, vector, heap in zip(uses, wanted, nearest, strict=True):
            if places := use.candidates(each):
                with np.errstate(all="ignore"):  # on Arm, products may set all flags though nothing is wrong
                    similarities = (vectors[places] @ vector).clip(-1, 1)
                k = int(similarities.argmax())
                found = Neighbour(float(similarities[k]), number, places[k], each)
                (heappush if len(heap) < n else heappushpop)(heap, (found.similarity, -number, found))
    return [[found for *_, found in sorted(heap, reverse=True)] for heap in nearest]


def check_layers(layers: Layers) -> None:
    """Raise FlashElmoError where a token has not one vector."""
    if not Output(layers).single:
        raise FlashElmoError(f"layers: expected a layer's number, 'top' or 'average', found {shown(layers)}")


def _embedded(elmo: ElmoEmbedder, sentences: Iterable[Sequence[str]], layers: Layers) -> Iterator[Array]:
    """The vectors of each sentence's words, of length 1; those of its boundaries, where they are kept, are left out."""
    given, named = tee(sentences)
    for tokens, vectors in zip(named, elmo.embed(given, layers=layers), strict=True):
        edge = (len(vectors) - len(tokens)) // 2
        yield _unit(vectors[edge : edge + len(tokens)])


def _position(tokens: Sequence[str], word: str | int) -> int:
    if isinstance(word, str):
        words = [*map(_composed, tokens)]
        if _composed(word) not in words:
            near = next((token for token in tokens if re.fullmatch(rf"\W*{re.escape(word)}\W*", token)), None)
            advice = "" if near is None else f"; {near!r} is one word"
            raise FlashElmoError(f"word: expected a word of {' '.join(tokens)!r}, found {word!r}{advice}")
        return words.index(_composed(word))
    return whole_number("word", word, 0, len(tokens) - 1)


def _composed(text: str) -> str:
    """With accents in one character with their letters (NFC): texts have either, and both look the same."""
    return normalize("NFC", text)


def _folded(text: str) -> str:
    """What is equal in uses of one word."""
    return _composed(text.lower())


def _unit(vectors: Array) -> Array:
    """Of length 1, in float32; zeros stay."""
    vectors = np.asarray(vectors, np.float32)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-30), np.float32)
