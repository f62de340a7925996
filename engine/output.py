"""From a sentence's layers to the requested output: which layers, which number type, pooled or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from flashelmo.engine.arguments import finite_numbers, is_one_of, shown
from flashelmo.engine.arrays import Array, Float32
from flashelmo.engine.errors import FlashElmoError

if TYPE_CHECKING:
    import torch

Index: TypeAlias = tuple[int | slice, ...]
Layers: TypeAlias = str | int | Sequence[int]
Mix: TypeAlias = "Sequence[float] | Array | torch.Tensor"

BLOCK_VALUES = 1 << 22  # a long sentence is cut into blocks of at most this many values


@dataclass(frozen=True)
class Output:
    """What is kept of each sentence.

    Attributes:
        layers: "all", "top", "average" (of all layers), a layer's number (0 is the character layer), or several
            different numbers.
        dtype: "float32" or "float16".
        pool: "mean" or "max" over a sentence's tokens, or None for no pooling.
        mix: a coefficient for each layer, such as a trained `ScalarMix`'s gamma * softmax(w) (Peters et al. 2018,
            eq. 1), instead of the plain average; `layers` is then "average".
    """

    layers: Layers = "all"
    dtype: str = "float32"
    pool: str | None = None
    mix: Mix | None = None

    def __post_init__(self) -> None:
        layers: Any = _checked_layers(_plain(self.layers))
        mix: Any = self.mix
        if mix is not None:
            if layers not in ("all", "average"):
                raise FlashElmoError(f"layers: expected none together with mix, found {layers!r}")
            layers, mix = "average", finite_numbers("mix", mix)
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "mix", mix)
        if not is_one_of(self.dtype, "float32", "float16"):
            raise FlashElmoError(f"dtype: expected float32 or float16, found {shown(self.dtype)}")
        if self.pool is not None and not is_one_of(self.pool, "mean", "max"):
            raise FlashElmoError(f"pool: expected mean, max or nothing, found {shown(self.pool)}")

    @property
    def single(self) -> bool:
        """Whether a token has a single vector, not one for each of several layers."""
        return isinstance(self.layers, int) or self.layers in ("top", "average")

    def check(self, n_layers: int) -> None:
        """Raise FlashElmoError where a model of n_layers layers, the characters' one included, lacks one of them."""
        for layer in _numbers(self.layers):
            _check_layer(layer, n_layers)
        if self.mix is not None and len(self.mix) != n_layers:
            raise FlashElmoError(f"mix: expected {n_layers} coefficients, one a layer, found {len(self.mix)}")

    def shape(self, layers_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the result for a sentence of layers_shape (L, T, 2P)."""
        n_layers, n_tokens, size = layers_shape
        tokens = () if self.pool else (n_tokens,)
        return (*tokens, size) if self.single else (len(self.groups(n_layers)), *tokens, size)

    def groups(self, n_layers: int) -> list[range]:
        """For each layer of the result, the layers of the model's n_layers that it is made of.

        "all" of 3 layers are the groups 0 | 1 | 2, "top" is 2 alone, and "average" or a mix 0, 1, 2 in one group.
        """
        if self.layers == "average":
            return [range(n_layers)]
        self.check(n_layers)
        numbers = {"all": range(n_layers), "top": [n_layers - 1]}.get(str(self.layers), _numbers(self.layers))
        return [range(layer, layer + 1) for layer in numbers]

    def coefficients(self, n_layers: int) -> Float32:
        """Coefficients of n_layers layers for each layer of the result [O, L]."""
        groups = self.groups(n_layers)
        mix = np.zeros((len(groups), n_layers), np.float32)
        for row, group in zip(mix, groups, strict=True):
            row[list(group)] = 1 / len(group) if self.mix is None else self.mix
        return mix

    def choose(self, vectors: Array) -> Array:
        """The result for a sentence's layers [L, T, 2P], in their number type."""
        if self.mix is None:
            chosen = select_layers(vectors, self.layers)
        else:
            chosen = np.tensordot(np.asarray(self.mix, vectors.dtype), vectors, axes=1)
        return pool_tokens(chosen, self.pool) if self.pool else chosen

    def blocks(self, result: Array) -> Iterator[tuple[Index, Array]]:
        """A result as `dtype`, in blocks of bounded size and in C order, each with its index in the result.

        Raises:
            FlashElmoError: these are not the dimensions of a result; a value beyond the number type's range.
        """
        n_dimensions = 1 + (not self.single) + (self.pool is None)
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


def _plain(values: Any) -> Any:
    """Numbers of an array or a tensor as Python's."""
    return values.tolist() if hasattr(values, "tolist") else values


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _checked_layers(layers: Any) -> str | int | tuple[int, ...]:
    if is_one_of(layers, "all", "top", "average"):
        return str(layers)
    if _is_whole(layers):
        return int(layers)
    several = layers if isinstance(layers, list | tuple | range) else ()
    numbers = tuple(int(layer) for layer in several if _is_whole(layer))
    if numbers and len(set(numbers)) == len(several):
        return numbers
    expected = "all, top, average, a layer's number or several different ones (coefficients go to mix)"
    raise FlashElmoError(f"layers: expected {expected}, found {shown(layers)}")


def _numbers(layers: Layers) -> Sequence[int]:
    """The layers that are given by number."""
    if isinstance(layers, str):
        return ()
    return (layers,) if isinstance(layers, int) else layers


def select_layers(vectors: Array, layers: Layers) -> Array:
    """Vectors [L, T, 2P] of "all" layers or of some by number, or [T, 2P] of one, the "top" or the "average".

    Raises:
        FlashElmoError: there is no such layer.
    """
    wanted = _checked_layers(layers)
    if wanted == "all":
        return vectors
    if wanted == "average":
        mean: Array = vectors.mean(axis=0, dtype=vectors.dtype)
        return mean
    for layer in _numbers(wanted):
        _check_layer(layer, len(vectors))
    chosen: Array = vectors[-1 if wanted == "top" else np.array(wanted)]
    return chosen


def pool_tokens(vectors: Array, pool: str) -> Array:
    """Their "mean" or "max" over tokens: [..., T, 2P] -> [..., 2P]; zeros for an empty sentence."""
    if pool == "mean" or vectors.shape[-2] == 0:
        return pool_mean(vectors)
    largest: Array = vectors.max(axis=-2)
    return largest


def pool_mean(vectors: Array) -> Array:
    """Mean over tokens: [..., T, 2P] -> [..., 2P]; zeros for an empty sentence. Sums are float64."""
    n_tokens = max(1, vectors.shape[-2])
    mean: Array = (vectors.sum(axis=-2, dtype=np.float64) / n_tokens).astype(vectors.dtype)
    return mean


def normalize(vectors: Any) -> Any:
    """Every vector [..., 2P] at length 1, zeros as they are; of a numpy array or a PyTorch tensor."""
    lengths = (vectors * vectors).sum(axis=-1, keepdims=True) ** 0.5
    return vectors / (lengths + (lengths == 0))


def stack(vectors: list[Any], none: Callable[[], Array], as_numpy: bool) -> Any:
    """Vectors [2P] one above the other [B, 2P]: numpy arrays, or else PyTorch tensors.

    Args:
        none: makes what is given where there is none, [0, 2P] of the vectors' type.
    """
    if as_numpy:
        return np.stack(vectors) if vectors else none()
    import torch

    return torch.stack(vectors) if vectors else torch.from_numpy(none())


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
