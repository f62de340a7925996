"""Columns of batches: for `Dataset.map(batched=True)` of Hugging Face datasets and `map_batches` of Ray Data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.integrations.texts import TextEmbedder


class EmbedBatch:
    """Adds a column of vectors to a batch with a column of texts or token lists.

    The processes of datasets and the actors of Ray receive the arguments and load the model once each. Results depend
    only on the arguments, so datasets can reuse cached ones.

    Args:
        model: what `ElmoEmbedder.load` takes.
        column: the column with the texts.
        output: name of the new column: vectors [D], or [T, D] with `pool=None`.
        **options: options of `TextEmbedder`: layers, mix, pool, tokenizer, and what `ElmoEmbedder.load` takes.
    """

    def __init__(
        self,
        model: str | Path | ElmoEmbedder = "original",
        column: str = "text",
        output: str = "embedding",
        **options: Any,
    ) -> None:
        self.column, self.output = column, output
        self._texts = TextEmbedder(model, **options)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with the new column. FlashElmoError: there is no column with the texts, or no column."""
        if not hasattr(batch, "keys"):  # a table of Arrow's or of Polars'
            found = type(batch).__name__
            raise FlashElmoError(f"batch: expected columns by name, as a dict or pandas has them, found {found}")
        if self.column not in batch:
            raise FlashElmoError(f"column: expected {self.column!r}, found {', '.join(map(str, batch))}")
        pooled = self._texts.output.pool is not None
        texts = batch[self.column]
        return {**batch, self.output: self._texts.matrix(texts) if pooled else self._texts(texts)}
