"""A random LSTM layer over random forests, for the kernels and for the reference, and the table of variants to test."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flashelmo.engine.cuda.compute import nodes_of
from flashelmo.engine.cuda.layout import Layout, Sizes, fill
from flashelmo.engine.text.schedule import Forest, Schedule
from flashelmo.kernels import reference
from flashelmo.kernels.arguments import Products
from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm.layer import VARIANTS as TABLE
from flashelmo.kernels.lstm.layer import pack_lstm
from flashelmo.kernels.lstm.run import LaunchOptions, LayerRun, Nodes, new_tensors
from flashelmo.kernels.lstm.weights import CanonicalLstm, LstmWeights

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
N_WORDS = 30
UNREAD = 1 << 30  # a parent or child that would be read far outside its tensor


HALVES, HOPPER_SIZES = ("fp16", "bf16"), ((128, 512), (256, 1024))


class Tested(NamedTuple):
    """A variant as the tests of the LSTM run it.

    Attributes:
        kinds: what it computes in, a name of `PRECISIONS`.
        P, C: sizes at which it is chosen for most depths of few rows in float32.
        sizes: P and C that it serves, others than any.
        most_rows: of a depth that its launches may be given; None for any number.
    """

    kinds: tuple[str, ...]
    P: int
    C: int
    sizes: tuple[tuple[int, int], ...] = ()
    most_rows: int | None = None


# Every variant of the kernels, and how it is tested.
VARIANTS = {
    "fused": Tested(kinds=(*FLOATS, "tf32"), P=4, C=32),
    "persistent": Tested(kinds=HALVES, P=128, C=512, sizes=HOPPER_SIZES, most_rows=32),
    "few_rows": Tested(kinds=HALVES, P=128, C=512, sizes=HOPPER_SIZES, most_rows=64),
    "warp_specialized": Tested(kinds=HALVES, P=128, C=512, sizes=HOPPER_SIZES),
    "tma": Tested(kinds=HALVES, P=128, C=512, sizes=HOPPER_SIZES),
    "hoisted": Tested(kinds=(*FLOATS, "tf32"), P=160, C=32),
    "int8_specialized": Tested(kinds=("int8",), P=128, C=512, sizes=HOPPER_SIZES),
    "int8": Tested(kinds=("int8",), P=16, C=32),
}
# Those that serve any sizes, in the interpreter too; the others are compared with them.
PORTABLE = [name for name, tested in VARIANTS.items() if not tested.sizes and "fp32" in tested.kinds]
HOPPER = [name for name, tested in VARIANTS.items() if tested.kinds == HALVES]
KINDS = [(name, kind) for name in PORTABLE for kind in VARIANTS[name].kinds]


def launches_of(run: LayerRun, name: str, depths: range | None = None) -> list[Launch]:
    """All launches of a variant for some depths, by default for all."""
    launches = next(variant.launches for variant in TABLE if variant.name == name)
    return list(launches(run, range(1, run.nodes.n_depths + 1) if depths is None else depths))


@dataclass(frozen=True)
class RandomLayer:
    """Canonical weights in float32, a schedule and its nodes, and each node's input [D, N, P]."""

    canonical: CanonicalLstm
    schedule: Schedule
    nodes: Nodes
    x: Tensor
    dtype: torch.dtype
    device: str

    def pack(self, *, int8: bool = False) -> LstmWeights:
        return pack_lstm(self.canonical, dtype=self.dtype, int8=int8, device=self.device)

    def rounded(self) -> "RandomLayer":
        """The weights as the compute type holds them, so that what remains to be compared is the computation."""
        weights = self.canonical

        def through(tensor: Tensor) -> Tensor:
            return tensor.to(self.dtype).float()

        canonical = replace(
            weights,
            input=through(weights.input),
            recurrent=through(weights.recurrent),
            projection=None if weights.projection is None else through(weights.projection),
        )
        return replace(self, canonical=canonical)

    def poisoned(
        self,
        *,
        skip: bool = False,
        int8: bool = False,
        options: LaunchOptions | None = None,
        nodes: Nodes | None = None,
        x: Tensor | None = None,
        roots: tuple[Tensor, Tensor] | None = None,
    ) -> LayerRun:
        """A run in whose tensors all that the kernels must write is NaN.

        Args:
            nodes, x, roots: in place of the layer's, whose roots' states are zero.
        """
        nodes, x = nodes or self.nodes, self.x if x is None else x
        weights = self.pack(int8=int8)
        tensors = new_tensors(weights, nodes, x, skip=skip, roots=roots)
        tensors.poison()
        return LayerRun(weights, tensors, nodes, options or LaunchOptions())

    def computed(self, name: str, *, skip: bool = False, int8: bool = False, precision: Products = "ieee") -> LayerRun:
        """A run that a variant has computed at all depths, starting from NaN."""
        run = self.poisoned(skip=skip, int8=int8, options=LaunchOptions(precision))
        for launch in launches_of(run, name):
            launch.run()
        return run

    def expected(self, roots: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states [D, N, P] and cells [D, N, C] in float64; zero beyond a direction's last node."""
        weights, n_roots = self.canonical, self.nodes.n_roots
        D, P, C = weights.shape
        hidden, cell = torch.zeros(D, self.nodes.n_nodes, P).double(), torch.zeros(D, self.nodes.n_nodes, C).double()
        if roots is not None:
            hidden[:, :n_roots], cell[:, :n_roots] = (root.double().cpu() for root in roots)
        for d, starts in enumerate(self.nodes.depths):
            for before, first, last in zip(starts, starts[1:], starts[2:], strict=False):
                parents = before + self.nodes.parents[d, first:last].long().cpu()
                hidden[d, first:last], cell[d, first:last] = reference.lstm_step(
                    self.x[d, first:last].double().cpu(),
                    hidden[d, parents],
                    cell[d, parents],
                    weights.input[d].double(),
                    weights.recurrent[d].double(),
                    weights.bias[d].double(),
                    None if weights.projection is None else weights.projection[d].double(),
                    weights.cell_clip,
                    weights.projection_clip,
                )
        return hidden, cell


def random_layer(
    device: str,
    *,
    sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5, 2), (1, 2, 20)),
    P: int = 12,
    C: int = 24,
    projection: bool = True,
    cell_clip: float | None = 0.5,
    projection_clip: float | None = 0.4,
    n_roots: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> RandomLayer:
    """Nodes per depth are `sizes`, a tuple for each direction; parents and words are random."""
    rng = torch.Generator().manual_seed(seed)
    D, scale = len(sizes), P**-0.5

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng)

    schedule = random_schedule(sizes, n_roots, rng)
    exact = Sizes.of(schedule, share=False, pooled=False, stateful=False)
    nodes = directions(scheduled(schedule, exact, device), D)
    return RandomLayer(
        canonical=CanonicalLstm(
            input=2 * scale * normal(D, 4, P, C),
            recurrent=2 * scale * normal(D, 4, P, C),
            bias=normal(D, 4, C),
            projection=2 * C**-0.5 * normal(D, C, P) if projection else None,
            cell_clip=cell_clip,
            projection_clip=projection_clip,
        ),
        schedule=schedule,
        nodes=nodes,
        x=normal(D, nodes.n_nodes, P).to(device, dtype),
        dtype=dtype,
        device=device,
    )


def random_schedule(sizes: Sequence[Sequence[int]], n_roots: int, rng: torch.Generator) -> Schedule:
    """Forests of so many nodes a depth, under so many roots; a single one stands for both directions."""
    nothing = np.empty(0, np.int32)

    def forest(counts: Sequence[int]) -> Forest:
        above = (n_roots, *counts)
        parents = [
            torch.randint(0, n, (m,), generator=rng).sort().values.numpy() for n, m in zip(above, counts, strict=False)
        ]
        words = torch.randint(0, N_WORDS, (sum(counts),), generator=rng, dtype=torch.int32)
        depths = np.array([0, *accumulate(counts)], np.int64)
        return Forest(
            words.numpy(), np.concatenate([nothing, *parents], dtype=np.int32), depths, nothing, np.empty(0, np.int64)
        )

    forward, backward = forest(sizes[0]), forest(sizes[-1])
    return Schedule(forward, backward, nothing, np.zeros(n_roots + 1, np.int64))


def scheduled(schedule: Schedule, sizes: Sizes, device: str) -> Nodes:
    """The nodes of a schedule, or of a bucket that holds it, as the engine fills them; no more than these are read."""
    layout = Layout.of(sizes)
    ints = np.empty(layout.size, np.int32)
    fill(ints, sizes, schedule, np.arange(N_WORDS, dtype=np.int32))
    parts = layout.views(ints)
    for d, starts in enumerate(parts["starts"]):
        parts["parents"][d, starts[-1] :] = parts["children"][d, starts[-1] + 1 :] = UNREAD
    return nodes_of(layout.views(torch.from_numpy(ints).to(device)), sizes)


def directions(nodes: Nodes, n: int) -> Nodes:
    """The first n of them."""
    return Nodes(nodes.starts[:n], nodes.parents[:n], nodes.children[:n], nodes.depths[:n])


def real_nodes(values: Tensor, nodes: Nodes) -> Tensor:
    """The rows of the nodes there are, roots excepted: [D, N, P] -> [nodes, P], in float64 in the host's memory."""
    rows = [values[d, starts[1] : starts[-1]] for d, starts in enumerate(nodes.depths)]
    return torch.cat(rows).double().cpu()
