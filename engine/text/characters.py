"""Words in Arrow, or in a Python list, to the ids of `spelling.py`, without a Python loop over words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flashelmo.engine.arrays import Int32, Int64
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.text.sentences import Sentence, tokenized
from flashelmo.engine.text.spelling import Speller, Utf8Words, spell_bytes, utf8

if TYPE_CHECKING:
    import torch

ALLENNLP_MAX_CHARACTERS = 50


class WordEncoder(Speller):
    """A `Speller` of words in Arrow or in a Python list."""

    def character_ids(self, words: Sequence[str] | pa.Array) -> Int32 | None:
        """Return rows of the character embedding, int32 [W, M]; None for word-only models. See `Speller.spell`."""
        return self.spell(_utf8_words(words, self.surrogates)) if self.config.character_size else None

    def word_ids(self, words: Sequence[str] | pa.Array) -> Int64 | None:
        """Return rows of the word embedding, int64 [W]; None for character-only models. See `Speller.look_up`."""
        return self.look_up(_utf8_words(words, self.surrogates)) if self.config.word_size else None


def batch_to_ids(batch: Iterable[Sentence | str]) -> torch.LongTensor:
    """Return character ids of sentences as AllenNLP's `batch_to_ids` does; strings are split on white space.

    Returns:
        int64 [B, T, 50], without boundaries, zero beyond a sentence's end.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch", "batch_to_ids") from error
    sentences = list(tokenized("batch", batch))
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    ids = np.zeros((len(sentences), lengths.max(initial=0), ALLENNLP_MAX_CHARACTERS), np.int64)
    words = _utf8_words([word for sentence in sentences for word in sentence], "ignore")
    is_word = np.arange(ids.shape[1]) < lengths[:, None]
    ids[is_word] = spell_bytes(words, ALLENNLP_MAX_CHARACTERS, ("<S>", "</S>"))
    return torch.LongTensor(torch.from_numpy(ids))


def _utf8_words(words: Sequence[str] | pa.Array, surrogates: str) -> Utf8Words:
    """Return the words' UTF-8, whatever type holds them."""
    if isinstance(words, pa.ChunkedArray):
        words = words.combine_chunks()
    if not isinstance(words, pa.Array):
        words = _from_python(words, surrogates)
    if words.null_count:
        raise FlashElmoError(f"word {pc.is_null(words).index(True).as_py()}: expected text, found nothing")
    return _buffers(words.cast(pa.large_binary()))


def _from_python(words: Sequence[str], surrogates: str) -> pa.Array:
    try:
        return pa.array(words, pa.large_string())
    except UnicodeEncodeError:
        return pa.array(utf8(words, surrogates), pa.large_binary())
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise FlashElmoError(f"words: expected a list of texts: {error}") from None


def _buffers(strings: pa.LargeBinaryArray) -> Utf8Words:
    """Return the strings' bytes without copying; those of the slice for a sliced array."""
    _, offset_buffer, data_buffer = strings.buffers()
    if not len(strings) or data_buffer is None:
        return Utf8Words(np.empty(0, np.uint8), np.zeros(len(strings) + 1, np.int64))
    offsets = np.frombuffer(offset_buffer, np.int64)[strings.offset : strings.offset + len(strings) + 1]
    data = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    return Utf8Words(data, offsets - offsets[0])
