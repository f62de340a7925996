"""What every endpoint of vectors does, whatever its convention."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from flashelmo.serve.guard import Load, while_connected
from flashelmo.serve.service import Answer, Service, Wanted


async def embed_inputs(
    request: Request, service: Service, load: Load, field: str, inputs: list[Any], wanted: Wanted
) -> Answer:
    """The vectors of a request's inputs, within the limits, for as long as its client waits.

    Raises:
        Refused: what goes beyond a limit.
        FlashElmoError: vectors that the model has not.
    """
    sentences = service.split(field, inputs, wanted.truncate)
    load.admit(request, service.result_bytes(sentences, wanted.output))
    answer: Answer = await while_connected(request, service.metrics, service.embed(sentences, wanted))
    return answer
