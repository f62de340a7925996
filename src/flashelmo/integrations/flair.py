"""Token embeddings of flair, in place of its `ELMoEmbeddings`, which needed AllenNLP."""

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
    """The vectors of each token, the three layers end to end unless chosen otherwise, as flair had them.

    They are computed anew in each epoch unless the trainer keeps them (`embeddings_storage_mode="cpu"`), and are not
    trained. A saved tagger names the model's path or name, which must be there when it is loaded, after
    `import flashelmo.integrations.flair`.

    Args:
        model: what `ElmoEmbedder.load` takes.
        layers, mix: see `ElmoEmbedder.embed`; several layers are joined end to end.
        name: of the embeddings in a stack.
        **options: of `ElmoEmbedder.load`.

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
        """What `from_params` makes the same of. FlashElmoError: a model in memory has no name."""
        if not isinstance(self._given["model"], str | Path):
            raise FlashElmoError("embeddings: expected a model's path or name, to be saved; found an embedder")
        return {**self._given, "model": str(self._given["model"])}

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> ElmoEmbeddings:
        """The embeddings of what `to_params` gave."""
        return cls(**params)

    def _add_embeddings_internal(self, sentences: list[Sentence]) -> None:
        found = self._texts([[token.text for token in sentence.tokens] for sentence in sentences])
        for sentence, vectors in zip(sentences, found, strict=True):
            rows = torch.from_numpy(vectors).to(flair.device)
            for token, row in zip(sentence.tokens, rows, strict=True):
                token.set_embedding(self.name, row)
