"""Gates by one warp that copies and two groups of warps that multiply in turn: for `warp_specialized` and in 8 bits.

A persistent program goes from tile to tile. Its producer keeps STAGES blocks of rows and of weights in flight to shared
memory, also across tiles. Two consumers of four warps take tiles in turn, so that one multiplies while the other
computes its cells: a warp that waits for arithmetic is never one that waits for tensor cores. Blocks arrive in the
order of the tiles, and a consumer begins only when the other has multiplied all of its own.

The mathematics of a cell is `cell.cell`; columns are ordered as in `hopper.HopperLayout`, or as in `int8.Int8Layout`
where `scales` are given: the sums are then integers.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from flashelmo.kernels.gluon import async_load
from flashelmo.kernels.lstm.cell import cell, depth_nodes


@gluon.jit
def row_blocks(nodes, T, depth, TILE: gl.constexpr):
    """Return a depth's first and last nodes and number of row blocks, per direction."""
    _, first, last = depth_nodes(nodes, 0, depth, T)
    _, first_backward, last_backward = depth_nodes(nodes, 1, depth, T)
    blocks = (last - first + TILE.rows - 1) // TILE.rows
    blocks_backward = (last_backward - first_backward + TILE.rows - 1) // TILE.rows
    return first, last, blocks, first_backward, last_backward, blocks_backward


@gluon.jit
def place(tile, first, last, blocks, first_backward, last_backward, blocks_backward, COLUMNS: gl.constexpr):
    """Return a tile's direction, rows and columns; neighbouring tiles share their columns' weights."""
    direction = 0
    if tile >= blocks * COLUMNS:
        direction = 1
        tile -= blocks * COLUMNS
        first, last, blocks = first_backward, last_backward, blocks_backward
    return direction, first, last, tile % blocks, tile // blocks


@gluon.jit
def producer(
    x_desc, hidden_desc, weight_desc, row_buffers, weight_buffers, full, empty, nodes, depth, N, T,
    SHAPE: gl.constexpr, TILE: gl.constexpr, K_MAJOR: gl.constexpr,
):  # fmt: skip
    """Copy the blocks of this program's tiles, each as soon as its stage is empty."""
    P: gl.constexpr = SHAPE.P
    COLUMNS: gl.constexpr = SHAPE.C // TILE.columns
    BLOCKS: gl.constexpr = P // TILE.k
    first, last, blocks, first_b, last_b, blocks_b = row_blocks(nodes, T, depth, TILE)
    i = 0
    for tile in range(gl.program_id(0), (blocks + blocks_b) * COLUMNS, gl.num_programs(0)):
        direction, start, _, i_rows, i_columns = place(
            tile, first, last, blocks, first_b, last_b, blocks_b, COLUMNS
        )  # fmt: skip
        row = direction * N + start + i_rows * TILE.rows
        for k in range(2 * BLOCKS):
            stage = i % TILE.stages
            mbarrier.wait(empty.index(stage), ((i // TILE.stages) & 1) ^ 1)
            mbarrier.expect(full.index(stage), x_desc.block_type.nbytes + weight_desc.block_type.nbytes)
            if k < BLOCKS:
                async_load(x_desc, [row, k * TILE.k], full.index(stage), row_buffers.index(stage))
            else:
                async_load(hidden_desc, [row, (k - BLOCKS) * TILE.k], full.index(stage), row_buffers.index(stage))
            if K_MAJOR:
                weight = direction * (4 * SHAPE.C) + i_columns * (4 * TILE.columns), k * TILE.k
            else:
                weight = direction * (2 * P) + k * TILE.k, i_columns * (4 * TILE.columns)
            async_load(weight_desc, [weight[0], weight[1]], full.index(stage), weight_buffers.index(stage))
            i += 1


@gluon.jit
def consumer(
    index, row_buffers, weight_buffers, full, empty, turn, scales, bias, cell_clip, cell_ptr, unprojected, nodes,
    depth, N, R, T, SHAPE: gl.constexpr, TILE: gl.constexpr, APPROXIMATE: gl.constexpr,
):  # fmt: skip
    """Compute every other one of this program's tiles: the product, then its cells."""
    COLUMNS: gl.constexpr = SHAPE.C // TILE.columns
    BLOCKS: gl.constexpr = 2 * SHAPE.P // TILE.k
    GATES: gl.constexpr = 4 * TILE.columns
    ROWS: gl.constexpr = TILE.rows
    WARPS: gl.constexpr = TILE.warps
    INTEGERS: gl.constexpr = scales is not None
    CELLS: gl.constexpr = TILE.columns if INTEGERS else TILE.columns // 2  # at once; in 8 bits registers hold them all
    SUM: gl.constexpr = gl.int32 if INTEGERS else gl.float32
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[TILE.warps, 1], instr_shape=[16, GATES, 32 if INTEGERS else 16]
    )
    first, last, blocks, first_b, last_b, blocks_b = row_blocks(nodes, T, depth, TILE)
    n_tiles = (blocks + blocks_b) * COLUMNS
    n_mine = (n_tiles - gl.program_id(0) + gl.num_programs(0) - 1) // gl.num_programs(0)
    for n in range(index, n_mine, 2):
        direction, start, end, i_rows, i_columns = place(
            gl.program_id(0) + n * gl.num_programs(0), first, last, blocks, first_b, last_b, blocks_b, COLUMNS
        )
        row, first_cell = start + i_rows * ROWS, i_columns * TILE.columns
        p_before = parents_cells(
            cell_ptr, nodes, depth, direction, row, end, first_cell, N, R, SHAPE, ROWS, CELLS, WARPS
        )  # fmt: skip
        m_row = own_rows(row, ROWS, CELLS, WARPS) < end
        before = gl.load(p_before, mask=m_row[:, None], other=0.0)  # loads while the product is computed
        acc = gl.zeros([ROWS, GATES], SUM, SUMS)
        i = n * BLOCKS
        # Wait here so that no consumer is two passes behind: an mbarrier has only one phase bit.
        mbarrier.wait(turn.index(index), (n // 2 + 1 + index) & 1, pred=n > 0)
        for k in range(BLOCKS):
            stage = i % TILE.stages
            mbarrier.wait(full.index(stage), (i // TILE.stages) & 1)
            weight = weight_buffers.index(stage)
            if INTEGERS:
                weight = weight.permute((1, 0))
            acc = warpgroup_mma(row_buffers.index(stage), weight, acc, use_acc=k > 0, is_async=True)
            acc = warpgroup_mma_wait(num_outstanding=1, deps=[acc])
            if k > 0:  # the previous product is done
                mbarrier.arrive(empty.index((i + TILE.stages - 1) % TILE.stages), count=1)
            i += 1
        mbarrier.arrive(turn.index(1 - index), count=1)
        acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])
        mbarrier.arrive(empty.index((i + TILE.stages - 1) % TILE.stages), count=1)
        if INTEGERS:
            store_cells(
                acc, before, scales, bias, cell_clip, cell_ptr, unprojected, depth, direction, row, start, end,
                first_cell, N, R, SHAPE, ROWS, CELLS, WARPS, APPROXIMATE,
            )  # fmt: skip
        else:
            before_right = gl.load(p_before + CELLS, mask=m_row[:, None], other=0.0)
            left, right = gl.split(acc.reshape([ROWS, 2, GATES // 2]).permute(0, 2, 1))
            store_cells(
                left, before, scales, bias, cell_clip, cell_ptr, unprojected, depth, direction, row, start, end,
                first_cell, N, R, SHAPE, ROWS, CELLS, WARPS, APPROXIMATE,
            )  # fmt: skip
            store_cells(
                right, before_right, scales, bias, cell_clip, cell_ptr, unprojected, depth, direction, row, start, end,
                first_cell + CELLS, N, R, SHAPE, ROWS, CELLS, WARPS, APPROXIMATE,
            )  # fmt: skip


@gluon.constexpr_function
def cell_layout(ROWS, CELLS, WARPS):
    """Return which thread holds which cell once the gates are split; four of its cells are adjacent: one access."""
    registers = [[0, 1], [0, 2], [8, 0]]
    column = 16
    while column < CELLS:
        registers.append([0, column])
        column *= 2
    row, warps = 16, []
    for _ in range(WARPS.bit_length() - 1):
        warps.append([row, 0])
        row *= 2
    while row < ROWS:
        registers.append([row, 0])
        row *= 2
    return gl.DistributedLinearLayout(
        reg_bases=registers,
        lane_bases=[[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]],
        warp_bases=warps,
        block_bases=[],
        shape=[ROWS, CELLS],
    )


@gluon.jit
def own_rows(row, ROWS: gl.constexpr, CELLS: gl.constexpr, WARPS: gl.constexpr):
    """Return a tile's nodes."""
    return row + gl.arange(0, ROWS, layout=gl.SliceLayout(1, cell_layout(ROWS, CELLS, WARPS)))


@gluon.jit
def parents_cells(
    cell_ptr, nodes, depth, direction, row, last, first_cell, N, R,
    SHAPE: gl.constexpr, ROWS: gl.constexpr, CELLS: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Return pointers to c of the nodes' parents, for a tile's cells."""
    C: gl.constexpr = SHAPE.C
    o_node = own_rows(row, ROWS, CELLS, WARPS)
    o_cell = first_cell + gl.arange(0, CELLS, layout=gl.SliceLayout(0, cell_layout(ROWS, CELLS, WARPS)))
    direction = gl.cast(direction, gl.int64)
    parent = gl.load(nodes.parents + direction * N + o_node, mask=o_node < last, other=0)
    p_depth = cell_ptr + ((depth + 1) % 2 * SHAPE.D + direction) * R * C  # within a direction 32 bits are enough
    return p_depth + (parent * C)[:, None] + o_cell[None, :]


@gluon.jit
def store_cells(
    sums, c, scales, bias, cell_clip, cell_ptr, unprojected, depth, direction, row, first, last, first_cell, N, R,
    SHAPE: gl.constexpr, ROWS: gl.constexpr, CELLS: gl.constexpr, WARPS: gl.constexpr, APPROXIMATE: gl.constexpr,
):  # fmt: skip
    """Compute and store c and h from a block of sums, adding the bias; `tma.store_cells` does the same."""
    C: gl.constexpr = SHAPE.C
    LAYOUT: gl.constexpr = cell_layout(ROWS, CELLS, WARPS)
    gates = sums.reshape([ROWS, CELLS // 16, 4, 2, 4, 2]).permute(0, 1, 4, 2, 3, 5).reshape([ROWS, CELLS, 2, 2])
    i_and_g, f_and_o = gl.split(gates)
    i, g = gl.split(i_and_g)
    f, o = gl.split(f_and_o)
    i = gl.convert_layout(i, LAYOUT)
    f = gl.convert_layout(f, LAYOUT)
    g = gl.convert_layout(g, LAYOUT)
    o = gl.convert_layout(o, LAYOUT)
    o_node = own_rows(row, ROWS, CELLS, WARPS)
    o_cell = first_cell + gl.arange(0, CELLS, layout=gl.SliceLayout(0, LAYOUT))
    m = (o_node < last)[:, None]
    direction = gl.cast(direction, gl.int64)
    if scales is not None:
        row_scale = gl.load(scales.rows + direction * N + o_node, mask=o_node < last, other=0.0)[:, None]
        p_scale = scales.columns + direction * (4 * C) + o_cell
        i = i.to(gl.float32) * (row_scale * gl.load(p_scale)[None, :])
        f = f.to(gl.float32) * (row_scale * gl.load(p_scale + C)[None, :])
        g = g.to(gl.float32) * (row_scale * gl.load(p_scale + 2 * C)[None, :])
        o = o.to(gl.float32) * (row_scale * gl.load(p_scale + 3 * C)[None, :])
    p_bias = bias + direction * (4 * C) + o_cell
    i += gl.load(p_bias)[None, :]
    f += gl.load(p_bias + C)[None, :]
    g += gl.load(p_bias + 2 * C)[None, :]
    o += gl.load(p_bias + 3 * C)[None, :]
    c, h = cell(i, f, g, o, c, cell_clip, APPROXIMATE, APPROXIMATE)
    o_here = ((o_node - first) * C)[:, None] + o_cell[None, :]
    gl.store(cell_ptr + (depth % 2 * SHAPE.D + direction) * R * C + o_here, c, mask=m)
    gl.store(unprojected + direction * R * C + o_here, h.to(unprojected.dtype.element_ty), mask=m)


@gluon.jit(do_not_specialize=["depth", "N", "R", "T"])
def specialized_gates_kernel(
    x_desc, hidden_desc, weight_desc, scales, bias, cell_clip, cell_ptr, unprojected, nodes, depth, N, R, T,
    SHAPE: gl.constexpr, TILE: gl.constexpr, APPROXIMATE: gl.constexpr, REGISTERS: gl.constexpr,
):  # fmt: skip
    """Compute c and h of one depth. Grid: any number of programs."""
    STAGES: gl.constexpr = TILE.stages
    ROWS: gl.constexpr = TILE.rows
    GATES: gl.constexpr = 4 * TILE.columns
    K: gl.constexpr = TILE.k
    row_buffers = gl.allocate_shared_memory(x_desc.dtype, [STAGES, ROWS, K], x_desc.layout)
    K_MAJOR: gl.constexpr = scales is not None
    WEIGHTS: gl.constexpr = [STAGES, GATES, K] if K_MAJOR else [STAGES, K, GATES]
    weight_buffers = gl.allocate_shared_memory(x_desc.dtype, WEIGHTS, weight_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    for one in gl.static_range(2):
        mbarrier.init(turn.index(one), count=1)
    gl.warp_specialize(
        [
            (consumer, (0, row_buffers, weight_buffers, full, empty, turn, scales, bias, cell_clip, cell_ptr,
                        unprojected, nodes, depth, N, R, T, SHAPE, TILE, APPROXIMATE)),
            (consumer, (1, row_buffers, weight_buffers, full, empty, turn, scales, bias, cell_clip, cell_ptr,
                        unprojected, nodes, depth, N, R, T, SHAPE, TILE, APPROXIMATE)),
            (producer, (x_desc, hidden_desc, weight_desc, row_buffers, weight_buffers, full, empty, nodes, depth, N, T,
                        SHAPE, TILE, K_MAJOR)),
        ],
        [TILE.warps, 1], [REGISTERS, 24],
    )  # fmt: skip
