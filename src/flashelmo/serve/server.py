"""uvicorn on a port: starts, drains on SIGTERM, ends."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from uvicorn import Config, Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from flashelmo.engine.errors import FlashElmoError, reason_of
from flashelmo.engine.system.signals import handled, stop_signals
from flashelmo.serve.app import make_app
from flashelmo.serve.service import Service, ServiceSettings

HEAD_SECONDS = 10.0  # that a client has for a request's head
READ_SECONDS = 60.0  # that it has to read a piece of an answer
HEAD_BYTES = 1 << 16  # of a head, or of what follows a body in chunks
BACKLOG = 2048
OTHER_FILES = 256  # that are open beside connections

logger = logging.getLogger("flashelmo")


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's, which ends connections that it would keep for ever: whose requests do not come, or whose heads have no
    end, or whose answers nobody reads. An answer's next piece is asked for when the one before it was sent.
    """

    _head_timer: TimerHandle | None = None
    _read_timer: TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """A client came."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """It sent something."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"head: expected {HEAD_BYTES} bytes at most")

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._head_bytes = 0
        super().on_body(body)

    def pause_writing(self) -> None:
        """The client does not read as fast as it is answered."""
        super().pause_writing()
        self._read_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read all that was sent."""
        super().resume_writing()
        self._forget_read()

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """Its head is there."""
        self._forget_head()
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = AnswerWithoutChunks

    def connection_lost(self, exc: Exception | None) -> None:
        """The client went."""
        self._forget_head()
        self._forget_read()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._forget_head()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _forget_head(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _forget_read(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None


class AnswerWithoutChunks(RequestResponseCycle):
    """To a client of HTTP/1.0: where an answer has no length, it ends with the connection."""

    async def send(self, message: Any) -> None:
        """Send its head, or a piece of it."""
        if message["type"] == "http.response.start":
            self._has_length = any(name.lower() == b"content-length" for name, _ in message["headers"])
            self.chunked_encoding = None if self._has_length else False
        elif not self._has_length:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


def open_port(host: str, port: int) -> socket.socket:
    """A socket that clients can connect to; port 0 is any that is free.

    Raises:
        FlashElmoError: the port is taken, or the host is none of this machine.
    """
    if not host:
        raise FlashElmoError("--host: expected an address, found none; 0.0.0.0 is every interface")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns off the delay of small packets, which costs 40 ms a request.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if sys.platform != "win32":  # there several programs could then take the same port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise FlashElmoError(
            f"--host, --port: expected an address that is free, found {host}:{port}: {reason}"
        ) from None
    return listener


def allow_files(n: int) -> None:
    """Let this process have so many files open, or as many as the system allows: connections are files."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # of Unix alone

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= soft < n:
            resource.setrlimit(resource.RLIMIT_NOFILE, (n if hard < 0 else min(n, hard), hard))


class AcceptErrors:
    """An event loop's exception handler. Where no connection can be accepted, asyncio says so thousands of times a
    second, each with a traceback; this says it once.
    """

    _said = -1.0

    def __call__(self, loop: AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error that nobody awaits."""
        error = context.get("exception")
        if "socket" not in context or not isinstance(error, OSError):
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said >= 1:
            self._said = time.monotonic()
            logger.warning("connections: no more can be accepted for now: %s", reason_of(error))


def serve(settings: ServiceSettings, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve a model until a signal ends it; requests that were accepted are answered first.

    Raises:
        FlashElmoError: the model, the settings, a device or the port cannot be used; this thread has an event loop.
    """
    with suppress(RuntimeError):
        asyncio.get_running_loop()
        raise FlashElmoError("serve: expected a process of its own, found a running event loop, as a notebook has one")
    listener = open_port(host, port)
    with listener:
        service = Service(settings)
        asyncio.run(_serve(service, listener, say))


async def _start(service: Service) -> None:
    """Start it. A signal ends that first, then takes its course: what it raises in a callback of the loop is lost."""
    starting, arrived, loop = asyncio.create_task(service.start()), list[int](), asyncio.get_running_loop()

    def stop(number: int, frame: Any) -> None:
        arrived.append(number)
        loop.call_soon_threadsafe(starting.cancel)

    try:
        with handled(stop_signals(), stop):
            await starting
    finally:
        if arrived:
            signal.raise_signal(arrived[0])


async def _serve(service: Service, listener: socket.socket, say: Callable[[str], None]) -> None:
    try:
        await _start(service)
        allow_files(service.limits.connections + OTHER_FILES)
        asyncio.get_running_loop().set_exception_handler(AcceptErrors())
        config = Config(
            make_app(service, starts=False),
            http=PatientProtocol,
            ws="none",
            backlog=BACKLOG,
            access_log=False,
            log_level="warning",
            server_header=False,
            limit_concurrency=service.limits.connections,
            timeout_graceful_shutdown=service.limits.seconds,
        )
        host, port = listener.getsockname()[:2]
        address = f"[{host}]" if ":" in host else host
        devices = ", ".join(worker.device for worker in service.workers)
        listener.listen(BACKLOG)
        say(f"{service.name} on {devices}, {service.workers[0].precision}: http://{address}:{port}")
        await Server(config).serve(sockets=[listener])
    finally:
        await service.stop()
