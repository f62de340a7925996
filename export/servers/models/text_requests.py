"""Requests of text to responses of vectors, for models of the server's Python backend.

A request has lines of text, or lists of tokens; see the comments in `config.pbtxt`. API:
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/python_backend/README.html.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from itertools import chain, islice
from typing import Any, TypeAlias

import numpy as np

from flashelmo.engine.arrays import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import pool_mean

Sentence: TypeAlias = Sequence[str] | str

pb_utils = import_module("triton_python_backend_utils")  # provided by the server, and by no package index


def answer(requests: Sequence[Any], embed: Callable[[list[Sentence]], Iterable[Array]]) -> list[Any]:
    """Return a response to each request; one that cannot be read or embedded gets its error, the others their vectors.

    Args:
        requests: those that the server combined.
        embed: yields the vectors [T, 2P] of each of any number of sentences; called once for all requests, and again
            for each only if that fails.
    """
    results = [_result(_sentences, request) for request in requests]
    places = [place for place, result in enumerate(results) if isinstance(result, list)]
    read = [results[place] for place in places]
    try:
        vectors = iter(list(embed(list(chain.from_iterable(read)))))
        embedded = [list(islice(vectors, len(sentences))) for sentences in read]
    except Exception:  # perhaps because of one request: running each alone shows which
        embedded = [_result(lambda sentences: list(embed(sentences)), sentences) for sentences in read]
    for place, result in zip(places, embedded, strict=True):
        results[place] = result
    return [_failure(result) if isinstance(result, Exception) else _response(result) for result in results]


def _result(function: Callable[[Any], list[Any]], given: Any) -> Any:
    """Return a function's result, or the exception that it raises."""
    try:
        return function(given)
    except Exception as error:
        return error


def _sentences(request: Any) -> list[Sentence]:
    """Return the lines of `text` [B, 1] as they are, or the rows of `tokens` [B, T] without empty ones at their end."""
    text, tokens = (pb_utils.get_input_tensor_by_name(request, name) for name in ("text", "tokens"))
    if (text is None) == (tokens is None):
        found = "neither" if text is None else "both"
        raise FlashElmoError(f"inputs: expected text or tokens, found {found}")
    if tokens is None:
        return [_decode(line, f"text {row}") for row, (line,) in enumerate(_rows("text", "[B, 1]", text))]
    return [_tokens(row, f"tokens {number}") for number, row in enumerate(_rows("tokens", "[B, T]", tokens))]


def _rows(name: str, shape: str, tensor: Any) -> Array:
    """Return an input's strings, in one row or more."""
    array: Array = tensor.as_numpy()
    if array.ndim != 2 or not len(array) or (name == "text" and array.shape[1] != 1):
        raise FlashElmoError(f"{name}: expected {shape}, B of 1 or more, found {list(array.shape)}")
    return array


def _tokens(row: Array, name: str) -> list[str]:
    decoded = [_decode(token, name) for token in row]
    n_tokens = max((place + 1 for place, token in enumerate(decoded) if token), default=0)
    return decoded[:n_tokens]


def _decode(text: Any, name: str) -> str:
    if not isinstance(text, bytes):
        raise FlashElmoError(f"{name}: expected bytes, found {type(text).__name__}")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise FlashElmoError(f"{name}: expected UTF-8, found byte {text[error.start]:#04x} at {error.start}") from None


def _response(vectors: list[Array]) -> Any:
    """Return the vectors [T, 2P] of a request's B sentences, padded with zeros to the longest one, or to one token."""
    longest = max(1, *map(len, vectors))
    token_embeddings = np.zeros((len(vectors), longest, vectors[0].shape[-1]), np.float32)
    mask = np.zeros((len(vectors), longest), np.bool_)
    for row, sentence in enumerate(vectors):
        token_embeddings[row, : len(sentence)] = sentence
        mask[row, : len(sentence)] = True
    outputs = {
        "token_embeddings": token_embeddings,
        "sentence_embedding": np.stack([pool_mean(sentence) for sentence in vectors]).astype(np.float32),
        "mask": mask,
    }
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(*output) for output in outputs.items()])


def _failure(error: Exception) -> Any:
    """Return one line about what a caller can fix, and the class and message of any other error."""
    wrong = isinstance(error, FlashElmoError)
    message, code = (str(error), "INVALID_ARG") if wrong else (f"{type(error).__name__}: {error}", "INTERNAL")
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code)))
