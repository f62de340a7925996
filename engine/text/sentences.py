"""What may be given as sentences: token lists, and texts that are split on white space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from flashelmo.engine.errors import FlashElmoError

Sentence: TypeAlias = Sequence[str]


def check_several(name: str, values: object) -> None:
    """Raise FlashElmoError where iterating over values would give letters, keys or columns."""
    if isinstance(values, str | bytes):
        raise FlashElmoError(f"{name}: expected several, found one text; put it into a list")
    kind = type(values).__name__
    if isinstance(values, Mapping):
        raise FlashElmoError(f"{name}: expected a list, found a {kind}, of which only the keys are iterated")
    if hasattr(values, "columns"):  # of pandas, polars or Arrow
        raise FlashElmoError(f"{name}: expected a list, found a table ({kind}); give one of its columns")


def tokens_of(sentence: Any) -> Sentence:
    """A sentence's tokens, a text's between its white space."""
    if isinstance(sentence, str):
        return sentence.split()
    # Lists are told sooner than sequences of any kind.
    if isinstance(sentence, list | tuple) or (isinstance(sentence, Sequence) and not isinstance(sentence, bytes)):
        return sentence
    raise FlashElmoError(f"sentence: expected text or a list of tokens, found {sentence!r:.60}")
