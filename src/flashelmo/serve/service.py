"""A model behind the endpoints: sentences in, vectors out, whatever the convention they come by."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from flashelmo import __version__
from flashelmo.engine.arguments import check, expect_no_state
from flashelmo.engine.arrays import Array
from flashelmo.engine.bulk.tokenizers import Tokenizer, lines_of, tokenizer_of
from flashelmo.engine.choice import choose_runtime
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.convert import describe
from flashelmo.engine.output import Output, normalize
from flashelmo.engine.settings import Settings
from flashelmo.engine.text.sentences import Sentence
from flashelmo.serve.batching import Batcher
from flashelmo.serve.errors import Refused
from flashelmo.serve.limits import Limits, Load
from flashelmo.serve.metrics import Metrics
from flashelmo.serve.workers import make_workers

FEW_BYTES = 1 << 18  # of vectors that are worked on at once: a thread would take longer
BATCH_TOKENS_CPU, BATCH_TOKENS_CARD = 2048, 1 << 15
TYPES = {"fp64": "float64"}
Result = TypeVar("Result")


@dataclass(frozen=True)
class ServiceSettings:
    """What is served, and how.

    Attributes:
        model: folder, archive or weights file.
        options: keywords of `ElmoEmbedder.load`.
        name: that clients call the model by; its folder's if empty.
        tokenizer: what splits texts, by its name in `flashelmo embed --tokenizer`.
        max_batch_tokens: of a window; None chooses by the device.
        max_wait_ms: that a request waits for others while a worker is free.
        api_key: that requests must bring; none if empty.
        limits: what a request may take.
    """

    model: Path
    options: dict[str, Any]
    name: str = ""
    tokenizer: str = "whitespace"
    max_batch_tokens: int | None = None
    max_wait_ms: float = 10.0
    api_key: str = ""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        check(0 <= self.max_wait_ms < float("inf"), "max_wait_ms", "a finite number, 0 or more", self.max_wait_ms)


async def in_thread_if_many(vectors: Sequence[Array], work: Callable[[], Result]) -> Result:
    """What work on vectors gives; if there are many, the service answers others meanwhile."""
    return work() if sum(each.nbytes for each in vectors) <= FEW_BYTES else await asyncio.to_thread(work)


class Wanted(NamedTuple):
    """Which vectors: an output, their scale, and which end of a long sentence is cut ("Left", "Right" or "")."""

    output: Output
    normalize: bool = False
    truncate: str = ""


class Answer(NamedTuple):
    """Sentences as they were split, the vectors of each, and what they are."""

    sentences: list[Sentence]
    vectors: list[Array]
    output: Output


class Service:
    """A model and its workers.

    Raises:
        FlashElmoError: the model cannot be read, or settings that do not go together.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        expect_no_state(bool(settings.options.get("stateful")), "a request's vectors depend on that request alone")
        self.settings, self.limits = settings, settings.limits
        self.metrics = Metrics()
        self.load = Load(self.limits, self.metrics)
        self._tokenizer: Tokenizer | None = None
        if settings.tokenizer != "whitespace":
            self._tokenizer = tokenizer_of(settings.tokenizer)
        options = dict(settings.options)
        options_file, device = options.pop("options_file", None), options.pop("device", "auto")
        choice = choose_runtime(Settings.of({**options, "device": device}))  # type: ignore[typeddict-item]
        model = load_model(settings.model, options_file)
        self.config, self.sha256, self.about = model.config, model.sha256, describe(model)
        del model  # the workers have their own
        on_card = choice.devices[0] != "cpu"
        self.max_batch_tokens = settings.max_batch_tokens or (BATCH_TOKENS_CARD if on_card else BATCH_TOKENS_CPU)
        path = settings.model.absolute()
        name = settings.name or (path.name if path.is_dir() else path.name.partition(".")[0])
        self.name = os.fsencode(name).decode("utf-8", "replace")  # a file's name need not be UTF-8, as answers are
        self._batcher = Batcher(self.max_batch_tokens, settings.max_wait_ms, self.metrics)
        load = {**options, "options_file": options_file}
        self.workers = self._batcher.workers = make_workers(settings.model, load, choice.devices, self._batcher)

    async def start(self) -> None:
        """Start the workers.

        Raises:
            FlashElmoError: one cannot start.
        """
        try:
            await asyncio.gather(*(worker.start() for worker in self.workers))
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the workers."""
        await asyncio.gather(*(worker.close() for worker in self.workers))

    def check_ready(self) -> None:
        """Raise Refused where no worker takes windows."""
        if not any(worker.is_ready for worker in self.workers):
            raise Refused(503, "workers: none is ready", retry=True)

    def info(self) -> dict[str, Any]:
        """What is served, under text-embeddings-inference's names, then the model's own."""
        precision = self.workers[0].precision
        return {
            "model_id": self.name,
            "model_sha": self.sha256,
            "model_dtype": TYPES.get(precision, "float32"),
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": self.limits.requests,
            "max_input_length": self.limits.sentence_tokens,
            "max_batch_tokens": self.max_batch_tokens,
            "max_client_batch_size": self.limits.sentences,
            "auto_truncate": False,
            "version": __version__,
            "precision": precision,
            "devices": [worker.device for worker in self.workers],
            "tokenizer": self.settings.tokenizer,
            "max_wait_ms": self.settings.max_wait_ms,
            "limits": asdict(self.limits),
            "layers": self.config.n_layers + 1,
            "output_size": self.config.output_size,
            "keep_sentence_boundaries": bool(self.settings.options.get("keep_sentence_boundaries")),
            "model": {key: value for key, value in self.about.items() if key not in ("path", "files")},
        }

    def check_number(self, name: str, n_sentences: int) -> None:
        """Raise Refused where these are more sentences than a request may have; the message names their place."""
        if n_sentences > self.limits.sentences:
            raise Refused(413, f"{name}: expected {self.limits.sentences} sentences at most, found {n_sentences}")

    def split(self, name: str, inputs: Sequence[str | Sentence], truncate: str = "") -> list[Sentence]:
        """Inputs as token lists.

        Raises:
            Refused: too many, or one that is too long; the message names its place in `name`.
        """
        self.check_number(name, len(inputs))
        sentences = [self._tokens(each) if isinstance(each, str) else each for each in inputs]
        most = self.limits.sentence_tokens
        for b, tokens in enumerate(sentences):
            if len(tokens) <= most:
                continue
            if not truncate:
                raise Refused(413, f"{name}[{b}]: expected {most} tokens at most, found {len(tokens)}")
            sentences[b] = tokens[-most:] if truncate == "Left" else tokens[:most]
        return sentences

    def result_bytes(self, sentences: Sequence[Sentence], output: Output) -> int:
        """What the vectors of sentences take.

        Raises:
            FlashElmoError: a layer that the model lacks.
        """
        output.check(self.config.n_layers + 1)
        n_layers = len(output.groups(self.config.n_layers + 1))
        n_rows = len(sentences) if output.pool else sum(self.rows(sentences))
        item_bytes = 8 if TYPES.get(self.workers[0].precision) == "float64" else 4
        return item_bytes * n_rows * n_layers * self.config.output_size

    def rows(self, sentences: Sequence[Sentence]) -> list[int]:
        """How many vectors each sentence has in a layer: of its tokens, and of its boundaries if they are kept."""
        boundaries = 2 * bool(self.settings.options.get("keep_sentence_boundaries"))
        return [len(tokens) + boundaries for tokens in sentences]

    async def embed(self, sentences: list[Sentence], wanted: Wanted) -> Answer:
        """The vectors of sentences; whoever cancels it takes them out of the line.

        Raises:
            Refused: see `Batcher.embed`.
        """
        vectors = await self._batcher.embed(sentences, wanted.output)
        if wanted.normalize:
            vectors = await in_thread_if_many(vectors, partial(list[Array], map(normalize, vectors)))
        return Answer(sentences, vectors, wanted.output)

    def _tokens(self, text: str) -> Sentence:
        if self._tokenizer is None:
            return text.split()
        tokens, _ = self._tokenizer(lines_of([text]))
        found: list[str] = tokens.to_pylist()
        return found
