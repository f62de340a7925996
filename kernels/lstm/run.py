"""What the launches of one layer are made of, and whether it fits together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from flashelmo.kernels.launch import Barrier, Products, check, check_dependent
from flashelmo.kernels.lstm.weights import LstmWeights
from flashelmo.kernels.tuning import TILES, WEIGHT_BOUND_ROWS


@dataclass(frozen=True, eq=False)
class Nodes:
    """The nodes of a schedule's forests, in order of depth; depth 0 are the roots, whose state is given.

    `engine.cuda.compute.nodes_of` makes them, and kernels read wherever these integers point. They may stand for every
    schedule that fits, as a captured graph of launches needs, whose tensors are filled anew: how many nodes there are
    is read on the device.

    Attributes:
        starts: int32 [D, T + 2]; direction d's nodes of depth t are starts[d, t]:starts[d, t + 1]. Beyond a schedule's
            last depth all are the end of its nodes.
        parents: int32 [D, N], each node's parent among the nodes of the depth before; 0 for roots, and what lies beyond
            the last node is not read.
        words: int32 [D, N], the word of each node; likewise.
        depths: host copy of starts; for a captured graph, upper bounds whose total may exceed N.
    """

    starts: Tensor
    parents: Tensor
    words: Tensor
    depths: tuple[tuple[int, ...], ...]

    @property
    def n_directions(self) -> int:
        """D."""
        return len(self.depths)

    @property
    def n_depths(self) -> int:
        """T, without the roots' depth."""
        return len(self.depths[0]) - 2

    @property
    def n_nodes(self) -> int:
        """N, roots included, of the direction that has most, or as many as there is room for."""
        return self.parents.shape[1]

    @property
    def n_roots(self) -> int:
        """States that the first depth starts from."""
        return self.depths[0][1]

    def rows(self, depth: int) -> int:
        """Nodes of a depth, in the direction that has most."""
        return max(starts[depth + 1] - starts[depth] for starts in self.depths)

    def span(self, depths: range) -> int:
        """Nodes of depths that follow each other, none of them the roots', in the direction that has most."""
        most = max(starts[depths.stop] - starts[depths.start] for starts in self.depths)
        return min(most, self.n_nodes - self.n_roots)

    @cached_property
    def max_rows(self) -> int:
        """Nodes of the largest depth, roots included."""
        return max(self.rows(depth) for depth in range(self.n_depths + 1))


class NodeTensors(NamedTuple):
    """`Nodes` as the kernels take them; words is None where they don't say which input is a node's."""

    starts: Any
    parents: Any
    words: Any


class LstmTensors(NamedTuple):
    """What the steps of one layer read and write; a kernel is given None for what it leaves alone.

    Attributes:
        x: the layer's input: word vectors [words, P], or the layer below's outputs [D, N, P].
        hidden: [D, N, P], r of every node, the roots' first.
        cell: float32 [2, D, R, C], c of two depths in turn.
        unprojected: [D, R, C], h of one depth.
        outputs: [D, N, P], r + x where there is a skip connection; else None.
        partial_sums: float32 [values], of the projection where its sums over cells are split among programs (split-K).
        counters: int32 [values], how many programs have written theirs; zero between launches.
        x_gates: float32 [D, M, 4C], x @ W_x + b of a slab's nodes; None for a layer, and where not hoisted.
    """

    x: Any
    hidden: Any
    cell: Any
    unprojected: Any
    outputs: Any
    partial_sums: Any
    counters: Any
    x_gates: Any = None


@dataclass(frozen=True)
class LaunchOptions:
    """How a layer is launched.

    Attributes:
        precision: of float32 products; "tf32" is fast and off by about 3e-4.
        barrier: lets depths of very few rows run as one launch; none, and they run as two launches each. Whoever takes
            the results calls `barrier.check()`, which waits for the device: after a time-out they are wrong.
        dependent: each launch of a step may begin before the launch before it ends, whatever that is, and reads the
            schedule and the weights meanwhile: these must not be what that launch writes. Triton's interpreter takes no
            notice. On an H200 steps of 1 to 32 rows are 1.01 to 1.04 times as fast in bf16, those of 64 and 128 rows
            0.94 times; with 8-bit weights a row alone is 0.59 times as fast.
        keep_weights: ask the L2 cache to keep the weights of depths whose time is that of reading them.
    """

    precision: Products = "ieee"
    barrier: Barrier | None = None
    dependent: bool = False
    keep_weights: bool = True


DEFAULT_OPTIONS = LaunchOptions()


@dataclass(frozen=True, eq=False)
class LayerRun:
    """One layer over one schedule: what its launches are made of, checked when it is made and by no launcher again.

    Attributes:
        by_word: x has a row for each word, not for each node.

    Raises:
        ValueError: a tensor has another shape, type, layout or device than it should, or the device has no dependent
            launches.
    """

    weights: LstmWeights
    tensors: LstmTensors
    nodes: Nodes
    by_word: bool = False
    options: LaunchOptions = DEFAULT_OPTIONS

    @property
    def is_dependent(self) -> bool:
        """Whether launches may begin before the one before ends."""
        return self.options.dependent and not triton.knobs.runtime.interpret

    @property
    def arguments(self) -> dict[str, Any]:
        """What all kernels of steps are given alike."""
        return {
            "N": self.nodes.n_nodes,
            "R": self.tensors.cell.shape[2],
            "T": self.nodes.n_depths,
            "SHAPE": self.weights.shape,
        }

    def check_depths(self, depths: range) -> None:
        """Raise ValueError unless there are such depths, one after the other."""
        if not (depths.step == 1 and 1 <= depths.start < depths.stop <= self.nodes.n_depths + 1):
            raise ValueError(
                f"depths: expected some from 1 to {self.nodes.n_depths}, found {depths.start} to {depths.stop - 1}"
            )

    def __post_init__(self) -> None:
        (D, P, C), N, dtype = self.weights.shape, self.nodes.n_nodes, (self.weights.dtype,)
        tensors, nodes = self.tensors, self.nodes
        if nodes.n_directions != D:
            raise ValueError(f"nodes: expected {D} directions, as the weights have, found {nodes.n_directions}")
        check("x", tensors.x, [None, P] if self.by_word else [D, N, P], dtype)
        for name, tensor in (("x", tensors.x), ("nodes", nodes.starts)):
            check_device(name, tensor, self.weights)
        check("hidden", tensors.hidden, [D, N, P], dtype)
        check("cell", tensors.cell, [2, D, None, C], [torch.float32])
        R = tensors.cell.shape[2]
        if nodes.max_rows > R:
            raise ValueError(f"cell: expected at least {nodes.max_rows} rows, those of the largest depth, found {R}")
        check("unprojected", tensors.unprojected, [D, R, C], dtype)
        check("partial_sums", tensors.partial_sums, [None], [torch.float32])
        check("counters", tensors.counters, [None], [torch.int32])
        if tensors.outputs is not None:
            if self.by_word:
                raise ValueError(
                    "outputs: expected none, as words are no nodes and a lowest layer has no skip connection"
                )
            check("outputs", tensors.outputs, [D, N, P], dtype)
        if self.options.barrier is not None:
            check("arrivals of the barrier", self.options.barrier.arrivals, [1], [torch.int64])
        if self.is_dependent:
            check_dependent(self.weights.device)


def new_tensors(
    weights: LstmWeights, nodes: Nodes, x: Tensor, *, skip: bool = False, out: Tensor | None = None
) -> LstmTensors:
    """Tensors for one layer, the roots' states zero; what the layer puts out is `out`, if given."""
    D, P, C = weights.shape
    N, R = nodes.n_nodes, nodes.max_rows

    def new(*shape: int, dtype: torch.dtype = weights.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=weights.device)

    if out is None:
        out = new(D, N, P)
    check("out", out, [D, N, P], [weights.dtype])
    check_device("out", out, weights)
    hidden = new(D, N, P) if skip else out
    cell = new(2, D, R, C, dtype=torch.float32)
    hidden[:, : nodes.n_roots] = 0
    cell[0, :, : nodes.n_roots] = 0
    if skip:
        out[:, : nodes.n_roots] = 0
    n_sums, n_blocks = _split_sizes(R)
    return LstmTensors(
        x=x,
        hidden=hidden,
        cell=cell,
        unprojected=new(D, R, C),
        outputs=out if skip else None,
        partial_sums=new(D * n_sums * P, dtype=torch.float32),
        counters=new(D * n_blocks * P, dtype=torch.int32).zero_(),
    )


def check_device(name: str, tensor: Tensor, weights: LstmWeights) -> None:
    """Raise ValueError, naming the argument, unless a tensor lies where the weights are."""
    if tensor.device != weights.device:
        raise ValueError(f"{name}: expected a tensor on {weights.device} as weights, found {tensor.device}")


def _split_sizes(rows: int) -> tuple[int, int]:
    """Rows of partial sums, and blocks of rows, that some tile with split sums needs for up to so many rows.

    Persistent launches split them whatever their rows, but are of use for few rows alone.
    """
    n_sums = n_blocks = 1
    for (operation, _), entries in TILES.items():
        for most, tile in entries:
            if operation.endswith("projection") and tile.splits > 1:
                most = min(most, WEIGHT_BOUND_ROWS) if operation.startswith("persistent") else most
                blocks = -(-min(most, rows) // tile.rows)
                n_sums, n_blocks = max(n_sums, blocks * tile.rows * tile.splits), max(n_blocks, blocks)
    return n_sums, n_blocks
