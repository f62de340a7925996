"""What every endpoint of vectors does, whatever its convention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request

from flashelmo.engine.text.sentences import Sentence
from flashelmo.serve.guard import Load, while_connected
from flashelmo.serve.service import Answer, Service, Wanted


async def embed_inputs(
    request: Request,
    service: Service,
    load: Load,
    field: str,
    inputs: list[Any],
    wanted: Wanted,
    more_bytes: Callable[[Sequence[Sentence]], int] | None = None,
) -> Answer:
    """The vectors of a request's inputs, within the limits, for as long as its client waits.

    Args:
        more_bytes: what the answer to sentences has beside their vectors, if anything.

    Raises:
        Refused: what goes beyond a limit.
        FlashElmoError: vectors that the model has not.
    """
    sentences = service.split(field, inputs, wanted.truncate)
    n_bytes = service.result_bytes(sentences, wanted.output)
    load.admit(request, n_bytes + (more_bytes(sentences) if more_bytes else 0))
    answer: Answer = await while_connected(request, service.metrics, service.embed(sentences, wanted))
    return answer
