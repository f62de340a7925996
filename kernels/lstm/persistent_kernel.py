"""The kernel of `persistent`: the steps of many depths in one launch, with the weights on the chip throughout.

A program computes 64 cells of one direction. Their 256 gates are the rows of two matrix products, whose columns are
nodes; the weights of the first are in registers, those of the second in shared memory. Also there are the weights of
the program's part of the projection, 64 columns for the P cells of one split; the P / 64 programs of these cells cover
all columns.

In a step, programs exchange three things through the L2 cache: h among those of a split, the splits' sums of r, and r
among all of a direction. Each value is sent in a 64-bit word beside a tag that tells its step, so that a receiver polls
the word itself; there are no counters and no fences (as in NCCL's LL protocol). A word is rewritten only when all have
read it, as a step needs something from every program. That does not hold for sums, since no program waits for the r of
nodes without children: successive steps alternate between two sets of words for sums.

All programs must run at once, which a cooperative launch ensures. A wait that fails ends: the values it was for become
NaN, and so does everything computed from them.
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
from flashelmo.kernels.product import clip
from flashelmo.kernels.tuning import CLOCK_WORDS, EXCHANGED_ROWS

CELLS = gl.constexpr(64)  # per program
COLUMNS = gl.constexpr(64)  # of the projection, per program
K = gl.constexpr(64)  # depth of a block of weights in shared memory
CLOCKS = gl.constexpr(CLOCK_WORDS)
MOST_ROWS = gl.constexpr(EXCHANGED_ROWS)


# ------------------------------------------------------------------------------------------------------------ exchange


@gluon.constexpr_function
def waiting(loads, values, results, polls):
    """Return assembly that loads words until all have the tag, from lines that load and lines that read their values.

    Args:
        polls: operand, how often it does so at most.
        loads: lines that load; a word that need not be waited for gets its tag beforehand.
        values: lines that split the words into values and tags, the latter compared with `check`.
        results: operands of type f32 or b32, set to NaN if the wait failed.
    """
    declared = ["{", ".reg .pred there, missing;", ".reg .b32 tag, wrong, left, bits;", ".reg .b64 at;"]
    end = ["setp.ne.b32 missing, wrong, 0;", "setp.gt.and.s32 there, left, 0, missing;", "@there bra again;"]
    end += [f"@missing mov.b32 {result}, -1;" for result in results]
    begin = [f"mov.b32 left, {polls};", "again:", "sub.s32 left, left, 1;", "mov.b32 wrong, 0;"]
    return "\n".join([*declared, *begin, *loads, *values, *end, "bar.warp.sync -1;", "}"])


@gluon.constexpr_function
def check(tag):
    """Return lines that note whether a word's tag is a different one."""
    return [f"xor.b32 tag, tag, {tag};", "or.b32 wrong, wrong, tag;"]


@gluon.constexpr_function
def receive_code(n, stride):
    """Return `receive`'s assembly: $0 to $n-1: values; then rows, addresses of row 0, tags and polls, n of each."""
    address, tag = f"${2 * n}", f"${3 * n}"
    loads, values = [f".reg .b64 word<{n}>;"], []
    for k in range(n):
        loads += [f"mov.b64 word{k}, {{0, {tag}}};", f"setp.ge.s32 there, ${n + k}, 0;"]
        loads += [f"mad.wide.s32 at, ${n + k}, {8 * stride}, {address};"]
        loads += [f"@there ld.relaxed.gpu.global.b64 word{k}, [at];"]
        values += [f"mov.b64 {{${k}, tag}}, word{k};", *check(tag)]
    return waiting(loads, values, [f"${k}" for k in range(n)], f"${4 * n}")


@gluon.constexpr_function
def receive_constraints(n):
    """Return the operand constraints of `receive_code`."""
    return ",".join(["=&r"] * n + ["r"] * n + ["l"] * n + ["r"] * (2 * n))


@gluon.jit
def receive(p_words, row, tag, polls, STRIDE: gl.constexpr, N: gl.constexpr):
    """Receive 32-bit values sent to rows of words, STRIDE apart; 0 for row -1. A thread has N of one column."""
    return gl.inline_asm_elementwise(
        receive_code(N, STRIDE), receive_constraints(N), [row, p_words, tag, polls], dtype=gl.int32,
        is_pure=False, pack=N,
    )  # fmt: skip


@gluon.constexpr_function
def receive_sums_code(splits, stride):
    """Return `receive_sums`' assembly: $0, $1: sums; then the first word's number, address of word 0, tag, polls."""
    loads = [f".reg .b64 first<{splits}>, second<{splits}>;", ".reg .f32 value;"]
    loads += ["setp.ge.s32 there, $2, 0;", "mad.wide.s32 at, $2, 8, $3;"]
    values = ["mov.f32 $0, 0f00000000;", "mov.f32 $1, 0f00000000;"]
    for k in range(splits):
        loads += [f"mov.b64 {name}{k}, {{0, $4}};" for name in ("first", "second")]
        loads += [f"@there ld.relaxed.gpu.global.v2.b64 {{first{k}, second{k}}}, [at + {8 * k * stride}];"]
        for result, name in (("$0", "first"), ("$1", "second")):
            values += [f"mov.b64 {{bits, tag}}, {name}{k};", *check("$4")]
            values += ["mov.b32 value, bits;", f"add.rn.f32 {result}, {result}, value;"]
    return waiting(loads, values, ["$0", "$1"], "$5")


@gluon.jit
def receive_sums(p_words, word, tag, polls, SPLITS: gl.constexpr, STRIDE: gl.constexpr):
    """Return the sums over splits, in order, of a word and the next one, float32; the splits' words are STRIDE apart.

    The sums are 0 where the word is -1.
    """
    return gl.inline_asm_elementwise(
        receive_sums_code(SPLITS, STRIDE), "=&f,=&f,r,l,r,r", [word, p_words, tag, polls],
        dtype=(gl.float32, gl.float32), is_pure=False, pack=1,
    )  # fmt: skip


SEND = gl.constexpr("""{
    .reg .pred there;
    .reg .b64 value, at;
    setp.ge.s32 there, $1, 0;
    mad.wide.s32 at, $1, 8, $2;
    mov.b64 value, {$3, $4};
    @there st.relaxed.gpu.global.b64 [at], value;
    mov.b32 $0, 0;
    }""")


@gluon.jit
def send(p_words, word, values, tag):
    """Write 32-bit values to words (none where the word is -1), each with the tag of its step."""
    gl.inline_asm_elementwise(
        SEND, "=r,r,l,r,r", [word, p_words, values, tag], dtype=gl.int32, is_pure=False, pack=1
    )  # fmt: skip


@gluon.jit
def pair(low, high):
    """Pack two 16-bit values into one of 32."""
    low = low.to(gl.int16, bitcast=True).to(gl.int32) & 0xFFFF
    return low | (high.to(gl.int16, bitcast=True).to(gl.int32) << 16)


@gluon.jit
def unpair(values, TYPE: gl.constexpr):
    """Unpack 32-bit values [M, N] into 16-bit ones [M, 2N]."""
    low = values.to(gl.int16).to(TYPE, bitcast=True)
    high = (values >> 16).to(gl.int16).to(TYPE, bitcast=True)
    return gl.join(low, high).reshape([values.shape[0], 2 * values.shape[1]])


# ------------------------------------------------------------------------------------------------------------- layouts


@gluon.constexpr_function
def paired_layout(ROWS):
    """Return `cell_layout` changed so that a thread holds two consecutive cells of a node instead of two nodes."""
    more = [[0, 1 << k] for k in range(3, ROWS.bit_length() - 1)]
    lanes = [[0, 2], [0, 4], [0, 1], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout([[1, 0], *more], lanes, [[8, 0], [16, 0], [32, 0]], [], [64, ROWS])


@gluon.constexpr_function
def pairs_layout(ROWS):
    """Return the layout of the pairs of cells of `paired_layout`, [32, ROWS]."""
    more = [[0, 1 << k] for k in range(3, ROWS.bit_length() - 1)]
    lanes = [[0, 2], [0, 4], [0, 1], [1, 0], [2, 0]]
    return gl.DistributedLinearLayout(more, lanes, [[4, 0], [8, 0], [16, 0]], [], [32, ROWS])


@gluon.constexpr_function
def sums_layout(ROWS):
    """Return the layout of a split's sums, [64, ROWS]."""
    return gl.NVMMADistributedLayout(version=[3, 0], warps_per_cta=[4, 2], instr_shape=[16, ROWS // 2, 16])


@gluon.constexpr_function
def words_layout(PAIRS):
    """Return which thread waits for which words of 8 nodes, [8, PAIRS]: each for some nodes' words in one column."""
    across = PAIRS // 32
    return gl.BlockedLayout([across, 1], [1, 32], [8 // across, across], [1, 0])


@gluon.constexpr_function
def row_major_layout(ROWS, COLUMNS, n_together):
    """Return a layout of [ROWS, COLUMNS] over 8 warps, with `n_together` neighbours of a row per thread."""
    bits = [[0, 1 << k] for k in range(COLUMNS.bit_length() - 1)] + [[1 << k, 0] for k in range(ROWS.bit_length() - 1)]
    bits, together = bits[n_together - 1 :], bits[: n_together - 1]
    lanes, warps = (bits[:5] + [[0, 0]] * 5)[:5], (bits[5:8] + [[0, 0]] * 3)[:3]
    return gl.DistributedLinearLayout([*together, *bits[8:]], lanes, warps, [], [ROWS, COLUMNS])


# -------------------------------------------------------------------------------------------------------------- a step


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
def gates_of(sums):
    """Return two gates, [64, ROWS] each, from sums [128, ROWS]."""
    ROWS: gl.constexpr = sums.shape[1]
    LAYOUT: gl.constexpr = cell_layout(CELLS, ROWS)
    one, other = gl.split(sums.reshape([8, 2, 8, ROWS]).permute(0, 2, 3, 1).reshape([CELLS, ROWS, 2]))
    return gl.convert_layout(one, LAYOUT), gl.convert_layout(other, LAYOUT)


@gluon.jit
def send_cells(p_h, h, program, n, tag, zero, C: gl.constexpr):
    """Send h [64, ROWS] of a program's cells to the others, two cells per word."""
    ROWS: gl.constexpr = h.shape[1]
    LAYOUT: gl.constexpr = pairs_layout(ROWS)
    pairs = gl.convert_layout(h, paired_layout(ROWS)).reshape([CELLS // 2, 2, ROWS]).permute(0, 2, 1)
    low, high = gl.split(pairs)
    values = gl.convert_layout(pair(low, high), LAYOUT, assert_trivial=True)
    o_pair = zero + program * (CELLS // 2) + gl.arange(0, CELLS // 2, layout=gl.SliceLayout(1, LAYOUT))
    o_node = zero + gl.arange(0, ROWS, layout=gl.SliceLayout(0, LAYOUT))
    send(p_h, gl.where((o_node < n)[None, :], (o_node * (C // 2))[None, :] + o_pair[:, None], -1), values, tag)


@gluon.jit
def send_sums(p_sums, sums, i_columns, i_split, n, tag, zero, SPLITS: gl.constexpr):
    """Send a split's sums [64, ROWS] to the programs that add them: words [block, share, split, node, column]."""
    ROWS: gl.constexpr = sums.shape[1]
    SHARE: gl.constexpr = COLUMNS // SPLITS
    LAYOUT: gl.constexpr = sums_layout(ROWS)
    o_column = zero + gl.arange(0, COLUMNS, layout=gl.SliceLayout(1, LAYOUT))
    o_node = zero + gl.arange(0, ROWS, layout=gl.SliceLayout(0, LAYOUT))
    block = (i_columns * SPLITS + o_column // SHARE) * SPLITS + i_split
    word = (block * (ROWS * SHARE) + o_column % SHARE)[:, None] + (o_node * SHARE)[None, :]
    send(p_sums, gl.where((o_node < n)[None, :], word, -1), sums.to(gl.int32, bitcast=True), tag)


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
    N_WAITS: gl.constexpr = P // 64  # for words, per thread at once
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
    BYTES: gl.constexpr = 2 * recurrent_desc.block_type.nbytes + projection_desc.block_type.nbytes
    mbarrier.expect(complete.index(0), BLOCKS * BYTES)
    gate = direction * (4 * C) + program * (4 * CELLS)
    for k in gl.static_range(BLOCKS):
        for half in gl.static_range(2):
            part = gate_weights.index(k).slice(64 * half, 64, 0)
            async_load(
                recurrent_desc, [gate + 128 * half + 64, k * K], complete.index(0), part
            )  # fmt: skip
        async_load(
            projection_desc, [direction * C + i_split * P + k * K, i_columns * COLUMNS], complete.index(0),
            projection.index(k),
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
    WORDS: gl.constexpr = words_layout(P // 2)
    PAIRS: gl.constexpr = row_major_layout(ROWS, SHARE // 2, 1)
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
        o_word = zero + gl.arange(0, P // 2, layout=gl.SliceLayout(0, WORDS))
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
        for block in gl.static_range(ROWS // 8):
            o_node = zero + 8 * block + gl.arange(0, 8, layout=gl.SliceLayout(1, WORDS))
            if 8 * block < n:
                if depth == start:
                    p_given = tensors.parent_hidden + (direction64 * N + first) * P
                    p_given = p_given + (o_node * P)[:, None] + (2 * o_word)[None, :]
                    low = gl.load(p_given, mask=(o_node < n)[:, None], other=0.0)
                    high = gl.load(p_given + 1, mask=(o_node < n)[:, None], other=0.0)
                    states.slice(8 * block, 8, 0).store(gl.join(low, high).reshape([8, P]))
                else:
                    row = gl.load(p_parents + o_node, mask=o_node < n, other=-1)
                    values = receive(p_r + o_word[None, :], row[:, None], tag - 1, polls, P // 2, N_WAITS)
                    states.slice(8 * block, 8, 0).store(unpair(values, TYPE))
        fence_async_shared()
        barrier()

        # Gates, c and h.
        none = gl.zeros([128, ROWS], gl.float32, GATES)
        i_and_f = warpgroup_mma(i_and_f_weights, states.permute((1, 0)), none, use_acc=False, is_async=True)
        g_and_o = none
        for k in gl.static_range(BLOCKS):
            some = states.slice(k * K, K, 1).permute((1, 0))
            g_and_o = warpgroup_mma(gate_weights.index(zero + k), some, g_and_o, use_acc=k > 0, is_async=True)
        i_and_f, g_and_o = warpgroup_mma_wait(num_outstanding=0, deps=[i_and_f, g_and_o])
        i, f = gates_of(i_and_f)
        g, o = gates_of(g_and_o)
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
        for block in gl.static_range(ROWS // 8):
            o_node = zero + 8 * block + gl.arange(0, 8, layout=gl.SliceLayout(1, WORDS))
            if 8 * block < n:
                row = gl.where(o_node < n, o_node, -1)
                values = receive(p_h + i_split * (P // 2) + o_word[None, :], row[:, None], tag, polls, C // 2, N_WAITS)
                states.slice(8 * block, 8, 0).store(unpair(values, TYPE))
        fence_async_shared()
        barrier()
        sums = gl.zeros([COLUMNS, ROWS], gl.float32, sums_layout(ROWS))
        for k in gl.static_range(BLOCKS):
            some = states.slice(k * K, K, 1).permute((1, 0))
            sums = warpgroup_mma(projection.index(zero + k).permute((1, 0)), some, sums, use_acc=k > 0, is_async=True)
        sums = warpgroup_mma_wait(num_outstanding=0, deps=[sums])
        send_sums(p_sums, sums, i_columns, i_split, n, tag, zero, SPLITS)
        barrier()  # all threads are done multiplying `states`

        # r of this program's share of columns, sent to the others first.
        first_column = i_columns * COLUMNS + i_split * SHARE
        o_column = zero + first_column + gl.arange(0, SHARE, layout=gl.SliceLayout(0, TOTAL))
        o_node = zero + gl.arange(0, ROWS, layout=gl.SliceLayout(1, TOTAL))
        node, m_node = (first + o_node).to(gl.int64), o_node < n
        skipped = load_skipped(tensors, direction64, node, m_node, o_column, N, P)  # loads meanwhile
        o_row = zero + gl.arange(0, ROWS, layout=gl.SliceLayout(1, PAIRS))
        o_pair = zero + gl.arange(0, SHARE // 2, layout=gl.SliceLayout(0, PAIRS))
        m_pair = (o_row < n)[:, None]
        word = (i_columns * SPLITS + i_split) * (SPLITS * ROWS * SHARE)
        word = word + (o_row * SHARE)[:, None] + (2 * o_pair)[None, :]
        low, high = receive_sums(p_sums, gl.where(m_pair, word, -1), tag, polls, SPLITS, ROWS * SHARE)
        values = pair(clip(low, projection_clip).to(TYPE), clip(high, projection_clip).to(TYPE))
        word = (o_row * (P // 2))[:, None] + (first_column // 2 + o_pair)[None, :]
        send(p_r, gl.where(m_pair, word, -1), values, tag)
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
