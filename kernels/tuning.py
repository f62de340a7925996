"""Tiles: how much of the result one program computes, by operation, number type and rows.

All of `TILES` fit in 99 KiB of shared memory, the least among the cards (sm_120; sm_86 and sm_89 too); on sm_90 two
programs then share a multiprocessor if registers allow, and one's epilogue runs alongside the other's product.
`python -m benchmarks resources` prints what each entry costs.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple, get_args

import torch

from flashelmo.kernels.arguments import Products

ANY = 1 << 62  # rows


class Tile(NamedTuple):
    """The share of one program.

    Attributes:
        rows, columns: of the result; a column is a cell (4 gates) for the LSTM's gates, a feature (2) for highways.
        k: how much is summed at once.
        warps, stages: per program; stages - 1 blocks of k are in flight while one is multiplied.
        splits: how many programs share one sum over k (split-K).
    """

    rows: int
    columns: int
    k: int
    warps: int
    stages: int
    splits: int = 1

    @property
    def options(self) -> dict[str, int]:
        """The tile's options as Triton's compiler takes them."""
        return {"num_warps": self.warps, "num_stages": self.stages}

    @property
    def label(self) -> str:
        """The tile as text, such as "64x32x64 4w 4s /8": rows, columns, k, warps, stages, splits."""
        splits = f" /{self.splits}" if self.splits > 1 else ""
        return f"{self.rows}x{self.columns}x{self.k} {self.warps}w {self.stages}s{splits}"


# (operation, kind of product) -> (largest number of rows, tile), ascending. Kinds: "half" (bf16, fp16), "int8" (8-bit
# integers), "tf32", "ieee".
TILES: dict[tuple[str, str], tuple[tuple[int, Tile], ...]] = {
    ("gates", "half"): (
        (16, Tile(16, 32, 128, 4, 3)),  # reads weights: much in flight, nothing wasted on absent rows
        (32, Tile(32, 32, 64, 4, 4)),
        (64, Tile(64, 32, 64, 4, 4)),  # 160 registers: two programs per multiprocessor
        (ANY, Tile(128, 32, 64, 8, 3)),  # half the L2 cache's traffic; more columns spill on sm_80 and sm_120
    ),
    ("gates", "int8"): (
        (16, Tile(16, 32, 128, 4, 3)),
        (32, Tile(32, 32, 128, 4, 4)),
        (64, Tile(64, 32, 128, 4, 3)),
        (ANY, Tile(128, 32, 128, 8, 3)),
    ),
    ("gates", "tf32"): ((16, Tile(16, 16, 64, 4, 4)), (ANY, Tile(64, 16, 32, 4, 4))),
    ("gates", "ieee"): ((16, Tile(16, 16, 32, 4, 3)), (ANY, Tile(64, 16, 16, 8, 3))),  # limited by FFMA, not by memory
    # Few columns: with few rows too, a sum over the cells is split, so that all multiprocessors have work.
    ("projection", "half"): (
        (16, Tile(16, 32, 128, 4, 4, splits=8)),
        (32, Tile(32, 64, 128, 4, 3, splits=8)),
        (64, Tile(64, 64, 64, 4, 4, splits=8)),
        (128, Tile(128, 64, 64, 8, 3, splits=8)),
        (256, Tile(128, 128, 64, 8, 3, splits=8)),  # as large as possible: reading from the L2 cache is the limit
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
        (ANY, Tile(128, 128, 64, 8, 3)),  # the least traffic that leaves room for two programs per multiprocessor
    ),
    ("linear", "tf32"): ((64, Tile(32, 32, 64, 4, 3)), (ANY, Tile(64, 64, 32, 4, 4))),
    ("linear", "ieee"): (
        (64, Tile(32, 32, 32, 4, 3)),
        (512, Tile(64, 64, 16, 8, 3)),
        (ANY, Tile(128, 128, 16, 8, 3)),  # limited by FFMA and shared memory reads: 11 to 1, where 64 x 64 has 7 to 1
    ),
    ("highway", "half"): (
        (16, Tile(16, 16, 128, 4, 4)),  # reads weights: 2,048 features are one program per multiprocessor
        (64, Tile(32, 32, 128, 4, 3)),
        (256, Tile(64, 32, 64, 4, 4)),
        (ANY, Tile(128, 64, 64, 8, 3)),
    ),
    ("highway", "tf32"): ((64, Tile(32, 16, 64, 4, 3)), (ANY, Tile(64, 32, 32, 4, 4))),
    ("highway", "ieee"): ((64, Tile(32, 16, 32, 4, 3)), (512, Tile(64, 32, 16, 8, 3)), (ANY, Tile(128, 64, 16, 8, 3))),
    # A whole window at once, so that a program's weights stay on chip: 7 characters of 16 values, or fewer.
    # Rows are positions of words (`char_cnn.POSITIONS`); the limits are numbers of words.
    ("characters", "half"): (
        (16, Tile(16, 32, 128, 4, 3)),
        (256, Tile(32, 64, 128, 4, 3)),
        (ANY, Tile(64, 128, 128, 8, 3)),  # two programs per multiprocessor: one's maximum alongside the other's product
    ),
    ("characters", "tf32"): ((64, Tile(32, 32, 128, 4, 3)), (ANY, Tile(64, 64, 128, 8, 3))),
    ("characters", "ieee"): ((64, Tile(32, 32, 128, 4, 3)), (ANY, Tile(64, 64, 128, 8, 3))),
    # Larger windows: weights are read again at each position, so many words should share them.
    ("wide characters", "half"): (
        (16, Tile(16, 32, 64, 4, 4)),
        (256, Tile(32, 64, 64, 4, 4)),
        (ANY, Tile(128, 64, 64, 8, 3)),  # 128 columns spill on sm_100 with Triton 3.7
    ),
    ("wide characters", "tf32"): ((64, Tile(32, 32, 64, 4, 3)), (ANY, Tile(64, 64, 64, 8, 3))),
    ("wide characters", "ieee"): ((64, Tile(32, 32, 32, 4, 3)), (ANY, Tile(64, 64, 16, 8, 3))),
}

# What sm_90, with its 227 KiB, uses instead, from this many rows on: a third less traffic of the L2 cache, for which
# products wait, in place of a second program per multiprocessor. An H200 has run these, but not the others for
# comparison. Gates only where they are fused.
HOPPER_TILES: dict[tuple[str, str], tuple[int, Tile]] = {
    ("gates", "half"): (256, Tile(128, 64, 64, 8, 4)),
    ("linear", "half"): (2048, Tile(128, 256, 64, 8, 4)),
    ("highway", "half"): (1024, Tile(128, 128, 64, 8, 4)),
    ("wide characters", "half"): (257, Tile(128, 128, 64, 8, 3)),
}

# Products by TMA on sm_90 (`linear_tma`), fewest bytes first: used is the first that gives most multiprocessors a tile,
# or the last. On an H200: 125 us for the LSTM's input product of 2,048 nodes, 7.4 us for 1,024 words' final projection.
TMA_TILES: dict[str, tuple[Tile, ...]] = {
    "linear": (
        Tile(128, 256, 64, 8, 3),
        Tile(128, 128, 64, 8, 4),
        Tile(128, 64, 64, 4, 6),
        Tile(64, 64, 128, 4, 5),
    ),
}
TMA_ROWS = 128  # from this many on; fewer only read weights, for which the portable kernels' smaller tiles are as good

# This many blocks of rows pass over a block of columns in succession, while both are in the L2 cache.
ROW_GROUP = 8

# Up to this many rows a product's time goes into reading its weights, which are then worth keeping in the L2 cache.
WEIGHT_BOUND_ROWS = 128

# Where a row's bits must not depend on how many rows there are, the tiles for this many serve any number: enough
# programs for a sentence, and at most twice the traffic of the largest tiles for bulk text.
INVARIANT_ROWS = 256

# What all splits of one block together add to its counter: a multiple of every number of splits.
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
    """Return the tile for so many rows of this type.

    Args:
        device: where it runs; if None, the tile fits every card.
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
    """Return the table's tile for so many rows, on sm_90 or elsewhere."""
    least, hopper_tile = HOPPER_TILES.get((operation, kind), (ANY, None))
    if hopper and hopper_tile is not None and rows >= least:
        return hopper_tile
    return next(tile for most, tile in TILES[operation, kind] if rows <= most)


def is_hopper(device: torch.device) -> bool:
    """Whether the device has sm_90, with matrix instructions and copies that no other has."""
    return capability(device) == (9, 0)


def copies_in_bulk(device: torch.device) -> bool:
    """Whether a copy engine (TMA) brings blocks to shared memory, where matrix units read them: sm_90, sm_100, sm_103.

    This excludes sm_120: its matrix instructions take operands from registers, and each bulk copy is compiled to a call
    of a system function (Triton 3.6).
    """
    return capability(device)[0] in (9, 10)


@cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return a CUDA device's capability, (0, 0) of others; cached, as each step asks and PyTorch takes microseconds."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


@cache
def n_multiprocessors(device: torch.device) -> int:
    """Return how many programs surely run at once on a device: its multiprocessors; 1 in Triton's interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


MULTIPROCESSORS = 132  # of the card that a kernel is compiled for, if none is present
SPLIT_VALUES = 64 * 128  # of the largest tile whose splits wait for each other


def n_programs(device: torch.device) -> int:
    """Return how many programs surely run at once: as many as a card has multiprocessors."""
    return n_multiprocessors(device) if device.type == "cuda" else MULTIPROCESSORS


def split_sizes(P: int, device: torch.device) -> tuple[int, int]:
    """Return how many partial sums and counters projections with split sums may need, per direction with P columns.

    Where splits wait for each other, each has its own program.
    """
    split = [
        (most, tile) for (name, _), entries in TILES.items() if name == "projection" for most, tile in entries
        if tile.splits > 1
    ]  # fmt: skip
    blocks = [-(-most // tile.rows) for most, tile in split]
    rows = max(n * tile.rows * tile.splits for n, (_, tile) in zip(blocks, split, strict=True))
    programs = n_programs(device)
    return max(rows * P, programs * SPLIT_VALUES), max(max(blocks) * P, programs)


# Of a program's wait for others: minutes, by estimate, where a step should take microseconds. Programs begin late where
# kernels of other streams hold multiprocessors for as long as they run, as NCCL's do while they wait for another card.
MOST_POLLS = 1 << 30

EXCHANGED_ROWS = 32  # the most rows of a depth that programs of `lstm.persistent` exchange
CLOCK_WORDS = 4  # per direction, before the values


def exchange_size(D: int, P: int, C: int) -> int:
    """Return the number of 64-bit words in which `lstm.persistent` exchanges a depth's r and h, and sums of two."""
    return D * (CLOCK_WORDS + EXCHANGED_ROWS * (P // 2 + C // 2 + 2 * C))
