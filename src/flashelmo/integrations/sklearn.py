"""A scikit-learn transformer: texts or token lists to one vector each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.engine.arrays import Array
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import MissingExtraError
from flashelmo.engine.output import Layers, Mix
from flashelmo.integrations.texts import TextEmbedder

try:
    from sklearn.base import BaseEstimator, TransformerMixin
except ImportError as error:
    raise MissingExtraError("scikit-learn", "sklearn", "flashelmo.integrations.sklearn") from error


class ElmoTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Converts texts to vectors, as a step of a pipeline. It learns nothing: `fit` only checks the parameters.

    Clones in the same process share the model.

    Attributes:
        model: what `ElmoEmbedder.load` takes.
        layers, mix: see `ElmoEmbedder.embed`; several layers are concatenated.
        pool: "mean" or "max" over the tokens.
        tokenizer: name of a tokenizer for texts, such as "moses".
        options: options of `ElmoEmbedder.load`, such as {"device": "cuda"}.
    """

    def __init__(
        self,
        model: str | Path | ElmoEmbedder = "original",
        *,
        layers: Layers = "average",
        mix: Mix | None = None,
        pool: str = "mean",
        tokenizer: str = "whitespace",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.layers = layers
        self.mix = mix
        self.pool = pool
        self.tokenizer = tokenizer
        self.options = options

    def fit(self, X: Any = None, y: Any = None) -> ElmoTransformer:
        """Load the model; returns this object. FlashElmoError: a parameter is invalid."""
        self.transform(["text"])
        return self

    def transform(self, X: Iterable[str | Sequence[str]]) -> Array:
        """The vectors [B, D], float32, of texts or token lists in a list, an array or a column."""
        return self._texts.matrix(X)

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Names of the D columns."""
        return np.array([f"elmo{number}" for number in range(self._texts.size)], dtype=object)

    @property
    def _texts(self) -> TextEmbedder:
        how: dict[str, Any] = {"layers": self.layers, "mix": self.mix, "pool": self.pool, "tokenizer": self.tokenizer}
        return TextEmbedder.of(self.model, self.options, **how)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        return tags
