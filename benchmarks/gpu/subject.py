"""A model on the card: its embedders, made when they are first asked for, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch

from flashelmo.benchmarks.text import Sentences
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.output import Output
from flashelmo.engine.text.windows import Window


class Embedder(Protocol):
    """What is measured: `ElmoEmbedder`, or something with its face."""

    window_limits: tuple[int, int]

    def embed(
        self, sentences: Iterable[Any], *, layers: str | int = ..., pool: str | None = ..., convert_to_numpy: bool = ...
    ) -> Iterator[Any]:
        """The vectors of each sentence."""

    def embed_windows(
        self, windows: Iterable[Window], *, output: Output = ..., convert_to_numpy: bool = ...
    ) -> Iterator[tuple[Window, Iterator[Any]]]:
        """Each window with its sentences' vectors."""


class Place(NamedTuple):
    """Where a run computes.

    Attributes:
        engine: what `ElmoEmbedder` is told: "cuda", or "interpreter" in tests.
        torch: PyTorch's name of the same: "cuda:0", or "cpu".
    """

    engine: str
    torch: str

    @property
    def is_cuda(self) -> bool:
        """Whether there is a card."""
        return torch.device(self.torch).type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done what was queued; also raises what went wrong there."""
        if self.is_cuda:
            torch.cuda.synchronize(self.torch)

    def is_alive(self) -> bool:
        """Whether work on the device still ends well: some errors of a kernel end its process's CUDA context."""
        try:
            self.synchronize()
        except Exception:
            return False
        return True

    def tidy(self) -> None:
        """Give memory back that nobody uses."""
        if self.is_cuda:
            torch.cuda.empty_cache()


class Subject:
    """A model that is measured.

    Args:
        make: takes what `ElmoEmbedder` takes.
        cuda: the runtime's settings where they are not the default.

    Attributes:
        failed: precisions whose vectors were wrong, or were not checked though others were: they are not timed.
    """

    def __init__(self, name: str, model: ElmoModel, place: Place, make: Callable[..., Any], cuda: Any = None) -> None:
        self.name, self.model, self.place = name, model, place
        self.failed: set[str] = set()
        self._make, self._cuda = make, cuda
        self._made: dict[tuple[object, ...], Embedder] = {}

    def embedder(self, precision: str, **options: Any) -> Embedder:
        """The embedder with these options; the same one for the same options."""
        if self._cuda is not None:
            options = {"cuda": self._cuda} | options
        key = (precision, *sorted(options.items()))
        if key not in self._made:
            self._made[key] = self._make(self.model, device=self.place.engine, precision=precision, **options)
        return self._made[key]

    def timed(self, precision: str, known: bool = False) -> Embedder:
        """The one that is timed: all words known from an earlier call, or none ever."""
        return self.embedder(precision) if known else self.embedder(precision, cache_bytes=0)

    def let_go(self, *options: str) -> None:
        """Of embedders that were made with one of these options, as "stateful", and of their memory."""
        gone = [key for key in self._made if any(isinstance(each, tuple) and each[0] in options for each in key)]
        for key in gone:
            del self._made[key]
        self.place.tidy()


def leave_on_device(embedder: Embedder, sentences: Sentences) -> None:
    """Embed, all layers, and drop the vectors on the device."""
    for _ in embedder.embed(sentences, convert_to_numpy=False):
        pass
