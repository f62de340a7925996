"""Vectors as JSON, safetensors, NumPy or Arrow: whichever the header Accept names first.

A float as text is five times its size. The binary formats hold the same arrays: one vector or [L, 2P] a sentence as
`vectors` [B, ...]; else `values` [tokens, ...], the sentences end to end, and `offsets` [B + 1], as in a corpus's
shards, with the tokens themselves.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import orjson
import pyarrow as pa
from fastapi import Response
from fastapi.responses import StreamingResponse
from safetensors.numpy import save

from flashelmo.engine.arrays import Array, Arrays, Int64
from flashelmo.engine.bulk.native_shard import head_of
from flashelmo.engine.text.sentences import Sentence
from flashelmo.serve.errors import Refused
from flashelmo.serve.service import Answer

JSON, SAFETENSORS = "application/json", "application/x-safetensors"
NUMPY, ARROW = "application/x-npz", "application/vnd.apache.arrow.stream"
TYPES = (JSON, SAFETENSORS, NUMPY, ARROW)
STREAMED_BYTES = 1 << 20  # an answer of more vectors is sent while it is made


def accepted(header: str | None) -> str:
    """The first type of a header that there is; JSON where any will do.

    Raises:
        Refused: none.
    """
    for item in (header or "*/*").split(","):
        name = item.partition(";")[0].strip().lower()
        if name in ("", "*/*", "application/*"):
            return JSON
        if name in TYPES:
            return name
    raise Refused(406, f"Accept: expected {', '.join(TYPES)} or */*, found {header!r:.100}")


def vectors_response(media_type: str, answer: Answer, size: int, with_tokens: bool = False) -> Response:
    """An answer in one of TYPES.

    Args:
        size: 2P.
        with_tokens: JSON has objects of tokens and vectors, not vectors alone.
    """
    if media_type == JSON:
        return response_of(_json_pieces(answer, with_tokens), sum(each.nbytes for each in answer.vectors), JSON)
    if media_type == SAFETENSORS and answer.vectors and not answer.output.pool:
        return _safetensors_of_tokens(answer, size)
    arrays = answer_arrays(answer, size)
    if media_type == SAFETENSORS:
        return Response(save(arrays, None if answer.output.pool else {"tokens": "[]"}), media_type=media_type)
    if media_type == NUMPY:
        file = io.BytesIO()
        if not answer.output.pool:
            arrays["tokens"] = np.array([*chain.from_iterable(answer.sentences)], np.str_)
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return Response(file.getvalue(), media_type=media_type)
    return Response(_arrow(answer, arrays), media_type=media_type)


def answer_arrays(answer: Answer, size: int) -> Arrays:
    """`vectors`, or `values` and `offsets`."""
    pooled, vectors = bool(answer.output.pool), answer.vectors
    if not vectors:
        empty = np.empty((0, size), np.float32)
        return {"vectors": empty} if pooled else {"values": empty, "offsets": np.zeros(1, np.int64)}
    if pooled:
        return {"vectors": np.stack(vectors)}
    return {"values": np.concatenate(list(_rows(answer))), "offsets": _offsets(answer)}


def _rows(answer: Answer) -> Iterator[Array]:
    """The vectors of each sentence as they stand in `values`, token by token."""
    return (each if answer.output.single else np.ascontiguousarray(each.transpose(1, 0, 2)) for each in answer.vectors)


def _offsets(answer: Answer) -> Int64:
    return np.cumsum([0, *(each.shape[-2] for each in answer.vectors)], dtype=np.int64)


def _safetensors_of_tokens(answer: Answer, size: int) -> Response:
    """As safetensors' own `save` has it, but sentence by sentence: all of them together would be there three times."""
    offsets, first = _offsets(answer), answer.vectors[0]
    shape = int(offsets[-1]), *(() if answer.output.single else first.shape[:1]), size
    head = head_of(offsets, shape, first.dtype.name, {"tokens": json.dumps(answer.sentences)}) + offsets.tobytes()
    n_bytes = sum(each.nbytes for each in answer.vectors)
    pieces = chain([head], (row.tobytes() for row in _rows(answer)))
    return response_of(pieces, n_bytes, SAFETENSORS, {"Content-Length": str(len(head) + n_bytes)})


def vector_lists(arrays: Arrays) -> pa.Array:
    """Arrow's lists of the rows of `vectors`, or of the tokens of each sentence."""
    values = arrays["vectors" if "vectors" in arrays else "values"]
    lists: pa.Array = pa.array(values.reshape(-1))
    for length in reversed(values.shape[1:]):
        lists = pa.FixedSizeListArray.from_arrays(lists, length)
    if "offsets" in arrays:
        lists = pa.LargeListArray.from_arrays(pa.array(arrays["offsets"]), lists)
    return lists


def _arrow(answer: Answer, arrays: Arrays) -> bytes:
    sentences = pa.array([list(tokens) for tokens in answer.sentences], pa.list_(pa.string()))
    table = pa.table({"tokens": sentences, "vectors": vector_lists(arrays)})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def response_of(
    pieces: Iterator[bytes], n_bytes: int, media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer of pieces; one of many bytes is sent while it is made, and the server answers others between them."""
    if n_bytes <= STREAMED_BYTES:
        return Response(b"".join(pieces), media_type=media_type, headers=headers)

    async def in_turns() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
            await asyncio.sleep(0)  # a client that reads at once would have the server to itself

    return StreamingResponse(in_turns(), media_type=media_type, headers=headers)


def bytes_of_tokens(media_type: str, sentences: Sequence[Sentence]) -> int:
    """What tokens take in an answer: NumPy has each as long as the longest, others as they are in the request."""
    if media_type != NUMPY:
        return 0
    return np.dtype("U1").itemsize * sum(map(len, sentences)) * max(map(len, chain.from_iterable(sentences)), default=0)


def to_json(array: Array) -> bytes:
    """Numbers as the shortest text that gives the same bits."""
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)


def _json_pieces(answer: Answer, with_tokens: bool) -> Iterator[bytes]:
    yield b"["
    for b, (tokens, vectors) in enumerate(zip(answer.sentences, answer.vectors, strict=True)):
        text = to_json(vectors)
        if with_tokens:
            text = b'{"tokens":' + orjson.dumps(list(tokens)) + b',"vectors":' + text + b"}"
        yield b"," + text if b else text
    yield b"]"
