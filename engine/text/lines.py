"""Whole lines of UTF-8 to tokens in Arrow, without a Python loop over tokens or lines."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from flashelmo.engine.arrays import Int64
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.tables import binary_kind_of

Errors = Literal["strict", "replace"]

NEWLINE = ord("\n")
UTF16_NULS = 32  # more than one NUL in this many bytes means UTF-16, where each blank and newline has one beside it
UTF16_SPACES = b" \0", b"\0 ", b"\n\0", b"\0\n"

# White space as in str.split().
ASCII_SPACE = np.array([chr(byte).isspace() and byte < 128 for byte in range(256)])
WIDE_SPACES = [char.encode() for char in map(chr, range(128, 0x3001)) if char.isspace()]


@dataclass(frozen=True)
class Block:
    """Whole lines: their bytes, their tokens end to end, and where each line begins in both [lines + 1]."""

    text: bytes
    tokens: pa.StringArray
    token_offsets: Int64
    byte_offsets: Int64

    @property
    def n_lines(self) -> int:
        """The number of lines."""
        return len(self.token_offsets) - 1

    @property
    def n_tokens(self) -> int:
        """The number of tokens."""
        return len(self.tokens)

    @property
    def n_bytes(self) -> int:
        """The number of bytes of text."""
        return len(self.text)

    def lines(self, start: int, stop: int) -> Block:
        """Return lines start:stop."""
        token_offsets, byte_offsets = self.token_offsets[start : stop + 1], self.byte_offsets[start : stop + 1]
        return Block(
            self.text[byte_offsets[0] : byte_offsets[-1]],
            self.tokens.slice(token_offsets[0], token_offsets[-1] - token_offsets[0]),
            token_offsets - token_offsets[0],
            byte_offsets - byte_offsets[0],
        )


def without_mark(raw: bytes, name: str) -> bytes:
    """Return the beginning of a text, which consists of whole lines, without the byte order mark.

    Raises:
        FlashElmoError: the file is not text, or is UTF-16.
    """
    if (kind := binary_kind_of(raw)) is not None:
        raise FlashElmoError(f"{name}: expected text, found {kind}")
    is_wide = UTF16_NULS * raw.count(0) > len(raw) and any(pair in raw for pair in UTF16_SPACES)
    if is_wide or raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        found = "text that looks like UTF-16; `iconv -f UTF-16 -t UTF-8` converts it"
        raise FlashElmoError(f"{name}: expected UTF-8, found {found}")
    return raw.removeprefix(codecs.BOM_UTF8)


def check_utf8(raw: bytes, errors: Errors, name: str, n_lines: int) -> bytes:
    """Return the bytes themselves, or a repaired copy; n_lines were read before them."""
    if raw.isascii():
        return raw
    if errors == "replace":
        return raw.decode("utf-8", "replace").encode()
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = n_lines + raw.count(b"\n", 0, error.start) + 1
        column = error.start - raw.rfind(b"\n", 0, error.start)
        found = f"0x{raw[error.start]:02x} ({error.reason})"
        raise FlashElmoError(f"{name}: line {line}, byte {column}: expected UTF-8, found {found}") from None
    return raw


def split_lines(text: bytes) -> Block:
    """Return the tokens of any number of whole lines of UTF-8, split at white space."""
    if len(text) > np.iinfo(np.int32).max:
        raise FlashElmoError(f"text: expected lines shorter than 2 GiB, found one of about {len(text)} bytes")
    spaced = text
    if not text.isascii():
        for space in WIDE_SPACES:
            spaced = spaced.replace(space, b" " * len(space))
    data = np.frombuffer(spaced, np.uint8)
    is_space = ASCII_SPACE.take(data)
    # white space and tokens alternate; a block ends with white space, its newline
    edges = np.flatnonzero(is_space[1:] != is_space[:-1]) + 1
    if not is_space[:1].all():
        edges = np.concatenate([[0], edges])
    starts, ends = edges[0::2], edges[1::2]
    string_offsets = np.zeros(len(starts) + 1, np.int32)
    np.cumsum(ends - starts, out=string_offsets[1:])
    newlines = np.flatnonzero(data == NEWLINE)
    tokens = np.compress(~is_space, data)
    return Block(
        text,
        pa.StringArray.from_buffers(len(starts), pa.py_buffer(string_offsets), pa.py_buffer(tokens)),
        np.concatenate([[0], np.searchsorted(starts, newlines)]).astype(np.int64),
        np.concatenate([[0], newlines + 1]).astype(np.int64),
    )
