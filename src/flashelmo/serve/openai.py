"""OpenAI's endpoint of embeddings: `POST /v1/embeddings`."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from flashelmo.engine.arguments import shown
from flashelmo.engine.arrays import Array
from flashelmo.engine.output import Output
from flashelmo.serve.endpoint import embed_inputs
from flashelmo.serve.errors import STATUSES, Refused
from flashelmo.serve.formats import JSON, response_of, to_json
from flashelmo.serve.schemas import OpenAIEmbed
from flashelmo.serve.service import Answer, Service, Wanted

MEAN = Wanted(Output("average", pool="mean"))
ERROR = {
    "description": "Refused.",
    "content": {JSON: {"example": {"error": {"message": "input[0]: expected ..., found ...", "param": "input[0]"}}}},
}
ERRORS: dict[int | str, dict[str, Any]] = dict.fromkeys(STATUSES, ERROR)


def add_openai(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""
    model = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "flashelmo"}

    @app.post("/v1/embeddings", responses=ERRORS)
    async def embeddings(body: OpenAIEmbed, request: Request) -> Response:
        """The mean over layers and tokens of each sentence."""
        if body.dimensions not in (None, service.config.output_size):
            size = service.config.output_size
            raise Refused(422, f"dimensions: expected {size}, the model's own, found {shown(body.dimensions)}")
        answer = await embed_inputs(request, service, "input", body.input, MEAN)
        pieces = _pieces(service.name, answer, body.encoding_format == "base64")
        return response_of(pieces, sum(each.nbytes for each in answer.vectors), JSON)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", responses={404: ERROR})
    async def one_model(name: str) -> dict[str, Any]:
        """The model, by its name."""
        if name != service.name:
            raise Refused(404, f"model: expected {service.name}, found {shown(name)}")
        return model


def _pieces(name: str, answer: Answer, as_base64: bool) -> Iterator[bytes]:
    """The answer's JSON, a vector at a time."""
    yield b'{"object":"list","data":['
    for b, vector in enumerate(answer.vectors):
        text = _base64(vector) if as_base64 else to_json(vector)
        yield (b"," if b else b"") + b'{"object":"embedding","index":%d,"embedding":%s}' % (b, text)
    n_tokens = sum(map(len, answer.sentences))
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    yield b'],"model":%s,"usage":%s}' % (orjson.dumps(name), orjson.dumps(usage))


def _base64(vector: Array) -> bytes:
    return b'"' + base64.b64encode(vector.astype("<f4").tobytes()) + b'"'
