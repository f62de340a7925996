"""What the variants for Hopper (sm_90) share: the layout of the weights, tensor descriptors, and the projection.

Those in plain Triton, and so this projection, serve sm_100 too. Their products read blocks that the card's copy engine
(TMA) brings to shared memory, which needs rows that lie side by side: `cell.store_projected` sees to that. Sizes must
fill the blocks; others are the portable variants' business.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from flashelmo.kernels.arguments import check
from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.cell import arrive, children_of, depth_nodes, load_skipped, store_projected
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.lstm.steps import Part, block_projection_arguments
from flashelmo.kernels.lstm.weights import CanonicalLstm, Format, Shape, bound_of
from flashelmo.kernels.product import zeros
from flashelmo.kernels.tuning import SPLIT_ARRIVALS, SPLIT_VALUES, Tile, copies_in_bulk, is_hopper, n_programs

HALVES = torch.float16, torch.bfloat16
CELLS = 32  # of a block of 128 gates
K = 64  # of a block of a product: 128 bytes, the widest row that the copy engine swizzles
MAX_POLLS = tl.constexpr(1 << 24)  # of a wait: seconds, where a step takes microseconds
ARRIVALS = tl.constexpr(SPLIT_ARRIVALS)


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
    """The weights of a layer with projection; None where no variant for Hopper serves them."""
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
    """Gate and cell of each column of `HopperLayout.gates`."""
    n = torch.arange(4 * C, device=device)
    block, eighth, quarter, parity = n // 64, n % 64 // 8, n % 8 // 2, n % 2
    return 2 * (eighth % 2) + parity, 16 * block + 4 * quarter + eighth // 2


def gate_rows(C: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Gate and cell of each row of `HopperLayout.recurrent`."""
    n = torch.arange(4 * C, device=device)
    block, half, warp, eight, cell = n // 128, n % 128 // 64, n % 64 // 16, n % 16 // 8, n % 8
    return 2 * half + eight, CELLS * block + 8 * warp + cell


def is_served(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the variants for Hopper in Gluon serve a type on a device."""
    return is_hopper(device) and dtype in HALVES


def has_bulk_copies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether those in plain Triton do."""
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


def choose_projection_tile(rows: int, shape: Shape, device: torch.device) -> Tile:
    """How the projection of so many rows is cut: its splits wait for each other, so that all programs run at once."""
    least = 128 if device.type == "cuda" and not is_hopper(device) else 64  # on sm_100 the next one spills
    return _projection_tile(rows, shape, least, n_programs(device))


@lru_cache(1 << 14)
def _projection_tile(rows: int, shape: Shape, least: int, programs: int) -> Tile:
    D, P, _ = shape
    if rows <= least:
        tile = Tile(64, 32, 128, 4, 5, splits=4)
    elif rows <= 128:
        tile = Tile(64, 64, 128, 4, 6, splits=4)
    else:
        tile = Tile(64, 128, 64, 4, 8, splits=4)
    blocks = D * cdiv(rows, tile.rows) * (P // tile.columns)
    if rows > 128 and blocks > programs:  # 2,048 take 42 us in two rounds; larger tiles, half as long again, need one
        return Tile(128, 128, 64, 8, 4)
    while tile.splits > 1 and blocks * tile.splits > programs:
        tile = tile._replace(splits=tile.splits // 2)
    return tile


# Of any number of rows where it may not depend on them, without splits: as it is for 1,024, the most of one wave.
INVARIANT_PROJECTION = Tile(64, 128, 64, 4, 8)


def projection(run: LayerRun, pack: Callable[..., Any] = hopper_layout) -> Part:
    """The projection of all variants for Hopper, by weights as a function lays them out."""
    weights, tensors, (D, P, _) = run.weights.layout(pack), run.tensors, run.weights.shape
    arguments = block_projection_arguments(run, weights) | {"WAITS": not triton.knobs.runtime.interpret}

    def launch(tile: Tile) -> Launch:
        blocks = {
            "unprojected_desc": rows_of(tensors.unprojected, tile.rows, tile.k),
            "weight_desc": rows_of(weights.projection, tile.k, tile.columns),
        }
        return Launch(hopper_projection_kernel, (), arguments | blocks | {"TILE": tile}, tile.options)

    def kind(rows: int) -> Tile:
        if run.options.batch_invariant:
            return INVARIANT_PROJECTION
        return choose_projection_tile(rows, run.weights.shape, run.weights.device)

    needed = n_programs(run.weights.device) * SPLIT_VALUES
    if len(tensors.partial_sums) < needed:
        raise ValueError(f"partial_sums: expected at least {needed} values, found {len(tensors.partial_sums)}")

    return Part(kind, launch, lambda rows, tile: (cdiv(rows, tile.rows), P // tile.columns * tile.splits, D))


@triton.jit(do_not_specialize=["depth", "N", "R", "T"])
def hopper_projection_kernel(
    unprojected_desc, weight_desc, projection_clip, tensors, nodes, depth, N, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, WAITS: tl.constexpr,
):  # fmt: skip
    """r of one depth. Grid: blocks of rows; blocks of columns times splits; D.

    Every split of a block writes its sums, waits for the others (WAITS), and adds up a share of the rows.
    """
    P: tl.constexpr = SHAPE.P
    C: tl.constexpr = SHAPE.C
    i_rows, i_columns, direction = tl.program_id(0), tl.program_id(1) // TILE.splits, tl.program_id(2)
    i_split = tl.program_id(1) % TILE.splits
    _, first, last = depth_nodes(nodes, direction, depth, T)
    SIZE: tl.constexpr = C // TILE.splits
    SHARE: tl.constexpr = TILE.rows // TILE.splits if WAITS else TILE.rows  # of the rows, which a split adds up
    if first + i_rows * TILE.rows < last:
        o_share = tl.arange(0, SHARE)
        if WAITS:
            o_share += i_split * SHARE
        node = (first + i_rows * TILE.rows + o_share).to(tl.int64)
        o_column = i_columns * TILE.columns + tl.arange(0, TILE.columns)
        direction64 = direction.to(tl.int64)
        child, n_children = children_of(nodes, direction64, node, node < last, N)  # on their way meanwhile
        skipped = load_skipped(tensors, direction64, node, node < last, o_column, N, P)
        acc = zeros(TILE.rows, TILE.columns)
        for k in range(0, SIZE // TILE.k):
            h = unprojected_desc.load([direction * R + i_rows * TILE.rows, i_split * SIZE + k * TILE.k])
            w = weight_desc.load([direction * C + i_split * SIZE + k * TILE.k, i_columns * TILE.columns])
            acc = tl.dot(h, w, acc)
        i_block = (direction * tl.num_programs(0) + i_rows) * (P // TILE.columns) + i_columns
        total, mine = sum_of_splits(acc, tensors, i_block, i_split, o_share, TILE, WAITS)
        if mine:
            store_projected(
                total, projection_clip, tensors, skipped, child, n_children, direction64, node, node < last, o_column,
                N, P,
            )  # fmt: skip


@triton.jit
def sum_of_splits(acc, tensors, i_block, i_split, o_share, TILE: tl.constexpr, WAITS: tl.constexpr):
    """Some rows of a block, summed over the splits in their order, and whether that is this program's to do."""
    SPLITS: tl.constexpr = TILE.splits
    ROWS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.columns
    total, mine = acc, True
    if SPLITS > 1:
        p_sums = tensors.partial_sums + i_block * (SPLITS * ROWS * COLUMNS) + tl.arange(0, COLUMNS)[None, :]
        tl.store(p_sums + i_split * (ROWS * COLUMNS) + tl.arange(0, ROWS)[:, None] * COLUMNS, acc)
        arrived = arrive(tensors.counters + i_block, SPLITS)
        mine = (arrived & (ARRIVALS - 1)) == 0
        if WAITS:
            wait_for_splits(tensors.counters + i_block, arrived)
            mine = True
        total = zeros(o_share.shape[0], COLUMNS)
        if mine:
            for split in tl.static_range(SPLITS):
                p_share = p_sums + split * (ROWS * COLUMNS) + o_share[:, None] * COLUMNS
                total += tl.load(p_share, cache_modifier=".cg")
    return total, mine


@triton.jit
def wait_for_splits(p_counter, arrived):
    """Wait until all splits of this launch have arrived; after seconds in vain, which would never end, trap."""
    missing = -arrived & (ARRIVALS - 1)
    seen = arrived
    polls = 0
    while (seen - arrived < missing) & (polls < MAX_POLLS):
        seen = tl.atomic_add(p_counter, 0, sem="acquire")
        polls += 1
    if seen - arrived < missing:
        tl.inline_asm_elementwise("trap; // $0", "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()
