"""Texts to vectors for other tools. They copy, pickle and configure objects, so the model is loaded on first use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.engine.arguments import check, expect_no_state
from flashelmo.engine.arrays import Array
from flashelmo.engine.bulk.tokenizers import lines_of, tokenizer_of
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.output import Layers, Mix, Output
from flashelmo.engine.text.sentences import several

KEPT = 2  # models that a process keeps for those that ask for the same


class TextEmbedder:
    """Converts texts to vectors. Pickling keeps only the arguments; each process loads the model once.

    Attributes:
        model: what `ElmoEmbedder.load` takes, or an embedder; an embedder of a model in memory cannot be pickled.
        output: which layers (several are concatenated), and whether tokens are pooled.
        tokenizer: the name of a tokenizer for texts (`engine/bulk/tokenizers.py`); token lists are used unchanged.
        options: options of `ElmoEmbedder.load`.

    Raises:
        FlashElmoError: the embedder is stateful, so that the same text would get different vectors each time.
    """

    def __init__(
        self,
        model: str | Path | ElmoEmbedder,
        *,
        layers: Layers = "average",
        mix: Mix | None = None,
        pool: str | None = "mean",
        tokenizer: str = "whitespace",
        **options: Any,
    ) -> None:
        self.model = model
        self.output = Output(layers, pool=pool, mix=mix)
        self.tokenizer = tokenizer
        self.options = options
        expect_no_state(bool(self.setting("stateful")), "a text's vectors depend on that text alone")

    @classmethod
    def of(cls, model: str | Path | ElmoEmbedder, options: Mapping[str, Any] | None, **arguments: Any) -> TextEmbedder:
        """One whose options are an argument of its own, as tools have it that save configurations.

        Raises:
            FlashElmoError: they are no options, or have other arguments among them.
        """
        options = {} if options is None else options
        check(isinstance(options, Mapping), "options", "those of ElmoEmbedder.load by name", options)
        for name in ("model", *arguments):
            if name in options:
                raise FlashElmoError(f"options: expected those of ElmoEmbedder.load, found {name}, which is not one")
        return cls(model, **arguments, **options)

    @property
    def embedder(self) -> ElmoEmbedder:
        """The embedder, loaded on first use in a process."""
        if isinstance(self.model, ElmoEmbedder):
            return self.model
        key = json.dumps(self.options, sort_keys=True, default=repr)
        return _load(_Asked(str(self.model), key, self.options))

    def check_rows(self) -> None:
        """Raise FlashElmoError unless a text has exactly one row per token."""
        if self.setting("keep_sentence_boundaries"):
            raise FlashElmoError(
                "keep_sentence_boundaries: expected one vector a token, found True, which gives two more"
            )

    def setting(self, name: str) -> Any:
        """A setting of the embedder, which is not loaded for it."""
        return getattr(self.model.settings, name) if isinstance(self.model, ElmoEmbedder) else self.options.get(name)

    @property
    def size(self) -> int:
        """D, the length of a vector."""
        config = self.embedder.config
        return config.output_size * len(self.output.groups(config.n_layers + 1))

    def __call__(self, texts: Iterable[str | Sequence[str]]) -> list[Array]:
        """The vectors of texts or token lists: float32 [D] each, or [T, D] without pooling.

        Raises:
            FlashElmoError: an element is not text, or the model lacks a layer.
        """
        given = list(several("texts", texts))
        strings = {number: text for number, text in enumerate(given) if isinstance(text, str)}
        if self.tokenizer != "whitespace" and strings:
            tokens, offsets = tokenizer_of(self.tokenizer)(lines_of(strings.values()))
            words = tokens.to_pylist()
            for number, start, stop in zip(strings, offsets[:-1], offsets[1:], strict=True):
                given[number] = words[start:stop]
        output = self.output
        chosen: dict[str, Any] = {"layers": output.layers} if output.mix is None else {"mix": output.mix}
        found = self.embedder.embed(given, pool=output.pool, **chosen)
        if output.single:
            return list(found)
        return [np.concatenate(list(vectors), axis=-1) for vectors in found]

    def matrix(self, texts: Iterable[str | Sequence[str]]) -> Array:
        """The pooled vectors of texts [B, D].

        Raises:
            FlashElmoError: tokens are not pooled; an element is not text; the model lacks a layer.
        """
        if self.output.pool is None:
            raise FlashElmoError("pool: expected mean or max, as there is one vector for a text, found None")
        found = self(texts)
        return np.stack(found) if found else np.zeros((0, self.size), np.float32)


@dataclass(frozen=True)
class _Asked:
    """A model and the options that it is asked for with; equal where model and key are."""

    model: str
    key: str
    options: Mapping[str, Any] = field(compare=False)


@lru_cache(maxsize=KEPT)
def _load(asked: _Asked) -> ElmoEmbedder:
    return ElmoEmbedder.load(asked.model, **asked.options)
