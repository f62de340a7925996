"""Raw text to tokens. A tokenizer takes whole lines of UTF-8, and returns all tokens and where each line begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from flashelmo.engine.arrays import Int64
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.text.lines import split_lines

Tokens: TypeAlias = tuple[pa.StringArray, Int64]  # sentences end to end, and where each begins [B + 1]
Tokenizer: TypeAlias = Callable[[bytes], Tokens]

NAMES = "whitespace, characters, moses, moses:LANGUAGE, spacy:MODEL or spacy:blank:LANGUAGE"


def tokenizer_of(name: str) -> Tokenizer:
    """Return the named tokenizer.

    Args:
        name: "whitespace"; "characters", which makes each one a token, except white space; "moses" for English, or
            "moses:de" for another language, as in sacremoses, without escapes; "spacy:en_core_web_sm", an installed
            model, or "spacy:blank:en", a language's rules without a model.

    Raises:
        FlashElmoError: there is none of this name, or its model is missing.
        MissingExtraError: its package is missing.
    """
    kind, _, rest = str(name).partition(":")
    if name == "whitespace":
        return whitespace
    if name == "characters":
        return characters
    if kind == "moses" and (rest or name == "moses"):
        return _by_line(_moses(rest or "en"))
    if kind == "spacy" and rest:
        return _by_line(_spacy(rest))
    raise FlashElmoError(f"tokenizer: expected {NAMES}, found {name!r}")


def whitespace(text: bytes) -> Tokens:
    """Return the tokens between white space."""
    block = split_lines(text)
    return block.tokens, block.token_offsets


def characters(text: bytes) -> Tokens:
    """Return each character that is not white space."""
    words, word_offsets = whitespace(text)
    _, ends, data = words.buffers()
    n_bytes = np.frombuffer(ends, np.int32)
    bytes_of_words = np.frombuffer(data, np.uint8)[: n_bytes[-1]]
    starts = np.flatnonzero((bytes_of_words & 0xC0) != 0x80)  # all except a character's further bytes
    offsets = np.append(starts, len(bytes_of_words)).astype(np.int32)
    tokens = pa.StringArray.from_buffers(len(starts), pa.py_buffer(offsets), data)
    return tokens, np.searchsorted(starts, n_bytes[word_offsets]).astype(np.int64)


def tokens_of_lists(sentences: Sequence[Sequence[str]]) -> Tokens:
    """Return the tokens of sentences given as token lists."""
    offsets = np.zeros(len(sentences) + 1, np.int64)
    np.cumsum([len(sentence) for sentence in sentences], out=offsets[1:])
    return pa.array([token for sentence in sentences for token in sentence], pa.string()), offsets


def lines_of(texts: Iterable[str]) -> bytes:
    """Return texts as tokenizers take them, with line ends inside one turned into other white space."""
    return "".join([text.replace("\n", " ") + "\n" for text in texts]).encode()


def _by_line(split: Callable[[str], list[str]]) -> Tokenizer:
    return lambda text: tokens_of_lists([split(line) for line in text.decode().split("\n")[:-1]])


def _moses(language: str) -> Callable[[str], list[str]]:
    try:
        from sacremoses import MosesTokenizer
    except ImportError as error:
        raise MissingExtraError("sacremoses", "bulk", "the tokenizer moses") from error
    tokenizer = MosesTokenizer(lang=language)
    return lambda line: list(tokenizer.tokenize(line, escape=False))


def _spacy(model: str) -> Callable[[str], list[str]]:
    try:
        import spacy
    except ImportError as error:
        raise MissingExtraError("spacy", "spacy", f"the tokenizer spacy:{model}") from error
    kind, _, language = model.partition(":")
    try:
        pipeline = spacy.blank(language) if kind == "blank" else spacy.load(model)
    except (OSError, ImportError, ValueError) as error:
        found = " ".join(str(error).split())
        raise FlashElmoError(f"tokenizer: expected an installed model of spaCy, found {model}: {found}") from None
    return lambda line: [token.text for token in pipeline.make_doc(line) if not token.is_space]
