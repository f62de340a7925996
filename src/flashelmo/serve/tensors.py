"""Answers of the Open Inference Protocol: a row of a tensor is made when it is sent, and none is held filled up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson
from fastapi import Response

from flashelmo.engine.arrays import Array
from flashelmo.engine.output import pool_tokens
from flashelmo.serve.formats import JSON, response_of, to_json
from flashelmo.serve.schemas import Infer
from flashelmo.serve.service import Answer, Service

VERSION = "1"
LENGTH = "Inference-Header-Content-Length"
SENTENCES, TOKENS, MASK = "sentence_embedding", "token_embeddings", "mask"
DATATYPES = {SENTENCES: "FP32", TOKENS: "FP32", MASK: "BOOL"}
ITEM_BYTES = {"FP32": 4, "BOOL": 1}


def bytes_beside_vectors(wanted: Sequence[str], lengths: Sequence[int], size: int) -> int:
    """What an answer's tensors have beside the vectors of all tokens: what fills rows up, the mask, the means.

    Args:
        wanted: names of tensors.
        lengths: vectors of each sentence.
        size: 2P.
    """
    n, longest = len(lengths), max(lengths, default=0)
    more = {SENTENCES: n * size, TOKENS: size * (n * longest - sum(lengths)), MASK: n * longest}
    return sum(more[name] * ITEM_BYTES[DATATYPES[name]] for name in set(wanted))


def tensors_response(service: Service, body: Infer, wanted: Sequence[str], answer: Answer) -> Response:
    """The tensors of these names, as values in JSON or behind it, as the request has it."""
    outputs = [_output(name, answer, service.config.output_size) for name in dict.fromkeys(wanted)]
    everything = bool(body.parameters.get("binary_data_output"))
    named = {each.name: bool(each.parameters.get("binary_data", everything)) for each in body.outputs}
    behind = [output for output in outputs if named.get(output.name, everything)]
    text = _text(service.name, body, outputs, behind)
    if not behind:
        return response_of(text, sum(output.n_bytes for output in outputs), JSON)
    head = b"".join(text)  # whose length is told before it
    n_bytes = len(head) + sum(output.n_bytes for output in behind)
    pieces = chain([head], *(output.binary() for output in behind))
    headers = {LENGTH: str(len(head)), "Content-Length": str(n_bytes)}
    return response_of(pieces, n_bytes, "application/octet-stream", headers)


class OutputTensor(NamedTuple):
    """A tensor of an answer, row by row."""

    name: str
    shape: tuple[int, ...]
    rows: Iterator[Array]

    @property
    def n_bytes(self) -> int:
        """Of all its values."""
        return prod(self.shape) * ITEM_BYTES[DATATYPES[self.name]]

    def binary(self) -> Iterator[bytes]:
        """Its values as they lie behind JSON."""
        return (row.tobytes() for row in self.rows)

    def json(self) -> Iterator[bytes]:
        """Its values as one list."""
        yield b"["
        for b, row in enumerate(self.rows):
            yield b"," * bool(b and row.size) + to_json(row.reshape(-1))[1:-1]
        yield b"]"


def _output(name: str, answer: Answer, size: int) -> OutputTensor:
    vectors, n = answer.vectors, len(answer.vectors)
    if name == SENTENCES:
        pooled = vectors if answer.output.pool else (pool_tokens(values, "mean") for values in vectors)
        return OutputTensor(name, (n, size), (np.asarray(row, np.float32) for row in pooled))
    longest = max(map(len, vectors), default=0)
    if name == MASK:
        return OutputTensor(name, (n, longest), (np.arange(longest) < len(values) for values in vectors))
    return OutputTensor(name, (n, longest, size), (_filled_up(values, longest) for values in vectors))


def _filled_up(values: Array, longest: int) -> Array:
    """Vectors [T, 2P] with zeros behind them."""
    row = np.zeros((longest, *values.shape[1:]), np.float32)
    row[: len(values)] = values
    return row


def _text(name: str, body: Infer, outputs: list[OutputTensor], behind: list[OutputTensor]) -> Iterator[bytes]:
    """The answer's JSON, with the values of the tensors that do not lie behind it."""
    model = {"model_name": name, "model_version": VERSION} | ({"id": body.id} if body.id else {})
    yield orjson.dumps(model)[:-1] + b',"outputs":['
    for i, output in enumerate(outputs):
        head: dict[str, Any] = {"name": output.name, "datatype": DATATYPES[output.name], "shape": output.shape}
        if output in behind:
            yield b"," * bool(i) + orjson.dumps({**head, "parameters": {"binary_data_size": output.n_bytes}})
            continue
        yield b"," * bool(i) + orjson.dumps(head)[:-1] + b',"data":'
        yield from output.json()
        yield b"}"
    yield b"]}"
