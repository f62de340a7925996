"""Token embeddings for flair, replacing its `ELMoEmbeddings`, which needed AllenNLP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError, MissingExtraError
from flashelmo.engine.output import Layers, Mix
from flashelmo.integrations.texts import TextEmbedder

try:
    import flair
    import torch
    from flair.data import Sentence
    from flair.embeddings import TokenEmbeddings
    from flair.embeddings.base import register_embeddings
except ImportError as error:
    raise MissingExtraError("flair", "flair", "flashelmo.integrations.flair") from error


@register_embeddings  # type: ignore[untyped-decorator, unused-ignore]
class ElmoEmbeddings(TokenEmbeddings):  # type: ignore[misc, unused-ignore]
    """Token embeddings: by default the three layers concatenated, as in flair's `ELMoEmbeddings`.

    They are recomputed in each epoch unless the trainer stores them (`embeddings_storage_mode="cpu"`), and are not
    trained. A saved tagger refers to the model by path or name; it must be available when the tagger is loaded, after
    `import flashelmo.integrations.flair`.

    Args:
        model: what `ElmoEmbedder.load` takes.
        layers, mix: see `ElmoEmbedder.embed`; several layers are concatenated.
        name: name of the embeddings in a stack.
        **options: options of `ElmoEmbedder.load`.

    Raises:
        FlashElmoError: it keeps sentence boundaries, which are no tokens.
    """

    def __init__(
        self,
        model: str | Path | ElmoEmbedder = "original",
        layers: Layers = "all",
        mix: Mix | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        self._texts = TextEmbedder(model, layers=layers if mix is None else "average", mix=mix, pool=None, **options)
        self._texts.check_rows()
        self._given = {"model": model, "layers": layers, "mix": mix, "name": name, **options}
        self._length = self._texts.size
        self.name = name or f"flashelmo-{model if isinstance(model, str | Path) else 'memory'}"
        self.static_embeddings = True
        super().__init__()

    @property
    def embedding_length(self) -> int:
        """D, the length of a token's vector."""
        return self._length

    def to_params(self) -> dict[str, Any]:
        """The arguments for `from_params`. FlashElmoError: a model in memory has no name."""
        if not isinstance(self._given["model"], str | Path):
            raise FlashElmoError("embeddings: expected a model's path or name, to be saved; found an embedder")
        return {**self._given, "model": str(self._given["model"])}

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> ElmoEmbeddings:
        """Embeddings from the result of `to_params`."""
        return cls(**params)

    def _add_embeddings_internal(self, sentences: list[Sentence]) -> None:
        found = self._texts([[token.text for token in sentence.tokens] for sentence in sentences])
        for sentence, vectors in zip(sentences, found, strict=True):
            rows = torch.from_numpy(vectors).to(flair.device)
            for token, row in zip(sentence.tokens, rows, strict=True):
                token.set_embedding(self.name, row)
