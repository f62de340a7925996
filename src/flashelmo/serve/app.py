"""The application: endpoints under text-embeddings-inference's names, and those of two other conventions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from flashelmo import __version__
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Output
from flashelmo.serve.endpoint import embed_inputs
from flashelmo.serve.errors import STATUSES, on_bad_input, on_bad_request, on_failure, on_http_error
from flashelmo.serve.formats import ARROW, JSON, NUMPY, SAFETENSORS, accepted, bytes_of_tokens, vectors_response
from flashelmo.serve.guard import Guard
from flashelmo.serve.infer import add_infer
from flashelmo.serve.openai import add_openai
from flashelmo.serve.schemas import Embed, EmbedSentences, EmbedTokens
from flashelmo.serve.service import Service, Wanted, in_thread_if_many

ERROR = {"description": "Refused: the field, what was expected, what was found."}
BINARY = {"schema": {"type": "string", "format": "binary"}}
VECTORS: dict[int | str, dict[str, Any]] = {
    200: {"description": "Vectors.", "content": {JSON: {}, SAFETENSORS: BINARY, NUMPY: BINARY, ARROW: BINARY}},
    **{status: ERROR for status in (*STATUSES, 406, 422)},
}


def make_app(service: Service, *, starts: bool = True) -> FastAPI:
    """The application of a service.

    Args:
        starts: it starts the service, and stops it at its end; otherwise its caller does.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if starts:
            await service.start()
        yield
        if starts:
            await service.stop()

    app = FastAPI(
        title="flashelmo",
        version=__version__,
        description="ELMo vectors of sentences and their tokens.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
    )
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_bad_request)
    app.add_exception_handler(FlashElmoError, on_bad_input)
    app.add_exception_handler(Exception, on_failure)
    _add_own(app, service)
    _add_state(app, service)
    add_openai(app, service)
    add_infer(app, service)
    _add_head(app)
    app.add_middleware(Guard, service=service)
    return app


def _add_own(app: FastAPI, service: Service) -> None:
    """The endpoints of vectors."""

    async def embed_body(request: Request, body: Embed, pool: str | None, with_tokens: bool = False) -> Response:
        media_type = accepted(request.headers.get("accept"))
        wanted = Wanted(
            Output(body.layers, pool=pool, mix=body.mix),
            body.normalize,
            body.truncation_direction.title() if body.truncate else "",
        )
        more_bytes = None if pool else partial(bytes_of_tokens, media_type)
        answer = await embed_inputs(request, service, "inputs", body.inputs, wanted, more_bytes)
        write = partial(vectors_response, media_type, answer, service.config.output_size, with_tokens)
        return await in_thread_if_many(answer.vectors, write) if media_type == NUMPY else write()

    @app.post("/embed", responses=VECTORS)
    async def embed(body: EmbedSentences, request: Request) -> Response:
        """One vector a sentence, or one a layer: a list of vectors."""
        return await embed_body(request, body, body.pool)

    @app.post("/", responses=VECTORS)
    async def embed_at_root(body: EmbedSentences, request: Request) -> Response:
        """As `/embed`: what `huggingface_hub.InferenceClient` calls."""
        return await embed_body(request, body, body.pool)

    @app.post("/embed_all", responses=VECTORS)
    async def embed_all(body: Embed, request: Request) -> Response:
        """A vector a token, or one a layer and a token: for each sentence a list."""
        return await embed_body(request, body, None)

    @app.post("/tokens", responses=VECTORS)
    async def tokens(body: EmbedTokens, request: Request) -> Response:
        """For each sentence its tokens, as they were split, and their vectors, all layers unless others are named."""
        return await embed_body(request, body, None, with_tokens=True)


def _add_state(app: FastAPI, service: Service) -> None:
    """What tells about the service."""

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        """A page to type sentences into, and to look at a word's neighbours."""
        return files("flashelmo.serve").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/info")
    async def info() -> dict[str, Any]:
        """The model, and the limits."""
        return service.info()

    @app.get("/health", response_class=Response, responses={503: ERROR})
    async def health() -> Response:
        """Whether vectors can be had."""
        service.check_ready()
        return Response()

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """What Prometheus reads."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _add_head(app: FastAPI) -> None:
    """HEAD wherever there is GET, as load balancers ask; the description, which would have all twice, has it not."""
    for route in [route for route in app.routes if isinstance(route, APIRoute) and "GET" in (route.methods or ())]:
        app.add_api_route(
            route.path,
            route.endpoint,
            methods=["HEAD"],
            response_class=route.response_class,
            include_in_schema=False,
        )
