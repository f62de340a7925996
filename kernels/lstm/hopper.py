"""What the variants for Hopper (sm_90) share: the layout of the weights, and tensor descriptors.

Those in plain Triton serve sm_100 too. Their products read blocks that the card's copy engine (TMA) brings to shared
memory, which needs rows that lie side by side: `cell.store_projected` sees to that. Sizes must fill the blocks; others
are the portable variants' business.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from flashelmo.kernels.arguments import check
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.lstm.weights import CanonicalLstm, Format, Shape, bound_of
from flashelmo.kernels.tuning import SPLIT_ARRIVALS, copies_in_bulk, is_hopper

HALVES = torch.float16, torch.bfloat16
CELLS = 32  # of a block of 128 gates
K = 64  # of a block of a product: 128 bytes, the widest row that the copy engine swizzles


class HopperLayout(NamedTuple):
    """The layout of the variants for Hopper.

    A thread holds some columns of a product's block of sums. Gates are ordered so that the thread that holds one gate
    of a cell holds all four, and no sum goes through shared memory again.

    Attributes:
        gates: [D * 2P, 4C], the input's weight above the recurrent one. In each 64 columns, column
            8 * (2u + k // 2) + 2q + k % 2 is gate k (i, f, g, o) of cell 4q + u.
        bias: float32 [D, 4, C].
        input: [D, P, 4C], column k * C + c is gate k of cell c; its product is made beforehand for few rows.
        input_bias: float32 [D, 4C] likewise.
        recurrent: [D * 4C, P], for products where gates are rows: in each 128 rows, row 64 * (k // 2) + 16w +
            8 * (k % 2) + g is gate k of cell 8w + g.
        projection: [D * C, P].
        cell_clip, projection_clip: bounds; infinite where nothing is clipped.
    """

    gates: Tensor
    bias: Tensor
    input: Tensor
    input_bias: Tensor
    recurrent: Tensor
    projection: Tensor
    cell_clip: float
    projection_clip: float

    def check(self, shape: Shape, dtype: torch.dtype) -> None:
        """See `weights.Layout`."""
        D, P, C = shape
        check("gates", self.gates, [D * 2 * P, 4 * C], [dtype])
        check("bias", self.bias, [D, 4, C], [torch.float32])
        check("input", self.input, [D, P, 4 * C], [dtype])
        check("input_bias", self.input_bias, [D, 4 * C], [torch.float32])
        check("recurrent", self.recurrent, [D * 4 * C, P], [dtype])
        check("projection", self.projection, [D * C, P], [dtype])


def hopper_layout(weights: CanonicalLstm, format: Format) -> HopperLayout | None:
    """The weights of a layer laid out for Hopper; None where no variant for Hopper serves them.

    Args:
        weights: with a projection, as `CanonicalLstm.projected` gives them; else AssertionError.
    """
    D, P, C = weights.shape
    device = torch.device(format.device)
    if format.int8 or not fits(weights.shape) or (device.type == "cuda" and not has_bulk_copies(format.dtype, device)):
        return None
    assert weights.projection is not None
    both = torch.cat([weights.input, weights.recurrent], dim=2).to(device)  # [D, 4, 2P, C]
    bias = weights.bias.to(device, torch.float32)
    gates, cells = gate_columns(C, device)
    rows, row_cells = gate_rows(C, device)
    recurrent = both[:, :, P:].to(format.dtype)
    return HopperLayout(
        gates=both.to(format.dtype)[:, gates, :, cells].movedim(0, 2).reshape(D * 2 * P, 4 * C).contiguous(),
        bias=bias.contiguous(),
        input=both[:, :, :P].to(format.dtype).movedim(1, 2).reshape(D, P, 4 * C),
        input_bias=bias.reshape(D, 4 * C),
        recurrent=recurrent[:, rows, :, row_cells].movedim(0, 1).reshape(D * 4 * C, P).contiguous(),
        projection=weights.projection.to(device, format.dtype).reshape(D * C, P).contiguous(),
        cell_clip=bound_of(weights.cell_clip),
        projection_clip=bound_of(weights.projection_clip),
    )


def fits(shape: Shape) -> bool:
    """Whether sizes fill the blocks of all variants for Hopper."""
    return shape.D == 2 and shape.P % 128 == 0 and shape.C % (SPLIT_ARRIVALS * K) == 0


def gate_columns(C: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gate and cell of each column of `HopperLayout.gates`: int64 [4C] each."""
    n = torch.arange(4 * C, device=device)
    block, eighth, quarter, parity = n // 64, n % 64 // 8, n % 8 // 2, n % 2
    return 2 * (eighth % 2) + parity, 16 * block + 4 * quarter + eighth // 2


def gate_rows(C: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gate and cell of each row of `HopperLayout.recurrent` in one direction: int64 [4C] each."""
    n = torch.arange(4 * C, device=device)
    block, half, warp, eight, cell = n // 128, n % 128 // 64, n % 64 // 16, n % 16 // 8, n % 8
    return 2 * half + eight, CELLS * block + 8 * warp + cell


def is_served(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the variants for Hopper in Gluon serve a type on a device."""
    return is_hopper(device) and dtype in HALVES


def has_bulk_copies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the variants by bulk copies in plain Triton (`tma`) serve a type on a device."""
    return copies_in_bulk(device) and dtype in HALVES


def has_layout(run: LayerRun) -> bool:
    """Whether a run's weights were laid out for Hopper."""
    return hopper_layout in run.weights.layouts


def rows_of(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """The rows [n, values] of a tensor, copied in blocks of so many rows and values."""
    return TensorDescriptor(tensor, *shape_and_strides(tensor), [rows, columns])


def shape_and_strides(tensor: Tensor) -> tuple[list[int], list[int]]:
    """Of a contiguous tensor's rows [n, values]; without a view, for which PyTorch lets other threads run."""
    size = tensor.shape[-1]
    return [tensor.numel() // size, size], [size, 1]
