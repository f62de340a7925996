"""Integers as the kernels read them, from plain tensors in host memory.

The engine makes them in memory that it sends to the card; timings and tests make them here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flashelmo.kernels.char_cnn import SpelledWords
from flashelmo.kernels.token_layers import Tokens


def group_words(character_ids: Tensor, *, padding_id: int, device: torch.device | str = "cpu") -> SpelledWords:
    """Return words on the device, grouped by length.

    Args:
        character_ids: integers [W, M], rows of the embedding.
        padding_id: of the character that pads words.
    """
    positions = torch.arange(1, character_ids.shape[1] + 1, device=character_ids.device)
    lengths = ((character_ids != padding_id) * positions).amax(dim=1).clamp(min=1)
    order = lengths.argsort(descending=True, stable=True)
    return SpelledWords(*(ids.to(device, torch.int32) for ids in (character_ids, lengths, order)))


def make_tokens(
    words: Tensor, nodes: Tensor, offsets: Tensor | None, *, n_roots: int = 1, device: torch.device | str = "cpu"
) -> Tokens:
    """Return tokens on the device.

    Args:
        words: integers [tokens], rows of the word vectors.
        nodes: integers [2, tokens], as `engine.text.schedule.Forest` counts them, without the roots.
        offsets: integers [B + 1], from 0 to the number of tokens; None for every token by itself.
        n_roots: nodes that precede all others in the kernels' numbering (`lstm.run.Nodes`).
    """
    offsets = None if offsets is None else offsets.to(device, torch.int32)
    return Tokens(words.to(device, torch.int32), (nodes + n_roots).to(device, torch.int32), offsets)
