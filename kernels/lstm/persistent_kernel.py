"""The kernel of `persistent`: the steps of many depths in one launch, with the weights on the chip throughout.

A program computes 64 cells of one direction. Their 256 gates are the rows of two matrix products, whose columns are
nodes; the weights of the first are in registers, those of the second in shared memory. Also there are the weights of
the program's part of the projection, 64 columns for the P cells of one split; the P / 64 programs of these cells cover
all columns. `persistent_exchange` has what programs send each other in a step.

All programs must run at once, which a cooperative launch ensures.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from flashelmo.kernels.gluon import async_load, barrier
from flashelmo.kernels.lstm.cell import (
    cell,
    children_of,
    depth_nodes,
    load_skipped,
    store_projected,
    store_to_children,
)
from flashelmo.kernels.lstm.few_rows_kernels import cell_layout, load_input_part
from flashelmo.kernels.lstm.persistent_exchange import (
    CELLS,
    COLUMNS,
    pair,
    receive_cells,
    receive_parents,
    receive_share,
    row_major_layout,
    send_cells,
    send_share,
    send_sums,
    sums_layout,
    words_layout,
)
from flashelmo.kernels.product import clip
from flashelmo.kernels.tuning import CLOCK_WORDS, EXCHANGED_ROWS

K = gl.constexpr(64)  # depth of a block of weights in shared memory
CLOCKS = gl.constexpr(CLOCK_WORDS)
MOST_ROWS = gl.constexpr(EXCHANGED_ROWS)


@gluon.jit
def opaque_zero():
    """Return 0, unknown to the compiler, which would otherwise keep every step-independent number in registers."""
    return gl.inline_asm_elementwise("mov.b32 $0, 0;", "=r", [], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def touch(p_values):
    """Prefetch 32-bit values into the first-level cache, without waiting for them."""
    gl.inline_asm_elementwise(
        "prefetch.global.L1 [$1]; mov.b32 $0, 0;", "=r,l", [p_values], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def copy_weights(
    recurrent_desc, projection_desc, gate_weights, projection, complete, gate, cell, column, BLOCKS: gl.constexpr
):  # fmt: skip
    """Begin to copy weights to shared memory: of the gates g and o, and of the projection of some cells' columns."""
    BYTES: gl.constexpr = 2 * recurrent_desc.block_type.nbytes + projection_desc.block_type.nbytes
    mbarrier.expect(complete, BLOCKS * BYTES)
    for k in gl.static_range(BLOCKS):
        for half in gl.static_range(2):
            part = gate_weights.index(k).slice(64 * half, 64, 0)
            async_load(recurrent_desc, [gate + 128 * half + 64, k * K], complete, part)
        async_load(projection_desc, [cell + k * K, column], complete, projection.index(k))


@gluon.jit
def gates_of(sums):
    """Return two gates, [64, ROWS] each, from sums [128, ROWS]."""
    ROWS: gl.constexpr = sums.shape[1]
    LAYOUT: gl.constexpr = cell_layout(CELLS, ROWS)
    one, other = gl.split(sums.reshape([8, 2, 8, ROWS]).permute(0, 2, 3, 1).reshape([CELLS, ROWS, 2]))
    return gl.convert_layout(one, LAYOUT), gl.convert_layout(other, LAYOUT)


@gluon.jit
def multiply_gates(i_and_f_weights, gate_weights, states, zero, LAYOUT: gl.constexpr):
    """Return the recurrent part of the four gates, [64, ROWS] each, from states [ROWS, P] in shared memory."""
    ROWS: gl.constexpr = states.shape[0]
    none = gl.zeros([128, ROWS], gl.float32, LAYOUT)
    i_and_f = warpgroup_mma(i_and_f_weights, states.permute((1, 0)), none, use_acc=False, is_async=True)
    g_and_o = none
    for k in gl.static_range(states.shape[1] // K):
        some = states.slice(k * K, K, 1).permute((1, 0))
        g_and_o = warpgroup_mma(gate_weights.index(zero + k), some, g_and_o, use_acc=k > 0, is_async=True)
    i_and_f, g_and_o = warpgroup_mma_wait(num_outstanding=0, deps=[i_and_f, g_and_o])
    i, f = gates_of(i_and_f)
    g, o = gates_of(g_and_o)
    return i, f, g, o


@gluon.jit
def multiply_cells(projection, states, zero):
    """Return a split's sums of r, [64, ROWS], from h of its P cells, [ROWS, P] in shared memory."""
    ROWS: gl.constexpr = states.shape[0]
    sums = gl.zeros([COLUMNS, ROWS], gl.float32, sums_layout(ROWS))
    for k in gl.static_range(states.shape[1] // K):
        some = states.slice(k * K, K, 1).permute((1, 0))
        sums = warpgroup_mma(projection.index(zero + k).permute((1, 0)), some, sums, use_acc=k > 0, is_async=True)
    return warpgroup_mma_wait(num_outstanding=0, deps=[sums])


@gluon.jit(do_not_specialize=["depth", "end", "polls", "N", "M", "R", "T"])
def persistent_kernel(
    recurrent_desc, projection_desc, recurrent, x_gates_ptr, cell_clip, projection_clip, tensors, nodes, depth, end,
    polls, N, M, R, T, SHAPE: gl.constexpr, TILE: gl.constexpr, APPROXIMATE: gl.constexpr,
):  # fmt: skip
    """Compute c, h and r of depths `depth` to `end - 1`, none with more nodes than the tile has rows.

    A wait fails after `polls` looks. Grid: C / 64; D.
    """
    P: gl.constexpr = SHAPE.P
    C: gl.constexpr = SHAPE.C
    ROWS: gl.constexpr = TILE.rows
    SPLITS: gl.constexpr = C // P
    SHARE: gl.constexpr = COLUMNS // SPLITS  # columns of r that a program adds up
    BLOCKS: gl.constexpr = P // K
    TYPE: gl.constexpr = recurrent_desc.dtype
    program, direction = gl.program_id(0), gl.program_id(1)
    i_columns, i_split = program % (P // COLUMNS), program // (P // COLUMNS)
    direction64 = direction.to(gl.int64)

    # The weights, which stay on the chip.
    gate_weights = gl.allocate_shared_memory(TYPE, [BLOCKS, 128, K], recurrent_desc.layout)
    projection = gl.allocate_shared_memory(TYPE, [BLOCKS, K, COLUMNS], projection_desc.layout)
    STATES: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, K], TYPE)
    all_states = gl.allocate_shared_memory(TYPE, [1, ROWS, P], STATES)
    complete = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    mbarrier.init(complete.index(0), count=1)
    barrier()
    gate = direction * (4 * C) + program * (4 * CELLS)
    copy_weights(
        recurrent_desc, projection_desc, gate_weights, projection, complete.index(0), gate,
        direction * C + i_split * P, i_columns * COLUMNS, BLOCKS,
    )  # fmt: skip
    GATES: gl.constexpr = gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[8, 1], instr_shape=[16, ROWS, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, GATES, 2)
    o_gate = gl.arange(0, 128, layout=gl.SliceLayout(1, OPERAND))
    o_k = gl.arange(0, P, layout=gl.SliceLayout(0, OPERAND))
    i_and_f_weights = gl.load(recurrent + ((gate + o_gate // 64 * 128 + o_gate % 64) * P)[:, None] + o_k[None, :])

    # The exchanged words: r, h, and two sets of sums. Each direction has its own words, as it has its own tags.
    SUMS: gl.constexpr = SPLITS * ROWS * P
    WORDS_OF_DIRECTION: gl.constexpr = MOST_ROWS * (P // 2 + C // 2 + 2 * C)
    p_clock = tensors.exchange + direction * CLOCKS
    p_r = tensors.exchange + SHAPE.D * CLOCKS + direction * WORDS_OF_DIRECTION
    p_h = p_r + ROWS * (P // 2)
    p_both_sums = p_h + ROWS * (C // 2)
    tag = gl.load(p_clock, volatile=True).to(gl.int32)

    LAYOUT: gl.constexpr = cell_layout(CELLS, ROWS)
    TOTAL: gl.constexpr = row_major_layout(ROWS, SHARE, 2)
    start = depth
    _, first, last = depth_nodes(nodes, direction, depth, T)
    first_of_all, n = first, first - first  # a name that a loop gives to another's value is not carried by it
    mbarrier.wait(complete.index(0), 0)
    while (depth < end) & (first < last):
        tag += 1
        n = last - first
        zero = opaque_zero()
        states = all_states.index(zero)
        p_sums = p_both_sums + (tag & 1) * SUMS
        o_word = zero + gl.arange(0, P // 2, layout=gl.SliceLayout(0, words_layout(P // 2)))
        o_cell = zero + program * CELLS + gl.arange(0, CELLS, layout=gl.SliceLayout(1, LAYOUT))
        o_row = zero + gl.arange(0, ROWS, layout=gl.SliceLayout(0, LAYOUT))
        p_parents = nodes.parents + direction64 * N + first
        following = gl.load(nodes.starts + direction * (T + 2) + depth + 2, mask=depth + 1 < end, other=0)

        # The input part and c load while this waits for the parents' r.
        x_i, x_f, x_g, x_o = load_input_part(
            x_gates_ptr, nodes, direction64, first, first_of_all, o_cell, o_row, o_row < n, N, M, C
        )  # fmt: skip
        parent = gl.load(p_parents + o_row, mask=o_row < n, other=0)
        p_before = tensors.cell + ((depth + 1) % 2 * SHAPE.D + direction64) * R * C
        m = (o_row < n)[None, :]
        c = gl.load(p_before + (parent * C)[None, :] + o_cell[:, None], mask=m, other=0.0)
        receive_parents(
            states, p_r, p_parents, tensors, direction64, first, depth == start, o_word, n, tag, polls, zero, N, P
        )  # fmt: skip
        fence_async_shared()
        barrier()

        # Gates, c and h.
        i, f, g, o = multiply_gates(i_and_f_weights, gate_weights, states, zero, GATES)
        i += x_i.to(gl.float32)
        f += x_f.to(gl.float32)
        g += x_g.to(gl.float32)
        o += x_o.to(gl.float32)
        c, h = cell(i, f, g, o, c, cell_clip, False, APPROXIMATE)
        send_cells(p_h, h.to(TYPE), program, n, tag, zero, C)
        p_after = tensors.cell + (depth % 2 * SHAPE.D + direction64) * R * C
        gl.store(p_after + (o_row * C)[None, :] + o_cell[:, None], c, mask=m)
        barrier()  # all threads are done multiplying `states`, and all of c is stored

        # The split's sums of r, from the h of its P cells. The next step begins by reading its parents.
        o_touched = gl.arange(0, 32, layout=gl.BlockedLayout([1], [32], [8], [0]))
        touch(p_parents + gl.where(o_touched < following - last, n + o_touched, 0))
        receive_cells(states, p_h, i_split, o_word, n, tag, polls, zero, P, C)
        fence_async_shared()
        barrier()
        send_sums(p_sums, multiply_cells(projection, states, zero), i_columns, i_split, n, tag, zero, SPLITS)
        barrier()  # all threads are done multiplying `states`

        # r of this program's share of columns, sent to the others first.
        first_column = i_columns * COLUMNS + i_split * SHARE
        o_column = zero + first_column + gl.arange(0, SHARE, layout=gl.SliceLayout(0, TOTAL))
        o_node = zero + gl.arange(0, ROWS, layout=gl.SliceLayout(1, TOTAL))
        node, m_node = (first + o_node).to(gl.int64), o_node < n
        skipped = load_skipped(tensors, direction64, node, m_node, o_column, N, P)  # loads meanwhile
        low, high = receive_share(p_sums, i_columns, i_split, n, tag, polls, zero, ROWS, SPLITS)
        values = pair(clip(low, projection_clip).to(TYPE), clip(high, projection_clip).to(TYPE))
        send_share(p_r, values, first_column, n, tag, zero, P)
        total = gl.convert_layout(gl.join(low, high).reshape([ROWS, SHARE]), TOTAL)
        store_projected(total, projection_clip, tensors, skipped, direction64, node, m_node, o_column, N, P)
        depth += 1
        first = last
        last = following

    # The n rows that the next launch begins with; each thread only reads here what it has stored itself.
    o_column = i_columns * COLUMNS + i_split * SHARE + gl.arange(0, SHARE, layout=gl.SliceLayout(0, TOTAL))
    node = (first - n + gl.arange(0, ROWS, layout=gl.SliceLayout(1, TOTAL))).to(gl.int64)
    m_node = node < first
    child, n_children = children_of(nodes, direction64, node, m_node, N)
    p_hidden = tensors.hidden + ((direction64 * N + node) * P)[:, None] + o_column[None, :]
    r = gl.load(p_hidden, mask=m_node[:, None], other=0.0)
    store_to_children(r, tensors, child, n_children, direction64, m_node, o_column, N, P)
    barrier()
    ended = gl.atomic_add(p_clock + 1, 1, sem="acq_rel") + 1
    if ended % gl.num_programs(0) == 0:  # the last one of the direction
        gl.store(p_clock, tag.to(gl.int64))
