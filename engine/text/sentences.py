"""What may be given as sentences: token lists, and texts split on white space, in lists, arrays or columns."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import count
from typing import Any, TypeAlias

from flashelmo.engine.arguments import shown
from flashelmo.engine.errors import FlashElmoError

Sentence: TypeAlias = Sequence[str]

SURROGATE = re.compile("[\ud800-\udfff]")  # a lone one, which UTF-8 cannot represent
ARROW_ROWS = 1 << 14  # of an Arrow array, converted to Python objects at a time


def several(name: str, values: Any) -> Iterator[Any]:
    """Yield the values that a caller gave for an argument, from any iterable, including Arrow's arrays.

    Raises:
        FlashElmoError: iterating would give letters, keys or columns, or has no order; raised by the call itself.
    """
    if isinstance(values, str | bytes | bytearray):
        raise FlashElmoError(f"{name}: expected several, found one text; put it into a list")
    kind = type(values).__name__
    if isinstance(values, Mapping):
        raise FlashElmoError(f"{name}: expected a list, found a {kind}, of which only the keys are iterated")
    if isinstance(values, Set):
        raise FlashElmoError(f"{name}: expected a list, found a {kind}, which has no order")
    if hasattr(type(values), "columns") and not hasattr(type(values), "name"):  # which a column of Dask has, too
        raise FlashElmoError(f"{name}: expected a list, found a table ({kind}); give one of its columns")
    if hasattr(values, "to_pylist"):
        return _rows_of_arrow(values)
    if getattr(values, "ndim", 1) == 2 and values.shape[1] == 1:  # a table's values, not sentences of one token
        values = values[:, 0]
    try:
        return iter(values)
    except TypeError:
        raise FlashElmoError(f"{name}: expected a list, found {shown(values)}") from None


def _rows_of_arrow(array: Any) -> Iterator[Any]:
    """Yield an Arrow array's values as Python objects; its own iterator gives Arrow's scalars."""
    for start in range(0, len(array), ARROW_ROWS):
        yield from array.slice(start, ARROW_ROWS).to_pylist()


def tokenized(name: str, values: Any) -> Iterator[Sentence]:
    """Yield the tokens of the sentences that a caller gave for an argument.

    Raises:
        FlashElmoError: what `several` raises, by the call itself; or a sentence that is neither text nor tokens.
    """
    return map(tokens_of, several(name, values), count())


def tokens_of(sentence: Any, number: int | None = None) -> Sentence:
    """Return a sentence's tokens, a text's split on white space; an error gives its index among others, from 0."""
    if isinstance(sentence, str):
        return sentence.split()
    if isinstance(sentence, list | tuple):
        return sentence
    for name in ("tolist", "to_list", "to_pylist", "as_py"):  # NumPy's and Arrow's arrays and scalars, and columns
        tokens = getattr(sentence, name)() if hasattr(sentence, name) else None
        if isinstance(tokens, str | list):
            return tokens_of(tokens)
    if isinstance(sentence, Sequence) and not isinstance(sentence, bytes):
        return sentence
    name = "sentence" if number is None else f"sentence {number}"
    raise FlashElmoError(f"{name}: expected text or a list of tokens, found {shown(sentence)}")


def grouped(
    sentences: Iterator[Any], max_sentences: int, max_tokens: int, first_tokens: int
) -> Iterator[list[Sentence]]:
    """Yield sentences in order, in groups within both limits; one that exceeds them forms its own group.

    Args:
        sentences: as `tokens_of` takes them.
        first_tokens: limit of the first group; the next one's is twice as high, and so on up to `max_tokens`.
    """
    bound = min(first_tokens, max_tokens)
    group: list[Sentence] = []
    n_tokens = 0
    for number, sentence in enumerate(sentences):
        # The host of a card has no time for a function call.
        tokens = sentence if type(sentence) is list else tokens_of(sentence, number)
        n = len(tokens)
        if group and (n_tokens + n > bound or len(group) == max_sentences):
            yield group
            group, n_tokens, bound = [], 0, min(2 * bound, max_tokens)
        group.append(tokens)
        n_tokens += n
    if group:
        yield group
