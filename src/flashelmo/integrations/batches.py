"""Columns of batches: for `Dataset.map(batched=True)` of Hugging Face datasets and `map_batches` of Ray Data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.integrations.texts import TextEmbedder


class EmbedBatch:
    """A batch of columns, with one more for the vectors of a column of texts or token lists.

    Datasets' processes and Ray's actors get the arguments and load the model once each. What it gives depends on the
    arguments alone, so that datasets find a result again in their cache.

    Args:
        model: what `ElmoEmbedder.load` takes.
        column: of the texts.
        output: name of the new column: vectors [D], or [T, D] with `pool=None`.
        **options: of `TextEmbedder`: layers, mix, pool, tokenizer, and what `ElmoEmbedder.load` takes.
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
        """The batch with the new column. FlashElmoError: it lacks the column of texts."""
        if self.column not in batch:
            raise FlashElmoError(f"column: expected {self.column!r}, found {', '.join(map(str, batch))}")
        pooled = self._texts.output.pool is not None
        texts = batch[self.column]
        return {**batch, self.output: self._texts.matrix(texts) if pooled else self._texts(texts)}
