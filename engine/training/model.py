"""The bidirectional language model (Peters et al. 2018) for training, from and to the canonical weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import DIRECTIONS, ElmoWeights
from flashelmo.engine.training.recurrence import Clips, Weights, lstm_layer
from flashelmo.engine.training.softmax import Negatives, Picked, cross_entropy

FEW_ROWS = 512  # of an embedding: up to here its gradient is a product with ones and zeros


class State(NamedTuple):
    """The streams' states: hidden [L, 2, B, P] and cell [L, 2, B, C] of all L LSTM layers."""

    hidden: Tensor
    cell: Tensor

    @classmethod
    def zero(cls, config: ElmoConfig, rows: int, like: Tensor) -> State:
        """Return the state of rows at their beginning, with the type and device of `like`."""
        shape = config.n_layers, 2, rows
        return cls(like.new_zeros(*shape, config.projection_size), like.new_zeros(*shape, config.cell_size))


class BiLM(torch.nn.Module):
    """Character convolutions, LSTMs in both directions and one softmax for both.

    Args:
        config: of a character model of the bilm family.
        tensors: the canonical tensors by name, and `softmax.weight` [V, P] and `softmax.bias` [V].
        dropout: share of the inputs of layers and of the softmax that is dropped in training.
        compute: type of the products; parameters and states keep theirs.

    Attributes:
        kernels: whether Triton's kernels compute the pointwise parts of the LSTMs.
    """

    def __init__(
        self,
        config: ElmoConfig,
        tensors: Mapping[str, Float32],
        *,
        dropout: float = 0.0,
        compute: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        check_trainable(config)
        self.config, self.dropout, self.compute, self.kernels = config, dropout, compute, False
        self.clips = Clips(config.cell_clip, config.projection_clip)
        named = {name.replace(".", "_"): array for name, array in joined(tensors, config).items()}
        self.tensors = torch.nn.ParameterDict({name: parameter(array) for name, array in named.items()})

    def forward(
        self,
        characters: Sequence[Tensor],
        words: Tensor,
        targets: Tensor,
        state: State,
        negatives: Negatives | None = None,
        picked: Picked | None = None,
    ) -> tuple[Tensor, Tensor, State]:
        """Return the mean loss, each direction's own [2], and the new state.

        Args:
            characters: ids of distinct words, in pieces [n, positions].
            words: the index of the word that is read, [2, T, B].
            targets: rows of the softmax to predict [2, T, B].
            state: the previous state.
            negatives, picked: as for `cross_entropy`.
        """
        hidden, after = self.hidden(self.word_vectors(characters), words, state)
        loss, losses = cross_entropy(
            hidden[-1].flatten(0, -2), targets.flatten(), self.tensors["softmax_weight"], self.tensors["softmax_bias"],
            negatives, self.compute, picked,
        )  # fmt: skip
        return loss, losses.view(2, -1).mean(dim=1), after

    def word_vectors(self, characters: Sequence[Tensor]) -> Tensor:
        """Return context-free vectors [U, P] of words spelled in pieces [n, positions]."""
        features = torch.cat([self._convolved(piece) for piece in characters])
        for k in range(self.config.n_highway):
            transform, gate = self._dense(f"highways_{k}", features).chunk(2, dim=-1)
            gate = torch.sigmoid(gate)
            features = gate * torch.relu(transform) + (1 - gate) * features
        return self._dense("projection", features) if "projection_weight" in self.tensors else features

    def _convolved(self, characters: Tensor) -> Tensor:
        """Return the convolutions' maxima over all positions [n, F]."""
        embedded = look_up(self.tensors["character_embedding"], characters.flatten()).to(self.compute)
        embedded = embedded.view(*characters.shape, -1).transpose(1, 2)
        maxima = []
        for i in range(len(self.config.filters)):
            weight = self.tensors[f"convolutions_{i}_weight"].to(self.compute).permute(2, 1, 0)
            bias = self.tensors[f"convolutions_{i}_bias"]
            maxima.append(F.conv1d(embedded, weight).amax(dim=-1).to(bias.dtype) + bias)
        features = torch.cat(maxima, dim=-1)
        return torch.relu(features) if self.config.activation == "relu" else torch.tanh(features)

    def hidden(self, vectors: Tensor, words: Tensor, state: State) -> tuple[list[Tensor], State]:
        """Return each layer's output, [2, T, B, P] with layer 0 first, with dropout in training, and the new state."""
        x = look_up(vectors, words.flatten()).view(*words.shape, -1)
        outputs, after = [x], []
        for k in range(self.config.n_layers):
            x = F.dropout(x, self.dropout, self.training)
            h, *ended = lstm_layer(x, self._lstm(k), state.hidden[k], state.cell[k], self.clips, self.kernels)
            x = h + x if k > 0 and self.config.skip_connections else h
            outputs.append(x)
            after.append(ended)
        outputs[-1] = F.dropout(x, self.dropout, self.training)
        return outputs, State(*(torch.stack(each) for each in zip(*after, strict=True)))

    def to_tensors(self) -> dict[str, Float32]:
        """Return copies of all parameters by canonical names, float32."""
        arrays = {name: each.detach().float().cpu().numpy().copy() for name, each in self.tensors.items()}
        return parted(arrays, self.config)

    def to_weights(self) -> ElmoWeights:
        """Return the canonical weights, without the softmax."""
        return ElmoWeights.from_named_tensors(self.to_tensors(), self.config)

    def _lstm(self, k: int) -> Weights:
        def tensor(name: str) -> Any:
            return self.tensors[f"lstm_{k}_{name}"]

        projection = tensor("projection").to(self.compute) if f"lstm_{k}_projection" in self.tensors else None
        return Weights(
            tensor("input_weight").to(self.compute),
            tensor("recurrent_weight").to(self.compute),
            tensor("bias"),
            projection,
        )

    def _dense(self, name: str, x: Tensor) -> Tensor:
        """Apply a layer: x [U, in] -> [U, out]; the bias is added in the parameters' type."""
        bias: Tensor = self.tensors[f"{name}_bias"]
        product = x.to(self.compute) @ self.tensors[f"{name}_weight"].to(self.compute)
        result: Tensor = product.to(bias.dtype) + bias
        return result


def check_trainable(config: ElmoConfig) -> None:
    """Raise FlashElmoError for a model that cannot be trained here: of words, or of another family."""
    if config.family != "bilm" or config.word_size:
        kind = f"family {config.family}, word_size {config.word_size}"
        raise FlashElmoError(f"config: expected a model of characters of the bilm family to train, found {kind}")


def parameter(array: Float32) -> torch.nn.Parameter:
    """Return a trainable copy."""
    return torch.nn.Parameter(torch.from_numpy(np.array(array, order="C")))


def look_up(rows: Tensor, index: Tensor) -> Tensor:
    """Return rows[index], with a gradient that needs no synchronisation on a card."""
    if not rows.is_cuda:
        return F.embedding(index, rows)
    if len(rows) <= FEW_ROWS:
        result: Tensor = _FewRows.apply(rows, index)  # type: ignore[no-untyped-call]
        return result
    return rows.index_select(0, index)


class _FewRows(torch.autograd.Function):
    """rows[index] for few rows: most indices may be padding, and atomic additions would queue for its row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.n_rows = len(rows)
        return rows.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        chosen = torch.arange(ctx.n_rows, device=index.device)[:, None] == index
        return chosen.to(gradients[0].dtype) @ gradients[0], None


def joined(tensors: Mapping[str, Float32], config: ElmoConfig) -> dict[str, Float32]:
    """Return canonical tensors as the model holds them: directions stacked; gates and highways' parts adjacent."""
    result = {name: tensors[name] for name in ("character_embedding", "softmax.weight", "softmax.bias")}
    for name in [f"convolutions.{i}" for i in range(len(config.filters))] + ["projection"]:
        result |= {
            f"{name}.{part}": tensors[f"{name}.{part}"] for part in ("weight", "bias") if f"{name}.weight" in tensors
        }
    for k in range(config.n_highway):
        for part in ("weight", "bias"):
            halves = [tensors[f"highways.{k}.{half}.{part}"] for half in ("transform", "gate")]
            result[f"highways.{k}.{part}"] = np.concatenate(halves, axis=-1)
    for layer in range(config.n_layers):
        for part in ("input_weight", "recurrent_weight", "bias", "projection"):
            both = [tensors.get(f"lstm.{layer}.{direction}.{part}") for direction in DIRECTIONS]
            found = [_join_gates(part, array) for array in both if array is not None]
            if found:
                result[f"lstm.{layer}.{part}"] = np.stack(found)
    return result


def parted(arrays: Mapping[str, Float32], config: ElmoConfig) -> dict[str, Float32]:
    """Undo `joined`, from names with underscores."""
    result = {}
    for name, array in arrays.items():
        kind, *rest = name.split("_", 2)
        if kind == "highways":
            for half, values in zip(("transform", "gate"), np.split(array, 2, axis=-1), strict=True):
                result[f"highways.{rest[0]}.{half}.{rest[1]}"] = np.ascontiguousarray(values)
        elif kind == "lstm":
            for direction, values in zip(DIRECTIONS, array, strict=True):
                result[f"lstm.{rest[0]}.{direction}.{rest[1]}"] = _part_gates(rest[1], values)
        elif kind == "convolutions":
            result[f"convolutions.{rest[0]}.{rest[1]}"] = array
        else:
            result[name if kind == "character" else name.replace("_", ".")] = array
    return result


def _join_gates(part: str, array: Float32) -> Float32:
    """Put gates side by side: [4, P, C] -> [P, 4C], [4, C] -> [4C]."""
    if part == "projection":
        return array
    return np.moveaxis(array, 0, -2).reshape(*array.shape[1:-1], -1)


def _part_gates(part: str, array: Float32) -> Float32:
    if part == "projection":
        return np.array(array)
    gates = array.reshape(*array.shape[:-1], 4, -1)
    return np.ascontiguousarray(np.moveaxis(gates, -2, 0))
