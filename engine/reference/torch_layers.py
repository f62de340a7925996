"""The layers of ELMo as PyTorch modules with the canonical weights in PyTorch's layout."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flashelmo.engine.arrays import Float32
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import Dense, Highway, LstmCell


def parameter(array: Float32) -> torch.nn.Parameter:
    """Return a canonical tensor in PyTorch's layout, with its axes reversed: [in, out] -> [out, in]."""
    return torch.nn.Parameter(torch.from_numpy(np.array(array.T, order="C")))


def gates_parameter(array: Float32) -> torch.nn.Parameter:
    """Return the gates of an LSTM side by side: [4, P, C] -> [4C, P], [4, C] -> [4C]."""
    rows = np.moveaxis(array, 1, -1).reshape(4 * array.shape[-1], -1)
    return torch.nn.Parameter(torch.from_numpy(np.array(rows if array.ndim == 3 else rows.ravel(), order="C")))


def canonical_tensor(name: str, array: Float32) -> Float32:
    """Undo the functions above: return a parameter's values as `ElmoWeights` stores them."""
    kind = name.rpartition(".")[2]
    if kind.endswith("embedding"):
        return np.array(array)
    if kind in ("input_weight", "recurrent_weight"):
        return np.array(np.moveaxis(array.reshape(4, -1, array.shape[-1]), -1, 1), order="C")
    if name.startswith("lstm") and kind == "bias":
        return np.array(array.reshape(4, -1))
    return np.array(array.T, order="C")


def embedding_parameter(array: Float32 | None) -> torch.nn.Parameter | None:
    """Return an embedding [rows, size] unchanged."""
    return None if array is None else torch.nn.Parameter(torch.from_numpy(np.array(array)))


class DenseLayer(torch.nn.Module):
    """y = weight x + bias, with weight [out, in] and bias [out]."""

    def __init__(self, dense: Dense) -> None:
        super().__init__()
        self.weight = parameter(dense.weight)
        self.bias = parameter(dense.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer: [..., in] -> [..., out]."""
        return F.linear(inputs, self.weight, self.bias)


class ConvolutionLayer(DenseLayer):
    """Valid convolution over a word's positions, with weight [number, E, width] and bias [number]."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer: [N, E, M] -> [N, number, M - width + 1]."""
        return F.conv1d(inputs, self.weight, self.bias)


class HighwayLayer(torch.nn.Module):
    """y = g * relu(transform(x)) + (1 - g) * x with g = sigmoid(gate(x)); Srivastava et al. 2015."""

    def __init__(self, highway: Highway) -> None:
        super().__init__()
        self.transform = DenseLayer(highway.transform)
        self.gate = DenseLayer(highway.gate)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer: [N, F] -> [N, F]."""
        gate = torch.sigmoid(self.gate(inputs))
        return gate * torch.relu(self.transform(inputs)) + (1 - gate) * inputs


class LstmLayer(torch.nn.Module):
    """One direction of one layer: an LSTM with clipped cell and clipped projection (Sak et al. 2014)."""

    def __init__(self, cell: LstmCell, config: ElmoConfig, reverse: bool) -> None:
        super().__init__()
        self.input_weight = gates_parameter(cell.input_weight)
        self.recurrent_weight = gates_parameter(cell.recurrent_weight)
        self.bias = gates_parameter(cell.bias)
        self.projection = None if cell.projection is None else parameter(cell.projection)
        self.cell_clip, self.projection_clip = config.cell_clip, config.projection_clip
        self.reverse = reverse

    def forward(self, inputs: Tensor, rows: list[int], hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run over whole sentences, longest first.

        inputs [B, T, P]; rows[t] sentences reach time step t; hidden [B, P] and cell [B, C] are the previous state.
        Returns the outputs [B, T, P], zero after a sentence's end, and the new state.
        """
        outputs = inputs.new_zeros(inputs.shape)
        steps = range(len(rows))
        for t in reversed(steps) if self.reverse else steps:
            n = rows[t]
            next_hidden, next_cell = self.step(inputs[:n, t], hidden[:n], cell[:n])
            outputs[:n, t] = next_hidden
            whole = n == len(inputs)  # the other sentences have ended or, from the right, not begun
            hidden = next_hidden if whole else torch.cat([next_hidden, hidden[n:]])
            cell = next_cell if whole else torch.cat([next_cell, cell[n:]])
        return outputs, hidden, cell

    def step(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Do one step: inputs [R, P], hidden [R, P], cell [R, C] -> the next hidden [R, P] and cell [R, C]."""
        gates = F.linear(inputs, self.input_weight) + F.linear(hidden, self.recurrent_weight, self.bias)
        i, f, g, o = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * cell
        if self.cell_clip is not None:
            cell = cell.clamp(-self.cell_clip, self.cell_clip)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        if self.projection is not None:
            hidden = F.linear(hidden, self.projection)
            if self.projection_clip is not None:  # bilm-tf clips only what is projected
                hidden = hidden.clamp(-self.projection_clip, self.projection_clip)
        return hidden, cell


@dataclass(frozen=True)
class LstmState:
    """Every row's LSTM state between two batches: hidden [L - 1, 2, R, P], cell [L - 1, 2, R, C]."""

    hidden: Tensor
    cell: Tensor

    @classmethod
    def empty(cls, config: ElmoConfig) -> LstmState:
        """Return the state of no rows."""
        shape = config.n_layers, 2, 0
        return cls(*(torch.zeros(*shape, n, device="cpu") for n in (config.projection_size, config.cell_size)))

    def first(self, n: int, like: Tensor) -> LstmState:
        """Return the first n rows, with new ones zero, and the type and device of `like`."""
        new = max(0, n - self.hidden.shape[2])
        return LstmState(*(F.pad(x.to(like)[:, :, :n], (0, 0, 0, new)) for x in (self.hidden, self.cell)))

    def with_first(self, other: LstmState) -> LstmState:
        """Return this with its first rows replaced by the other's."""
        pairs = (other.hidden, self.hidden), (other.cell, self.cell)
        return LstmState(*(torch.cat([new, old.to(new)[:, :, new.shape[2] :]], dim=2) for new, old in pairs))
