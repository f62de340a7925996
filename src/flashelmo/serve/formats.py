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
from zipfile import ZipFile

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
    n_bytes = sum(each.nbytes for each in answer.vectors)
    if media_type == JSON:
        return response_of(_json_pieces(answer, with_tokens), n_bytes, JSON)
    if media_type == ARROW:
        return response_of(_arrow_pieces(answer, size), n_bytes, ARROW)
    if media_type == NUMPY:
        return Response(_npz(answer, size), media_type=NUMPY)
    if answer.vectors and not answer.output.pool:
        return _safetensors_of_tokens(answer, size)
    arrays = answer_arrays(answer, size)
    return Response(save(arrays, None if answer.output.pool else {"tokens": "[]"}), media_type=SAFETENSORS)


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


def _shape(answer: Answer, size: int) -> tuple[int, ...]:
    """Of `values`."""
    layers = () if answer.output.single else answer.vectors[0].shape[:1]
    return sum(each.shape[-2] for each in answer.vectors), *layers, size


def _safetensors_of_tokens(answer: Answer, size: int) -> Response:
    """As safetensors' own `save` has it, but sentence by sentence: all of them together would be there three times."""
    offsets, dtype = _offsets(answer), answer.vectors[0].dtype.name
    head = head_of(offsets, _shape(answer, size), dtype, {"tokens": json.dumps(answer.sentences)}) + offsets.tobytes()
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


def _arrow_pieces(answer: Answer, size: int) -> Iterator[bytes]:
    """A batch of records for each `STREAMED_BYTES` of vectors: all of them together would be there three times."""
    sink = io.BytesIO()
    writer = None
    for some in _in_parts(answer):
        sentences = pa.array([list(tokens) for tokens in some.sentences], pa.list_(pa.string()))
        table = pa.table({"tokens": sentences, "vectors": vector_lists(answer_arrays(some, size))})
        writer = writer or pa.ipc.new_stream(sink, table.schema)
        writer.write_table(table)
        yield _taken(sink)
    if writer is not None:
        writer.close()
    yield _taken(sink)


def _in_parts(answer: Answer) -> Iterator[Answer]:
    """Sentences of at most so many bytes of vectors as an answer may have that is sent at once, or a single one."""
    start = n_bytes = 0
    for b, each in enumerate(answer.vectors):
        if b > start and n_bytes + each.nbytes > STREAMED_BYTES:
            yield Answer(answer.sentences[start:b], answer.vectors[start:b], answer.output)
            start, n_bytes = b, 0
        n_bytes += each.nbytes
    yield Answer(answer.sentences[start:], answer.vectors[start:], answer.output)


def _taken(sink: io.BytesIO) -> bytes:
    """What was written since the last call."""
    written = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return written


def _npz(answer: Answer, size: int) -> bytes:
    """As `np.savez` has it, but the values sentence by sentence, as above."""
    file, pooled = io.BytesIO(), bool(answer.output.pool)
    in_one = pooled or not answer.vectors
    arrays = answer_arrays(answer, size) if in_one else {"offsets": _offsets(answer)}
    if not pooled:
        arrays["tokens"] = np.array([*chain.from_iterable(answer.sentences)], np.str_)
    np.savez(file, **arrays)
    if in_one:
        return file.getvalue()
    dtype = np.lib.format.dtype_to_descr(answer.vectors[0].dtype)
    header = {"descr": dtype, "fortran_order": False, "shape": _shape(answer, size)}
    with ZipFile(file, "a") as archive, archive.open("values.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for row in _rows(answer):
            member.write(row.tobytes())
    return file.getvalue()


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
