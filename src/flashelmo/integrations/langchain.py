"""Embeddings for LangChain: one vector per document or query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import MissingExtraError
from flashelmo.integrations.texts import TextEmbedder

try:
    from langchain_core.embeddings import Embeddings
except ImportError as error:
    raise MissingExtraError("langchain-core", "langchain", "flashelmo.integrations.langchain") from error


class ElmoEmbeddings(Embeddings):  # type: ignore[misc, unused-ignore]
    """The mean over a text's tokens, by default of the layers' average.

    Args:
        model: what `ElmoEmbedder.load` takes.
        **options: options of `TextEmbedder`: layers, mix, pool, tokenizer, and what `ElmoEmbedder.load` takes.
    """

    def __init__(self, model: str | Path | ElmoEmbedder = "original", **options: Any) -> None:
        self._texts = TextEmbedder(model, **options)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text."""
        vectors: list[list[float]] = self._texts.matrix(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """The vector of a query, the same as for a document."""
        return self.embed_documents([text])[0]
