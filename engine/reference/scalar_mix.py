"""The learned mix of ELMo's layers, with AllenNLP's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from flashelmo.engine.errors import FlashElmoError

TINY = 1e-13  # added to the variance under the root, as in AllenNLP
TINY_HALF = 1e-4


class ScalarMix(torch.nn.Module):
    """gamma * sum_k softmax(w)_k * layer_k (Peters et al. 2018, equation 1).

    Args:
        mixture_size: layers to mix.
        do_layer_norm: normalise every layer first, with one mean and one variance over all unmasked values of the
            batch, as in AllenNLP's `ScalarMix`.
        initial_scalar_parameters: w before the softmax; by default zeros, an average.
        trainable: whether w and gamma are trained.
    """

    def __init__(
        self,
        mixture_size: int,
        do_layer_norm: bool = False,
        initial_scalar_parameters: Sequence[float] | None = None,
        trainable: bool = True,
    ) -> None:
        super().__init__()
        initial = [0.0] * mixture_size if initial_scalar_parameters is None else list(initial_scalar_parameters)
        if len(initial) != mixture_size:
            raise FlashElmoError(f"scalar_mix_parameters: expected {mixture_size}, one a layer, found {len(initial)}")
        self.mixture_size = mixture_size
        self.do_layer_norm = do_layer_norm
        self.scalar_parameters = torch.nn.ParameterList(
            Parameter(torch.tensor([float(value)], device="cpu"), requires_grad=trainable) for value in initial
        )
        self.gamma = Parameter(torch.tensor([1.0], device="cpu"), requires_grad=trainable)

    def forward(self, tensors: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """Mix tensors of one shape [..., D]; mask [...] is needed only for layer normalisation."""
        if len(tensors) != self.mixture_size:
            raise FlashElmoError(f"ScalarMix: expected {self.mixture_size} tensors, found {len(tensors)}")
        if self.do_layer_norm:
            if mask is None:
                raise FlashElmoError("ScalarMix: layer normalisation needs a mask, found none")
            tensors = [masked_layer_norm(tensor, mask) for tensor in tensors]
        weights = torch.cat(list(self.scalar_parameters)).softmax(dim=0)
        pieces = [weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]
        return self.gamma * torch.stack(pieces).sum(dim=0)


def masked_layer_norm(tensor: Tensor, mask: Tensor) -> Tensor:
    """Subtract the mean and divide by the deviation of all values of tensor [..., D] where mask [...] is True or 1."""
    values = tensor[mask.bool()]
    mean = values.mean()
    variance = (values - mean).square().mean()
    tiny = TINY_HALF if tensor.dtype == torch.float16 else TINY
    return (tensor - mean) / torch.sqrt(variance + tiny)
