"""Words to the ids that a model's embeddings are indexed by, without a Python loop over words.

bilm-tf's models spell a word as the bytes of its UTF-8 (`UnicodeCharsVocabulary` in bilm-tf's bilm/data.py and
`ELMoCharacterMapper` in AllenNLP agree), ELMoForManyLangs' models as code points looked up in `char.dic`
(`create_one_batch` in its elmo.py). Both put a begin-of-word before and an end-of-word behind, then padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flashelmo.engine.config import ElmoConfig
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.weights import Lexicon

if TYPE_CHECKING:
    import torch

Int32: TypeAlias = npt.NDArray[np.int32]
Int64: TypeAlias = npt.NDArray[np.int64]

N_CODE_POINTS = 0x110000
ALLENNLP_MAX_CHARACTERS = 50


@dataclass(frozen=True)
class Alphabet:
    """Ids of the special characters, as the embedding's rows count them."""

    begin_sentence: int
    end_sentence: int
    begin_word: int
    end_word: int
    padding: int


# Bytes are 1 to 256, since AllenNLP and bilm-tf add 1 to every id: 0 stands for no token at all.
BYTES = Alphabet(begin_sentence=257, end_sentence=258, begin_word=259, end_word=260, padding=261)


class WordEncoder:
    """Character ids and word ids of one model's words.

    Args:
        config: says which family's ids, and whether the model has characters, words or both.
        lexicon: what ELMoForManyLangs' models and bilm-tf's word models look tokens up in.

    Attributes:
        boundary_words: the tokens that stand for the begin and the end of a sentence.

    Raises:
        FlashElmoError: the lexicon is absent or lacks a token that every look-up needs.
    """

    def __init__(self, config: ElmoConfig, lexicon: Lexicon | None) -> None:
        manylangs = config.family == "manylangs"
        self.config = config
        self.boundary_words: tuple[str, str] = ("<bos>", "<eos>") if manylangs else ("<S>", "</S>")
        self._alphabet = BYTES
        self._code_points: Int32 | None = None
        self._words: WordTable | None = None
        if config.character_size and manylangs:
            characters = _required(lexicon).characters
            self._alphabet = _manylangs_alphabet(characters)
            self._code_points = _code_point_table(characters)
        if config.word_size:
            unknown = "<oov>" if manylangs else "<UNK>"
            self._words = WordTable(_required(lexicon).words, unknown, self.boundary_words)

    def character_ids(self, words: Sequence[str] | pa.Array) -> Int32 | None:
        """Rows of the character embedding, int32 [W, M]; None for models of words alone.

        A word's first M - 2 bytes (or code points) count. The boundary words are one special character each.
        """
        if not self.config.character_size:
            return None
        strings = _binary(words, self._surrogates)
        if self._code_points is None:
            return _byte_ids(strings, self.config.max_characters, self.boundary_words)
        data, offsets = _buffers(strings)
        units, starts = _code_points(data, offsets)
        ids = _spell(self._code_points[units], starts, self._alphabet, self.config.max_characters)
        # a word that is cut down to a boundary word means the boundary, as in the published code
        return _spell_boundaries(ids, self._cut(strings), self.boundary_words, self._alphabet)

    def word_ids(self, words: Sequence[str] | pa.Array) -> Int64 | None:
        """Rows of the word embedding, int64 [W]; None for models of characters alone.

        ELMoForManyLangs looks up the word's first M - 2 code points.
        """
        if self._words is None:
            return None
        strings = _binary(words, self._surrogates)
        return self._words.rows(self._cut(strings) if self.config.family == "manylangs" else strings)

    @property
    def padding_id(self) -> int:
        """The id that fills a word's row up to M."""
        return self._alphabet.padding

    def lengths(self, character_ids: Int32) -> Int64:
        """Positions of each word of character_ids [W, M] up to its end-of-word and with it, int64 [W]."""
        occupied = character_ids[:, ::-1] != self._alphabet.padding
        return np.asarray(character_ids.shape[1] - occupied.argmax(axis=1), np.int64)

    @property
    def _surrogates(self) -> str:
        """What a lone surrogate in a Python string is: nothing (AllenNLP), or an unknown code point."""
        return "surrogatepass" if self.config.family == "manylangs" else "ignore"

    def _cut(self, strings: pa.LargeBinaryArray) -> pa.LargeBinaryArray:
        """Words cut to M - 2 code points, but for the boundary words."""
        data, offsets = _buffers(strings)
        limit = self.config.max_characters - 2
        first_bytes = np.flatnonzero((data & 0xC0) != 0x80)  # where code points begin
        begins = np.searchsorted(first_bytes, offsets)
        long = np.diff(begins) > limit
        long &= ~_is_in(strings, self.boundary_words)
        if not long.any():
            return strings
        ends = offsets[1:].copy()
        ends[long] = first_bytes[begins[:-1][long] + limit]
        kept = np.arange(len(data)) < np.repeat(ends, np.diff(offsets))
        return _binary_array(data[kept], ends - offsets[:-1])


class WordTable:
    """A lexicon of words: token to row, with one row for all unknown tokens."""

    def __init__(self, rows: Mapping[str, int], unknown: str, needed: Sequence[str]) -> None:
        for token in (unknown, *needed):
            if token not in rows:
                raise FlashElmoError(f"word lexicon: expected the token {token}, found {len(rows)} others")
        self._rows = {token.encode("utf-8", "surrogatepass"): row for token, row in rows.items()}
        self._unknown = rows[unknown]

    def rows(self, strings: pa.LargeBinaryArray) -> Int64:
        """Row of every string, int64 [W]."""
        # 5M words/s; Arrow's index_in is no faster and hashes the whole lexicon in every call
        return np.array([self._rows.get(token, self._unknown) for token in strings.to_pylist()], np.int64)


def batch_to_ids(batch: Sequence[Sequence[str]]) -> torch.LongTensor:
    """Character ids of tokenized sentences as AllenNLP's `batch_to_ids` gives them.

    Returns:
        int64 [B, T, 50], without boundaries, zero where a sentence is shorter than the longest one.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch", "batch_to_ids") from error
    lengths = np.array([len(sentence) for sentence in batch], np.int64)
    ids = np.zeros((len(batch), lengths.max(initial=0), ALLENNLP_MAX_CHARACTERS), np.int64)
    words = _binary([word for sentence in batch for word in sentence], "ignore")
    is_word = np.arange(ids.shape[1]) < lengths[:, None]
    ids[is_word] = _byte_ids(words, ALLENNLP_MAX_CHARACTERS, ("<S>", "</S>"))
    return torch.LongTensor(torch.from_numpy(ids))


def _byte_ids(strings: pa.LargeBinaryArray, max_characters: int, boundaries: Sequence[str]) -> Int32:
    data, offsets = _buffers(strings)
    return _spell_boundaries(_spell(data, offsets, BYTES, max_characters, shift=1), strings, boundaries, BYTES)


def _spell(units: npt.NDArray[Any], offsets: Int64, alphabet: Alphabet, max_characters: int, shift: int = 0) -> Int32:
    """Words whose characters are units[offsets[w]:offsets[w + 1]] as rows: begin, characters, end, padding."""
    n_words = len(offsets) - 1
    lengths = np.minimum(np.diff(offsets), max_characters - 2)
    ids = np.full((n_words, max_characters), alphabet.padding, np.int32)
    ids[:, 0] = alphabet.begin_word
    ids[np.arange(n_words), lengths + 1] = alphabet.end_word
    # the k-th character that is kept lies at units[k + skipped] and goes to place k + moved of the flat ids
    ends = np.cumsum(lengths)
    kept = np.arange(ends[-1] if n_words else 0)
    skipped = np.repeat(offsets[:-1] - (ends - lengths), lengths)
    moved = np.repeat(np.arange(n_words) * max_characters + 1 - (ends - lengths), lengths)
    ids.reshape(-1)[kept + moved] = units[kept + skipped].astype(np.int32) + shift
    return ids


def _spell_boundaries(ids: Int32, strings: pa.Array, boundaries: Sequence[str], alphabet: Alphabet) -> Int32:
    for word, character in zip(boundaries, (alphabet.begin_sentence, alphabet.end_sentence), strict=True):
        rows = np.flatnonzero(_is_in(strings, (word,)))
        ids[rows] = alphabet.padding
        ids[rows, :3] = (alphabet.begin_word, character, alphabet.end_word)
    return ids


def _manylangs_alphabet(characters: Mapping[str, int]) -> Alphabet:
    for token in ("<bos>", "<eos>", "<bow>", "<eow>", "<pad>", "<oov>"):
        if token not in characters:
            raise FlashElmoError(f"char.dic: expected the entry {token}, found {len(characters)} others")
    return Alphabet(
        begin_sentence=characters["<bos>"],
        end_sentence=characters["<eos>"],
        begin_word=characters["<eow>"],  # swapped, as in the published code that the models were trained by
        end_word=characters["<bow>"],
        padding=characters["<pad>"],
    )


def _code_point_table(characters: Mapping[str, int]) -> Int32:
    """Row of every code point."""
    table = np.full(N_CODE_POINTS, characters["<oov>"], np.int32)
    for character, row in characters.items():
        if len(character) == 1:
            table[ord(character)] = row
    return table


def _code_points(data: npt.NDArray[np.uint8], offsets: Int64) -> tuple[npt.NDArray[np.uint32], Int64]:
    """Code points of all words end to end, and the offsets of the words in them."""
    text = data.tobytes().decode("utf-8", "surrogatepass")
    units = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))
    first_bytes = np.flatnonzero((data & 0xC0) != 0x80)
    return units, np.searchsorted(first_bytes, offsets).astype(np.int64)


def _binary(words: Sequence[str] | pa.Array, surrogates: str) -> pa.LargeBinaryArray:
    """The words' UTF-8 in Arrow, whatever they came in."""
    if isinstance(words, pa.ChunkedArray):
        words = words.combine_chunks()
    if not isinstance(words, pa.Array):
        words = _from_python(words, surrogates)
    if words.null_count:
        raise FlashElmoError(f"word {pc.is_null(words).index(True).as_py()}: expected text, found nothing")
    return words.cast(pa.large_binary())


def _from_python(words: Sequence[str], surrogates: str) -> pa.Array:
    try:
        return pa.array(words, pa.large_string())
    except UnicodeEncodeError:
        return pa.array([word.encode("utf-8", surrogates) for word in words], pa.large_binary())
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise FlashElmoError(f"words: expected a list of texts: {error}") from None


def _buffers(strings: pa.LargeBinaryArray) -> tuple[npt.NDArray[np.uint8], Int64]:
    """Bytes of all strings end to end, and the offsets [W + 1] of the strings in them; a slice is its own part."""
    _, offset_buffer, data_buffer = strings.buffers()
    if not len(strings) or data_buffer is None:
        return np.empty(0, np.uint8), np.zeros(len(strings) + 1, np.int64)
    offsets = np.frombuffer(offset_buffer, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    return data, offsets - offsets[0]


def _binary_array(data: npt.NDArray[np.uint8], lengths: Int64) -> pa.LargeBinaryArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )


def _is_in(strings: pa.LargeBinaryArray, words: Sequence[str]) -> npt.NDArray[np.bool_]:
    values = pa.array([word.encode() for word in words], pa.large_binary())
    return np.asarray(pc.is_in(strings, value_set=values).to_numpy(zero_copy_only=False), np.bool_)


def _required(lexicon: Lexicon | None) -> Lexicon:
    if lexicon is None:
        raise FlashElmoError("lexicon: this model looks words or characters up, expected a lexicon, found none")
    return lexicon
