"""A spaCy pipeline component that provides the vectors of tokens, spans and documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from flashelmo.engine.arrays import Array
from flashelmo.engine.errors import MissingExtraError
from flashelmo.integrations.texts import TextEmbedder

try:
    from spacy.language import Language
    from spacy.tokens import Doc, Span, Token
except ImportError as error:
    raise MissingExtraError("spacy", "spacy", "flashelmo.integrations.spacy") from error

NAME = "flashelmo"


class ElmoComponent:
    """Fills `doc.tensor` [T, D], and provides `vector`, `has_vector`, `vector_norm` and `similarity` from it.

    If an earlier component has set sentence boundaries, each sentence is embedded by itself, otherwise the whole
    document. The vector of a span or document is the mean over its tokens.

    Args:
        texts: the embedder of texts; tokens are spaCy's.

    Raises:
        FlashElmoError: `texts` keeps sentence boundaries, which are not tokens.
    """

    def __init__(self, texts: TextEmbedder) -> None:
        texts.check_rows()
        self._texts = texts

    def __call__(self, doc: Doc) -> Doc:
        """The document with its vectors."""
        self._fill([doc])
        return doc

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Process documents in batches, with the same results as one by one."""
        documents = iter(stream)
        while batch := list(islice(documents, batch_size)):
            self._fill(batch)
            yield from batch

    def _fill(self, docs: list[Doc]) -> None:
        sentences = [[token.text for token in span] for doc in docs for span in _sentences(doc)]
        found = iter(self._texts(sentences))
        for doc in docs:
            vectors = [next(found) for _ in _sentences(doc)]
            doc.tensor = np.concatenate(vectors) if vectors else np.zeros((0, self._texts.size), np.float32)
            common = {"has_vector": _has, "similarity": _similarity}
            doc.user_hooks |= common | {"vector": _mean, "vector_norm": _norm}
            doc.user_span_hooks |= common | {"vector": _mean}  # spaCy takes a span's hook of the norm to be its vector
            doc.user_token_hooks |= common | {"vector": _row, "vector_norm": _norm}


@Language.factory(  # type: ignore[untyped-decorator, unused-ignore]
    NAME,
    default_config={
        "model": "original",
        "layers": "average",
        "mix": None,
        "options": {},
    },
    assigns=["doc.tensor"],
)
def make_component(
    nlp: Language, name: str, model: str, layers: Any, mix: Any, options: dict[str, Any]
) -> ElmoComponent:
    """The component, as `nlp.add_pipe("flashelmo", config=...)` makes it.

    Args:
        nlp, name: of the pipeline.
        model: what `ElmoEmbedder.load` takes.
        layers, mix: see `ElmoEmbedder.embed`; several layers are joined end to end.
        options: of `ElmoEmbedder.load`.
    """
    return ElmoComponent(TextEmbedder.of(model, options, layers=layers, mix=mix, pool=None))


def _sentences(doc: Doc) -> list[Any]:
    """Spans that are embedded by themselves."""
    if not len(doc):
        return []
    return list(doc.sents) if doc.has_annotation("SENT_START") else [doc[:]]


def _row(token: Token) -> Array:
    vector: Array = token.doc.tensor[token.i]
    return vector


def _mean(tokens: Doc | Span) -> Array:
    doc, start, stop = (tokens.doc, tokens.start, tokens.end) if isinstance(tokens, Span) else (tokens, 0, len(tokens))
    mean: Array = doc.tensor[start:stop].mean(axis=0) if stop > start else np.zeros(doc.tensor.shape[1], np.float32)
    return mean


def _has(tokens: Any) -> bool:
    return True


def _norm(tokens: Any) -> float:
    return float(np.linalg.norm(tokens.vector))


def _similarity(one: Any, other: Any) -> float:
    """The cosine; 0 where one has no direction."""
    norms = one.vector_norm * other.vector_norm
    return float(one.vector @ other.vector / norms) if norms else 0.0
