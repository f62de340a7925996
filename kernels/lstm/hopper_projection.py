"""The projection of the variants for Hopper and sm_100, in plain Triton: h @ W_p by bulk copies, clipped and stored.

Where there are fewer blocks than multiprocessors, each block's sum over the cells is split among programs (split-K).
These wait for each other and each adds up a share of the rows, so that all programs of such a launch must run at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.cell import (
    ARRIVALS,
    arrive,
    children_of,
    depth_nodes,
    load_skipped,
    store_projected,
    store_to_children,
)
from flashelmo.kernels.lstm.hopper import hopper_layout, rows_of
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.lstm.steps import Part, block_projection_arguments
from flashelmo.kernels.lstm.weights import Shape
from flashelmo.kernels.product import zeros
from flashelmo.kernels.tuning import SPLIT_VALUES, Tile, is_hopper, n_programs


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
    if rows > 128 and blocks > programs:  # 2,048 take 42 us in two rounds; a round of larger tiles is 1.5 of these
        return Tile(128, 128, 64, 8, 4)
    while tile.splits > 1 and blocks * tile.splits > programs:
        tile = tile._replace(splits=tile.splits // 2)
    return tile


# Where the tile may not depend on the number of rows: without splits, as for 1,024 rows, the most that run at once.
INVARIANT_PROJECTION = Tile(64, 128, 64, 4, 8)


def projection(run: LayerRun, pack: Callable[..., Any] = hopper_layout) -> Part:
    """The projection of all variants for Hopper, by weights as a function lays them out.

    Raises:
        KeyError: the weights were not laid out so.
        ValueError: `partial_sums` is too small for splits of any number of rows.
    """
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


@triton.jit(do_not_specialize=["depth", "polls", "N", "R", "T"])
def hopper_projection_kernel(
    unprojected_desc, weight_desc, projection_clip, tensors, nodes, depth, polls, N, R, T,
    SHAPE: tl.constexpr, TILE: tl.constexpr, WAITS: tl.constexpr,
):  # fmt: skip
    """r of one depth. Grid: blocks of rows; blocks of columns times splits; D.

    Every split of a block writes its sums, waits for the others (WAITS), and adds up a share of the rows. A wait fails
    after `polls` looks.
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
        total, mine = sum_of_splits(acc, tensors, i_block, i_split, o_share, polls, TILE, WAITS)
        if mine:
            m_row = node < last
            r = store_projected(total, projection_clip, tensors, skipped, direction64, node, m_row, o_column, N, P)
            store_to_children(r, tensors, child, n_children, direction64, m_row, o_column, N, P)


@triton.jit
def sum_of_splits(acc, tensors, i_block, i_split, o_share, polls, TILE: tl.constexpr, WAITS: tl.constexpr):
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
        total = zeros(o_share.shape[0], COLUMNS)
        if WAITS:
            total += wait_for_splits(tensors.counters + i_block, arrived, polls)
            mine = True
        if mine:
            for split in tl.static_range(SPLITS):
                p_share = p_sums + split * (ROWS * COLUMNS) + o_share[:, None] * COLUMNS
                total += tl.load(p_share, cache_modifier=".cg")
    return total, mine


@triton.jit
def wait_for_splits(p_counter, arrived, polls):
    """Wait until all splits of this launch have arrived; return what to begin their sum with: 0, or NaN if in vain."""
    missing = -arrived & (ARRIVALS - 1)
    seen = arrived
    while (seen - arrived < missing) & (polls > 0):
        seen = tl.atomic_add(p_counter, 0, sem="acquire")
        polls -= 1
    tl.debug_barrier()
    return tl.where(seen - arrived < missing, float("nan"), 0.0)
