"""Steps whose gates are products of 8-bit integers, for any rows and sizes: half the bytes and twice the throughput.

    z = s_row * s_column * ([x, r_parent] / s_row) @ ([W_x; W_r] / s_column) + b

with both quotients rounded to integers of at most 127 in magnitude, so that sums are exact and do not depend on the
tile. Each column of the weights has one scale, fixed at load. Each row has one for x and r together, the largest of
their magnitudes divided by 127, so that one sum covers both. It depends on nothing but the row. A launch before the
gates finds the scales and rounds a depth's rows: a scale fixed beforehand, by the projection's clip, would leave few
bits to states that stay far below it.

h and the projection keep the compute type: the projection is a fifth of a step's products, and h in 8 bits would be by
far the largest error, as most of its values are much smaller than its bound of 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from flashelmo.kernels.arguments import check
from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.cell import cell, depth_nodes
from flashelmo.kernels.lstm.fused import projection
from flashelmo.kernels.lstm.hopper import CELLS, gate_columns
from flashelmo.kernels.lstm.run import LayerRun, NodeTensors
from flashelmo.kernels.lstm.steps import Part, depth_launches, eviction_policy, is_approximate
from flashelmo.kernels.lstm.tma import split_gates
from flashelmo.kernels.lstm.weights import CanonicalLstm, Format, Shape, bound_of
from flashelmo.kernels.product import int8_of, larger, product, zeros
from flashelmo.kernels.tuning import Tile, choose_tile

LEVELS = 127
LEAST = tl.constexpr(1e-30)  # least of a row's largest value, so that its scale is not zero
VALUES = 4096  # of x, per program that rounds rows


class Int8Layout(NamedTuple):
    """The layout of the variants that multiply gates in 8 bits.

    Attributes:
        gates: int8 [D * 4G, 2P], the columns of the input and the recurrent weight one after the other; G is C rounded
            up to a multiple of 32, with zeros beyond C. Rows are ordered as the columns of `hopper.HopperLayout.gates`.
        scale: float32 [D, 4, C], the value of one unit of these integers.
        bias: float32 [D, 4, C].
        projection: [D, C, P], in the compute type.
        cell_clip, projection_clip: bounds; infinite where nothing is clipped.
    """

    gates: Tensor
    scale: Tensor
    bias: Tensor
    projection: Tensor
    cell_clip: float
    projection_clip: float

    def check(self, shape: Shape, dtype: torch.dtype) -> None:
        """See `weights.Layout`."""
        D, P, C = shape
        check("gates", self.gates, [D * 4 * padded(C), 2 * P], [torch.int8])
        check("scale", self.scale, [D, 4, C], [torch.float32])
        check("bias", self.bias, [D, 4, C], [torch.float32])
        check("projection", self.projection, [D, C, P], [dtype])


def int8_layout(weights: CanonicalLstm, format: Format) -> Int8Layout | None:
    """Return the weights of a layer with projection in this layout; None unless products are of 8 bits."""
    if not format.int8:
        return None
    assert weights.projection is not None
    _, P, C = weights.shape
    both = torch.cat([weights.input, weights.recurrent], dim=2).to(format.device).float()  # [D, 4, 2P, C]
    scale = both.abs().amax(dim=2).clamp(min=torch.finfo(torch.float32).tiny) / LEVELS
    integers = torch.nn.functional.pad((both / scale[:, :, None]).round().to(torch.int8), (0, padded(C) - C))
    gates, cells = gate_columns(padded(C), both.device)
    return Int8Layout(
        gates=integers[:, gates, :, cells].movedim(0, 1).reshape(-1, 2 * P).contiguous(),
        scale=scale.contiguous(),
        bias=weights.bias.to(format.device, torch.float32).contiguous(),
        projection=weights.projection.to(format.device, format.dtype).contiguous(),
        cell_clip=bound_of(weights.cell_clip),
        projection_clip=bound_of(weights.projection_clip),
    )


def padded(C: int) -> int:
    """Return the number of cells, rounded up to whole blocks."""
    return cdiv(C, CELLS) * CELLS


def dequantized(layout: Int8Layout, shape: Shape) -> Tensor:
    """Return the weights that a layout represents, float32 [D, 4, 2P, C]."""
    D, P, C = shape
    gates, cells = gate_columns(padded(C), layout.gates.device)
    found = torch.empty(4, padded(C), D, 2 * P, device=layout.gates.device)
    found[gates, cells] = layout.gates.view(D, -1, 2 * P).movedim(0, 1).float()
    return found[:, :C].permute(2, 0, 3, 1) * layout.scale[:, :, None]


def row_scales(x: Tensor, hidden: Tensor) -> Tensor:
    """Return the value of one unit in rows [..., P] of x and r, which share a scale: [...]."""
    return torch.cat([x, hidden], -1).float().abs().amax(dim=-1).clamp(min=LEAST.value) / LEVELS


def rounded(rows: Tensor, scale: Tensor) -> Tensor:
    """Return rows [..., P] rounded to multiples of their scale, as their integers represent them."""
    units = rows.float() * (1.0 / scale)[..., None]
    return units.clamp(-LEVELS, LEVELS).round() * scale[..., None]


def serves(run: LayerRun, rows: int) -> bool:
    """Whether the run is in 8 bits: then this serves any number of rows."""
    return run.weights.int8


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """Yield the launches of consecutive depths, in order.

    Raises:
        ValueError: a depth does not exist.
    """
    return depth_launches(run, depths, rows_part(run), _gates(run), projection(run, int8_layout))


class RowTensors(NamedTuple):
    """The fields of `LstmTensors` that rounding reads and writes."""

    x: Any
    parent_hidden: Any
    x_int8: Any
    hidden_int8: Any
    row_scale: Any


def rows_part(run: LayerRun) -> Part:
    """Return the part that rounds a depth's rows before its gates."""
    D, P, _ = run.weights.shape
    columns = triton.next_power_of_2(P)
    tile = Tile(max(1, VALUES // columns), columns, k=1, warps=4, stages=1)
    arguments = run.arguments | {
        "tensors": run.tensors.only(RowTensors),
        "nodes": NodeTensors(run.nodes.starts),
        "TILE": tile,
    }
    launch = Launch(int8_rows_kernel, (), arguments, tile.options)
    return Part(lambda rows: tile, lambda tile: launch, lambda rows, tile: (cdiv(rows, tile.rows), D))


@triton.jit(do_not_specialize=["depth", "N", "R", "T"])
def int8_rows_kernel(tensors, nodes, depth, N, R, T, SHAPE: tl.constexpr, TILE: tl.constexpr):
    """Round one depth's x and parents' r to 8 bits, and store their rows' scales. Grid: blocks of rows; D."""
    P: tl.constexpr = SHAPE.P
    _, first, last = depth_nodes(nodes, tl.program_id(1), depth, T)
    node = first + tl.program_id(0) * TILE.rows + tl.arange(0, TILE.rows)
    o_column = tl.arange(0, TILE.columns)
    m_row = node < last
    m = m_row[:, None] & (o_column < P)[None, :]
    row = tl.program_id(1).to(tl.int64) * N + node
    o_values = (row * P)[:, None] + o_column[None, :]
    x = tl.load(tensors.x + o_values, mask=m, other=0.0).to(tl.float32)
    r = tl.load(tensors.parent_hidden + o_values, mask=m, other=0.0).to(tl.float32)
    largest = tl.reduce(larger(tl.abs(x), tl.abs(r)), 1, larger)
    scale = larger(largest, LEAST) / 127.0  # NaN where any value is, and so are all gates: no integer is
    tl.store(tensors.x_int8 + o_values, int8_of(x, scale), mask=m)
    tl.store(tensors.hidden_int8 + o_values, int8_of(r, scale), mask=m)
    tl.store(tensors.row_scale + row, scale, mask=m_row)


class Int8Tensors(NamedTuple):
    """The fields of `LstmTensors` that gates in 8 bits read and write."""

    x_int8: Any
    hidden_int8: Any
    row_scale: Any
    cell: Any
    unprojected: Any


def _gates(run: LayerRun) -> Part:
    weights, (D, _, C) = run.weights, run.weights.shape
    arguments = run.arguments | {
        "weights": weights.layout(int8_layout),
        "tensors": run.tensors.only(Int8Tensors),
        "nodes": NodeTensors(run.nodes.starts, run.nodes.parents),
        "APPROXIMATE": is_approximate(weights.dtype),
    }

    def kind(rows: int) -> tuple[Tile, str]:
        given, invariant = ("gates", weights.dtype, run.options.precision, rows), run.options.batch_invariant
        return choose_tile(*given, int8=True, batch_invariant=invariant), eviction_policy(run, rows)

    def launch(kind: tuple[Tile, str]) -> Launch:
        return Launch(int8_gates_kernel, (), arguments | {"TILE": kind[0], "KEEP": kind[1]}, kind[0].options)

    return Part(kind, launch, lambda rows, kind: (cdiv(rows, kind[0].rows), cdiv(C, kind[0].columns), D))


@triton.jit(do_not_specialize=["depth", "N", "R", "T"])
def int8_gates_kernel(
    weights, tensors, nodes, depth, N, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, KEEP: tl.constexpr, APPROXIMATE: tl.constexpr,
):  # fmt: skip
    """Compute c and h of one depth. Grid: blocks of rows, adjacent where they share weights; blocks of cells; D."""
    P: tl.constexpr = SHAPE.P
    C: tl.constexpr = SHAPE.C
    GATES: tl.constexpr = (C + 31) // 32 * 128
    i_rows, i_cells, direction = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    _, first, last = depth_nodes(nodes, direction, depth, T)
    if first + i_rows * TILE.rows < last:
        o_row = i_rows * TILE.rows + tl.arange(0, TILE.rows)
        o_cell = i_cells * TILE.columns + tl.arange(0, TILE.columns)
        node = (first + o_row).to(tl.int64)
        m_row, m_cell = node < last, o_cell < C
        m = m_row[:, None] & m_cell[None, :]
        parent = tl.load(nodes.parents + direction * N + node, mask=m_row, other=0).to(tl.int64)
        p_before = tensors.cell + (((depth + 1) % 2 * SHAPE.D + direction) * R + parent) * C
        c = tl.load(p_before[:, None] + o_cell[None, :], mask=m, other=0.0)  # loads while the product is computed
        row = direction * N + node
        row_scale = tl.load(tensors.row_scale + row, mask=m_row, other=0.0)

        o_gate = i_cells * (4 * TILE.columns) + tl.arange(0, 4 * TILE.columns)
        p_weight = weights.gates + (direction * GATES + o_gate) * (2 * P)
        p_x, p_hidden = tensors.x_int8 + row * P, tensors.hidden_int8 + row * P
        acc = zeros(TILE.rows, 4 * TILE.columns, tl.int32)
        acc = product(acc, p_x, p_hidden, m_row, p_weight, o_gate < GATES, P, 2, 1, True, TILE.k, "ieee", KEEP)

        i, f, g, o = split_gates(acc, TILE)
        p_scale, p_bias = weights.scale + direction * (4 * C) + o_cell, weights.bias + direction * (4 * C) + o_cell
        i = scaled(i, row_scale, p_scale, p_bias, m_cell)
        f = scaled(f, row_scale, p_scale + C, p_bias + C, m_cell)
        g = scaled(g, row_scale, p_scale + 2 * C, p_bias + 2 * C, m_cell)
        o = scaled(o, row_scale, p_scale + 3 * C, p_bias + 3 * C, m_cell)
        c, h = cell(i, f, g, o, c, weights.cell_clip, APPROXIMATE, APPROXIMATE)
        o_here = ((direction * R + o_row) * C)[:, None] + o_cell[None, :]
        tl.store(tensors.cell + tl.cast(depth % 2 * SHAPE.D * C, tl.int64) * R + o_here, c, mask=m)
        tl.store(tensors.unprojected + o_here, h.to(tensors.unprojected.dtype.element_ty), mask=m)


@triton.jit
def scaled(sums, row_scale, p_scale, p_bias, m_cell):
    """Return one gate, float32, from its integer sums: scaled, with its bias."""
    scale = row_scale[:, None] * tl.load(p_scale, mask=m_cell)[None, :]
    return sums.to(tl.float32) * scale + tl.load(p_bias, mask=m_cell)[None, :]
