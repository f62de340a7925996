"""How programs of `persistent` send each other values: words with tags, and which thread sends or waits for which.

In a step, programs exchange three things through the L2 cache: h among those of a split, the splits' sums of r, and r
among all of a direction. Each value is sent in a 64-bit word beside a tag that tells its step, so that a receiver polls
the word itself; there are no counters and no fences (as in NCCL's LL protocol). A word is rewritten only when all have
read it, as a step needs something from every program. That does not hold for sums, since no program waits for the r of
nodes without children: successive steps alternate between two sets of words for sums.

A wait that fails ends: the values it was for become NaN, and so does everything computed from them.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

CELLS = gl.constexpr(64)  # per program
COLUMNS = gl.constexpr(64)  # of the projection, per program


# ---------------------------------------------------------------------------------------------------------------- words


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


# -------------------------------------------------------------------------------------------------------------- layouts


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


# ------------------------------------------------------------------------------------------------------ a step's values


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


@gluon.jit
def receive_parents(
    states, p_r, p_parents, tensors, direction, first, is_first, o_word, n, tag, polls, zero, N, P: gl.constexpr
):  # fmt: skip
    """Put r of a depth's n nodes' parents in shared memory [ROWS, P]: as sent, or as given for the first depth."""
    WORDS: gl.constexpr = words_layout(P // 2)
    for block in gl.static_range(states.shape[0] // 8):
        o_node = zero + 8 * block + gl.arange(0, 8, layout=gl.SliceLayout(1, WORDS))
        if 8 * block < n:
            if is_first:
                p_given = tensors.parent_hidden + (direction * N + first) * P
                p_given = p_given + (o_node * P)[:, None] + (2 * o_word)[None, :]
                low = gl.load(p_given, mask=(o_node < n)[:, None], other=0.0)
                high = gl.load(p_given + 1, mask=(o_node < n)[:, None], other=0.0)
                states.slice(8 * block, 8, 0).store(gl.join(low, high).reshape([8, P]))
            else:
                row = gl.load(p_parents + o_node, mask=o_node < n, other=-1)
                values = receive(p_r + o_word[None, :], row[:, None], tag - 1, polls, P // 2, P // 64)
                states.slice(8 * block, 8, 0).store(unpair(values, states.dtype))


@gluon.jit
def receive_cells(states, p_h, i_split, o_word, n, tag, polls, zero, P: gl.constexpr, C: gl.constexpr):
    """Put h of a split's P cells of a depth's n nodes in shared memory [ROWS, P]."""
    WORDS: gl.constexpr = words_layout(P // 2)
    for block in gl.static_range(states.shape[0] // 8):
        o_node = zero + 8 * block + gl.arange(0, 8, layout=gl.SliceLayout(1, WORDS))
        if 8 * block < n:
            row = gl.where(o_node < n, o_node, -1)
            values = receive(p_h + i_split * (P // 2) + o_word[None, :], row[:, None], tag, polls, C // 2, P // 64)
            states.slice(8 * block, 8, 0).store(unpair(values, states.dtype))


@gluon.jit
def receive_share(
    p_sums, i_columns, i_split, n, tag, polls, zero, ROWS: gl.constexpr, SPLITS: gl.constexpr
):  # fmt: skip
    """Return r of a program's share of columns, before the clip: those of even and of odd number, [ROWS, SHARE / 2]."""
    SHARE: gl.constexpr = COLUMNS // SPLITS
    LAYOUT: gl.constexpr = row_major_layout(ROWS, SHARE // 2, 1)
    o_node = zero + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    o_pair = zero + gl.arange(0, SHARE // 2, layout=gl.SliceLayout(0, LAYOUT))
    word = (i_columns * SPLITS + i_split) * (SPLITS * ROWS * SHARE)
    word = word + (o_node * SHARE)[:, None] + (2 * o_pair)[None, :]
    return receive_sums(p_sums, gl.where((o_node < n)[:, None], word, -1), tag, polls, SPLITS, ROWS * SHARE)


@gluon.jit
def send_share(p_r, values, first_column, n, tag, zero, P: gl.constexpr):
    """Send r of a program's share of columns to all others of its direction, two columns per word."""
    ROWS: gl.constexpr = values.shape[0]
    WORDS: gl.constexpr = values.shape[1]
    LAYOUT: gl.constexpr = row_major_layout(ROWS, WORDS, 1)
    o_node = zero + gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT))
    o_pair = zero + gl.arange(0, WORDS, layout=gl.SliceLayout(0, LAYOUT))
    word = (o_node * (P // 2))[:, None] + (first_column // 2 + o_pair)[None, :]
    send(p_r, gl.where((o_node < n)[:, None], word, -1), values, tag)
