"""The product with bias of `linear`, in 16 bits by bulk copies (TMA), which feed Hopper's matrix units.

Blocks of x, of the weight and of the result are boxes of a tensor that the card copies by itself: outside the tensor
they read as zero and are not written. A result of many tiles is computed by as many programs as run at once, which go
from tile to tile, so that a tile is loaded while the previous one is still being stored; a result of few tiles has a
program per tile. The weight may be stored either way, [K, F] or with each column's K values contiguous.

Letters: D matrices, n rows, K inputs, F outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from flashelmo.kernels.launch import Launch
from flashelmo.kernels.tuning import ROW_GROUP, TMA_ROWS, TMA_TILES, Tile, is_hopper, n_multiprocessors

STORED_BYTES = 256  # of a row of the result at a time: a store takes shared memory, which blocks in flight then lack
ALIGNED = 16  # bytes: the rows of a tensor begin at multiples of this


@triton.jit
def store_columns(
    acc, bias_ptr, out, d, row, column,
    F: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Write sums [ROWS, COLUMNS] plus bias to the result, part of the columns at a time to save shared memory."""
    HALF: tl.constexpr = COLUMNS // 2
    if PARTS > 1:
        left, right = tl.split(tl.permute(tl.reshape(acc, (ROWS, 2, HALF)), (0, 2, 1)))
        store_columns(left, bias_ptr, out, d, row, column, F, ROWS, HALF, PARTS // 2)
        store_columns(right, bias_ptr, out, d, row, column + HALF, F, ROWS, HALF, PARTS // 2)
    else:
        o_column = column + tl.arange(0, COLUMNS)
        acc += tl.load(bias_ptr + d * F + o_column, mask=o_column < F, other=0.0)[None, :]
        out.store([d, row, column], tl.reshape(acc.to(out.dtype), (1, ROWS, COLUMNS)))


@triton.jit
def product_tile(
    tile, x, weight, bias_ptr, out, first_ptr, n, offset, first_stride, K: tl.constexpr, F: tl.constexpr,
    K_MAJOR: tl.constexpr, TILE: tl.constexpr, PARTS: tl.constexpr, ROW_GROUP: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the result: matrix by matrix, in groups of row blocks that pass over all columns."""
    ROWS: tl.constexpr = TILE.rows
    COLUMNS: tl.constexpr = TILE.columns
    BLOCK_K: tl.constexpr = TILE.k
    row_blocks, column_blocks = tl.cdiv(n, ROWS), tl.cdiv(F, COLUMNS)
    d = tile // (row_blocks * column_blocks)
    tile = tile % (row_blocks * column_blocks)
    first = tile // (ROW_GROUP * column_blocks) * ROW_GROUP
    group = tl.minimum(row_blocks - first, ROW_GROUP)
    tile = tile % (ROW_GROUP * column_blocks)
    row, column = (first + tile % group) * ROWS, tile // group * COLUMNS
    if first_ptr is not None:
        offset += tl.load(first_ptr + d * first_stride)
    acc = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, K, BLOCK_K):
        a = tl.reshape(x.load([d, offset + row, k]), (ROWS, BLOCK_K))
        if K_MAJOR:
            b = tl.reshape(weight.load([d, column, k]), (COLUMNS, BLOCK_K)).T
        else:
            b = tl.reshape(weight.load([d, k, column]), (BLOCK_K, COLUMNS))
        acc = tl.dot(a, b, acc)
    store_columns(acc, bias_ptr, out, d, row, column, F, ROWS, COLUMNS, PARTS)


@triton.jit(do_not_specialize=["n", "first", "first_stride"])
def linear_tma_kernel(
    x_desc, weight_desc, bias_ptr, out_desc, first_ptr, count_ptr, n, first, first_stride,
    D: tl.constexpr, K: tl.constexpr, F: tl.constexpr, K_MAJOR: tl.constexpr,
    TILE: tl.constexpr, PARTS: tl.constexpr, ROW_GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """Compute the result. Grid: PROGRAMS, which share the tiles; or, where that is 0, a program per tile."""
    if count_ptr is not None:
        n = tl.load(count_ptr)
    n_tiles = D * tl.cdiv(n, TILE.rows) * tl.cdiv(F, TILE.columns)
    if PROGRAMS == 0:
        if count_ptr is None or tl.program_id(0) < n_tiles:
            product_tile(
                tl.program_id(0), x_desc, weight_desc, bias_ptr, out_desc, first_ptr, n, first, first_stride,
                K, F, K_MAJOR, TILE, PARTS, ROW_GROUP,
            )  # fmt: skip
    else:
        for tile in tl.range(tl.program_id(0), n_tiles, PROGRAMS, flatten=True):
            product_tile(
                tile, x_desc, weight_desc, bias_ptr, out_desc, first_ptr, n, first, first_stride,
                K, F, K_MAJOR, TILE, PARTS, ROW_GROUP,
            )  # fmt: skip


def is_served(x: Tensor, n: int) -> bool:
    """Whether this kernel, if able, is the best for x with so many rows on this card."""
    return is_hopper(x.device) and n >= TMA_ROWS


def is_able(x: Tensor, weight: Tensor, out: Tensor) -> bool:
    """Whether the tensors have 16 bits, and rows and matrices begin where bulk copies can begin."""
    multiples = [*weight.shape[-2:], *weight.stride()[:-2]]
    aligned = all(tensor.data_ptr() % ALIGNED == 0 for tensor in (x, weight, out))
    return x.itemsize == 2 and aligned and all(2 * size % ALIGNED == 0 for size in multiples)


def linear_tma_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    *,
    first_rows: Tensor | None = None,
    first: int = 0,
    count: Tensor | None = None,
    tile: Tile | None = None,
    programs: int | None = None,
) -> Launch:
    """Return the launch that writes x @ weight + bias to `out` with this kernel.

    It checks nothing: `linear.linear_launch` has checked its arguments, including for what `is_able` requires.

    Args:
        x: bf16 or fp16 [n, K] or [D, n, K], or more rows, with `first` and `first_rows` saying where the n begin.
        weight: [K, F] or [D, K, F] in x's type, each matrix or its transpose contiguous.
        bias: float32 [F] or [D, F].
        out: [n, F] or [D, n, F], in x's type or float32.
        first_rows: int32 [D] on the device, added to `first`.
        first: the row of x that the n rows begin with, in all matrices.
        count: int32 [1] on the device, how many of the n rows there are.
        tile: used instead of the table's.
        programs: how many run at once; by default as many as the device has multiprocessors.
    """
    if x.ndim == 2:
        x, weight, out = x[None], weight[None], out[None]
    (D, _, K), (n, F), programs = x.shape, out.shape[1:], programs or n_multiprocessors(x.device)
    tile = tile or choose_tma_tile("linear", D, n, F, programs)
    n_tiles, k_major = count_tiles(tile, D, n, F), is_k_major(weight)
    parts = max(1, tile.columns * out.itemsize // STORED_BYTES)
    if n_tiles == 0:
        return Launch(linear_tma_kernel, (0,), {}, tile.options)
    weight, box = (weight.mT, (tile.columns, tile.k)) if k_major else (weight, (tile.k, tile.columns))
    arguments = {
        "x_desc": _boxes(x, tile.rows, tile.k),
        "weight_desc": _boxes(weight, *box),
        "bias_ptr": bias,
        "out_desc": _boxes(out, tile.rows, tile.columns // parts),
        "first_ptr": first_rows,
        "count_ptr": count,
        "n": n,
        "first": first,
        "first_stride": 0 if first_rows is None else first_rows.stride(0),
        "D": D,
        "K": K,
        "F": F,
        "K_MAJOR": k_major,
        "TILE": tile,
        "PARTS": parts,
        "ROW_GROUP": ROW_GROUP,
        "PROGRAMS": programs if n_tiles > programs else 0,
    }
    return Launch(linear_tma_kernel, (min(n_tiles, programs),), arguments, tile.options)


def is_k_major(weight: Tensor) -> bool:
    """Whether a column's K values are contiguous, rather than a row's F."""
    return weight.stride(-1) != 1 and weight.stride(-2) == 1


def choose_tma_tile(operation: str, D: int, n: int, F: int, programs: int) -> Tile:
    """Return the table's tile for a result [D, n, F] when so many programs run at once.

    Raises:
        KeyError: the table has no such operation.
    """
    tiles = TMA_TILES[operation]
    return next((tile for tile in tiles if 4 * count_tiles(tile, D, n, F) >= 3 * programs), tiles[-1])


def count_tiles(tile: Tile, D: int, n: int, F: int) -> int:
    """Return the number of tiles of a result [D, n, F]."""
    return int(D * triton.cdiv(n, tile.rows) * triton.cdiv(F, tile.columns))


def _boxes(tensor: Tensor, *box: int) -> TensorDescriptor:
    """Return the descriptor of matrices [D, rows, columns] whose boxes are parts of one matrix."""
    return TensorDescriptor.from_tensor(tensor, [1, *box])
