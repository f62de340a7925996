"""A model on the card: its embedders, made when they are first asked for, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flashelmo.benchmarks.kernels.card import Device
from flashelmo.benchmarks.text import Sentences
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.settings import CudaSettings


class Subject:
    """A model that is measured; `make` takes what `ElmoEmbedder` takes.

    Attributes:
        failed: precisions whose vectors were wrong, or were not checked: they are not timed.
    """

    def __init__(
        self, name: str, model: ElmoModel, device: Device, make: Callable[..., Any], cuda: CudaSettings
    ) -> None:
        self.name, self.model, self.device, self.cuda, self._make = name, model, device, cuda, make
        self.failed: set[str] = set()
        self._made: dict[tuple[object, ...], Any] = {}

    def embedder(self, precision: str, **options: Any) -> Any:
        """The embedder with these options; the same one for the same options."""
        options = {"cuda": self.cuda} | options
        key = (precision, *sorted(options.items()))
        if key not in self._made:
            self._made[key] = self._make(self.model, device=self.device.engine, precision=precision, **options)
        return self._made[key]

    def timed(self, precision: str, known: bool = False) -> Any:
        """The one that is timed: all words known from an earlier call, or none ever."""
        return self.embedder(precision) if known else self.embedder(precision, cache_bytes=0)

    def let_go(self, *options: str) -> None:
        """Of embedders that were made with one of these options, as "stateful", and of their memory."""
        self._made = {k: v for k, v in self._made.items() if not {each[0] for each in k[1:]} & set(options)}  # type: ignore[index]
        self.device.free_memory()


def leave_on_device(embedder: Any, sentences: Sentences) -> None:
    """Embed, all layers, and drop the vectors on the device."""
    for _ in embedder.embed(sentences, convert_to_numpy=False):
        pass
