"""What is refused, and how each convention says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.routing import Route

from flashelmo.engine.arguments import shown
from flashelmo.engine.errors import FlashElmoError

RETRY_SECONDS = 1
STATUSES = (400, 401, 403, 408, 413, 424, 429, 503)  # of requests for vectors, in every convention
TYPES = {  # text-embeddings-inference's names
    401: "unauthenticated",
    408: "timeout",
    413: "validation",
    422: "validation",
    424: "backend",
    429: "overloaded",
    500: "backend",
    503: "unhealthy",
}


class Refused(HTTPException):
    """A request that gets an error.

    Args:
        status: of HTTP; 422 is 400 in the conventions that have no other.
        text: the field, what was expected, what was found.
        retry: whether the same request may succeed a moment later, which a header then says.
    """

    def __init__(self, status: int, text: str, *, retry: bool = False) -> None:
        headers = {"Retry-After": str(RETRY_SECONDS)} if retry else {}
        if status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        super().__init__(status, text, headers)


def error_response(path: str, status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the convention of the path."""
    if status == HTTPStatus.UNPROCESSABLE_ENTITY and path.startswith(("/v1", "/v2")):
        status = HTTPStatus.BAD_REQUEST
    return JSONResponse(_body(path, status, text), status, dict(headers or {}))


def _body(path: str, status: int, text: str) -> dict[str, Any]:
    if path.startswith("/v2"):
        return {"error": text}
    if path.startswith("/v1"):
        kind = "server_error" if status >= 500 else "invalid_request_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(status, kind)
        field = text.partition(":")[0] if status == HTTPStatus.BAD_REQUEST else None
        return {"error": {"message": text, "type": kind, "param": field, "code": None}}
    return {"error": text, "error_type": TYPES.get(status, "validation")}


async def on_http_error(request: Request, error: Exception) -> Response:
    """Of `Refused`, and of paths and methods that there are not."""
    assert isinstance(error, AnyHTTPException)
    text, headers = str(error.detail), dict(error.headers or {})
    if error.status_code == HTTPStatus.NOT_FOUND and not isinstance(error, Refused):
        text = f"path: expected one listed in /openapi.json, found {shown(request.url.path)}"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers = {"Allow": _allowed(request) or headers.get("Allow", "another")}
        text = f"method: expected {headers['Allow']}, found {request.method}"
    elif text == "There was an error parsing the body":
        text = "body: expected JSON in UTF-8, found something else"
    return error_response(request.url.path, error.status_code, text, headers)


def _allowed(request: Request) -> str:
    """The methods of a path, each of which may be a route of its own; none where a route takes the method."""
    path = getattr(request.scope.get("route"), "path", None)
    routes = [each for each in request.app.routes if isinstance(each, Route) and each.path == path]
    methods = {method for each in routes for method in each.methods or ()}
    return "" if request.method in methods else ", ".join(sorted(methods - {"HEAD"}))


async def on_bad_request(request: Request, error: Exception) -> Response:
    """Of what is no request of an endpoint's."""
    assert isinstance(error, RequestValidationError)
    return error_response(request.url.path, HTTPStatus.UNPROCESSABLE_ENTITY, text_of(error.errors()))


async def on_bad_input(request: Request, error: Exception) -> Response:
    """Of what the engine refuses."""
    assert isinstance(error, FlashElmoError)
    return error_response(request.url.path, HTTPStatus.UNPROCESSABLE_ENTITY, str(error))


async def on_failure(request: Request, error: Exception) -> Response:
    """Of a mistake of ours."""
    text = f"failure of the server: {type(error).__name__}"
    return error_response(request.url.path, HTTPStatus.INTERNAL_SERVER_ERROR, text)


def text_of(errors: Sequence[Any]) -> str:
    """The first of pydantic's errors as "field: expected ..., found ..."."""
    error = errors[0]
    place = [part for part in error["loc"] if part not in ("body", "query", "path", "header")]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if error["type"] == "json_invalid":
        return f"body: expected JSON, found {error['ctx']['error'].lower()} at character {error['loc'][-1]}"
    if error["type"] == "value_error":  # of a validator of ours, which says all
        text = str(error["ctx"]["error"])
        return f"{field}{text}" if text.startswith(("[", ":")) else text
    if not field:
        return f"body: expected JSON with the header Content-Type: application/json, found {shown(error['input'])}"
    if error["type"] == "missing":
        return f"{field}: expected a value, found nothing"
    if error["type"] == "extra_forbidden":
        return f"{field}: expected a field that /openapi.json lists"
    expected = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{field}: expected {expected}, found {shown(error['input'])}"
