"""Padded batches in PyTorch: masks, and the boundaries around every sentence."""

from __future__ import annotations

import torch
from torch import Tensor

from flashelmo.engine.errors import FlashElmoError


def sentence_lengths(mask: Tensor) -> Tensor:
    """Return the tokens of each sentence [B], from a mask [B, T] whose padding must be on the right."""
    lengths = mask.sum(dim=1)
    if not torch.equal(mask, positions_before(lengths, mask.shape[1])):
        row = int((mask != positions_before(lengths, mask.shape[1])).any(dim=1).nonzero()[0])
        raise FlashElmoError(f"sentence {row} of the batch: expected padding after its last token, found it before")
    return lengths


def positions_before(lengths: Tensor, size: int) -> Tensor:
    """Return bool [B, size], True at the first lengths[b] positions."""
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def add_boundaries(values: Tensor, lengths: Tensor, boundaries: Tensor) -> Tensor:
    """Put boundaries[0] before and boundaries[1] after each sentence: [B, T, ...] -> [B, T + 2, ...]."""
    batch, size, *rest = values.shape
    result = values.new_zeros(batch, size + 2, *rest)
    result[:, 1:-1] = values
    result[:, 0] = boundaries[0]
    result[torch.arange(batch, device=values.device), lengths + 1] = boundaries[1]
    return result


def pad_tokens(flat: Tensor, mask: Tensor) -> Tensor:
    """Put all tokens' values [N, ...] at the True positions of mask [B, T] -> [B, T, ...]."""
    padded = flat.new_zeros(*mask.shape, *flat.shape[1:])
    padded[mask] = flat
    return padded


def remove_boundaries(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Undo `add_boundaries`: [B, T + 2, ...] and its mask -> [B, T, ...], zero where padded, and its mask."""
    token_mask = positions_before(mask.sum(dim=1) - 2, mask.shape[1] - 2)
    return values[:, 1:-1].masked_fill(~token_mask.unsqueeze(-1), 0.0), token_mask
