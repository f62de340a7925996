"""A client for `flashelmo serve` with the embedder's methods. It needs no runtime and no model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice, pairwise
from threading import TIMEOUT_MAX
from types import TracebackType
from typing import Any, Literal

import numpy as np

from flashelmo.engine.arguments import shown, whole_number
from flashelmo.engine.arrays import Array
from flashelmo.engine.errors import FlashElmoError, MissingExtraError, first_line
from flashelmo.engine.output import Layers, Mix, Output
from flashelmo.engine.sentence_transformers import encode
from flashelmo.engine.system.forks import InEachProcess
from flashelmo.engine.text.sentences import SURROGATE, Sentence, several, tokens_of
from flashelmo.engine.text.spelling import in_place_of_surrogates

try:
    import httpx
    from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random
except ImportError as error:
    raise MissingExtraError(error.name or "httpx", "client", "flashelmo.Client") from error

logger = logging.getLogger("flashelmo")

SAFETENSORS = "application/x-safetensors"
BATCH_SIZE = 64  # sentences of a request
RETRIED = {408, 429, 502, 503, 504}
LONGEST_WAIT = 30.0  # seconds between attempts


class Client:
    """A client for `flashelmo serve` with `ElmoEmbedder`'s methods; it returns the same arrays, bit for bit.

    Transient errors (429, 503, a broken connection) are retried, after a growing pause or as long as the service asks.
    Thread-safe; a forked process may use it too.

    Args:
        url: the service's address, such as "http://127.0.0.1:8080".
        api_key: the service's key, if it has one.
        timeout: seconds per attempt; None: no limit.
        retries: attempts after the first.
        transport: an httpx transport to use instead of the default.

    Attributes:
        info: the response of `/info`, requested on first use.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float | None = 120.0,
        retries: int = 5,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not str(url).startswith(("http://", "https://")):
            raise FlashElmoError(f"url: expected one that begins with http:// or https://, found {shown(url)}")
        key: Any = api_key or ""
        if not (isinstance(key, str) and key.isascii() and key.isprintable()):
            raise FlashElmoError("api_key: expected one line of a key in ASCII, found something else")
        self._url = str(url).rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        seconds: Any = timeout
        if isinstance(seconds, bool | str) or (isinstance(seconds, int | float) and not 0 < seconds <= TIMEOUT_MAX):
            raise FlashElmoError(f"timeout: expected seconds above 0, or None, found {shown(timeout)}")
        make = partial(httpx.Client, base_url=self._url, headers=headers, timeout=timeout, transport=transport)
        try:
            self._http = InEachProcess(make)  # two processes on one connection would read each other's answers
        except httpx.InvalidURL as error:
            raise FlashElmoError(
                f"url: expected one such as http://127.0.0.1:8080, found {shown(url)}: {error}"
            ) from None
        self._attempts = whole_number("retries", retries, 0) + 1
        arguments: dict[str, Any] = {"timeout": timeout, "retries": retries, "transport": transport}
        self._again = partial(type(self), self._url, api_key=api_key, **arguments)
        self._info: dict[str, Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, also in another process, has the same arguments, the key among them, and connections of its own."""
        return self._again, ()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http().close()

    @property
    def info(self) -> dict[str, Any]:
        """The service's description: model, dimensions, limits.

        Raises:
            FlashElmoError: the service does not answer.
        """
        if self._info is None:
            answer = self._request("GET", "/info")
            try:
                self._info = dict(answer.json())
            except (ValueError, TypeError) as error:
                raise self._not_ours("/info", "the service's description", error) from None
        return self._info

    def embed(
        self,
        sentences: Iterable[Sentence | str],
        *,
        layers: Layers = "all",
        mix: Mix | None = None,
        pool: str | None = None,
    ) -> Iterator[Array]:
        """Stream the vectors of any number of sentences, with the shapes of `ElmoEmbedder.embed`.

        The service's tokenizer splits strings; token lists are used unchanged.

        Raises:
            FlashElmoError: the service rejects the request (with its message) or does not answer. `layers`, `mix` or
                `pool` is invalid, which is raised by the call itself.
        """
        return self._embed(several("sentences", sentences), Output(layers, pool=pool, mix=mix))

    def embed_batch(self, batch: Iterable[Sentence | str]) -> list[Array]:
        """The vectors [L, T, 2P] of each sentence."""
        return list(self.embed(batch))

    def embed_sentence(self, sentence: Sentence | str) -> Array:
        """The vectors [L, T, 2P] of one sentence."""
        return self.embed_batch([sentence])[0]

    def embed_sentences(self, sentences: Iterable[Sentence | str], batch_size: int | None = None) -> Iterator[Array]:
        """Like `embed`, with all layers; `batch_size` is the number of sentences per request."""
        return self._embed(several("sentences", sentences), Output(), batch_size)

    def encode(
        self,
        sentences: str | Iterable[Sentence | str],
        batch_size: int | None = None,
        output_value: Literal["sentence_embedding", "token_embeddings"] = "sentence_embedding",
        normalize_embeddings: bool = False,
        *,
        layers: Layers = "average",
        mix: Mix | None = None,
    ) -> Any:
        """Embed sentences, with the parameters and shapes of `ElmoEmbedder.encode`.

        Raises:
            FlashElmoError: as for `embed`.
        """
        return encode(
            lambda rows, output: self._embed(rows, output, batch_size),
            sentences,
            none=lambda: np.empty((0, self.info["output_size"]), np.float32),
            output_value=output_value,
            layers=layers,
            mix=mix,
            normalize_embeddings=normalize_embeddings,
        )

    def _size(self, batch_size: int | None) -> int:
        if batch_size is not None:
            return whole_number("batch_size", batch_size, 1)
        return min(BATCH_SIZE, int(self.info["max_client_batch_size"]))

    def _embed(
        self, sentences: Iterator[Sentence | str], output: Output, batch_size: int | None = None
    ) -> Iterator[Array]:
        from safetensors import SafetensorError

        size = self._size(batch_size)
        while batch := [self._as_json(sentence) for sentence in islice(sentences, size)]:
            body: dict[str, Any] = {"inputs": batch, "layers": output.layers}
            if output.mix is not None:
                body = {"inputs": batch, "mix": output.mix}
            if output.pool:
                body["pool"] = output.pool
            path = "/embed" if output.pool else "/embed_all"
            content = self._request("POST", path, body).content
            try:
                vectors = _vectors(content, output.single)
            except (SafetensorError, KeyError, ValueError) as error:  # as of a proxy's page
                raise self._not_ours(path, "vectors", error) from None
            yield from vectors

    def _as_json(self, sentence: Any) -> str | list[str]:
        """A sentence in UTF-8; a text that has lone surrogates is split here, as a token of nothing else is one too."""
        if isinstance(sentence, str) and (not SURROGATE.search(sentence) or self.info["tokenizer"] != "whitespace"):
            return self._in_utf8(sentence)
        return [self._in_utf8(token) for token in tokens_of(sentence)]

    def _in_utf8(self, text: Any) -> str:
        """With what the model's embedder has in place of lone surrogates, which UTF-8 cannot hold."""
        if not isinstance(text, str):
            raise FlashElmoError(f"sentence: expected tokens as text, found {shown(text)}")
        if not SURROGATE.search(text):
            return text
        return SURROGATE.sub(in_place_of_surrogates(self.info["model"]["family"]), text)

    def _not_ours(self, path: str, expected: str, error: Exception) -> FlashElmoError:
        """The error of an answer that this service does not give."""
        return FlashElmoError(f"{self._url}{path}: expected {expected}, found something else: {first_line(error)}")

    def _request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Send a request, with retries.

        Raises:
            FlashElmoError: none, or an error.
        """
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(self._attempts),
            wait=_pause,
            before_sleep=self._say,
            reraise=True,
        )
        try:
            return retrying(self._attempt, method, path, body)
        except httpx.HTTPStatusError as error:
            raise FlashElmoError(f"{self._url}{path}: {_told(error.response)}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            found = f"{type(error).__name__}: {error}"
            raise FlashElmoError(f"{self._url}{path}: expected an answer, found {found}") from None

    def _attempt(self, method: str, path: str, body: Any) -> httpx.Response:
        response = self._http().request(method, path, json=body, headers={"Accept": f"{SAFETENSORS}, application/json"})
        response.raise_for_status()
        return response

    def _say(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        logger.info("%s: tried again after %s", self._url, error)


def _may_pass(error: BaseException) -> bool:
    """Whether it may succeed a moment later."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in RETRIED
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


_back_off = wait_exponential(multiplier=0.1, max=LONGEST_WAIT) + wait_random(0, 0.1)


def _pause(state: RetryCallState) -> float:
    """Seconds until the next attempt: a power of two of tenths, or at least what the service says."""
    error = state.outcome.exception() if state.outcome else None
    told = error.response.headers.get("Retry-After", "") if isinstance(error, httpx.HTTPStatusError) else ""
    return max(_back_off(state), min(LONGEST_WAIT, float(told) if told.isdecimal() else 0.0))


def _told(response: httpx.Response) -> str:
    """The service's own words, or what is in their place."""
    try:
        told = response.json()["error"]
        return str(told["message"] if isinstance(told, dict) else told)  # of a path in OpenAI's convention
    except (ValueError, KeyError, TypeError):
        return f"expected vectors, found status {response.status_code}"


def _vectors(content: bytes, single: bool) -> list[Array]:
    """The arrays of a binary answer, sentence by sentence, in memory of their own."""
    from safetensors.numpy import load

    arrays = load(content)
    if "vectors" in arrays:
        return [vector.copy() for vector in arrays["vectors"]]
    values, offsets = arrays["values"], arrays["offsets"].tolist()
    rows = [values[start:stop] for start, stop in pairwise(offsets)]
    return [each.copy() if single else np.ascontiguousarray(each.transpose(1, 0, 2)) for each in rows]
