"""What the Hopper (sm_90) variants share: the layout of the weights, and tensor descriptors.

Those in plain Triton also serve sm_100. Their products read blocks that the card's copy engine (TMA) brings to shared
memory, which requires contiguous rows: `cell.store_projected` sees to that. Sizes must fill the blocks; others are left
to the portable variants.
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
CELLS = 32  # per block of 128 gates
K = 64  # depth of a product's block: 128 bytes, the widest row that the copy engine swizzles


class HopperLayout(NamedTuple):
    """The layout that the Hopper variants read.

    A thread holds some columns of a block of a product's sums. Gates are ordered so that the thread that holds one gate
    of a cell holds all four, and no sum goes through shared memory again.

    Attributes:
        gates: [D * 2P, 4C], the input's weight above the recurrent one. In each 64 columns, column
            8 * (2u + k // 2) + 2q + k % 2 is gate k (i, f, g, o) of cell 4q + u.
        bias: float32 [D, 4, C].
        input: [D, P, 4C], column k * C + c is gate k of cell c; for few rows its product is computed beforehand.
        input_bias: float32 [D, 4C], in the same order.
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
    """Return a layer's weights laid out for Hopper; None where no Hopper variant serves them.

    Args:
        weights: must have a projection, as `CanonicalLstm.projected` returns them (asserted).
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
    """Whether the sizes fill the blocks of all Hopper variants."""
    return shape.D == 2 and shape.P % 128 == 0 and shape.C % (SPLIT_ARRIVALS * K) == 0


def gate_columns(C: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return gate and cell of each column of `HopperLayout.gates`: int64 [4C] each."""
    n = torch.arange(4 * C, device=device)
    block, eighth, quarter, parity = n // 64, n % 64 // 8, n % 8 // 2, n % 2
    return 2 * (eighth % 2) + parity, 16 * block + 4 * quarter + eighth // 2


def gate_rows(C: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return gate and cell of each row of `HopperLayout.recurrent` in one direction: int64 [4C] each."""
    n = torch.arange(4 * C, device=device)
    block, half, warp, eight, cell = n // 128, n % 128 // 64, n % 64 // 16, n % 16 // 8, n % 8
    return 2 * half + eight, CELLS * block + 8 * warp + cell


def is_served(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the Hopper variants in Gluon serve this type on this device."""
    return is_hopper(device) and dtype in HALVES


def has_bulk_copies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the variant with bulk copies in plain Triton (`tma`) serves this type on this device."""
    return copies_in_bulk(device) and dtype in HALVES


def has_layout(run: LayerRun) -> bool:
    """Whether the run's weights were laid out for Hopper."""
    return hopper_layout in run.weights.layouts


def rows_of(tensor: Tensor, rows: int, columns: int) -> TensorDescriptor:
    """Return a descriptor of a tensor's rows [n, values], copied in blocks of `rows` by `columns`."""
    return TensorDescriptor(tensor, *shape_and_strides(tensor), [rows, columns])


def shape_and_strides(tensor: Tensor) -> tuple[list[int], list[int]]:
    """Return these of a contiguous tensor's rows [n, values], without a view, which would let other threads run."""
    size = tensor.shape[-1]
    return [tensor.numel() // size, size], [size, 1]
