"""A module for sentence-transformers: the vectors of a text's tokens, to be followed by its own pooling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import MissingExtraError
from flashelmo.engine.output import Layers, Mix
from flashelmo.integrations.texts import TextEmbedder

try:
    from sentence_transformers.base.modules import InputModule

    import torch  # isort: skip  (after what may be absent: it takes long)
except ImportError as error:
    package = "sentence-transformers"
    raise MissingExtraError(package, package, "flashelmo.integrations.sentence_transformers") from error

MODEL = "model"  # the folder of the weights inside a saved module's
KEPT = "keep_sentence_boundaries"


class Elmo(InputModule):  # type: ignore[misc, unused-ignore]
    """Token embeddings [B, T, D] and attention mask [B, T] of texts, for a following `Pooling`. Not trained.

    A saved `SentenceTransformer` includes the weights; load it with `SentenceTransformer(folder,
    trust_remote_code=True)`, which sentence-transformers requires for every module that is not its own.

    Args:
        model: what `ElmoEmbedder.load` takes.
        layers, mix: see `ElmoEmbedder.embed`; several layers are concatenated.
        tokenizer_name: name of a tokenizer for texts, such as "moses".
        options: options of `ElmoEmbedder.load`.
    """

    config_file_name = "flashelmo.json"
    config_keys = ["layers", "mix", "tokenizer_name", "options"]  # noqa: RUF012 (as its class has it)
    save_in_root = False

    def __init__(
        self,
        model: str | Path | ElmoEmbedder = "original",
        layers: Layers = "average",
        mix: Mix | None = None,
        tokenizer_name: str = "whitespace",
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.mix, self.tokenizer_name = layers, mix, tokenizer_name
        self._texts = TextEmbedder.of(model, options, layers=layers, mix=mix, pool=None, tokenizer=tokenizer_name)
        # What is saved: the option that changes which vectors there are, and none that depends on the machine.
        self.options = {KEPT: True} if self._texts.setting(KEPT) else {}
        # Follows the model from device to device.
        self.register_buffer("_place", torch.empty(0, device="cpu"), persistent=False)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """The texts, unchanged except for a prompt in front if there is one."""
        return {"texts": [f"{prompt or ''}{text}" if isinstance(text, str) else text for text in inputs]}

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:
        """The features with `token_embeddings` [B, T, D], zero past a text's end, and `attention_mask` [B, T]."""
        vectors = [torch.from_numpy(each) for each in self._texts(features["texts"])]
        longest = max(1, *(len(each) for each in vectors)) if vectors else 1
        embeddings = torch.zeros(len(vectors), longest, self._texts.size, dtype=torch.float32, device="cpu")
        mask = torch.zeros(len(vectors), longest, dtype=torch.int64, device="cpu")
        for row, each in enumerate(vectors):
            embeddings[row, : len(each)] = each
            mask[row, : len(each)] = 1
        place = self._place.device
        return {**features, "token_embeddings": embeddings.to(place), "attention_mask": mask.to(place)}

    def get_embedding_dimension(self) -> int:
        """D, the length of a token's vector."""
        return self._texts.size

    def save(self, output_path: str, *args: Any, **options: Any) -> None:
        """Write the configuration and the weights to a folder."""
        self.save_config(output_path)
        self._texts.embedder.save_pretrained(Path(output_path, MODEL), overwrite=True)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options: Any) -> Elmo:
        """Load a module that `save` wrote, from a folder or the Hugging Face hub."""
        names = ("token", "cache_folder", "revision", "local_files_only")
        place = {"subfolder": subfolder, **{name: options[name] for name in names if name in options}}
        folder = cls.load_dir_path(model_name_or_path, **place)
        return cls(Path(folder, MODEL), **cls.load_config(model_name_or_path, **place))
