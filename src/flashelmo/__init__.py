"""Fast, exact ELMo word vectors: the public names.

They are looked up on first use, so that `import flashelmo` itself loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flashelmo.engine.system.names import on_first_use

if TYPE_CHECKING:
    from flashelmo.client import Client
    from flashelmo.engine.bulk.embeddings import open_embeddings
    from flashelmo.engine.embedder import ElmoEmbedder
    from flashelmo.engine.errors import FlashElmoError, MissingExtraError
    from flashelmo.engine.model.checkpoints import load_model
    from flashelmo.engine.model.config import ElmoConfig
    from flashelmo.engine.neighbours import find_neighbours
    from flashelmo.engine.reference.elmo import Elmo
    from flashelmo.engine.settings import CudaSettings
    from flashelmo.engine.text.characters import batch_to_ids
    from flashelmo.engine.training.language_model import LanguageModel

    __all__ = [
        "Client",
        "CudaSettings",
        "Elmo",
        "ElmoConfig",
        "ElmoEmbedder",
        "FlashElmoError",
        "LanguageModel",
        "MissingExtraError",
        "__version__",
        "batch_to_ids",
        "find_neighbours",
        "load_model",
        "open_embeddings",
    ]

__version__ = "0.1.0"

# Public name -> module that defines it. The imports above tell the same to type checkers; a test compares the two.
_HOMES = {
    "Client": "flashelmo.client",
    "CudaSettings": "flashelmo.engine.settings",
    "Elmo": "flashelmo.engine.reference.elmo",
    "ElmoConfig": "flashelmo.engine.model.config",
    "ElmoEmbedder": "flashelmo.engine.embedder",
    "FlashElmoError": "flashelmo.engine.errors",
    "LanguageModel": "flashelmo.engine.training.language_model",
    "MissingExtraError": "flashelmo.engine.errors",
    "batch_to_ids": "flashelmo.engine.text.characters",
    "find_neighbours": "flashelmo.engine.neighbours",
    "load_model": "flashelmo.engine.model.checkpoints",
    "open_embeddings": "flashelmo.engine.bulk.embeddings",
}
# Packages of extras, without which these modules cannot be imported.
_NEEDS = {"Client": ("httpx", "tenacity"), "Elmo": ("torch",), "LanguageModel": ("torch",)}

if not TYPE_CHECKING:  # to a type checker it would mean that every name is there
    __getattr__, __dir__ = on_first_use(globals(), _HOMES, _NEEDS)
