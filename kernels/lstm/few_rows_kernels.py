"""The kernels of `few_rows`: gates, and a projection that has all operands of a split in shared memory at once.

Gates are computed transposed: the weights are the 64 rows of a matrix instruction, and the few nodes are its columns. A
launch may begin before the previous one ends (programmatic dependent launch): it requests its first blocks of weights
and what it needs of the schedule, then waits, and then requests the states.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from flashelmo.kernels.gluon import async_load, barrier
from flashelmo.kernels.lstm.cell import (
    arrive,
    cell,
    children_of,
    depth_nodes,
    load_skipped,
    store_projected,
    store_to_children,
)
from flashelmo.kernels.lstm.hopper_projection import wait_for_splits

GATES = gl.constexpr(128)  # per program
CELLS = gl.constexpr(32)


@gluon.jit
def wait_for_launch_before():
    """Wait until the previous launch has ended, and let the next one begin.

    Every program must call this. Before the call it may read the schedule, the weights and what launches before the
    previous one wrote, and must write nothing. A program that skipped the wait would let its successor overtake both
    predecessors.
    """
    gl.inline_asm_elementwise("griddepcontrol.wait; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1)
    gl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", "=r", [], dtype=gl.int32, is_pure=False, pack=1
    )
    barrier()  # no thread copies a state before all have waited


@gluon.constexpr_function
def cell_layout(CELLS, ROWS):
    """Return which thread holds which cell and node, [CELLS, ROWS], once the transposed product's gates are split."""
    nodes = [[0, 1 << k] for k in range(3, ROWS.bit_length() - 1)]
    warps = [[1 << k, 0] for k in range(3, CELLS.bit_length() - 1)]
    lanes = [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout([[0, 1], *nodes], lanes, warps, [], [CELLS, ROWS])


@gluon.jit
def load_input_part(
    x_gates_ptr, nodes, direction, first, first_of_slab, o_cell, o_row, m_row, N, M, C: gl.constexpr
):  # fmt: skip
    """Load the input part of four gates, [cells, nodes] each, of a depth whose first node is given, or of its words."""
    if nodes.words is not None:
        word = gl.load(nodes.words + direction * N + first + o_row, mask=m_row, other=0).to(gl.int64)
        p_x = x_gates_ptr + direction * M * (4 * C) + (word * (4 * C))[None, :] + o_cell[:, None]
    else:
        p_x = x_gates_ptr + (direction * M + first - first_of_slab) * (4 * C)
        p_x = p_x + (o_row * 4 * C)[None, :] + o_cell[:, None]
    m = m_row[None, :]
    i = gl.load(p_x, mask=m, other=0.0)
    f = gl.load(p_x + C, mask=m, other=0.0)
    g = gl.load(p_x + 2 * C, mask=m, other=0.0)
    o = gl.load(p_x + 3 * C, mask=m, other=0.0)
    return i, f, g, o


@gluon.jit(do_not_specialize=["depth", "slab_depth", "N", "M", "R", "T"])
def few_gates_kernel(
    weight_desc, hidden_desc, x_gates_ptr, cell_clip, cell_ptr, unprojected, nodes, depth, slab_depth, N, M, R, T,
    SHAPE: gl.constexpr, TILE: gl.constexpr, APPROXIMATE: gl.constexpr,
):  # fmt: skip
    """Compute c and h of one depth. Grid: blocks of cells; blocks of rows; D."""
    P: gl.constexpr = SHAPE.P
    C: gl.constexpr = SHAPE.C
    ROWS: gl.constexpr = TILE.rows
    STAGES: gl.constexpr = TILE.stages
    BLOCKS: gl.constexpr = P // TILE.k
    i_cells, i_rows, direction = gl.program_id(0), gl.program_id(1), gl.program_id(2)
    weight_buffers = gl.allocate_shared_memory(weight_desc.dtype, [STAGES, GATES, TILE.k], weight_desc.layout)
    hidden_buffers = gl.allocate_shared_memory(weight_desc.dtype, [STAGES, ROWS, TILE.k], hidden_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
    barrier()
    gate = direction * (4 * C) + i_cells * GATES
    BYTES: gl.constexpr = weight_desc.block_type.nbytes + hidden_desc.block_type.nbytes
    for k in gl.static_range(min(STAGES, BLOCKS)):
        mbarrier.expect(full.index(k), BYTES)
        async_load(weight_desc, [gate, k * TILE.k], full.index(k), weight_buffers.index(k))

    _, first, last = depth_nodes(nodes, direction, depth, T)
    first_of_slab = gl.load(nodes.starts + direction * (T + 2) + slab_depth)
    LAYOUT: gl.constexpr = cell_layout(CELLS, ROWS)
    o_cell = i_cells * CELLS + gl.arange(0, CELLS, layout=gl.SliceLayout(1, LAYOUT))
    o_row = i_rows * ROWS + gl.arange(0, ROWS, layout=gl.SliceLayout(0, LAYOUT))
    m_row = first + o_row < last
    m = m_row[None, :]
    direction64 = direction.to(gl.int64)
    parent = gl.load(nodes.parents + direction64 * N + first + o_row, mask=m_row, other=0)
    x_i, x_f, x_g, x_o = load_input_part(
        x_gates_ptr, nodes, direction64, first, first_of_slab, o_cell, o_row, m_row, N, M, C
    )  # fmt: skip
    wait_for_launch_before()

    row = direction * N + first + i_rows * ROWS
    for k in gl.static_range(min(STAGES, BLOCKS)):
        async_load(hidden_desc, [row, k * TILE.k], full.index(k), hidden_buffers.index(k))
    p_before = cell_ptr + ((depth + 1) % 2 * SHAPE.D + direction64) * R * C
    c = gl.load(p_before + (parent * C)[None, :] + o_cell[:, None], mask=m, other=0.0)
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, ROWS, 16])
    acc = gl.zeros([GATES, ROWS], gl.float32, SUMS)
    for k in gl.static_range(BLOCKS):
        mbarrier.wait(full.index(k % STAGES), (k // STAGES) & 1)
        acc = warpgroup_mma(
            weight_buffers.index(k % STAGES), hidden_buffers.index(k % STAGES).permute((1, 0)), acc, use_acc=k > 0,
            is_async=True,
        )  # fmt: skip
        acc = warpgroup_mma_wait(num_outstanding=1, deps=[acc])
        if k >= 1 and k - 1 + STAGES < BLOCKS:  # the previous product is done: its stage is free
            barrier()
            stage = full.index((k - 1) % STAGES)
            mbarrier.expect(stage, BYTES)
            async_load(weight_desc, [gate, (k - 1 + STAGES) * TILE.k], stage, weight_buffers.index((k - 1) % STAGES))
            async_load(hidden_desc, [row, (k - 1 + STAGES) * TILE.k], stage, hidden_buffers.index((k - 1) % STAGES))
    acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])
    gates = acc.reshape([2, 4, 2, 8, ROWS]).permute(1, 3, 4, 0, 2).reshape([CELLS, ROWS, 2, 2])
    i_and_g, f_and_o = gl.split(gates)
    i, g = gl.split(i_and_g)
    f, o = gl.split(f_and_o)
    i = gl.convert_layout(i, LAYOUT) + x_i.to(gl.float32)
    f = gl.convert_layout(f, LAYOUT) + x_f.to(gl.float32)
    g = gl.convert_layout(g, LAYOUT) + x_g.to(gl.float32)
    o = gl.convert_layout(o, LAYOUT) + x_o.to(gl.float32)
    c, h = cell(i, f, g, o, c, cell_clip, False, APPROXIMATE)
    o_here = (o_row * C)[None, :] + o_cell[:, None]
    gl.store(cell_ptr + (depth % 2 * SHAPE.D + direction64) * R * C + o_here, c, mask=m)
    gl.store(unprojected + direction64 * R * C + o_here, h.to(unprojected.dtype.element_ty), mask=m)


@gluon.jit(do_not_specialize=["depth", "polls", "N", "R", "T"])
def few_projection_kernel(
    unprojected_desc, weight_desc, projection_clip, tensors, nodes, depth, polls, N, R, T,
    SHAPE: gl.constexpr, TILE: gl.constexpr,
):  # fmt: skip
    """Compute r of one depth, with all of a split's operands in shared memory at once.

    Splits wait for each other, in vain after `polls` looks. Grid: blocks of rows; blocks of columns times splits; D.
    """
    P: gl.constexpr = SHAPE.P
    C: gl.constexpr = SHAPE.C
    ROWS: gl.constexpr = TILE.rows
    COLUMNS: gl.constexpr = TILE.columns
    SPLITS: gl.constexpr = TILE.splits
    SIZE: gl.constexpr = C // SPLITS
    BLOCKS: gl.constexpr = SIZE // TILE.k
    i_rows, i_columns, direction = gl.program_id(0), gl.program_id(1) // SPLITS, gl.program_id(2)
    i_split = gl.program_id(1) % SPLITS
    row_buffers = gl.allocate_shared_memory(weight_desc.dtype, [BLOCKS, ROWS, TILE.k], unprojected_desc.layout)
    weight_buffers = gl.allocate_shared_memory(weight_desc.dtype, [BLOCKS, TILE.k, COLUMNS], weight_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [BLOCKS, 1], mbarrier.MBarrierLayout())
    for k in gl.static_range(BLOCKS):
        mbarrier.init(full.index(k), count=1)
    barrier()
    BYTES: gl.constexpr = unprojected_desc.block_type.nbytes + weight_desc.block_type.nbytes
    for k in gl.static_range(BLOCKS):
        mbarrier.expect(full.index(k), BYTES)
        async_load(
            weight_desc, [direction * C + i_split * SIZE + k * TILE.k, i_columns * COLUMNS], full.index(k),
            weight_buffers.index(k),
        )  # fmt: skip
    _, first, last = depth_nodes(nodes, direction, depth, T)
    SHARE: gl.constexpr = ROWS // SPLITS
    OUT: gl.constexpr = gl.BlockedLayout([1, 4], [2, 16], [TILE.warps, 1], [1, 0])
    o_share = i_split * SHARE + gl.arange(0, SHARE, layout=gl.SliceLayout(1, OUT))
    o_in_block = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, OUT))
    o_column, direction64 = i_columns * COLUMNS + o_in_block, direction.to(gl.int64)
    node = (first + i_rows * ROWS + o_share).to(gl.int64)
    child, n_children = children_of(nodes, direction64, node, node < last, N)
    skipped = load_skipped(tensors, direction64, node, node < last, o_column, N, P)
    wait_for_launch_before()

    for k in gl.static_range(BLOCKS):
        async_load(
            unprojected_desc, [direction * R + i_rows * ROWS, i_split * SIZE + k * TILE.k], full.index(k),
            row_buffers.index(k),
        )  # fmt: skip
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[TILE.warps, 1], instr_shape=[16, COLUMNS, 16]
    )
    acc = gl.zeros([ROWS, COLUMNS], gl.float32, SUMS)
    for k in gl.static_range(BLOCKS):
        mbarrier.wait(full.index(k), 0)
        acc = warpgroup_mma(row_buffers.index(k), weight_buffers.index(k), acc, use_acc=k > 0, is_async=True)
        acc = warpgroup_mma_wait(num_outstanding=1, deps=[acc])
    acc = warpgroup_mma_wait(num_outstanding=0, deps=[acc])

    i_block = (direction * gl.num_programs(0) + i_rows) * (P // COLUMNS) + i_columns
    p_sums = tensors.partial_sums + i_block * (SPLITS * ROWS * COLUMNS)
    o_row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, SUMS))
    o_sum = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, SUMS))
    gl.store(p_sums + i_split * (ROWS * COLUMNS) + o_row[:, None] * COLUMNS + o_sum[None, :], acc)
    arrived = arrive(tensors.counters + i_block, SPLITS)
    late = wait_for_splits(tensors.counters + i_block, arrived, polls)
    p_share = p_sums + o_share[:, None] * COLUMNS + o_in_block[None, :]
    total = gl.zeros([SHARE, COLUMNS], gl.float32, OUT) + late
    for split in gl.static_range(SPLITS):
        total += gl.load(p_share + split * (ROWS * COLUMNS), cache_modifier=".cg")
    m_row = node < last
    r = store_projected(total, projection_clip, tensors, skipped, direction64, node, m_row, o_column, N, P)
    store_to_children(r, tensors, child, n_children, direction64, m_row, o_column, N, P)
