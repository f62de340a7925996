"""Words to the ids that index a model's embeddings, with NumPy alone.

bilm-tf's models spell a word as its UTF-8 bytes (`UnicodeCharsVocabulary` in bilm-tf's bilm/data.py and
`ELMoCharacterMapper` in AllenNLP agree), ELMoForManyLangs' models as code points looked up in `char.dic`
(`create_one_batch` in its elmo.py). Both put a begin-of-word before and an end-of-word after the word, then padding.
`characters.py` passes words in Arrow here, `Utf8Words.from_python` those in a Python list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from flashelmo.engine.arrays import Array, Int32, Int64, Uint8
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import Lexicon

N_CODE_POINTS = 0x110000
# Rows of the boundaries in bilm-tf's vocabularies, whose first lines are <S>, </S> and <UNK>; row 0 is no word.
WITHOUT_VOCABULARY = {"<S>": 1, "</S>": 2}
NO_ROW = -1  # of a word that such a model cannot look up
NO_CHARACTER = chr(N_CODE_POINTS - 1)  # stands for a lone surrogate in UTF-8: Unicode never assigns it


def in_place_of_surrogates(family: str) -> str:
    """Return what replaces each lone surrogate of a token in UTF-8: ELMoForManyLangs' models have a character there."""
    return NO_CHARACTER if family == "manylangs" else ""


@dataclass(frozen=True)
class SpecialIds:
    """Ids of the special characters, as the embedding's rows are counted."""

    begin_sentence: int
    end_sentence: int
    begin_word: int
    end_word: int
    padding: int


# Bytes are 1 to 256, since AllenNLP and bilm-tf add 1 to every id: 0 stands for no token.
BYTES = SpecialIds(begin_sentence=257, end_sentence=258, begin_word=259, end_word=260, padding=261)


class Utf8Words(NamedTuple):
    """The UTF-8 of words end to end: word w is data[offsets[w]:offsets[w + 1]]; offsets [W + 1] begin with 0."""

    data: Uint8
    offsets: Int64

    @classmethod
    def from_python(cls, words: Sequence[str], surrogates: str) -> Utf8Words:
        """Return the words of a list; see `utf8`."""
        encoded = utf8(words, surrogates)
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        return cls.from_lengths(np.frombuffer(b"".join(encoded), np.uint8), lengths)

    @classmethod
    def from_lengths(cls, data: Uint8, lengths: Int64) -> Utf8Words:
        """Return words with so many bytes each [W]."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(data, offsets)

    def first_bytes(self) -> Int64:
        """Return the indices in `data` where code points begin."""
        return np.flatnonzero((self.data & 0xC0) != 0x80)

    def rows_of(self, word: str) -> Int64:
        """Return the indices of the words that equal this one."""
        text = word.encode()
        if text not in self.data.tobytes():  # usually no word contains it, which this finds at once
            return np.empty(0, np.int64)
        encoded = np.frombuffer(text, np.uint8)
        rows = np.flatnonzero(self.offsets[1:] - self.offsets[:-1] == len(encoded))
        equal = (self.data[self.offsets[rows, None] + np.arange(len(encoded))] == encoded).all(axis=1)
        return np.compress(equal, rows)


def utf8(words: Sequence[str], surrogates: str) -> list[bytes]:
    """Return every word's UTF-8; `surrogates` says what replaces lone surrogates, as `errors` of `str.encode`.

    Raises:
        FlashElmoError: a word is not text.
    """
    try:
        return [word.encode("utf-8", surrogates) for word in words]
    except (AttributeError, TypeError):
        for i, word in enumerate(words):
            if not isinstance(word, str):
                found = "nothing" if word is None else f"{word!r:.60}"
                raise FlashElmoError(f"word {i}: expected text, found {found}") from None
        raise


class Speller:
    """Character ids and word ids of one model's words.

    Args:
        config: says which family's ids, and whether the model has characters, words or both.
        lexicon: where ELMoForManyLangs' models and bilm-tf's word models look up tokens.

    Attributes:
        boundary_words: the tokens that stand for the begin and the end of a sentence.
        surrogates: what happens to a lone surrogate in a Python string, as `utf8` takes it: it is dropped (AllenNLP),
            or kept as an unknown code point.

    Raises:
        FlashElmoError: the lexicon is missing or lacks a token that every lookup needs.
    """

    def __init__(self, config: ElmoConfig, lexicon: Lexicon | None) -> None:
        manylangs = config.family == "manylangs"
        self.config = config
        self.boundary_words: tuple[str, str] = ("<bos>", "<eos>") if manylangs else ("<S>", "</S>")
        self.surrogates = "surrogatepass" if manylangs else "ignore"
        self._special_ids = BYTES
        self._code_points: Int32 | None = None
        self._words: WordTable | None = None
        if config.character_size and manylangs:
            characters = _required(lexicon).characters
            self._special_ids = _manylangs_special_ids(characters)
            self._code_points = _code_point_table(characters)
        if config.word_size:
            unknown = "<oov>" if manylangs else "<UNK>"
            words = _required(lexicon).words
            if not words and not manylangs:
                words = {**WITHOUT_VOCABULARY, unknown: NO_ROW}
            self._words = WordTable(words, unknown, self.boundary_words)

    def spell(self, words: Utf8Words) -> Int32 | None:
        """Return rows of the character embedding, int32 [W, M]; None for word-only models.

        Only a word's first M - 2 bytes (or code points) count. The boundary words are one special character each.
        """
        if not self.config.character_size:
            return None
        if self._code_points is None:
            return spell_bytes(words, self.config.max_characters, self.boundary_words)
        units, starts = _code_points(words)
        ids = _spell(self._code_points[units], starts, self._special_ids, self.config.max_characters)
        # a word that is cut to a boundary word means the boundary, as in the published code
        return _spell_boundaries(ids, self._cut(words), self.boundary_words, self._special_ids)

    def look_up(self, words: Utf8Words) -> Int64 | None:
        """Return rows of the word embedding, int64 [W]; None for character-only models.

        ELMoForManyLangs looks up the word's first M - 2 code points.

        Raises:
            FlashElmoError: the model's vocabulary is missing.
        """
        if self._words is None:
            return None
        rows = self._words.rows(self._cut(words) if self.config.family == "manylangs" else words)
        if (rows == NO_ROW).any():
            expected = "expected vocab.txt beside the model's weights, which looks words up"
            raise FlashElmoError(f"vocabulary: {expected}, found none; the module Elmo takes ids without one")
        return rows

    @property
    def padding_id(self) -> int:
        """The id that pads a word's row up to M."""
        return self._special_ids.padding

    def lengths(self, character_ids: Int32) -> Int64:
        """Return each word's number of positions in character_ids [W, M], up to and including its end, int64 [W]."""
        occupied = character_ids[:, ::-1] != self._special_ids.padding
        return np.asarray(character_ids.shape[1] - occupied.argmax(axis=1), np.int64)

    def _cut(self, words: Utf8Words) -> Utf8Words:
        """Return words cut to M - 2 code points, except the boundary words."""
        data, offsets = words
        limit = self.config.max_characters - 2
        first_bytes = words.first_bytes()
        begins = np.searchsorted(first_bytes, offsets)
        long = np.diff(begins) > limit
        for word in self.boundary_words:
            long[words.rows_of(word)] = False
        if not long.any():
            return words
        ends = offsets[1:].copy()
        ends[long] = first_bytes[begins[:-1][long] + limit]
        kept = np.arange(len(data)) < np.repeat(ends, np.diff(offsets))
        return Utf8Words.from_lengths(data[kept], ends - offsets[:-1])


class WordTable:
    """A lexicon of words: token to row, with one row for all unknown tokens."""

    def __init__(self, rows: Mapping[str, int], unknown: str, needed: Sequence[str]) -> None:
        for token in (unknown, *needed):
            if token not in rows:
                raise FlashElmoError(f"word lexicon: expected the token {token}, found {len(rows)} others")
        self._rows = {token.encode("utf-8", "surrogatepass"): row for token, row in rows.items()}
        self._unknown = rows[unknown]

    def rows(self, words: Utf8Words) -> Int64:
        """Return the row of every word, int64 [W]."""
        # the one loop over words: a hash table is a dict, and Arrow's index_in builds its own in every call
        text, find, unknown = words.data.tobytes(), self._rows.get, self._unknown
        return np.array([find(text[begin:end], unknown) for begin, end in pairwise(words.offsets.tolist())], np.int64)


def spell_bytes(words: Utf8Words, max_characters: int, boundaries: Sequence[str]) -> Int32:
    """Return ids of words as bytes, int32 [W, max_characters]: bilm-tf's and AllenNLP's."""
    ids = _spell(words.data, words.offsets, BYTES, max_characters, shift=1)
    return _spell_boundaries(ids, words, boundaries, BYTES)


def _spell(units: Array, offsets: Int64, special_ids: SpecialIds, max_characters: int, shift: int = 0) -> Int32:
    """Return words with characters units[offsets[w]:offsets[w + 1]] as rows: begin, characters, end, padding."""
    n_words = len(offsets) - 1
    lengths = np.minimum(np.diff(offsets), max_characters - 2)
    ids = np.full((n_words, max_characters), special_ids.padding, np.int32)
    ids[:, 0] = special_ids.begin_word
    ids[np.arange(n_words), lengths + 1] = special_ids.end_word
    # the k-th character that is kept is at units[k + skipped] and goes to position k + moved of the flat ids
    ends = np.cumsum(lengths)
    kept = np.arange(lengths.sum())
    skipped = np.repeat(offsets[:-1] - (ends - lengths), lengths)
    moved = np.repeat(np.arange(n_words) * max_characters + 1 - (ends - lengths), lengths)
    ids.reshape(-1)[kept + moved] = units[kept + skipped].astype(np.int32) + shift
    return ids


def _spell_boundaries(ids: Int32, words: Utf8Words, boundaries: Sequence[str], special_ids: SpecialIds) -> Int32:
    for word, character in zip(boundaries, (special_ids.begin_sentence, special_ids.end_sentence), strict=True):
        rows = words.rows_of(word)
        if len(rows):
            ids[rows] = special_ids.padding
            ids[rows, :3] = (special_ids.begin_word, character, special_ids.end_word)
    return ids


def _manylangs_special_ids(characters: Mapping[str, int]) -> SpecialIds:
    for token in ("<bos>", "<eos>", "<bow>", "<eow>", "<pad>", "<oov>"):
        if token not in characters:
            raise FlashElmoError(f"char.dic: expected the entry {token}, found {len(characters)} others")
    return SpecialIds(
        begin_sentence=characters["<bos>"],
        end_sentence=characters["<eos>"],
        begin_word=characters["<eow>"],  # swapped, as in the published code that the models were trained with
        end_word=characters["<bow>"],
        padding=characters["<pad>"],
    )


def _code_point_table(characters: Mapping[str, int]) -> Int32:
    """Return the row of every code point."""
    table = np.full(N_CODE_POINTS, characters["<oov>"], np.int32)
    for character, row in characters.items():
        if len(character) == 1:
            table[ord(character)] = row
    return table


def _code_points(words: Utf8Words) -> tuple[npt.NDArray[np.uint32], Int64]:
    """Return the code points of all words end to end, and the words' offsets in them."""
    text = words.data.tobytes().decode("utf-8", "surrogatepass")
    units = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
    return units, np.searchsorted(words.first_bytes(), words.offsets).astype(np.int64)


def _required(lexicon: Lexicon | None) -> Lexicon:
    if lexicon is None:
        raise FlashElmoError("lexicon: expected one, as this model looks up words or characters, found none")
    return lexicon
