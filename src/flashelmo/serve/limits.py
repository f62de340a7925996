"""What a request may take of the service, and what those in flight take."""

from __future__ import annotations

from dataclasses import dataclass, fields

from flashelmo.engine.arguments import whole_number
from flashelmo.serve.errors import Refused
from flashelmo.serve.metrics import Metrics


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


class Load:
    """What requests in flight take.

    Attributes:
        requests: that were admitted.
        result_bytes: that their vectors take.
        body_bytes: that was received of bodies.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.requests, self.result_bytes, self.body_bytes = 0, 0, 0
        self._limits = limits
        metrics.in_flight.set_function(lambda: self.requests)

    def admit(self, n_bytes: int) -> None:
        """Let a request have vectors of so many bytes, until it is answered and `release` is called.

        Raises:
            Refused: too many requests are in flight, or their vectors take too much memory.
        """
        limits = self._limits
        if n_bytes > limits.result_bytes:
            raise Refused(413, f"vectors: expected {limits.result_bytes} bytes at most, found {n_bytes}")
        if self.requests >= limits.requests:
            raise Refused(429, f"requests: the limit of {limits.requests} in flight is reached", retry=True)
        if self.result_bytes + n_bytes > limits.result_bytes:
            text = f"expected at most {limits.result_bytes} bytes for all requests in flight"
            raise Refused(429, f"vectors: {text}, found {self.result_bytes + n_bytes}", retry=True)
        self.requests += 1
        self.result_bytes += n_bytes

    def release(self, n_bytes: int) -> None:
        """A request is answered."""
        self.requests -= 1
        self.result_bytes -= n_bytes
