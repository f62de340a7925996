"""What Prometheus reads: requests, windows, workers. The names are text-embeddings-inference's, after `flashelmo_`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = tuple(base * 10**power for power in (-3, -2, -1, 0, 1) for base in (1, 2.5, 5))
SIZES = tuple(4**k for k in range(9))


class Metrics:
    """One service's figures, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter("request_count", "Answers", "endpoint", "status")
        self.request_seconds = self._histogram("request_duration", "Seconds of a request", SECONDS, "endpoint")
        self.queue_seconds = self._histogram("request_queue_duration", "Seconds until a first window", SECONDS)
        self.window_seconds = self._histogram("request_inference_duration", "Seconds of a window", SECONDS)
        self.window_requests = self._histogram("batch_next_size", "Requests of a window", SIZES)
        self.window_tokens = self._histogram("batch_next_tokens", "Tokens of a window", SIZES)
        self.queue_size = Gauge("flashelmo_queue_size", "Requests that wait", registry=self._registry)
        self.in_flight = Gauge("flashelmo_requests_in_flight", "Requests in flight", registry=self._registry)
        self.workers = Gauge("flashelmo_workers", "Workers that are ready", registry=self._registry)
        self.tokens = self._counter("token_count", "Tokens embedded")
        self.words_computed = self._counter("computed_word_count", "Words whose vectors were computed")
        self.deaths = self._counter("worker_death_count", "Workers that ended by themselves")
        self.gone = self._counter("request_gone_count", "Requests whose clients hung up")

    def text(self) -> bytes:
        """All of them, in Prometheus's format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"flashelmo_{name}", about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"flashelmo_{name}", about, labels, registry=self._registry, buckets=buckets)
