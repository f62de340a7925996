"""The Open Inference Protocol (KServe, Triton), with its extension for binary tensors.

A request has `text` BYTES [B, 1] or [B], or `tokens` BYTES [B, T], rows filled up with empty texts, as the model of
text has it that `flashelmo export --triton` writes. Answers are `sentence_embedding` FP32 [B, 2P], and where they are
asked for `token_embeddings` FP32 [B, T, 2P] and `mask` BOOL [B, T].
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from math import prod
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Path, Request, Response
from pydantic import ValidationError

from flashelmo import __version__
from flashelmo.engine.arguments import is_decimal, shown
from flashelmo.engine.output import Output
from flashelmo.engine.text.sentences import Sentence
from flashelmo.serve.endpoint import embed_inputs
from flashelmo.serve.errors import STATUSES, Refused, text_of
from flashelmo.serve.formats import JSON
from flashelmo.serve.schemas import Infer, Tensor, checked_inputs
from flashelmo.serve.service import Service, Wanted
from flashelmo.serve.tensors import (
    DATATYPES,
    LENGTH,
    MASK,
    SENTENCES,
    TOKENS,
    VERSION,
    bytes_beside_vectors,
    tensors_response,
)

INPUTS = {"text": (1, 2), "tokens": (2, 2)}  # name: fewest and most dimensions
ERROR = {"description": "Refused.", "content": {JSON: {"example": {"error": "inputs[0].shape: expected, found"}}}}
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys((*STATUSES, 404), ERROR)


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema without references, which would be those of the whole page."""
    if isinstance(schema, list):
        return [_inlined(each, definitions) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items() if key != "$defs"}


_SCHEMA = Infer.model_json_schema()
BODY = {"requestBody": {"required": True, "content": {JSON: {"schema": _inlined(_SCHEMA, _SCHEMA["$defs"])}}}}


def add_infer(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""
    served = Path(examples=[service.name])

    def check(name: str, version: str = VERSION) -> None:
        if name.removesuffix("/") != service.name:
            raise Refused(404, f"model: expected {service.name}, found {shown(name)}")
        if version != VERSION:
            raise Refused(404, f"version: expected {VERSION}, found {shown(version)}")

    @app.get("/v2")
    async def server() -> dict[str, Any]:
        """The server."""
        return {"name": "flashelmo", "version": __version__, "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live", response_class=Response)
    async def live() -> Response:
        """Whether it answers."""
        return Response()

    @app.get("/v2/health/ready", response_class=Response, responses={503: ERROR})
    async def ready() -> Response:
        """Whether vectors can be had."""
        service.check_ready()
        return Response()

    # A name may have slashes in it: the longer paths are asked first, and a lower decorator before a higher one.

    @app.get("/v2/models/{name:path}/ready", response_class=Response, responses={404: ERROR, 503: ERROR})
    @app.get(
        "/v2/models/{name:path}/versions/{version}/ready", response_class=Response, responses={404: ERROR, 503: ERROR}
    )
    async def model_ready(name: str = served, version: str = VERSION) -> Response:
        """Whether vectors can be had of the model."""
        check(name, version)
        return await ready()

    @app.post("/v2/models/{name:path}/infer", responses=ERRORS, openapi_extra=BODY)
    @app.post("/v2/models/{name:path}/versions/{version}/infer", responses=ERRORS, openapi_extra=BODY)
    async def infer(request: Request, name: str = served, version: str = VERSION) -> Response:
        """Vectors of sentences."""
        check(name, version)
        body = parse(await request.body(), request.headers.get(LENGTH))
        inputs = _inputs(body, service)
        wanted = [output.name for output in body.outputs] or [SENTENCES]
        for i, each in enumerate(wanted):
            if each not in DATATYPES:
                raise Refused(422, f"outputs[{i}].name: expected {', '.join(DATATYPES)}, found {shown(each)}")
        output = Output("average", pool="mean" if wanted == [SENTENCES] else None)

        def more_bytes(sentences: Sequence[Sentence]) -> int:
            lengths = service.rows(sentences)
            return 0 if output.pool else bytes_beside_vectors(wanted, lengths, service.config.output_size)

        field = "inputs[0].data"
        answer = await embed_inputs(request, service, field, inputs, Wanted(output), more_bytes)
        return tensors_response(service, body, wanted, answer)

    @app.get("/v2/models/{name:path}", responses={404: ERROR})
    @app.get("/v2/models/{name:path}/versions/{version}", responses={404: ERROR})
    async def metadata(name: str = served, version: str = VERSION) -> dict[str, Any]:
        """Inputs and outputs."""
        if name != service.name and name.endswith("/infer"):
            raise HTTPException(405, headers={"Allow": "POST"})
        check(name, version)
        return _metadata(service)


def parse(data: bytes, header_length: str | None) -> Infer:
    """A request, whose tensors may lie behind its JSON.

    Raises:
        Refused: it is none.
    """
    n_header = len(data)
    if header_length is not None:
        if not is_decimal(header_length) or int(header_length) > len(data):
            raise Refused(422, f"{LENGTH}: expected a number up to {len(data)}, found {header_length!r:.40}")
        n_header = int(header_length)
    try:
        body = Infer.model_validate(orjson.loads(data[:n_header]))
    except orjson.JSONDecodeError as error:
        raise Refused(422, f"body: expected JSON, found {error}") from None
    except ValidationError as error:
        raise Refused(422, text_of(error.errors())) from None
    rest = memoryview(data)[n_header:]
    for i, tensor in enumerate(body.inputs):
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            continue
        place = f"inputs[{i}].parameters.binary_data_size"
        if type(size) is not int or not 0 <= size <= len(rest):
            raise Refused(422, f"{place}: expected a number up to {len(rest)}, found {shown(size)}")
        tensor.data, rest = _texts(place, bytes(rest[:size])), rest[size:]
    return body


def _texts(place: str, data: bytes) -> list[Any]:
    """The elements of a tensor of BYTES: of each its length in 4 bytes, then itself."""
    texts, position = [], 0
    try:
        while position < len(data):
            (length,) = struct.unpack_from("<I", data, position)
            position += 4 + length
            texts.append(data[position - length : position].decode())
    except (struct.error, UnicodeDecodeError):
        position = -1
    if position != len(data):
        raise Refused(422, f"{place}: expected UTF-8 texts, each preceded by its length in 4 bytes")
    return texts


def _inputs(body: Infer, service: Service) -> list[str | Sentence]:
    """Texts or token lists, no more of them than a request may have: a shape may tell any number of empty ones."""
    if len(body.inputs) != 1:
        raise Refused(422, f"inputs: expected one, text or tokens, found {len(body.inputs)}")
    tensor = body.inputs[0]
    if tensor.name not in INPUTS:
        raise Refused(422, f"inputs[0].name: expected text or tokens, found {shown(tensor.name)}")
    if tensor.datatype != "BYTES":
        raise Refused(422, f"inputs[0].datatype: expected BYTES, found {shown(tensor.datatype)}")
    least, most = INPUTS[tensor.name]
    shape = tensor.shape
    if not least <= len(shape) <= most or (tensor.name == "text" and shape[1:] not in ([], [1])):
        expected = "[B] or [B, 1]" if tensor.name == "text" else "[B, T]"
        raise Refused(422, f"inputs[0].shape: expected {expected}, found {shown(shape)}")
    service.check_number("inputs[0].shape", shape[0])
    texts = _flat(tensor)
    if len(texts) != prod(shape):
        raise Refused(422, f"inputs[0].data: expected {prod(shape)} texts, found {len(texts)}")
    rows: list[Any] = texts
    if tensor.name == "tokens":
        n = shape[1]
        rows = [_without_end(texts[b * n : (b + 1) * n]) for b in range(shape[0])]
    try:
        return checked_inputs(rows)
    except ValueError as error:
        raise Refused(422, f"inputs[0].data{error}") from None


def _flat(tensor: Tensor) -> list[Any]:
    """A tensor's elements, which may be nested as its shape is."""
    data = tensor.data
    if data is None:
        raise Refused(422, "inputs[0].data: expected a value, found nothing")
    if data and all(isinstance(row, list) for row in data):
        return [element for row in data for element in row]
    return data


def _without_end(tokens: Sequence[Any]) -> list[Any]:
    """A row without the empty texts that fill it up."""
    row = list(tokens)
    while row and row[-1] == "":
        row.pop()
    return row


def _metadata(service: Service) -> dict[str, Any]:
    size = service.config.output_size
    shapes = {SENTENCES: [-1, size], TOKENS: [-1, -1, size], MASK: [-1, -1]}
    return {
        "name": service.name,
        "versions": [VERSION],
        "platform": "flashelmo",
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "tokens", "datatype": "BYTES", "shape": [-1, -1]},
        ],
        "outputs": [{"name": name, "datatype": DATATYPES[name], "shape": shape} for name, shape in shapes.items()],
    }
