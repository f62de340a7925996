"""Holds every request to the limits, whichever endpoint it goes to: key, size, time, and what is in flight."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from starlette.datastructures import Headers

from flashelmo.engine.arguments import DIGITS, shown
from flashelmo.serve.errors import Refused, error_response
from flashelmo.serve.limits import Load
from flashelmo.serve.service import Service

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

OPEN_PATHS = {"/", "/health", "/metrics", "/openapi.json", "/v2/health/live", "/v2/health/ready"}
HELD_BODY_BYTES = 1 << 28  # of bodies that are being received, of all requests together
PIECE_BYTES = 1 << 18  # of an answer that the server holds while a client reads it

logger = logging.getLogger("flashelmo")


class Guard:
    """Stands between the server and the application (ASGI)."""

    def __init__(self, app: Application, service: Service) -> None:
        self._app, self._load, self._limits, self._metrics = app, service.load, service.limits, service.metrics
        self._key = service.settings.api_key.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """A request, or the application's begin and end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["flashelmo"] = []  # what was admitted for it
        started, exchange = time.monotonic(), _Exchange(receive, send, self._limits.body_bytes, self._load)
        try:
            await self._answer(scope, exchange)
        finally:
            exchange.forget_body()
            for n_bytes in scope["flashelmo"]:
                self._load.release(n_bytes)
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, exchange.status).inc()
            self._metrics.request_seconds.labels(route).observe(time.monotonic() - started)

    async def _answer(self, scope: Message, exchange: _Exchange) -> None:
        try:
            self._check(scope)
        except Refused as error:
            await _refuse(scope, exchange, error)
            return
        try:
            await asyncio.wait_for(self._app(scope, exchange.receive, exchange.send), self._limits.seconds)
        except (TimeoutError, asyncio.TimeoutError):
            if exchange.status:
                path = shown(scope["path"])
                logger.warning("%s: the client did not read its answer in %d s", path, self._limits.seconds)
                return  # the server closes the connection
            text = f"no answer within {self._limits.seconds} s"
            refused = Refused(503, f"time: {text}", retry=True)
            if not exchange.has_body:
                refused = Refused(408, f"body: incomplete after {self._limits.seconds} s")
            await _refuse(scope, exchange, refused)

    def _check(self, scope: Message) -> None:
        """What a request's head says."""
        headers = Headers(scope=scope)
        if self._key and not (scope["path"] in OPEN_PATHS and scope["method"] in ("GET", "HEAD")):
            kind, _, given = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
                raise Refused(401, "Authorization: expected Bearer and the service's key")
        if scope["method"] == "POST" and headers.get("sec-fetch-site") == "cross-site":
            raise Refused(403, "Sec-Fetch-Site: expected no page of another site, found cross-site")
        length = headers.get("content-length", "")
        if length.isdecimal():
            n_bytes = int(length.lstrip("0")[:DIGITS] or "0")  # of more digits it is this, or more
            if n_bytes > self._limits.body_bytes:
                raise _too_large(self._limits.body_bytes, n_bytes)


async def _refuse(scope: Message, exchange: _Exchange, refused: Refused) -> None:
    """Answer without reading what may still come, and close the connection."""
    headers = {**(refused.headers or {}), "Connection": "close"}
    response = error_response(scope["path"], refused.status_code, refused.detail, headers)
    await response(scope, exchange.receive, exchange.send)


class _Exchange:
    """A request's messages on their way between server and application.

    Attributes:
        has_body: the body was received.
        status: of the answer, once it has begun.
    """

    def __init__(self, receive: Receive, send: Send, max_bytes: int, load: Load) -> None:
        self.has_body, self.status = False, 0
        self._receive, self._send, self._max_bytes, self._load = receive, send, max_bytes, load
        self._n_bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            n_bytes = len(message.get("body", b""))
            self._n_bytes += n_bytes
            self._load.body_bytes += n_bytes
            if self._n_bytes > self._max_bytes:
                raise _too_large(self._max_bytes, self._n_bytes)
            self.has_body = not message.get("more_body", False)
            if not self.has_body and self._load.body_bytes > HELD_BODY_BYTES:
                raise Refused(429, f"body: expected at most {HELD_BODY_BYTES} bytes for all requests", retry=True)
        return message

    async def send(self, message: Message) -> None:
        """Send it on; a long body in pieces, of which the server takes the next when the client has read the last."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if not self.has_body and self._n_bytes:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        body = message.get("body", b"")
        if len(body) > PIECE_BYTES:
            for start in range(0, len(body), PIECE_BYTES):
                piece = bytes(body[start : start + PIECE_BYTES])
                await self._send({"type": message["type"], "body": piece, "more_body": True})
                await asyncio.sleep(0)
            message = {**message, "body": b""}
        await self._send(message)

    def forget_body(self) -> None:
        self._load.body_bytes -= self._n_bytes


def _too_large(most: int, found: int) -> Refused:
    return Refused(413, f"body: expected {most} bytes at most, found {found} or more")
