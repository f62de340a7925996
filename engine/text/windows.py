"""Tokenized text to windows of sentences in Arrow, without a Python loop over tokens or lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pyarrow as pa

from flashelmo.engine.arguments import path_of, shown, standard_input
from flashelmo.engine.arrays import Bool, Int32, Int64
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.system.threads import Background
from flashelmo.engine.text.lines import Block, Errors, check_utf8, split_lines, without_mark
from flashelmo.engine.text.sentences import SURROGATE
from flashelmo.engine.text.tables import check_is_no_other_format

Item = TypeVar("Item")

CHUNK_BYTES = 1 << 20
MAX_WINDOW_BYTES = 1 << 28  # Arrow's strings count their bytes in 31 bits
BARE_RETURN = re.compile(rb"\r(?!\n)")
FEW_TOKENS = 1 << 10  # converted one by one faster
SEPARATOR = "\0"  # between tokens in lists, which hardly ever contain it


@dataclass(frozen=True)
class Window:
    """Tokenized sentences that are embedded together.

    Attributes:
        words: distinct words in order of first appearance [W].
        word_ids: index into `words` of every token [tokens], sentence after sentence.
        offsets: [B + 1]; sentence b is word_ids[offsets[b]:offsets[b + 1]].
        text: the lines as they were read (UTF-8), if they came from a file.
    """

    words: pa.StringArray
    word_ids: Int32
    offsets: Int64
    text: bytes | None = None

    @classmethod
    def from_sentences(cls, sentences: Sequence[Sequence[str]]) -> Window:
        """Make a window of sentences given as token lists. Lone surrogates, which UTF-8 lacks, are dropped."""
        return Draft.of(sentences).window()

    @classmethod
    def encode(cls, tokens: pa.StringArray, offsets: Int64, text: bytes | None = None) -> Window:
        """Make a window of tokens, sentence after sentence."""
        encoded = tokens.dictionary_encode()
        return cls(encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False), offsets, text)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def tokens(self, b: int) -> list[str]:
        """Return the tokens of sentence b."""
        ids = self.word_ids[self.offsets[b] : self.offsets[b + 1]]
        tokens: list[str] = self.words.take(pa.array(ids)).to_pylist()
        return tokens

    def halves(self) -> tuple[Window, Window]:
        """Return two windows of about the same number of tokens, without the text; needs at least two sentences."""
        half = self.offsets[-1] / 2
        middle = int(np.argmin(np.abs(self.offsets[1:-1] - half))) + 1
        return self._part(0, middle), self._part(middle, len(self))

    def _part(self, first: int, last: int) -> Window:
        offsets = self.offsets[first : last + 1]
        used, word_ids = np.unique(self.word_ids[offsets[0] : offsets[-1]], return_inverse=True)
        return Window(self.words.take(pa.array(used)), word_ids.astype(np.int32), offsets - offsets[0])

    def sentence_text(self, b: int) -> str:
        """Return sentence b as in the file, without surrounding white space; else its tokens joined by blanks."""
        return " ".join(self.tokens(b)) if self.text is None else self._lines[b].strip()

    @cached_property
    def _lines(self) -> list[str]:
        return (self.text or b"").decode("utf-8").split("\n")


@dataclass(frozen=True)
class Draft:
    """A window to be made: the slowest part is left to whoever makes it, perhaps in another thread.

    Attributes:
        tokens: UTF-8, one after the other with a separator between them; or a list, if they are few or contain it.
        offsets: as the window's.
        surrogate: what replaces a lone surrogate, which UTF-8 cannot represent.
    """

    tokens: bytes | list[Any]
    offsets: Int64
    surrogate: str = ""

    @classmethod
    def of(cls, sentences: Sequence[Sequence[str]], surrogate: str = "") -> Draft:
        """Draft a window of sentences given as token lists, which may change afterwards."""
        offsets = np.zeros(len(sentences) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, sentences), np.int64, len(sentences)), out=offsets[1:])
        if offsets[-1] >= FEW_TOKENS:
            # Tokens that are not text, or not UTF-8: `window` reports them, or leaves out what is not.
            with suppress(TypeError, UnicodeEncodeError):
                text = SEPARATOR.join(map(SEPARATOR.join, filter(len, sentences))).encode()
                if np.count_nonzero(_separators(text)) == offsets[-1] - 1:
                    return cls(text, offsets, surrogate)
        return cls([token for sentence in sentences for token in sentence], offsets, surrogate)

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self.offsets) - 1

    def window(self) -> Window:
        """Make the window.

        Raises:
            FlashElmoError: a token is not text.
        """
        tokens = self.tokens
        if isinstance(tokens, bytes):
            return Window.encode(_split_text(tokens), self.offsets)
        if not {*map(type, tokens)} <= {str}:  # or of a subclass
            self._check_texts(tokens)
        words = dict.fromkeys(tokens)
        try:
            strings = pa.array([*words], pa.string())
        except UnicodeEncodeError:
            return replace(self, tokens=[SURROGATE.sub(self.surrogate, token) for token in tokens]).window()
        ids = dict(zip(words, range(len(words)), strict=True))
        return Window(strings, np.fromiter(map(ids.__getitem__, tokens), np.int32, len(tokens)), self.offsets)

    def _check_texts(self, tokens: list[Any]) -> None:
        """Raise FlashElmoError if a token is not text."""
        for i, token in enumerate(tokens):
            if not isinstance(token, str):
                b = int(np.searchsorted(self.offsets, i, side="right")) - 1
                start, stop = self.offsets[b : b + 2].tolist()
                expected = f"token {i - start}: expected text, found {shown(token)}"
                raise FlashElmoError(f"sentence {shown(tokens[start:stop])}: {expected}")


@dataclass(frozen=True)
class Drafts:
    """Windows that are made as they are iterated over; whoever can make them in threads takes the drafts."""

    drafts: Iterable[Draft]

    def __iter__(self) -> Iterator[Window]:
        return (draft.window() for draft in self.drafts)


def read_windows(
    source: str | Path | IO[Any],
    *,
    max_sentences: int,
    max_tokens: int,
    first_tokens: int | None = None,
    errors: Errors = "strict",
    universal_newlines: bool = False,
) -> Iterator[Window]:
    r"""Read text of one sentence a line, its tokens separated by white space, in bounded memory.

    Lines end at \n (so \r\n does too). An empty line is an empty sentence; an empty file has none. A byte order mark at
    the beginning is not part of the text.

    Args:
        source: a path, "-" for standard input, or a file object, preferably binary.
        max_sentences, max_tokens: limits of a window. A line of more tokens is its own window.
        first_tokens: limit of the first window; the next one's is twice as high, and so on up to `max_tokens`.
        errors: what happens to bytes that are not UTF-8: "strict" is an error, "replace" gives U+FFFD.
        universal_newlines: lines also end at a lone \r, as in Python's text files.

    Raises:
        FlashElmoError: text that is not UTF-8, with the line and the byte, both counted from 1; whatever `errors` is,
            UTF-16, another kind of file, and records of another format, such as JSON lines.
        OSError: a file cannot be read.
    """
    bound = max_tokens if first_tokens is None else min(first_tokens, max_tokens)
    check_bounds(max_sentences, bound)
    if errors not in ("strict", "replace"):
        raise FlashElmoError(f"errors: expected 'strict' or 'replace', found {errors!r}")
    parts: list[Block] = []
    for block in _read_blocks(source, errors, universal_newlines):
        start = 0
        while start < block.n_lines:
            n_lines, n_tokens = max_sentences - _total(parts, "n_lines"), bound - _total(parts, "n_tokens")
            stop = last_that_fits(block.token_offsets, start, n_lines, n_tokens)
            if _total(parts, "n_bytes") > MAX_WINDOW_BYTES:
                stop = start
            if stop == start and parts:
                yield _window(parts)
                parts, bound = [], min(2 * bound, max_tokens)
                continue
            stop = max(stop, start + 1)
            parts.append(block.lines(start, stop))
            start = stop
    if parts:
        yield _window(parts)


def read_ahead(windows: Iterator[Item]) -> Iterator[Item]:
    """Yield windows, each read by a thread while the previous one is used; closing does not wait for a blocked read."""
    read = partial(next, windows, None)
    following = Background(read)
    while (window := following.result()) is not None:
        following = Background(read)
        yield window


def check_bounds(max_sentences: int, max_tokens: int) -> None:
    """Raise FlashElmoError if no window could hold a sentence or a token."""
    if min(max_sentences, max_tokens) < 1:
        raise FlashElmoError(f"window: expected at least one sentence and token, found {max_sentences}, {max_tokens}")


def last_that_fits(offsets: Int64, start: int, max_items: int, max_size: int) -> int:
    """Return where a range of items that begins at `start` must end; `start` itself if the first one is too large.

    Args:
        offsets: [items + 1], where each begins, in tokens or rows.
        max_items, max_size: limits of the range.
    """
    stop = np.searchsorted(offsets, offsets[start] + min(max_size, offsets[-1]), side="right") - 1
    return max(start, min(int(stop), start + max_items))


def _total(parts: list[Block], name: str) -> int:
    return sum(getattr(part, name) for part in parts)


def _window(parts: list[Block]) -> Window:
    starts = np.cumsum([0, *(part.n_tokens for part in parts)])
    offsets = [part.token_offsets[1:] + start for part, start in zip(parts, starts, strict=False)]
    return Window.encode(
        pa.concat_arrays([part.tokens for part in parts]),
        np.concatenate([[0], *offsets]).astype(np.int64),
        b"".join(part.text for part in parts),
    )


def _read_blocks(source: str | Path | IO[Any], errors: Errors, universal_newlines: bool) -> Iterator[Block]:
    n_lines = 0
    with _open(source) as file:
        name = str(getattr(file, "name", "text"))
        for raw in _read_lines(file, universal_newlines):
            if not n_lines:
                raw = without_mark(raw, name)
                check_is_no_other_format(raw, name)
            text = check_utf8(raw if raw.endswith(b"\n") else raw + b"\n", errors, name, n_lines)
            block = split_lines(text)
            n_lines += block.n_lines
            yield block


def _open(source: str | Path | IO[Any]) -> Any:
    """Return a context that closes the file only if it was opened here."""
    if isinstance(source, str | Path) and str(source) == "-":
        return nullcontext(standard_input())
    if not hasattr(source, "read"):
        return open(path_of("text", source), "rb")
    readable = getattr(source, "readable", None)
    if getattr(source, "closed", False) or (callable(readable) and not readable()):
        raise FlashElmoError(f"{getattr(source, 'name', 'text')}: expected a file that is open for reading")
    return nullcontext(source)


def _read_lines(file: IO[Any], universal_newlines: bool) -> Iterator[bytes]:
    """Yield large pieces of the file, each of whole lines."""
    rest: list[bytes] = []

    def lines(last: bytes) -> bytes:
        piece = b"".join([*rest, last])
        return BARE_RETURN.sub(b"\n", piece) if universal_newlines and b"\r" in piece else piece

    while chunk := file.read(CHUNK_BYTES):
        if isinstance(chunk, str):
            chunk = chunk.encode("utf-8", "surrogatepass")
        end = chunk.rfind(b"\n") + 1
        if universal_newlines:
            end = max(end, chunk.rfind(b"\r", 0, -1) + 1)  # a \n may follow one at the chunk's end
        if end:
            yield lines(chunk[:end])
            rest = []
        rest.append(chunk[end:])
    if any(rest):
        yield lines(b"")


def _separators(text: bytes) -> Bool:
    """Return which bytes are separators."""
    found: Bool = np.frombuffer(text, np.uint8) == ord(SEPARATOR)
    return found


def _split_text(text: bytes) -> pa.StringArray:
    """Split texts at separators; unlike Arrow's conversion of a list, this lets other threads run."""
    data, is_end = np.frombuffer(text, np.uint8), _separators(text)
    if len(data) > np.iinfo(np.int32).max:
        raise FlashElmoError(f"window: expected tokens of less than 2 GiB in all, found {len(data)} bytes")
    ends = np.flatnonzero(is_end)
    offsets = np.arange(0, -len(ends) - 2, -1, dtype=np.int32)
    offsets[1:-1] += ends
    offsets[-1] += len(data)
    offsets[1:] += 1
    kept = data.take(np.flatnonzero(~is_end))  # `compress` would not let other threads run
    return pa.StringArray.from_buffers(len(ends) + 1, pa.py_buffer(offsets), pa.py_buffer(kept))
