"""Tiles: how much of the result one program computes, by operation, number type and rows.

All of `TILES` fit in 99 KiB of shared memory, the least among the cards (sm_120; sm_86 and sm_89 too); on sm_90 two
programs then share a multiprocessor if their registers allow it, and one's epilogue runs beside the other's product.
`python -m benchmarks resources` prints what each entry costs.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, get_args

import torch

from flashelmo.kernels.arguments import Products

ANY = 1 << 62  # rows


class Tile(NamedTuple):
    """One program's share.

    Attributes:
        rows, columns: of the result; for the LSTM's gates columns are cells (4 gates), for highways features (2).
        k: summed at once.
        warps, stages: of a program; stages - 1 blocks of k are on their way while one is multiplied.
        splits: programs that one sum over k is split among (split-K).
    """

    rows: int
    columns: int
    k: int
    warps: int
    stages: int
    splits: int = 1

    @property
    def options(self) -> dict[str, int]:
        """As Triton's compiler takes them."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    @property
    def label(self) -> str:
        """As "64x32x64 4w 4s /8": rows, columns, k, warps, stages, splits."""
        splits = f" /{self.splits}" if self.splits > 1 else ""
        return f"{self.rows}x{self.columns}x{self.k} {self.warps}w {self.stages}s{splits}"


# (operation, kind of product) -> for up to so many rows, the tile. Kinds: "half" (bf16, fp16), "int8" (integers of 8
# bits), "tf32", "ieee".
TILES: dict[tuple[str, str], tuple[tuple[int, Tile], ...]] = {
    ("gates", "half"): (
        (16, Tile(16, 32, 128, 4, 3)),  # reads weights: much in flight, nothing wasted on absent rows
        (32, Tile(32, 32, 64, 4, 4)),
        (64, Tile(64, 32, 64, 4, 4)),  # 160 registers: two programs a multiprocessor
        (ANY, Tile(128, 32, 64, 8, 3)),  # half of the L2 cache's traffic; more columns spill on sm_80 and sm_120
    ),
    ("gates", "int8"): (
        (16, Tile(16, 32, 128, 4, 3)),
        (32, Tile(32, 32, 128, 4, 4)),
        (64, Tile(64, 32, 128, 4, 3)),
        (ANY, Tile(128, 32, 128, 8, 3)),
    ),
    ("gates", "tf32"): ((16, Tile(16, 16, 64, 4, 4)), (ANY, Tile(64, 16, 32, 4, 4))),
    ("gates", "ieee"): ((16, Tile(16, 16, 32, 4, 3)), (ANY, Tile(64, 16, 16, 8, 3))),  # bound by FFMA, not by memory
    # Few columns: where rows are few too, a sum over the cells is split, so that all multiprocessors have work.
    ("projection", "half"): (
        (16, Tile(16, 32, 128, 4, 4, splits=8)),
        (32, Tile(32, 64, 128, 4, 3, splits=8)),
        (64, Tile(64, 64, 64, 4, 4, splits=8)),
        (128, Tile(128, 64, 64, 8, 3, splits=8)),
        (256, Tile(128, 128, 64, 8, 3, splits=8)),  # as large as can be: what is read from the L2 cache bounds it
        (512, Tile(128, 128, 64, 8, 3, splits=4)),
        (1024, Tile(128, 128, 64, 8, 3, splits=2)),
        (ANY, Tile(128, 128, 64, 8, 3)),
    ),
    ("projection", "tf32"): ((64, Tile(32, 32, 64, 4, 4, splits=8)), (ANY, Tile(64, 64, 32, 4, 4))),
    ("projection", "ieee"): ((64, Tile(32, 32, 32, 4, 3, splits=8)), (ANY, Tile(64, 64, 16, 8, 3))),
    ("linear", "half"): (
        (16, Tile(16, 32, 128, 4, 3)),  # reads weights
        (128, Tile(32, 64, 128, 4, 3)),
        (512, Tile(64, 64, 64, 4, 4)),
        (ANY, Tile(128, 128, 64, 8, 3)),  # the least traffic that leaves room for two programs a multiprocessor
    ),
    ("linear", "tf32"): ((64, Tile(32, 32, 64, 4, 3)), (ANY, Tile(64, 64, 32, 4, 4))),
    ("linear", "ieee"): (
        (64, Tile(32, 32, 32, 4, 3)),
        (512, Tile(64, 64, 16, 8, 3)),
        (ANY, Tile(128, 128, 16, 8, 3)),  # bound by FFMA and reads of shared memory: 11 to 1, where 64 x 64 has 7 to 1
    ),
    ("highway", "half"): (
        (16, Tile(16, 16, 128, 4, 4)),  # reads weights: 2,048 features are a program for each multiprocessor
        (64, Tile(32, 32, 128, 4, 3)),
        (256, Tile(64, 32, 64, 4, 4)),
        (ANY, Tile(128, 64, 64, 8, 3)),
    ),
    ("highway", "tf32"): ((64, Tile(32, 16, 64, 4, 3)), (ANY, Tile(64, 32, 32, 4, 4))),
    ("highway", "ieee"): ((64, Tile(32, 16, 32, 4, 3)), (512, Tile(64, 32, 16, 8, 3)), (ANY, Tile(128, 64, 16, 8, 3))),
    # A whole window at once, so that a program's weights stay on chip: 7 characters of 16 values, or fewer.
    # Rows are positions of words (`char_cnn.POSITIONS`), the limits numbers of words.
    ("characters", "half"): (
        (16, Tile(16, 32, 128, 4, 3)),
        (256, Tile(32, 64, 128, 4, 3)),
        (ANY, Tile(64, 128, 128, 8, 3)),  # two programs a multiprocessor: one's maximum beside the other's product
    ),
    ("characters", "tf32"): ((64, Tile(32, 32, 128, 4, 3)), (ANY, Tile(64, 64, 128, 8, 3))),
    ("characters", "ieee"): ((64, Tile(32, 32, 128, 4, 3)), (ANY, Tile(64, 64, 128, 8, 3))),
    # Larger windows: weights are read again at each position, so that many words should share them.
    ("wide characters", "half"): (
        (16, Tile(16, 32, 64, 4, 4)),
        (256, Tile(32, 64, 64, 4, 4)),
        (ANY, Tile(128, 64, 64, 8, 3)),  # 128 columns spill on sm_100 by Triton 3.7
    ),
    ("wide characters", "tf32"): ((64, Tile(32, 32, 64, 4, 3)), (ANY, Tile(64, 64, 64, 8, 3))),
    ("wide characters", "ieee"): ((64, Tile(32, 32, 32, 4, 3)), (ANY, Tile(64, 64, 16, 8, 3))),
}

# What sm_90, with 227 KiB, has instead, from so many rows on: a third less traffic of the L2 cache, for which products
# wait, in place of a second program a multiprocessor. An H200 has run these, and the others not beside them. Gates only
# where they are fused.
HOPPER_TILES: dict[tuple[str, str], tuple[int, Tile]] = {
    ("gates", "half"): (256, Tile(128, 64, 64, 8, 4)),
    ("linear", "half"): (2048, Tile(128, 256, 64, 8, 4)),
    ("highway", "half"): (1024, Tile(128, 128, 64, 8, 4)),
    ("wide characters", "half"): (257, Tile(128, 128, 64, 8, 3)),
}

# Products by TMA on sm_90 (`linear_tma`), of fewest bytes first: the first that gives most multiprocessors a tile, or
# the last. On an H200: 125 us for the LSTM's input product of 2,048 nodes, 7.4 us for 1,024 words' final projection.
TMA_TILES: dict[str, tuple[Tile, ...]] = {
    "linear": (
        Tile(128, 256, 64, 8, 3),
        Tile(128, 128, 64, 8, 4),
        Tile(128, 64, 64, 4, 6),
        Tile(64, 64, 128, 4, 5),
    ),
}
TMA_ROWS = 128  # from so many on; fewer read weights, which the portable kernels' smaller tiles do as well

# So many blocks of rows pass over a block of columns one after the other, while both are in the L2 cache.
ROW_GROUP = 8

# Up to so many rows a product's time is that of reading its weights, which are then worth keeping in the L2 cache.
WEIGHT_BOUND_ROWS = 128

# Where a row's bits may not depend on how many rows there are, the tiles for so many serve any number: enough programs
# for a sentence, and no more than twice the traffic of the largest tiles for bulk text.
INVARIANT_ROWS = 256

# What the splits of one block add to its counter together: a multiple of every number of splits.
SPLIT_ARRIVALS = 8


def choose_tile(
    operation: str,
    dtype: torch.dtype,
    precision: Products,
    rows: int,
    *,
    device: torch.device | None = None,
    int8: bool = False,
    batch_invariant: bool = False,
) -> Tile:
    """The tile for so many rows of this type.

    Args:
        device: where it runs; a tile that fits every card where absent.
        int8: products are of 8-bit integers.
        batch_invariant: one tile for any number of rows, without splits, so that every sum has one order.

    Raises:
        ValueError: there is no such precision.
        KeyError: there is no such operation, or not in this type.
    """
    if precision not in get_args(Products):
        raise ValueError(f"precision: expected {' or '.join(get_args(Products))}, found {precision!r}")
    kind = "int8" if int8 else precision if dtype == torch.float32 else "half"
    hopper = device is not None and is_hopper(device)
    if batch_invariant:
        return table_tile(operation, kind, INVARIANT_ROWS, hopper=hopper)._replace(splits=1)
    return table_tile(operation, kind, rows, hopper=hopper)


def table_tile(operation: str, kind: str, rows: int, *, hopper: bool) -> Tile:
    """The tile of the tables for so many rows, on sm_90 or elsewhere."""
    least, hopper_tile = HOPPER_TILES.get((operation, kind), (ANY, None))
    if hopper and hopper_tile is not None and rows >= least:
        return hopper_tile
    return next(tile for most, tile in TILES[operation, kind] if rows <= most)


def is_hopper(device: torch.device) -> bool:
    """Whether it has sm_90, with matrix instructions and copies that no other has."""
    return capability(device) == (9, 0)


def copies_in_bulk(device: torch.device) -> bool:
    """Whether blocks come to shared memory by a copy engine (TMA), where matrix units read them: sm_90, sm_100, sm_103.

    Not so on sm_120: its matrix instructions take operands from registers, and each bulk copy is compiled to a call of
    a function of the system (Triton 3.6).
    """
    return capability(device)[0] in (9, 10)


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Of a CUDA device, (0, 0) of another; asked for at every step, where PyTorch takes microseconds."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@cache
def n_multiprocessors(device: torch.device) -> int:
    """Programs that surely run at once on a device: its multiprocessors; 1 in Triton's interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


MULTIPROCESSORS = 132  # of the card that a kernel is compiled for, where there is none
SPLIT_VALUES = 64 * 128  # of the largest tile whose splits wait for each other


def n_programs(device: torch.device) -> int:
    """Programs that surely run at once: as many as a card has multiprocessors."""
    return n_multiprocessors(device) if device.type == "cuda" else MULTIPROCESSORS


def split_sizes(P: int, device: torch.device) -> tuple[int, int]:
    """Values of partial sums and counters, of a direction with P columns, that projections with split sums may need.

    Where splits wait for each other, each has a program of its own.
    """
    split = [
        (most, tile) for (name, _), entries in TILES.items() if name == "projection" for most, tile in entries
        if tile.splits > 1
    ]  # fmt: skip
    blocks = [-(-most // tile.rows) for most, tile in split]
    rows = max(n * tile.rows * tile.splits for n, (_, tile) in zip(blocks, split, strict=True))
    programs = n_programs(device)
    return max(rows * P, programs * SPLIT_VALUES), max(max(blocks) * P, programs)


EXCHANGED_ROWS = 32  # the most of a depth that programs of `lstm.persistent` exchange
CLOCK_WORDS = 4  # of each direction, before the values


def exchange_size(D: int, P: int, C: int) -> int:
    """Words of 64 bits in which programs of `lstm.persistent` exchange r and h of a depth, and sums of two."""
    return D * (CLOCK_WORDS + EXCHANGED_ROWS * (P // 2 + C // 2 + 2 * C))
