"""ElmoWeights: the one canonical layout of a model's tensors in memory.

Every reader in `checkpoints/` produces it and every runtime starts from it. Matrices are used as `x @ weight`. The
LSTM's gates are the first dimension, [4, P, C] and [4, C], in the order input, forget, candidate, output (i, f, g, o),
so that each gate's matrix is contiguous and runtimes use the memory-mapped file directly. The forget bias already
includes the 1 that bilm-tf adds at load. A highway's gate multiplies the transformed part (ELMoForManyLangs' gate keeps
the input, so its reader negates it).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flashelmo.engine.arrays import Float32, Floats
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig

DIRECTIONS = ("forward", "backward")
GATES = ("input", "forget", "candidate", "output")


@dataclass(frozen=True, eq=False)
class Dense:
    """y = x @ weight + bias; weight [in, out], bias [out]. A convolution's weight is [width, E, number]."""

    weight: Float32
    bias: Float32


@dataclass(frozen=True, eq=False)
class Highway:
    """y = g * relu(x @ transform.weight + transform.bias) + (1 - g) * x, g = sigmoid(x @ gate.weight + gate.bias)."""

    transform: Dense
    gate: Dense


@dataclass(frozen=True, eq=False)
class LstmCell:
    """One direction of one layer.

    input_weight [4, P, C], recurrent_weight [4, P, C], bias [4, C] (gates i, f, g, o first), projection [C, P] or None
    where P = C.
    """

    input_weight: Float32
    recurrent_weight: Float32
    bias: Float32
    projection: Float32 | None


@dataclass(frozen=True, eq=False)
class ElmoWeights:
    """All float32 tensors of a model.

    character_embedding [n_characters, E] and word_embedding [n_words, word_size] may each be None; projection is
    None where the token representation already has size P. lstm[layer] = (forward, backward).
    """

    character_embedding: Float32 | None
    word_embedding: Float32 | None
    convolutions: tuple[Dense, ...]
    highways: tuple[Highway, ...]
    projection: Dense | None
    lstm: tuple[tuple[LstmCell, LstmCell], ...]

    def named_tensors(self) -> Iterator[tuple[str, Float32]]:
        """Yield every tensor under its canonical name, which is also its name in the native format."""
        if self.character_embedding is not None:
            yield "character_embedding", self.character_embedding
        if self.word_embedding is not None:
            yield "word_embedding", self.word_embedding
        for i, convolution in enumerate(self.convolutions):
            yield from _named_dense(f"convolutions.{i}", convolution)
        for i, highway in enumerate(self.highways):
            yield from _named_dense(f"highways.{i}.transform", highway.transform)
            yield from _named_dense(f"highways.{i}.gate", highway.gate)
        if self.projection is not None:
            yield from _named_dense("projection", self.projection)
        for layer, cells in enumerate(self.lstm):
            for direction, cell in zip(DIRECTIONS, cells, strict=True):
                prefix = f"lstm.{layer}.{direction}"
                yield f"{prefix}.input_weight", cell.input_weight
                yield f"{prefix}.recurrent_weight", cell.recurrent_weight
                yield f"{prefix}.bias", cell.bias
                if cell.projection is not None:
                    yield f"{prefix}.projection", cell.projection

    @classmethod
    def from_named_tensors(cls, tensors: Mapping[str, Float32], config: ElmoConfig) -> ElmoWeights:
        """Do the inverse of `named_tensors`; names and shapes must already be those of `expected_shapes(config)`."""

        def dense(prefix: str) -> Dense:
            return Dense(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"])

        def cell(layer: int, direction: str) -> LstmCell:
            prefix = f"lstm.{layer}.{direction}"
            return LstmCell(
                tensors[f"{prefix}.input_weight"],
                tensors[f"{prefix}.recurrent_weight"],
                tensors[f"{prefix}.bias"],
                tensors.get(f"{prefix}.projection"),
            )

        return cls(
            character_embedding=tensors.get("character_embedding"),
            word_embedding=tensors.get("word_embedding"),
            convolutions=tuple(dense(f"convolutions.{i}") for i in range(len(config.filters))),
            highways=tuple(
                Highway(dense(f"highways.{k}.transform"), dense(f"highways.{k}.gate")) for k in range(config.n_highway)
            ),
            projection=dense("projection") if "projection.weight" in tensors else None,
            lstm=tuple((cell(layer, "forward"), cell(layer, "backward")) for layer in range(config.n_layers)),
        )

    def __repr__(self) -> str:
        """As "ElmoWeights(2,996,448 parameters)": a notebook shows what a cell ends with."""
        return f"{type(self).__name__}({self.n_parameters:,} parameters)"

    @property
    def n_parameters(self) -> int:
        """The number of stored values."""
        return sum(tensor.size for _, tensor in self.named_tensors())


def _named_dense(prefix: str, dense: Dense) -> Iterator[tuple[str, Float32]]:
    yield f"{prefix}.weight", dense.weight
    yield f"{prefix}.bias", dense.bias


def expected_shapes(config: ElmoConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every canonical tensor that a model of this configuration has, by canonical name."""
    size, n_filters = config.projection_size, config.n_filters
    shapes: dict[str, tuple[int, ...]] = {}

    def dense(prefix: str, *shape: int) -> None:
        shapes[f"{prefix}.weight"] = shape
        shapes[f"{prefix}.bias"] = shape[-1:]

    if config.character_size:
        shapes["character_embedding"] = (config.n_characters, config.character_size)
    if config.word_size:
        shapes["word_embedding"] = (config.n_words, config.word_size)
    for i, (width, number) in enumerate(config.filters):
        dense(f"convolutions.{i}", width, config.character_size, number)
    for k in range(config.n_highway):
        dense(f"highways.{k}.transform", n_filters, n_filters)
        dense(f"highways.{k}.gate", n_filters, n_filters)
    if config.family == "manylangs" or config.word_size + n_filters != size:
        dense("projection", config.word_size + n_filters, size)
    for layer in range(config.n_layers):
        for direction in DIRECTIONS:
            prefix = f"lstm.{layer}.{direction}"
            shapes[f"{prefix}.input_weight"] = (4, size, config.cell_size)
            shapes[f"{prefix}.recurrent_weight"] = (4, size, config.cell_size)
            shapes[f"{prefix}.bias"] = (4, config.cell_size)
            if config.cell_size != size:
                shapes[f"{prefix}.projection"] = (config.cell_size, size)
    return shapes


def check_tensors(weights: ElmoWeights, config: ElmoConfig, source: str) -> None:
    """Raise FlashElmoError, naming `source` and the tensor, unless names, shapes, type and values are right.

    Values must be finite: a NaN would spread silently through every later token.
    """
    expected = expected_shapes(config)
    found = dict(weights.named_tensors())
    for name in sorted(expected.keys() - found.keys()):
        raise FlashElmoError(f"{source}: tensor {name} is missing, expected shape {expected[name]}")
    for name, tensor in found.items():
        if name not in expected:
            raise FlashElmoError(f"{source}: tensor {name} is not part of this configuration")
        if tensor.shape != expected[name]:
            raise FlashElmoError(f"{source}: tensor {name} has shape {tensor.shape}, expected {expected[name]}")
        if tensor.dtype != np.float32:
            raise FlashElmoError(f"{source}: tensor {name} has type {tensor.dtype}, expected float32")
        if not all_finite(tensor):
            raise FlashElmoError(f"{source}: tensor {name} holds NaN or infinity")


def all_finite(tensor: Floats) -> bool:
    """Whether all values are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = tensor.sum()  # fast; not finite only if a value is not, or if the sum overflows
    return bool(np.isfinite(total) or np.isfinite(tensor).all())


@dataclass(frozen=True)
class Lexicon:
    """Token to row: ELMoForManyLangs' `char.dic` and `word.dic`, or a bilm word model's vocabulary. May be empty."""

    characters: Mapping[str, int]
    words: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class ElmoModel:
    """A model, read from disk or made in memory.

    Attributes:
        config, weights, lexicon: what the runtimes need; lexicon is None for models of bytes.
        path: the weights file that was read, or the folder if there are several.
        format: "bilm-hdf5", "manylangs" or "native".
        source_format: what a native model was converted from; None if it was not.

    Raises:
        FlashElmoError: the weights do not match the configuration, or are not finite; see `check_tensors`.
    """

    config: ElmoConfig
    weights: ElmoWeights
    lexicon: Lexicon | None = field(repr=False)
    path: Path
    format: str
    source_format: str | None = None

    def __post_init__(self) -> None:
        check_tensors(self.weights, self.config, str(self.path))

    @property
    def sha256(self) -> str:
        """The sha256 of the canonical tensors and the lexicon: the same for all formats that hold the same model."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.weights.named_tensors()):
            digest.update(f"{name} {tensor.shape}\n".encode())
            digest.update(np.ascontiguousarray(tensor).reshape(-1).data)
        if self.lexicon is not None:
            for entries in (self.lexicon.characters, self.lexicon.words):
                digest.update(json.dumps(sorted(entries.items())).encode())
        return digest.hexdigest()
