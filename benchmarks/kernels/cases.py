"""The table of kernels: how each is launched, which sizes it depends on, and what is compiled, checked and timed.

A kernel's problem (`problems.py`, `lstm.py`) has its reference, bytes and operations. Compilation (`benchmarks
resources`), with every tile and at every published size, uses tensors that take no memory and the public launchers, so
that what is compiled is what runs. A new kernel needs its problem and a line in `KERNELS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

import torch

from flashelmo.benchmarks.kernels import problems
from flashelmo.benchmarks.kernels.card import D
from flashelmo.benchmarks.kernels.lstm import LstmLayer, LstmProblem, kernel_name
from flashelmo.benchmarks.kernels.problems import Maker, Problem
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.initialize import preset_config
from flashelmo.engine.precision import PRECISIONS
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm import hopper
from flashelmo.kernels.lstm.run import InputWords
from flashelmo.kernels.lstm.weights import Shape
from flashelmo.kernels.tuning import ANY, HOPPER_TILES, TILES, TMA_TILES, Tile

MANY = 4096  # rows, where a tile is for any number
TARGETS = (75, 80, 90, 100, 120)
MATRIX_TARGETS = TARGETS[1:]  # with the matrix instructions that Triton uses; 75 only has float32
FEW_TARGETS = (90,)  # for what compiles much like something else

ORIGINAL = preset_config("original")
MANYLANGS = replace(ORIGINAL, character_size=50)
OTHER_SIZES = (
    preset_config("small"),
    preset_config("medium"),
    replace(ORIGINAL, cell_size=2048),
    replace(  # does not fill blocks
        ORIGINAL, cell_size=20, projection_size=12, filters=((1, 3), (2, 4), (3, 5)), character_size=3
    ),
)

# Makes a launch, or the problem that contains it, from sizes, number of rows and a maker without memory.
Build = Callable[..., Launch | Problem]


class Kernel(NamedTuple):
    """How a kernel is launched and for what it is compiled.

    Attributes:
        name: its name, with any arguments that make it a different kernel.
        operations: those of TILES whose tiles one launch chooses, by the same rows.
        letters: the sizes that it depends on: of cells, projection, character features, character embedding.
        full, few: precisions that every entry of its tables is compiled in, for all of `targets` and for few: fp16,
            which compiles as bf16 does, always for few, and fp32 also for sm_75.
        hopper, sizes: whether to compile its entry of HOPPER_TILES, and each other size that differs for it.
        of: what its n counts, "words" or "nodes", if it is also checked and timed by itself.
    """

    name: str
    operations: tuple[str, ...]
    letters: str
    build: Build
    full: tuple[str, ...] = ()
    few: tuple[str, ...] = ()
    hopper: bool = False
    sizes: bool = False
    config: ElmoConfig = ORIGINAL
    targets: tuple[int, ...] = MATRIX_TARGETS
    of: str = ""

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions in which it is checked and timed: all, if it has a product."""
        return EXACT if self.operations else (*self.full, *self.few)

    def problem(self, config: ElmoConfig, n: int, make: Maker) -> Problem:
        """Return the problem of a kernel that is checked by itself."""
        found = self.build(config, n, make)
        assert isinstance(found, Problem)
        return found


class Case(NamedTuple):
    """One compilation for each target: of a kernel in a precision, a size such as "C 4096, P 512", and entries of TILES
    such as "gates/half/16" (up to 16 rows).
    """

    kernel: str
    type: str
    size: str
    entries: tuple[str, ...]
    targets: tuple[int, ...]
    build: Callable[[], Launch]


def lstm_step(
    kernel: str,
    way: str,
    config: ElmoConfig,
    rows: int,
    make: Maker,
    *,
    skip: bool = False,
    fixed: int = 0,
    by_word: bool = False,
) -> Launch:
    """Return one depth's launch of a kernel of the LSTM, or that of its input part, possibly by word.

    `fixed` is the number of rows if no table says which number it is for.
    """
    problem = LstmProblem(_layer(config), ((fixed or rows,),) * D, skip)
    run = problem.run(make.precision)
    if by_word:
        count = torch.empty(1, dtype=torch.int32, device=make.device)
        run = replace(run, words=InputWords.of(run.weights, run.tensors.x, run.nodes.parents, count))
    return next(launch for launch in problem.launches(run, way) if kernel_name(launch) == f"{kernel}_kernel")


@cache
def _layer(config: ElmoConfig) -> LstmLayer:
    """Return a layer that takes no memory, and keeps its packed weights for all kernels."""
    return LstmLayer(config, "meta")


def halved_splits(config: ElmoConfig, rows: int, make: Maker) -> Launch:
    """Return the projection of 128 rows on sm_100: that of 64 with half the splits."""
    launch = lstm_step("hopper_projection", "tma", config, rows, make, skip=True, fixed=64)
    return with_tile(lambda: launch, launch.arguments["TILE"]._replace(splits=2))


def embedding(config: ElmoConfig, words: int, make: Maker) -> Launch:
    """Return what runs before the convolutions."""
    first = problems.characters(config, words, make).first
    assert first is not None
    return first


def lstm(name: str, kernel: str, way: str, rows: int, targets: tuple[int, ...], sizes: bool) -> Kernel:
    """Return a variant's kernel for some cards, at a number of rows that decides how it is compiled."""
    build = partial(lstm_step, kernel, way, skip=True, fixed=rows)
    if way.startswith("int8"):
        return Kernel(name, (), "CP", build, INT8, targets=targets)
    return Kernel(name, (), "CP", build, BF16, ("fp16",), sizes=sizes, targets=targets)


EXACT, BF16, INT8 = ("bf16", "fp16", "fp32", "tf32"), ("bf16",), ("int8",)
GATES, PROJECTION, LINEAR = ("gates",), ("projection",), ("linear",)
HOPPER, BULK_COPIES = (90,), (90, 100)  # served by the Gluon variants, and by those with TMA in plain Triton
fused, hoisted = partial(lstm_step, "gates", "fused"), partial(lstm_step, "gates", "hoisted")
by_word = partial(hoisted, by_word=True)
projection = partial(lstm_step, "projection", "fused")
input_by_tma = partial(problems.hoisted_input, tma=TMA_TILES["linear"][0])
tokens = partial(problems.token_layers, mix=torch.eye(ORIGINAL.n_layers + 1))
one_mix = partial(problems.token_layers, mix=torch.full((1, ORIGINAL.n_layers + 1), 1 / 3))
means = partial(tokens, pool="mean")
train_forward, train_backward = (partial(problems.train_cells, backward=each) for each in (False, True))
KERNELS = (
    Kernel("gates", GATES, "CP", fused, EXACT, hopper=True, sizes=True),
    Kernel("gates hoisted", GATES, "CP", hoisted, ("bf16", "fp16"), ("fp32", "tf32")),
    Kernel("gates hoisted by word", GATES, "CP", by_word, ("fp32",), ("bf16", "tf32")),
    Kernel("linear, words", LINEAR, "CP", partial(lstm_step, "linear", "hoisted", by_word=True), few=BF16),
    Kernel("roots", (), "CP", partial(lstm_step, "roots", "fused"), BF16, ("fp32",)),
    Kernel("int8 gates", GATES, "CP", partial(lstm_step, "int8_gates", "int8"), INT8),
    Kernel("int8 rows", (), "CP", partial(lstm_step, "int8_rows", "int8"), INT8),
    Kernel("projection", PROJECTION, "CP", partial(projection, skip=True), EXACT, sizes=True),
    Kernel("projection, no skip", PROJECTION, "CP", projection, few=BF16),
    lstm("persistent steps, 16 rows", "persistent", "persistent", 16, HOPPER, True),
    lstm("persistent steps, 32 rows", "persistent", "persistent", 32, HOPPER, True),
    lstm("few_rows gates, 16 rows", "few_gates", "few_rows", 16, HOPPER, False),
    lstm("few_rows gates, 32 rows", "few_gates", "few_rows", 32, HOPPER, False),
    lstm("few_rows gates, 64 rows", "few_gates", "few_rows", 64, HOPPER, True),
    lstm("few_rows projection", "few_projection", "few_rows", 32, HOPPER, False),
    lstm("warp_specialized gates", "specialized_gates", "warp_specialized", MANY, HOPPER, True),
    lstm("Hopper projection, 128 rows", "hopper_projection", "tma", 128, HOPPER, True),
    lstm("int8_specialized gates", "specialized_gates", "int8_specialized", MANY, HOPPER, False),
    lstm("tma gates", "tma_gates", "tma", MANY, BULK_COPIES, True),
    lstm("Hopper projection, 64 rows", "hopper_projection", "tma", 64, BULK_COPIES, True),
    lstm("Hopper projection, 512 rows", "hopper_projection", "tma", 512, BULK_COPIES, True),
    lstm("Hopper projection, 1024 rows", "hopper_projection", "tma", 1024, BULK_COPIES, True),  # and batch-invariant
    lstm("Hopper projection, many rows", "hopper_projection", "tma", MANY, BULK_COPIES, True),
    Kernel("Hopper projection, 128 rows in two splits", (), "CP", halved_splits, BF16, targets=(100,)),
    *(
        Kernel(f"{name} by word, {rows} rows", (), "CP", build, BF16, ("fp16",), targets=HOPPER)
        for name, kernel, way, some in (
            ("persistent steps", "persistent", "persistent", (16, 32)),
            ("few_rows gates", "few_gates", "few_rows", (16, 32, 128)),
        )
        for rows in some
        for build in [partial(lstm_step, kernel, way, fixed=rows, by_word=True)]
    ),
    Kernel("characters embedded", (), "E", embedding, BF16, ("fp32",)),
    Kernel("characters", ("characters",), "FE", problems.characters, EXACT, sizes=True, of="words"),
    Kernel("characters, wide", ("wide characters",), "FE", problems.characters, EXACT, hopper=True, config=MANYLANGS),
    Kernel("highway", ("highway",), "F", problems.highway, EXACT, hopper=True, sizes=True, of="words"),
    Kernel("final projection", LINEAR, "FP", problems.final_projection, EXACT, hopper=True, sizes=True, of="words"),
    Kernel("input", LINEAR, "CP", problems.hoisted_input, few=BF16, hopper=True, sizes=True, of="nodes"),
    *(
        Kernel(f"linear by TMA {tile.label}", (), "FP", partial(problems.final_projection, tma=tile), few=BF16)
        for tile in TMA_TILES["linear"]
    ),
    Kernel("input by TMA", (), "CP", input_by_tma, few=("bf16", "fp16")),
    Kernel("input by TMA, 16 bits out", (), "CP", partial(input_by_tma, dtype=torch.bfloat16), few=BF16),
    Kernel("gather words", (), "P", problems.gather_words, BF16, ("fp32",), sizes=True, of="nodes"),
    Kernel("states carried", (), "CP", problems.carry, BF16, ("fp32",)),
    Kernel("training cell, forward", (), "C", train_forward, BF16, ("fp32",)),
    Kernel("training cell, backward", (), "C", train_backward, BF16, ("fp32",)),
    Kernel("training step, Adagrad", (), "C", problems.adagrad, ("fp32",)),
    Kernel("token layers", (), "P", tokens, BF16, ("fp16", "fp32"), sizes=True, of="nodes"),
    Kernel("token layers, one mix", (), "P", one_mix, few=BF16, of="nodes"),
    Kernel("token layers, means", (), "P", means, BF16, ("fp16", "fp32"), sizes=True, of="nodes"),
    Kernel("token layers, maxima", (), "P", partial(tokens, pool="max"), few=BF16, of="nodes"),
)


def kind_of(precision: str, operation: str = "") -> str:
    """Return the kind of an operation's product in `kernels.tuning.TILES`."""
    arithmetic = PRECISIONS[precision].on("cuda")
    if arithmetic.lstm_weights == "int8" and operation == "gates":
        return "int8"
    return arithmetic.products if arithmetic.dtype == "float32" else "half"


@cache
def cases() -> list[Case]:
    """Return every kernel with every entry of TILES at the original size, and once at each other relevant size."""
    return [case for kernel in KERNELS for case in (*_entries(kernel), *_hopper(kernel), *_sizes(kernel))]


def _entries(kernel: Kernel) -> Iterator[Case]:
    for precision in (*kernel.full, *kernel.few):
        targets = kernel.targets if precision in kernel.full and precision != "fp16" else FEW_TARGETS
        targets = (75, *targets) if precision == "fp32" else targets
        for rows, entries in rows_and_entries(kernel.operations, kind_of(precision, *kernel.operations)):
            yield _case(kernel, kernel.config, precision, rows, entries, targets)


def _hopper(kernel: Kernel) -> Iterator[Case]:
    for precision in ("bf16", "fp16") if kernel.hopper else ():
        (operation,) = kernel.operations
        rows, tile = HOPPER_TILES[operation, kind_of(precision)]
        entries = (hopper_entry_name(operation, kind_of(precision)),)
        case = _case(kernel, kernel.config, precision, rows, entries, (90,))
        yield case._replace(build=partial(with_tile, case.build, tile))


def _sizes(kernel: Kernel) -> Iterator[Case]:
    """Yield a case of many rows for each other size that differs from all before in what the kernel depends on."""
    rows, entries = rows_and_entries(kernel.operations, kind_of("bf16"))[-1]
    seen = {described(ORIGINAL, kernel.letters)}
    for config in OTHER_SIZES if kernel.sizes else ():
        shape = Shape(D, config.projection_size, config.cell_size)
        served = kernel.targets not in (HOPPER, BULK_COPIES) or hopper.fits(shape)
        if described(config, kernel.letters) not in seen and served:
            seen.add(described(config, kernel.letters))
            yield _case(kernel, config, "bf16", rows, entries, FEW_TARGETS)


def _case(
    kernel: Kernel, config: ElmoConfig, precision: str, rows: int, entries: tuple[str, ...], targets: tuple[int, ...]
) -> Case:
    def build() -> Launch:
        found = kernel.build(config, rows, Maker.of("meta", precision))
        return found.launch if isinstance(found, Problem) else found

    return Case(kernel.name, precision, described(config, kernel.letters), entries, targets, build)


def with_tile(build: Callable[[], Launch], tile: Tile) -> Launch:
    """Return a launch as it would be compiled with this tile."""
    launch = build()
    return replace(launch, arguments={**launch.arguments, "TILE": tile}, options=tile.options)


def rows_and_entries(operations: Sequence[str], kind: str) -> list[tuple[int, tuple[str, ...]]]:
    """Return numbers of rows that choose every entry once, fewest first, and the names of the entries they choose."""
    tables = {operation: [most for most, _ in TILES[operation, kind]] for operation in operations}
    found = []
    for most in sorted({most for table in tables.values() for most in table} or {ANY}):
        chosen = [(operation, next(limit for limit in table if most <= limit)) for operation, table in tables.items()]
        entries = tuple(entry_name(operation, kind, limit) for operation, limit in chosen)
        found.append((MANY if most == ANY else most, entries))
    return found


def entry_name(operation: str, kind: str, most: int) -> str:
    """Return the name of an entry of TILES, which is for up to `most` rows."""
    return f"{operation}/{kind}/{'any' if most == ANY else most}"


def hopper_entry_name(operation: str, kind: str) -> str:
    """Return the name of an entry of HOPPER_TILES, which is from some number of rows on."""
    return f"{operation}/{kind}/sm_90 from {HOPPER_TILES[operation, kind][0]}"


def described(config: ElmoConfig, letters: str) -> str:
    """Return some of its sizes as text, such as "C 4096, P 512"."""
    sizes = dict(C=config.cell_size, P=config.projection_size, F=config.n_filters, E=config.character_size)
    return ", ".join(f"{letter} {sizes[letter]}" for letter in letters)
