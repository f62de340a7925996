"""Every kernel's mathematics in plain PyTorch, importable without Triton: what the kernels are tested against.

Weights are in the canonical layout (`engine.model.weights`), not in the kernels' own, so that the packing is tested
too. All functions compute in the type of their arguments; pass float64 to get the true values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def char_cnn(
    character_ids: Tensor, embedding: Tensor, convolutions: Sequence[tuple[Tensor, Tensor]], activation: str
) -> Tensor:
    """Return words' character features [W, F]: convolution, maximum over all positions (padding too), bias, activation.

    Args:
        character_ids: int64 [W, M].
        embedding: [characters, E].
        convolutions: (weight [width, E, number], bias [number]) for each width; F is the sum of the numbers.
        activation: "relu" or "tanh".
    """
    embedded = embedding[character_ids]
    parts = []
    for weight, bias in convolutions:
        windows = embedded.unfold(1, weight.shape[0], 1).movedim(-1, -2).flatten(2)  # [W, positions, width * E]
        parts.append((windows @ weight.flatten(0, 1)).amax(dim=1) + bias)
    return torch.relu(torch.cat(parts, 1)) if activation == "relu" else torch.tanh(torch.cat(parts, 1))


def highway(x: Tensor, transform: tuple[Tensor, Tensor], gate: tuple[Tensor, Tensor]) -> Tensor:
    """Return g * relu(x @ W_t + b_t) + (1 - g) * x, g = sigmoid(x @ W_g + b_g); x [W, F], W [F, F], b [F]."""
    g = torch.sigmoid(x @ gate[0] + gate[1])
    return g * torch.relu(x @ transform[0] + transform[1]) + (1 - g) * x


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x @ weight + bias: [..., n, K], [..., K, F], [..., F] -> [..., n, F]."""
    return x @ weight + bias.unsqueeze(-2)


def lstm_step(
    x: Tensor,
    hidden: Tensor,
    cell: Tensor,
    input_weight: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    projection: Tensor | None,
    cell_clip: float | None,
    projection_clip: float | None,
) -> tuple[Tensor, Tensor]:
    """Do one step of n rows: x [n, P] and the states before it, hidden [n, P] and cell [n, C] -> the states after it.

    Weights [4, P, C] and bias [4, C] of the gates i, f, g, o; projection [C, P], or None where P = C.
    """
    i, f, g, o = x @ input_weight + hidden @ recurrent_weight + bias.unsqueeze(1)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    if cell_clip is not None:
        cell = cell.clamp(-cell_clip, cell_clip)
    hidden = torch.sigmoid(o) * torch.tanh(cell)
    if projection is not None:
        hidden = hidden @ projection
        if projection_clip is not None:
            hidden = hidden.clamp(-projection_clip, projection_clip)
    return hidden, cell


def token_layers(
    word_vectors: Tensor,
    outputs: Tensor,
    token_words: Tensor,
    token_nodes: Tensor,
    mix: Tensor,
    offsets: Tensor | None,
    pool: str = "mean",
) -> Tensor:
    """Return tokens' mixed layers [O, tokens, 2P], or pooled over sentences [O, B, 2P], zero for an empty sentence.

    Args:
        word_vectors: [words, P]; layer 0 is [x, x].
        outputs: [L - 1, 2, N, P], the outputs of the LSTM layers, forward and backward.
        token_words: int64 [tokens]; token_nodes: int64 [2, tokens].
        mix: [O, L]; output o is the sum over layers k of mix[o, k] * layer k.
        offsets: [B + 1]; sentence b's tokens are offsets[b]:offsets[b + 1]. None for every token by itself.
        pool: "mean" or "max".
    """
    forward, backward = outputs[:, 0, token_nodes[0]], outputs[:, 1, token_nodes[1]]
    lowest = word_vectors[token_words]
    layers = torch.cat([torch.cat([lowest, lowest], -1)[None], torch.cat([forward, backward], -1)])  # [L, tokens, 2P]
    mixed = torch.einsum("ol,ltp->otp", mix, layers)
    if offsets is None:
        return mixed
    lengths = (offsets[1:] - offsets[:-1]).tolist()
    parts = mixed.split(lengths, 1)
    if pool == "max":
        return torch.stack([part.amax(1) if part.shape[1] else part.sum(1) for part in parts], 1)
    return torch.stack([part.sum(1) / max(1, part.shape[1]) for part in parts], 1)
