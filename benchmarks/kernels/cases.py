"""Launches of every kernel with every tile, and at every published size, on tensors that take no memory.

They are for compiling (`benchmarks.kernels.resources`). The launchers are the public ones, so that what is compiled is
what runs. A new kernel needs a function that makes its launch of a size, a number type and rows, and lines in `cases`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flashelmo.engine.model.initialize import PUBLISHED_FILTERS
from flashelmo.kernels.char_cnn import Words, char_cnn_launch, pack_char_cnn
from flashelmo.kernels.highway import highway_launch, pack_highway
from flashelmo.kernels.launch import Barrier, Launch, Precision
from flashelmo.kernels.linear import linear_launch
from flashelmo.kernels.lstm.layer import VARIANTS, pack_lstm
from flashelmo.kernels.lstm.run import LaunchOptions, LayerRun, Nodes, new_tensors
from flashelmo.kernels.lstm.weights import CanonicalLstm
from flashelmo.kernels.token_layers import Tokens, token_layers_launch
from flashelmo.kernels.tuning import ANY, HOPPER_TILES, TILES, WEIGHT_BOUND_ROWS, Tile

MANY = 4096  # rows, where a tile is for any number
LAYERS = 3
PROGRAMS = 132  # of a persistent launch


class Size(NamedTuple):
    """Of a model: cells, projection, character features, character embedding."""

    C: int
    P: int
    F: int
    E: int


ORIGINAL = Size(4096, 512, 2048, 16)
MANYLANGS = Size(4096, 512, 2048, 50)
OTHER_SIZES = (
    Size(1024, 128, 2048, 16),  # small
    Size(2048, 256, 2048, 16),  # medium
    Size(2048, 512, 2048, 16),
    Size(20, 12, 12, 3),  # fits no block
)


class NumberType(NamedTuple):
    """What a kernel computes in.

    Attributes:
        label: "int8" are 8-bit weights of the LSTM, multiplied in bf16.
        kind: of product, as in TILES.
    """

    label: str
    kind: str
    dtype: torch.dtype
    precision: Precision = "ieee"


BF16 = NumberType("bf16", "half", torch.bfloat16)
FP16 = NumberType("fp16", "half", torch.float16)
FP32 = NumberType("fp32", "ieee", torch.float32)
TF32 = NumberType("tf32", "tf32", torch.float32, "tf32")
INT8 = NumberType("int8", "int8", torch.bfloat16)
EXACT = (BF16, FP16, FP32, TF32)

TARGETS = (75, 80, 90, 100, 120)
MATRIX_TARGETS = TARGETS[1:]  # with the matrix instructions that Triton uses; on 75 there is float32 alone
FEW_TARGETS = (90,)  # for what compiles much like something else
DEPENDENT_TARGETS = (90, 100, 120)  # of launches that may begin before the one before ends

# Makes the launch from size, number type and rows.
Build = Callable[[Size, NumberType, int], Launch]


class Case(NamedTuple):
    """One compilation for each target.

    Attributes:
        kernel: its name, and what it is given where that makes another kernel of it.
        size: as "C 4096, P 512".
        entries: those of TILES that it has, as "gates/half/16" (up to 16 rows).
        targets: compute capabilities.
    """

    kernel: str
    type: str
    size: str
    entries: tuple[str, ...]
    targets: tuple[int, ...]
    build: Callable[[], Launch]


class Kernel(NamedTuple):
    """How a kernel is launched.

    Attributes:
        operations: those of TILES whose tiles one launch chooses, by the same rows.
        letters: of `Size`, the ones that it depends on.
    """

    name: str
    operations: tuple[str, ...]
    letters: str
    build: Build


def cases() -> list[Case]:
    """Every kernel with every entry of TILES at the original size, and once at each other size that differs for it."""
    persistent_operations = ("persistent gates", "persistent projection")
    gates = Kernel("gates", ("gates",), "CP", gates_step)
    gates_by_word = Kernel("gates by word", ("gates",), "CP", partial(gates_step, by_word=True))
    gates_hoisted = Kernel("gates hoisted", ("gates",), "CP", partial(gates_step, hoisted=True))
    projection = Kernel("projection", ("projection",), "CP", projection_step)
    projection_alone = Kernel("projection, no skip", ("projection",), "CP", partial(projection_step, skip=False))
    gates_dependent = Kernel("gates dependent", ("gates",), "CP", partial(gates_step, dependent=True))
    hoisted_dependent = Kernel(
        "gates hoisted dependent", ("gates",), "CP", partial(gates_step, hoisted=True, dependent=True)
    )
    projection_dependent = Kernel(
        "projection dependent", ("projection",), "CP", partial(projection_step, dependent=True)
    )
    persistent = Kernel("persistent", persistent_operations, "CP", persistent_steps)
    persistent_alone = Kernel("persistent, no skip", persistent_operations, "CP", partial(persistent_steps, skip=False))
    characters = Kernel("characters", ("characters",), "FE", character_features)
    wide_characters = Kernel("characters, wide", ("wide characters",), "FE", character_features)
    character_projection = Kernel("linear", ("linear",), "FP", character_projection_product)
    lstm_input = Kernel("linear, LSTM input", ("linear",), "CP", lstm_input_product)
    highway = Kernel("highway", ("highway",), "F", highway_layer)
    tokens = Kernel("token layers", (), "P", token_layers)
    sentences = Kernel("token layers, means", (), "P", partial(token_layers, pooled=True))
    return [
        *each_entry(gates, EXACT),
        *each_entry(gates_by_word, [BF16]),
        *each_entry(gates_hoisted, [BF16, FP16]),
        *each_entry(gates_hoisted, [FP32, TF32], FEW_TARGETS),
        *each_entry(gates_hoisted, [INT8]),
        *hopper_entry(gates),
        *hopper_entry(gates_by_word),
        *each_size(gates),
        *each_entry(projection, [*EXACT, INT8]),
        *each_entry(projection_alone, [BF16], FEW_TARGETS),
        *each_size(projection),
        *each_entry(gates_dependent, [BF16], FEW_TARGETS),
        *each_entry(hoisted_dependent, [BF16], DEPENDENT_TARGETS),
        *each_entry(hoisted_dependent, [INT8], FEW_TARGETS),
        *each_entry(projection_dependent, [BF16], DEPENDENT_TARGETS),
        *each_entry(projection_dependent, [INT8], FEW_TARGETS),
        *each_entry(persistent, [*EXACT, INT8]),
        *each_entry(persistent_alone, [BF16, INT8]),
        *each_size(persistent),
        *each_entry(characters, EXACT),
        *each_size(characters),
        *each_entry(wide_characters, EXACT, size=MANYLANGS),
        *each_entry(character_projection, EXACT),
        *hopper_entry(character_projection),
        *each_size(character_projection),
        *each_entry(lstm_input, [BF16], FEW_TARGETS),
        *hopper_entry(lstm_input),
        *each_size(lstm_input),
        *each_entry(highway, EXACT),
        *hopper_entry(highway),
        *each_size(highway),
        *each_entry(tokens, [BF16]),
        *each_entry(tokens, [FP16, FP32], FEW_TARGETS),
        *each_size(tokens),
        *each_entry(sentences, [BF16]),
        *each_entry(sentences, [FP16, FP32], FEW_TARGETS),
        *each_size(sentences),
    ]


def each_entry(
    kernel: Kernel, types: Sequence[NumberType], targets: tuple[int, ...] = MATRIX_TARGETS, size: Size = ORIGINAL
) -> Iterator[Case]:
    """Cases of all entries of TILES that a kernel has, at one size.

    Args:
        targets: of all types but fp16, which compiles as bf16 does and is for few; float32 is for sm_75 too.
    """
    for number_type in types:
        for rows, entries in rows_and_entries(kernel.operations, number_type.kind):
            chosen = FEW_TARGETS if number_type == FP16 else targets
            chosen = (75, *targets) if number_type == FP32 else chosen
            yield _case(kernel, size, number_type, rows, entries, chosen)


def each_size(kernel: Kernel) -> Iterator[Case]:
    """A case of many rows for each other size that differs from all before in what the kernel depends on."""
    rows, entries = rows_and_entries(kernel.operations, BF16.kind)[-1]
    seen = {described(ORIGINAL, kernel.letters)}
    for size in OTHER_SIZES:
        if described(size, kernel.letters) not in seen:
            seen.add(described(size, kernel.letters))
            yield _case(kernel, size, BF16, rows, entries, FEW_TARGETS)


def hopper_entry(kernel: Kernel) -> Iterator[Case]:
    """The cases of an entry of HOPPER_TILES."""
    for number_type in (BF16, FP16):
        least, tile = HOPPER_TILES[kernel.operations[0], number_type.kind]
        build = partial(with_tile, partial(kernel.build, ORIGINAL, number_type, least), tile)
        entry = hopper_entry_name(kernel.operations[0], number_type.kind)
        yield Case(kernel.name, number_type.label, described(ORIGINAL, kernel.letters), (entry,), (90,), build)


def with_tile(build: Callable[[], Launch], tile: Tile) -> Launch:
    """A launch as it would be compiled with this tile."""
    launch = build()
    return launch._replace(arguments={**launch.arguments, "TILE": tile}, options=tile.options)


def _case(
    kernel: Kernel,
    size: Size,
    number_type: NumberType,
    rows: int,
    entries: tuple[str, ...],
    targets: tuple[int, ...],
) -> Case:
    build = partial(kernel.build, size, number_type, rows)
    return Case(kernel.name, number_type.label, described(size, kernel.letters), entries, targets, build)


def rows_and_entries(operations: Sequence[str], kind: str) -> list[tuple[int, tuple[str, ...]]]:
    """Numbers of rows that choose every entry once, fewest first, and the names of the entries they choose."""
    tables = {operation: [most for most, _ in TILES[operation, kind]] for operation in operations}
    found = []
    for most in sorted({most for table in tables.values() for most in table} or {ANY}):
        chosen = [(operation, next(limit for limit in table if most <= limit)) for operation, table in tables.items()]
        entries = tuple(entry_name(operation, kind, limit) for operation, limit in chosen)
        found.append((MANY if most == ANY else most, entries))
    return found


def entry_name(operation: str, kind: str, most: int) -> str:
    """Of an entry of TILES, which is for up to so many rows."""
    return f"{operation}/{kind}/{'any' if most == ANY else most}"


def hopper_entry_name(operation: str, kind: str) -> str:
    """Of an entry of HOPPER_TILES, which is from so many rows on."""
    return f"{operation}/{kind}/sm_90 from {HOPPER_TILES[operation, kind][0]}"


def described(size: Size, letters: str) -> str:
    """Some of its numbers, as "C 4096, P 512"."""
    return ", ".join(f"{letter} {getattr(size, letter)}" for letter in letters)


# ----------------------------------------------------------------------------------------------- the kernels' launches


def gates_step(
    size: Size,
    number_type: NumberType,
    rows: int,
    by_word: bool = False,
    hoisted: bool = False,
    dependent: bool = False,
) -> Launch:
    """Gates and cells of one depth."""
    run = layer_run(size, number_type, rows, by_word=by_word, dependent=dependent)
    return lstm_launches(run, "hoisted" if hoisted else "fused")[-2]


def projection_step(
    size: Size, number_type: NumberType, rows: int, skip: bool = True, dependent: bool = False
) -> Launch:
    """The projection of one depth."""
    run = layer_run(size, number_type, rows, skip=skip, dependent=dependent)
    return lstm_launches(run, "hoisted" if number_type == INT8 else "fused")[-1]


def persistent_steps(size: Size, number_type: NumberType, rows: int, skip: bool = True) -> Launch:
    """Both of all depths."""
    rows = min(rows, WEIGHT_BOUND_ROWS)  # split sums are allocated for no more
    return lstm_launches(layer_run(size, number_type, rows, skip=skip), "persistent")[-1]


def lstm_launches(run: LayerRun, variant: str) -> list[Launch]:
    """All launches of a run by one variant."""
    launches = next(each.launches for each in VARIANTS if each.name == variant)
    return list(launches(run, range(1, run.nodes.n_depths + 1)))


def layer_run(
    size: Size,
    number_type: NumberType,
    rows: int,
    *,
    by_word: bool = False,
    skip: bool = False,
    dependent: bool = False,
) -> LayerRun:
    """One depth beneath one root."""
    C, P, _, _ = size
    N = rows + 1
    nodes = Nodes(
        starts=empty(2, 3, dtype=torch.int32),
        parents=empty(2, N, dtype=torch.int32),
        words=empty(2, N, dtype=torch.int32),
        depths=((0, 1, N),) * 2,
    )
    canonical = CanonicalLstm(empty(2, 4, P, C), empty(2, 4, P, C), empty(2, 4, C), empty(2, C, P), 3.0, 3.0)
    weights = pack_lstm(canonical, dtype=number_type.dtype, int8=number_type == INT8, device="meta")
    x = empty(*((rows,) if by_word else (2, N)), P, dtype=number_type.dtype)
    barrier = Barrier(empty(1, dtype=torch.int64), empty(1, dtype=torch.int32), PROGRAMS)
    options = LaunchOptions(number_type.precision, barrier, dependent)
    return LayerRun(weights, new_tensors(weights, nodes, x, skip=skip), nodes, by_word, options)


def character_features(size: Size, number_type: NumberType, rows: int) -> Launch:
    """Embedding, convolutions and maximum."""
    filters = PUBLISHED_FILTERS if size.F == ORIGINAL.F else ((1, 3), (2, 4), (3, size.F - 7))
    weights = pack_char_cnn(
        empty(262, size.E),
        [(empty(width, size.E, number), empty(number)) for width, number in filters],
        padding_id=261,
        activation="relu",
        dtype=number_type.dtype,
        device="meta",
    )
    words = Words(*(empty(*shape, dtype=torch.int32) for shape in ((rows, 50), (rows,), (rows,))))
    return char_cnn_launch(
        words, weights, empty(rows, size.F, dtype=number_type.dtype), precision=number_type.precision
    )


def character_projection_product(size: Size, number_type: NumberType, rows: int) -> Launch:
    """Character features to word vectors."""
    x, weight, out = (
        empty(*shape, dtype=number_type.dtype) for shape in ((rows, size.F), (size.F, size.P), (rows, size.P))
    )
    return linear_launch(x, weight, empty(size.P), out, precision=number_type.precision)


def lstm_input_product(size: Size, number_type: NumberType, rows: int) -> Launch:
    """The input's part of the gates, of a slab of depths."""
    return lstm_launches(layer_run(size, number_type, rows), "hoisted")[0]


def highway_layer(size: Size, number_type: NumberType, rows: int) -> Launch:
    """One highway layer over character features."""
    F = size.F
    weights = pack_highway(empty(F, F), empty(F), empty(F, F), empty(F), dtype=number_type.dtype, device="meta")
    x, out = (empty(rows, F, dtype=number_type.dtype) for _ in range(2))
    return highway_launch(x, weights, out, precision=number_type.precision)


def token_layers(size: Size, number_type: NumberType, rows: int, pooled: bool = False) -> Launch:
    """All layers in float32, of tokens or of sentences of 16 tokens."""
    tokens = Tokens(
        empty(rows, dtype=torch.int32),
        empty(2, rows, dtype=torch.int32),
        empty(rows // 16 + 1, dtype=torch.int32) if pooled else None,
    )
    word_vectors = empty(rows, size.P, dtype=number_type.dtype)
    outputs = empty(LAYERS - 1, 2, rows, size.P, dtype=number_type.dtype)
    out = empty(LAYERS, rows // 16 if pooled else rows, 2 * size.P)
    return token_layers_launch(word_vectors, outputs, tokens, empty(LAYERS, LAYERS), out)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor that has shape and type alone."""
    return torch.empty(*shape, dtype=dtype, device="meta")
