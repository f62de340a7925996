"""What may be given as sentences: token lists, and texts that are split on white space, in lists, arrays or columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import islice
from typing import Any, TypeAlias

from flashelmo.engine.arguments import shown
from flashelmo.engine.errors import FlashElmoError

Sentence: TypeAlias = Sequence[str]

ARROW_ROWS = 1 << 14  # of an Arrow array that are Python objects at a time


def several(name: str, values: Any) -> Iterator[Any]:
    """What a caller gave under an argument's name, one by one: of any iterable, Arrow's arrays too.

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
    if hasattr(values, "columns"):  # of pandas, polars or Arrow
        raise FlashElmoError(f"{name}: expected a list, found a table ({kind}); give one of its columns")
    if hasattr(values, "to_pylist"):
        return _rows_of_arrow(values)
    try:
        return iter(values)
    except TypeError:
        raise FlashElmoError(f"{name}: expected a list, found {shown(values)}") from None


def _rows_of_arrow(array: Any) -> Iterator[Any]:
    """Python objects of an Arrow array, whose own iterator gives Arrow's scalars."""
    for start in range(0, len(array), ARROW_ROWS):
        yield from array.slice(start, ARROW_ROWS).to_pylist()


def tokens_of(sentence: Any) -> Sentence:
    """A sentence's tokens, a text's between its white space."""
    if isinstance(sentence, str):
        return sentence.split()
    # Lists are told sooner than sequences of any kind.
    if isinstance(sentence, list | tuple) or (isinstance(sentence, Sequence) and not isinstance(sentence, bytes)):
        return sentence
    for name in ("tolist", "to_pylist", "as_py"):  # of NumPy's and Arrow's arrays and scalars, and of columns
        tokens = getattr(sentence, name)() if hasattr(sentence, name) else None
        if isinstance(tokens, str | list):
            return tokens_of(tokens)
    raise FlashElmoError(f"sentence: expected text or a list of tokens, found {shown(sentence)}")


def grouped(
    sentences: Iterator[Any], max_sentences: int, max_tokens: int, first_tokens: int
) -> Iterator[list[Sentence]]:
    """Sentences in order, in groups that end before they would pass either bound; one that is longer stands by itself.

    Few are read beyond a group's end. What is raised in a sentence's place comes after the groups before it.

    Args:
        sentences: as `tokens_of` takes them.
        first_tokens: bound of the first group, the next one's is twice as high, and so on up to `max_tokens`.
    """
    bound = min(first_tokens, max_tokens)
    group: list[Sentence] = []
    n_tokens, errors = 0, list[Exception]()
    # Several at a time, as one by one they would take a device's host longer than all else.
    while some := _next(sentences, min(max(1, len(group) // 16), max_sentences - len(group) or 1), errors):
        fit = n_tokens + sum(map(len, some)) <= bound
        for part in [some] if fit else [[sentence] for sentence in some]:
            n = sum(map(len, part))
            if group and (len(group) == max_sentences or n_tokens + n > bound):
                yield group
                group, n_tokens, bound = [], 0, min(2 * bound, max_tokens)
            group += part
            n_tokens += n
    if errors:
        raise errors.pop()
    if group:
        yield group


def _next(sentences: Iterator[Any], most: int, errors: list[Exception]) -> list[Sentence]:
    """The tokens of the next ones; what is raised in one's place goes to `errors`, and nothing comes after it."""
    found: list[Any] = []
    if not errors:
        _extend(found, islice(sentences, most), errors)
    if {list, tuple}.issuperset(map(type, found)):
        return found
    tokens: list[Sentence] = []
    _extend(tokens, map(tokens_of, found), errors)
    return tokens


def _extend(found: list[Any], items: Iterable[Any], errors: list[Exception]) -> None:
    try:
        found.extend(items)  # keeps what came before an error
    except Exception as error:
        errors.append(error)
