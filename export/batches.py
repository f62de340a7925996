"""Sentences to the padded arrays that an exported file takes, and checks of arrays made elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flashelmo.engine.arguments import whole_number
from flashelmo.engine.arrays import Array, Arrays, Bool, Int64
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.text.sentences import Sentence, tokenized
from flashelmo.engine.text.spelling import Speller, Utf8Words
from flashelmo.export.metadata import STATES, Metadata

AXES = ("batch_size", "sequence_length", "characters")


def input_names(metadata: Metadata) -> list[str]:
    """Return the names of a file's inputs, those of ids first."""
    ids = {"character_ids": metadata.config.character_size, "word_ids": metadata.config.word_size}
    return [*(name for name, size in ids.items() if size), *(STATES if metadata.stateful else ())]


def token_lists(sentences: Iterable[Sentence | str]) -> list[Sentence]:
    """Return the tokens of sentences; strings are split on white space."""
    return list(tokenized("sentences", sentences))


def batches(sentences: Sequence[Sentence], batch_size: int, *, in_order: bool) -> Iterator[Int64]:
    """Yield the indices of each batch's sentences: in the given order, or longest first, to save padding."""
    batch_size = whole_number("batch_size", batch_size, 1)
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    order = np.arange(len(lengths)) if in_order else np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def pad(sentences: Sequence[Sentence], speller: Speller, metadata: Metadata) -> Arrays:
    """Return inputs for sentences: character_ids int64 [B, T, M] and word_ids int64 [B, T], those that the file takes.

    T is the length of the longest sentence, at least 1; if the file's last axis is free, M is the length of the longest
    word.
    """
    lengths = np.array([len(sentence) for sentence in sentences], np.int64)
    is_token = np.arange(lengths.max(initial=1)) < lengths[:, None]
    words = Utf8Words.from_python([word for sentence in sentences for word in sentence], speller.surrogates)
    inputs: Arrays = {}
    characters, rows = speller.spell(words), speller.look_up(words)
    if characters is not None:
        width = metadata.characters or int(speller.lengths(characters).max(initial=1))
        inputs["character_ids"] = _at_tokens(characters[:, :width], is_token, 0)
    if rows is not None:
        inputs["word_ids"] = _at_tokens(rows, is_token, metadata.config.absent_word_id)
    return inputs


def _at_tokens(ids: Array, is_token: Bool, absent: int) -> Int64:
    """Return ids with those of all tokens [W, ...] at the True places of is_token [B, T], and `absent` elsewhere."""
    padded = np.full((*is_token.shape, *ids.shape[1:]), absent, np.int64)
    padded[is_token] = ids
    return padded


def check_inputs(inputs: Mapping[str, Any], metadata: Metadata) -> Arrays:
    """Return arrays as the file takes them, from inputs of any integer types; absent states stay absent.

    Raises:
        FlashElmoError: a name, type or shape that the file does not take, ids out of range, or padding that is not on
            the right of its sentence.
    """
    names = input_names(metadata)
    for name, value in inputs.items():
        if value is not None and name not in names:
            raise FlashElmoError(f"inputs: expected {', '.join(names)}, found {name}")
    checked: Arrays = {}
    config, absent = metadata.config, metadata.config.absent_word_id
    if "character_ids" in names:
        characters = _integers(inputs, "character_ids", 3)
        _check_width(characters, metadata)
        _check_range("character_ids", characters, 0, config.n_characters)
        is_token = (characters != 0).any(axis=-1)
        checked["character_ids"] = np.ascontiguousarray(characters, np.int64)
    if "word_ids" in names:
        words = _integers(inputs, "word_ids", 2)
        _check_range("word_ids", words, absent, config.n_words)
        if not checked:
            is_token = words != absent
        if words.shape != is_token.shape:
            expected = f"{list(is_token.shape)} as in character_ids"
            raise FlashElmoError(f"word_ids: expected {expected}, found {list(words.shape)}")
        _check_places("word_ids: expected no id below 0 where there is a token", is_token & (words < 0))
        checked["word_ids"] = np.ascontiguousarray(words, np.int64)
    _check_places("inputs: expected padding on the right of a sentence alone", ~is_token[:, :-1] & is_token[:, 1:])
    return checked | _check_states(inputs, metadata, len(is_token))


def _integers(inputs: Mapping[str, Any], name: str, n_axes: int) -> Array:
    """Return one input as an array of `n_axes` axes."""
    if inputs.get(name) is None:
        raise FlashElmoError(f"{name}: this file needs them, found none")
    array = _array(name, inputs[name])
    if array.dtype.kind not in "iu":
        raise FlashElmoError(f"{name}: expected integers, found {array.dtype}")
    if array.ndim != n_axes:
        expected = f"[{', '.join(AXES[:n_axes])}]"
        raise FlashElmoError(f"{name}: expected {expected}, found {list(array.shape)}")
    return array


def _array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise FlashElmoError(f"{name}: expected an array: {error}") from None


def _check_width(characters: Array, metadata: Metadata) -> None:
    most = metadata.config.max_characters
    if not (metadata.characters or 1) <= characters.shape[-1] <= most:
        expected = most if metadata.characters else f"1 to {most}"
        raise FlashElmoError(
            f"character_ids: expected {expected} characters on the last axis, found {characters.shape[-1]}"
        )


def _check_range(name: str, ids: Array, least: int, n_rows: int) -> None:
    """Check that ids are rows of the embedding: others must not reach the graph: some providers read out of bounds."""
    if not ids.size:
        return
    lowest, highest = int(ids.min()), int(ids.max())
    if not least <= lowest <= highest < n_rows:
        raise FlashElmoError(f"{name}: expected ids from {least} to {n_rows - 1}, found {lowest} to {highest}")


def _check_places(expected: str, wrong: Bool) -> None:
    """Raise FlashElmoError if any token violates what is expected; `wrong` [B, T] marks those that do."""
    if wrong.any():
        raise FlashElmoError(f"{expected}, found otherwise in sentence {int(wrong.any(axis=1).argmax())} of the batch")


def _check_states(inputs: Mapping[str, Any], metadata: Metadata, n_rows: int) -> Arrays:
    states: Arrays = {}
    for name in STATES:
        if inputs.get(name) is None:
            continue
        state, expected = _array(name, inputs[name]), state_shape(name, metadata, n_rows)
        if state.dtype.kind != "f" or state.shape != expected:
            found = f"{state.dtype} {list(state.shape)}"
            raise FlashElmoError(f"{name}: expected floats {list(expected)}, found {found}")
        states[name] = state
    return states


def state_shape(name: str, metadata: Metadata, n_rows: int) -> tuple[int, int, int]:
    """Return the shape of a state with this many rows."""
    config = metadata.config
    size = config.projection_size if name == "state.hidden" else config.cell_size
    return 2 * config.n_layers, n_rows, size
