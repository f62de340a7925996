"""From a sentence's layers to what was asked for: which layer, which number type, tokens or one vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from flashelmo.engine.errors import FlashElmoError

Array: TypeAlias = npt.NDArray[Any]
Index: TypeAlias = tuple[int | slice, ...]
Layers: TypeAlias = str | int | Sequence[float]

BLOCK_VALUES = 1 << 22  # a long sentence is cut into blocks of at most this many values


@dataclass(frozen=True)
class Output:
    """What is kept of each sentence.

    Attributes:
        layers: "all", "top", "average" (of all layers), the number of a layer, 0 the one of the characters, or a mix:
            a coefficient for each layer, as a trained `ScalarMix`'s gamma * softmax(w) (Peters et al. 2018, eq. 1).
        dtype: "float32" or "float16".
        pool: "mean" for the mean over a sentence's tokens, None for every token.
    """

    layers: Layers = "all"
    dtype: str = "float32"
    pool: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layers, Sequence) and not isinstance(self.layers, str):
            object.__setattr__(self, "layers", _coefficients(self.layers))
        elif not isinstance(self.layers, int) and self.layers not in ("all", "top", "average"):
            expected = "all, top, average, a layer's number or a coefficient for each layer"
            raise FlashElmoError(f"layers: expected {expected}, found {self.layers!r}")
        if self.dtype not in ("float32", "float16"):
            raise FlashElmoError(f"dtype: expected float32 or float16, found {self.dtype!r}")
        if self.pool not in (None, "mean"):
            raise FlashElmoError(f"pool: expected mean or nothing, found {self.pool!r}")

    def check(self, n_layers: int) -> None:
        """Raise FlashElmoError where a model of n_layers layers, the characters' one included, lacks `layers`."""
        if isinstance(self.layers, int):
            _check_layer(self.layers, n_layers)
        if isinstance(self.layers, tuple) and len(self.layers) != n_layers:
            raise FlashElmoError(f"layers: expected {n_layers} coefficients, one a layer, found {len(self.layers)}")

    def shape(self, layers_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the result for a sentence of layers_shape (L, T, 2P)."""
        n_layers, n_tokens, size = layers_shape
        tokens = () if self.pool else (n_tokens,)
        return (n_layers, *tokens, size) if self.layers == "all" else (*tokens, size)

    def groups(self, n_layers: int) -> list[range]:
        """For each layer of the result, the layers of the model's n_layers that it is made of.

        "all" of 3 layers are the groups 0 | 1 | 2, "top" is 2 alone, and "average" or a mix 0, 1, 2 in one group.
        """
        if self.layers == "average" or isinstance(self.layers, tuple):
            return [range(n_layers)]
        if self.layers == "all":
            return [range(layer, layer + 1) for layer in range(n_layers)]
        self.check(n_layers)
        layer = self.layers if isinstance(self.layers, int) else n_layers - 1
        return [range(layer, layer + 1)]

    def mix(self, n_layers: int) -> npt.NDArray[np.float32]:
        """Coefficients of n_layers layers for each layer of the result [O, L]."""
        groups = self.groups(n_layers)
        mix = np.zeros((len(groups), n_layers), np.float32)
        for row, group in zip(mix, groups, strict=True):
            row[list(group)] = self.layers if isinstance(self.layers, tuple) else 1 / len(group)
        return mix

    def choose(self, vectors: Array) -> Array:
        """The result for a sentence's layers [L, T, 2P], in their number type."""
        chosen = select_layers(vectors, self.layers)
        return pool_mean(chosen) if self.pool else chosen

    def blocks(self, result: Array) -> Iterator[tuple[Index, Array]]:
        """A result as `dtype`, in blocks of bounded size and in C order, each with its index in the result.

        Raises:
            FlashElmoError: these are not the dimensions of a result; a value beyond the number type's range.
        """
        n_dimensions = 1 + (self.layers == "all") + (self.pool is None)
        if result.ndim != n_dimensions:
            expected = f"{n_dimensions} dimensions for layers {self.layers!r} and pool {self.pool!r}"
            raise FlashElmoError(f"vectors: expected {expected}, found {list(result.shape)}")
        if result.size <= BLOCK_VALUES or result.ndim == 1:
            yield (), cast(result, self.dtype)
            return
        step = max(1, BLOCK_VALUES // result.shape[-1])
        for leading in np.ndindex(result.shape[:-2]):
            rows = result[leading]
            for start in range(0, len(rows), step):
                yield (*leading, slice(start, start + step)), cast(rows[start : start + step], self.dtype)


def _coefficients(values: Sequence[float]) -> tuple[float, ...]:
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        found = ()
    if not found or not np.isfinite(found).all():
        raise FlashElmoError(f"layers: expected a finite coefficient for each layer, found {list(values)!r}")
    return found


def select_layers(vectors: Array, layers: Layers) -> Array:
    """Vectors [L, T, 2P] of "all" layers, or [T, 2P] of the "top" one, of one by its number, their "average" or a mix.

    Raises:
        FlashElmoError: there is no such layer.
    """
    if layers == "all":
        return vectors
    if layers == "top":
        layers = len(vectors) - 1
    if isinstance(layers, int):
        _check_layer(layers, len(vectors))
        one: Array = vectors[layers]
        return one
    if layers == "average":
        mean: Array = vectors.mean(axis=0, dtype=vectors.dtype)
        return mean
    if not isinstance(layers, str):
        mixed: Array = np.tensordot(np.asarray(layers, vectors.dtype), vectors, axes=1)
        return mixed
    raise FlashElmoError(f"layers: expected all, top, average or a layer's number, found {layers!r}")


def pool_mean(vectors: Array) -> Array:
    """Mean over tokens: [..., T, 2P] -> [..., 2P]; zeros for an empty sentence. Sums are float64."""
    n_tokens = max(1, vectors.shape[-2])
    mean: Array = (vectors.sum(axis=-2, dtype=np.float64) / n_tokens).astype(vectors.dtype)
    return mean


def normalize(vectors: Any) -> Any:
    """Every vector [..., 2P] at length 1, zeros as they are; of a numpy array or a PyTorch tensor."""
    lengths = (vectors * vectors).sum(axis=-1, keepdims=True) ** 0.5
    return vectors / (lengths + (lengths == 0))


def stack(vectors: list[Any], size: int, as_numpy: bool) -> Any:
    """Vectors [2P], 2P = size, one above the other [B, 2P]: numpy arrays, or else PyTorch tensors."""
    if as_numpy:
        return np.stack(vectors) if vectors else np.empty((0, size), np.float32)
    import torch

    return torch.stack(vectors) if vectors else torch.empty(0, size)


def cast(vectors: Array, dtype: str) -> Array:
    """The vectors as `dtype`, not copied where they have it.

    Raises:
        FlashElmoError: a value is finite, but beyond float16's range of +-65504. ELMo's vectors lie far within;
            where they don't, infinity would spoil every later use of the file.
    """
    if vectors.dtype == dtype:
        return vectors
    with np.errstate(over="ignore"):
        result = vectors.astype(dtype)
    if not np.isfinite(result).all() and not np.array_equal(np.isfinite(result), np.isfinite(vectors)):
        largest = np.abs(vectors[np.isfinite(vectors)]).max()
        raise FlashElmoError(f"output: expected values within {dtype}'s range, found {largest:g}; use float32")
    return result


def _check_layer(layer: int, n_layers: int) -> None:
    if not 0 <= layer < n_layers:
        raise FlashElmoError(f"layers: expected a layer from 0 to {n_layers - 1}, found {layer}")
