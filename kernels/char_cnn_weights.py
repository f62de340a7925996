"""Weights of characters' embedding and convolutions, laid out once at load as `char_cnn` reads them.

Letters: E size of a character's embedding, S its size in memory, F filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
import triton
from torch import Tensor

from flashelmo.kernels.arguments import FLOATS, check

Activation: TypeAlias = Literal["relu", "tanh"]
LEAST_SIZE = 16  # of a character's embedding in memory: the least k of a matrix instruction


class CharCnnWeights(NamedTuple):
    """Weights as the kernel reads them.

    Attributes:
        embedding: [characters, S], zero beyond column E; S is a power of two, so that loads are aligned.
        weight: [widest * S, F], row j * S + e for component e of a window's character j; zero beyond a filter's width.
        bias: float32 [F].
        widths: int32 [F], of each filter.
        padding: float32 [F], each filter's product with a window that holds only padding.
        widest: the largest width.
        activation: "relu" or "tanh".
    """

    embedding: Tensor
    weight: Tensor
    bias: Tensor
    widths: Tensor
    padding: Tensor
    widest: int
    activation: Activation


def pack_char_cnn(
    embedding: Tensor,
    convolutions: Sequence[tuple[Tensor, Tensor]],
    *,
    padding_id: int,
    activation: Activation,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> CharCnnWeights:
    """Lay out embedding and filters for the kernel.

    Args:
        embedding: [characters, E].
        convolutions: (weight [width, E, number], bias [number]) for each width; F is the sum of the numbers.
        padding_id: of the character that pads words.
        dtype: the compute type.

    Raises:
        ValueError: a tensor does not have the expected shape or type, or there is no such padding or activation.
    """
    check("embedding", embedding, [None, None], FLOATS)
    n_characters, E = embedding.shape
    if not 0 <= padding_id < n_characters:
        raise ValueError(f"padding_id: expected an id from 0 to {n_characters - 1}, found {padding_id}")
    if activation not in get_args(Activation):
        raise ValueError(f"activation: expected {' or '.join(get_args(Activation))}, found {activation}")
    if not convolutions:
        raise ValueError("convolutions: expected at least one width, found none")
    for i, (weight, bias) in enumerate(convolutions):
        check(f"weight of convolution {i}", weight, [None, E, None], FLOATS)
        check(f"bias of convolution {i}", bias, [weight.shape[2]], FLOATS)

    widest, S = max(weight.shape[0] for weight, _ in convolutions), max(LEAST_SIZE, triton.next_power_of_2(E))
    embedding = torch.nn.functional.pad(embedding.to(device, dtype), (0, S - E))
    weight = torch.cat(
        [
            torch.nn.functional.pad(weight.to(device, dtype), (0, 0, 0, S - E, 0, widest - weight.shape[0]))
            for weight, _ in convolutions
        ],
        dim=2,
    )  # [widest, S, F]
    widths = torch.cat([torch.full((weight.shape[2],), len(weight), device="cpu") for weight, _ in convolutions])
    # Not by a product of PyTorch's, which a program may have set to TF32.
    padding = (embedding[padding_id].float()[:, None] * weight.float()).sum((0, 1))
    return CharCnnWeights(
        embedding=embedding,
        weight=weight.flatten(0, 1),
        bias=torch.cat([bias.to(device, torch.float32) for _, bias in convolutions]),
        widths=widths.to(device, torch.int32),
        padding=padding,
        widest=widest,
        activation=activation,
    )
