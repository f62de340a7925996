"""The reference for fine-tuning: the same function of the same parameters, computed as training computes it.

Each distinct word of a batch is convolved once. A layer's two directions are one recurrence, whose gradients are
computed for all steps at once (`engine.training.recurrence`): the backward one reads each sentence reversed within its
length, so that padding comes last in both, after everything that counts. On a card Triton's kernels compute its
pointwise parts, if they work there.

Under autocast (`torch.autocast("cuda", torch.bfloat16)`) products are computed in its type, states in the parameters'.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flashelmo.engine.reference.padding import positions_before
from flashelmo.engine.reference.reference import ReferenceElmo
from flashelmo.engine.system.autocast import autocast_type
from flashelmo.engine.training.recurrence import Clips, Weights, kernels_work, lstm_layer


class TrainableElmo(ReferenceElmo):
    """`ReferenceElmo`, but faster where gradients are needed; without them, or if a state is carried, it is the same.

    It cannot be differentiated twice.
    """

    def token_vectors(self, character_ids: Tensor | None, word_ids: Tensor | None) -> Tensor:
        """Return context-free vectors [..., P] of character_ids [..., M]; without word_ids, distinct rows once."""
        if self.stateful or character_ids is None or word_ids is not None or not torch.is_grad_enabled():
            return super().token_vectors(character_ids, word_ids)
        words, positions = character_ids.flatten(0, -2).unique(dim=0, return_inverse=True)
        return super().token_vectors(words, None)[positions.view(character_ids.shape[:-1])]

    def layers(self, vectors: Tensor, mask: Tensor) -> list[Tensor]:
        """Return all L layers [B, T, 2P] of sentences with boundaries: vectors [B, T, P], mask bool [B, T]."""
        if self.stateful or not torch.is_grad_enabled() or not mask.numel():
            return super().layers(vectors, mask)
        lowest: Any = self.forward_layers[0]
        kind = lowest.bias.dtype
        compute = kind if kind == torch.float64 else autocast_type(mask.device) or kind  # as PyTorch's own layers do
        batch, steps, size = vectors.shape
        lengths = mask.sum(dim=1, keepdim=True)
        places = torch.arange(steps, device=mask.device)
        reversed_ = torch.where(positions_before(lengths[:, 0], steps), lengths - 1 - places, places)
        reversed_ = reversed_.unsqueeze(-1).expand(-1, -1, size)
        vectors = vectors.to(kind)
        outputs = [torch.cat([vectors, vectors], dim=-1) * mask.unsqueeze(-1)]
        x = torch.stack([vectors, vectors.gather(1, reversed_)]).transpose(1, 2)  # [2, T, B, P]
        before, cell = (vectors.new_zeros(2, batch, n) for n in (size, self.config.cell_size))
        clips = Clips(self.config.cell_clip, self.config.projection_clip)
        kernels = kind == torch.float32 and kernels_work(mask.device)
        for k, both in enumerate(zip(self.forward_layers, self.backward_layers, strict=True)):
            names = ("input_weight", "recurrent_weight", "bias", "projection")
            pairs = [[getattr(layer, name) for layer in both] for name in names]
            weights: list[Any] = [
                None if pair[0] is None else torch.stack([each.t() for each in pair]).to(compute) for pair in pairs
            ]
            hidden, *_ = lstm_layer(x, Weights(*weights), before, cell, clips, kernels)
            x = hidden + x if k > 0 and self.config.skip_connections else hidden
            forward, backward = x.transpose(1, 2)
            outputs.append(torch.cat([forward, backward.gather(1, reversed_)], dim=-1) * mask.unsqueeze(-1))
        return outputs
