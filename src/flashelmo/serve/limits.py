"""What a request may take of the service."""

from __future__ import annotations

from dataclasses import dataclass, fields

from flashelmo.engine.arguments import whole_number


@dataclass(frozen=True)
class Limits:
    """Bounds; what goes beyond is refused, never cut.

    Attributes:
        body_bytes: of a request's body.
        sentences: of a request.
        sentence_tokens: of a sentence.
        requests: that are in flight at once.
        result_bytes: that the vectors of all requests in flight take, with what fills up their rows in answers.
        seconds: from a request's head to the last byte of its answer.
        connections: that are open at once.
    """

    body_bytes: int = 8 << 20
    sentences: int = 1024
    sentence_tokens: int = 2048
    requests: int = 512
    result_bytes: int = 1 << 30
    seconds: int = 120
    connections: int = 4096

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, whole_number(field.name, getattr(self, field.name), 1))
