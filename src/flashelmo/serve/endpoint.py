"""What every endpoint of vectors does, whatever its convention."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from fastapi import Request

from flashelmo.engine.text.sentences import Sentence
from flashelmo.serve.errors import Refused
from flashelmo.serve.service import Answer, Service, Wanted


async def embed_inputs(
    request: Request,
    service: Service,
    field: str,
    inputs: list[Any],
    wanted: Wanted,
    more_bytes: Callable[[Sequence[Sentence]], int] | None = None,
) -> Answer:
    """The vectors of a request's inputs, within the limits; where the client hangs up first, the work is cancelled.

    Args:
        more_bytes: what the answer to sentences has beside their vectors, if anything.

    Raises:
        Refused: what goes beyond a limit, or what nobody would read.
        FlashElmoError: vectors that the model has not.
    """
    sentences = service.split(field, inputs, wanted.truncate)
    n_bytes = service.result_bytes(sentences, wanted.output) + (more_bytes(sentences) if more_bytes else 0)
    service.load.admit(n_bytes)
    request.scope["flashelmo"].append(n_bytes)  # until the request is answered
    work = asyncio.ensure_future(service.embed(sentences, wanted))
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        service.metrics.gone.inc()
        raise Refused(408, "client: closed the connection before the answer")
    finally:
        for each in (work, gone):
            each.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await work


async def _disconnect(request: Request) -> None:
    """Wait until the client hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
