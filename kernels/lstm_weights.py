"""An LSTM layer's weights as the kernels read them, laid out once at load."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flashelmo.kernels.launch import FLOATS, check

INT8_LEVELS = 127


class LstmWeights(NamedTuple):
    """One layer, D directions.

    The four gates of a cell stand side by side, so that one block of columns holds all that its cells need, and the
    input's and the recurrent weight one under the other, so that [x, r] @ [W_x; W_r] is one product.

    Attributes:
        input: [D, P, 4C], column 4c + k is gate k (i, f, g, o) of cell c.
        recurrent: [D, P, 4C] likewise: in the compute type, where it lies behind `input` in memory, or int8.
        bias: float32 [D, 4C], the forget gate's 1 included.
        projection: [D, C, P]: in the compute type or int8.
        recurrent_scale, projection_scale: float32 [D, 4C] and [D, P], what an 8-bit weight's 1 is worth, by column;
            None where the weights are not of 8 bits.
        cell_clip, projection_clip: bounds; infinite where nothing is clipped.
    """

    input: Tensor
    recurrent: Tensor
    bias: Tensor
    projection: Tensor
    recurrent_scale: Tensor | None
    projection_scale: Tensor | None
    cell_clip: float
    projection_clip: float

    @property
    def is_int8(self) -> bool:
        """Whether the weights that recur have 8 bits."""
        return self.recurrent_scale is not None

    @property
    def dtype(self) -> torch.dtype:
        """The compute type."""
        return self.input.dtype


def pack_lstm(
    input_weight: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    projection: Tensor | None,
    *,
    cell_clip: float | None,
    projection_clip: float | None,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    device: torch.device | str = "cpu",
) -> LstmWeights:
    """Lay out the weights of one layer for the kernels.

    A layer without projection gets the identity as its projection, which is exact, and no clip, as bilm-tf has it.

    Args:
        input_weight, recurrent_weight: [D, 4, P, C], gates i, f, g, o.
        bias: [D, 4, C].
        projection: [D, C, P], or None where P = C.
        cell_clip, projection_clip: bounds, or None.
        dtype: the compute type.
        int8: round the recurrent weight and the projection to 8 bits, by column; their scales are static, and the
            states that they multiply keep the compute type, so that a vector does not depend on its company.

    Raises:
        ValueError: a tensor has another shape or type than it should.
    """
    check("input_weight", input_weight, [None, 4, None, None], FLOATS)
    D, _, P, C = input_weight.shape
    check("recurrent_weight", recurrent_weight, [D, 4, P, C], FLOATS)
    check("bias", bias, [D, 4, C], FLOATS)
    if projection is None:
        if P != C:
            raise ValueError(f"projection: expected a tensor where P = {P} and C = {C} differ, found None")
        projection, projection_clip = torch.eye(C, dtype=torch.float32).expand(D, C, C).contiguous(), None
    check("projection", projection, [D, C, P], FLOATS)

    stacked = torch.stack([_gates_last(input_weight), _gates_last(recurrent_weight)], dim=1)  # [D, 2, P, 4C]
    stacked, bias = stacked.to(device), _gates_last(bias).to(device, torch.float32).contiguous()
    in_type = stacked.to(dtype)
    recurrent, projection = in_type[:, 1], projection.to(device)
    recurrent_scale = projection_scale = None
    if int8:
        recurrent, recurrent_scale = quantize(stacked[:, 1])
        in_type = in_type[:, :1].contiguous()
        projection, projection_scale = quantize(projection)
    return LstmWeights(
        input=in_type[:, 0],
        recurrent=recurrent,
        bias=bias,
        projection=projection if int8 else projection.to(dtype),
        recurrent_scale=recurrent_scale,
        projection_scale=projection_scale,
        cell_clip=float("inf" if cell_clip is None else cell_clip),
        projection_clip=float("inf" if projection_clip is None else projection_clip),
    )


def _gates_last(tensor: Tensor) -> Tensor:
    """[D, 4, ..., C] -> [D, ..., 4C], the gates of one cell side by side."""
    return tensor.movedim(1, -1).flatten(-2)


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit weights [D, K, N] of [D, K, N], symmetric by column, and their scales, float32 [D, N]."""
    scale = weight.float().abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / INT8_LEVELS
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale
