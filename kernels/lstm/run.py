"""What the launches of one layer are made of, and the check that it fits together."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from operator import sub
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flashelmo.kernels.arguments import Products, check
from flashelmo.kernels.compiled import MOST
from flashelmo.kernels.lstm.weights import LstmWeights, Shape
from flashelmo.kernels.tuning import MOST_POLLS, exchange_size, split_sizes


@dataclass(frozen=True, eq=False)
class Nodes:
    """The nodes of a schedule's forests, in order of depth; depth 0 is the roots, whose state is given.

    `engine.cuda.compute.nodes_of` makes them, and kernels read wherever these integers point. They may stand for every
    schedule that fits, as a captured graph of launches needs, whose tensors are refilled: the number of nodes is read
    on the device.

    Attributes:
        starts: int32 [D, T + 2]; direction d's nodes of depth t are starts[d, t]:starts[d, t + 1]. Beyond a schedule's
            last depth, every entry is the end of its nodes.
        parents: int32 [D, N], each node's parent among the nodes of the previous depth, ascending within each depth but
            the first; 0 for roots; entries beyond the last node are not read.
        children: int32 [D, N + 1]; the children of node n of a direction, all of the next depth, are
            children[d, n]:children[d, n + 1]. Those of roots are undefined. Beyond the last node with children, every
            entry is the end of the nodes.
        depths: host copy of starts; for a captured graph, upper bounds whose total may exceed N.
    """

    starts: Tensor
    parents: Tensor
    children: Tensor
    depths: tuple[tuple[int, ...], ...]

    @property
    def n_directions(self) -> int:
        """The number of directions, D."""
        return len(self.depths)

    @property
    def n_depths(self) -> int:
        """The number of depths, T, without that of the roots."""
        return len(self.depths[0]) - 2

    @property
    def n_nodes(self) -> int:
        """N: the nodes, roots included, of the direction that has most, or the number there is room for."""
        return self.parents.shape[1]

    @property
    def n_roots(self) -> int:
        """The number of states that the first depth starts from."""
        return self.depths[0][1]

    def rows(self, depth: int) -> int:
        """Return the number of nodes of a depth, in the direction that has most."""
        return self._rows[depth]

    @cached_property
    def _rows(self) -> list[int]:
        """The number of rows of every depth, [T + 1]."""
        return list(map(max, zip(*(map(sub, starts[1:], starts) for starts in self.depths), strict=True)))

    def span(self, depths: range) -> int:
        """Return the number of nodes of consecutive depths after the roots', in the direction that has most."""
        most = max(starts[depths.stop] - starts[depths.start] for starts in self.depths)
        return min(most, self.n_nodes - self.n_roots)

    @cached_property
    def max_rows(self) -> int:
        """The number of nodes of the largest depth, roots included."""
        return max(self._rows)


class NodeTensors(NamedTuple):
    """`Nodes` and `InputWords.of_nodes` as kernels take them; None for each tensor that a kernel does not use."""

    starts: Any
    parents: Any = None
    children: Any = None
    words: Any = None


class InputWords(NamedTuple):
    """The distinct words of a layer's inputs, whose input part is computed once per word instead of once per node.

    Attributes:
        x: [D, W, P], the words' vectors.
        of_nodes: int32 [D, N], each node's word; any valid word where there is no node.
        n_words: int32 [1] on the device, how many of the W words there are.
        gates: [D, W, 4C], their input part, written by a launch before the first one that reads it.
    """

    x: Tensor
    of_nodes: Tensor
    n_words: Tensor
    gates: Tensor

    @classmethod
    def of(cls, weights: LstmWeights, x: Tensor, of_nodes: Tensor, n_words: Tensor) -> InputWords:
        """Return the words with an input part that is yet to be computed."""
        return cls(x, of_nodes, n_words, x.new_empty(*x.shape[:2], 4 * weights.shape.C))


class Workspace(NamedTuple):
    """Where programs that split a projection's sums over cells (split-K) exchange them; for one launch at a time.

    Attributes:
        partial_sums: float32 [values].
        counters: int32 [values], how many of each block's splits have arrived; multiples of `SPLIT_ARRIVALS` between
            launches.
        exchange: int64 [words], where `persistent` programs send each other values, with tags that only ascend.
    """

    partial_sums: Any
    counters: Any
    exchange: Any

    @classmethod
    def of(cls, shape: Shape, device: torch.device | str) -> Workspace:
        """Return a workspace for any number of rows."""
        n_sums, n_counters = split_sizes(shape.P, torch.device(device))
        return cls(
            torch.empty(shape.D * n_sums, dtype=torch.float32, device=device),
            torch.zeros(shape.D * n_counters, dtype=torch.int32, device=device),
            torch.zeros(exchange_size(shape.D, shape.P, shape.C), dtype=torch.int64, device=device),
        )


class LstmTensors(NamedTuple):
    """The tensors that the steps of one layer read and write; None for each one that a kernel does not use.

    Attributes:
        x: [D, N, P], the layer's input at every node.
        hidden: [D, N, P], r of every node, the roots' first.
        parent_hidden: [D, N, P], r of every node's parent, so that a step's rows are contiguous.
        cell: float32 [2, D, R, C], c of two depths, which alternate.
        unprojected: [D, R, C], h of one depth.
        outputs: [D, N, P], r + x where there is a skip connection; else None.
        partial_sums, counters, exchange: see `Workspace`.
        x_int8, hidden_int8, row_scale: x and `parent_hidden` as 8-bit integers, and the value of one unit in both rows
            of a node, float32 [D, N]; None unless products are of 8 bits.
        root_hidden, root_cell: [D, roots, P] and float32 [D, roots, C], the roots' states; zero if None. Rows need not
            be contiguous, so they may be part of a larger tensor.
    """

    x: Any
    hidden: Any
    parent_hidden: Any
    cell: Any
    unprojected: Any
    outputs: Any
    partial_sums: Any
    counters: Any
    exchange: Any
    root_hidden: Any = None
    root_cell: Any = None
    x_int8: Any = None
    hidden_int8: Any = None
    row_scale: Any = None

    @property
    def skipped(self) -> Any:
        """x where a skip connection adds it to the output, else None."""
        return None if self.outputs is None else self.x

    def only(self, fields: type[Any]) -> Any:
        """Return these in a tuple of only some fields, those that a kernel uses."""
        return fields(*(getattr(self, name) for name in fields._fields))

    def poison(self) -> None:
        """Fill everything that steps write with values they cannot produce: NaN, or the least integer."""
        written = self.hidden, self.parent_hidden, self.cell, self.unprojected, self.outputs, self.partial_sums
        for tensor in (*written, self.x_int8, self.hidden_int8, self.row_scale):
            if tensor is not None:
                tensor.fill_(torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).min)


@dataclass(frozen=True)
class LaunchOptions:
    """How a layer is launched.

    Attributes:
        precision: of float32 products; "tf32" is fast, with an error of about 3e-4.
        keep_weights: ask the L2 cache to keep the weights of depths whose time goes into reading them.
        batch_invariant: one variant and one tile for any number of rows, without splits, so that a node's bits depend
            only on its words.
        polls: how often a program looks for what another one sends, or for its arrival, before it goes on with NaN.
    """

    precision: Products = "ieee"
    keep_weights: bool = True
    batch_invariant: bool = False
    polls: int = MOST_POLLS


DEFAULT_OPTIONS = LaunchOptions()


@dataclass(frozen=True, eq=False)
class LayerRun:
    """One layer over one schedule: what its launches are made of; checked here, once, and by no launcher again.

    With `words`, the variants that compute the input part beforehand do so by word.

    Attributes:
        multiplied: the weights whose product with the words was requested; `words.gates` holds the last one.

    Raises:
        ValueError: a tensor does not have the expected shape, type, layout or device.
    """

    weights: LstmWeights
    tensors: LstmTensors
    nodes: Nodes
    options: LaunchOptions = DEFAULT_OPTIONS
    words: InputWords | None = None
    multiplied: list[int] = field(default_factory=list, init=False, repr=False)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments that all kernels of steps share."""
        return {
            "N": self.nodes.n_nodes,
            "R": self.tensors.cell.shape[2],
            "T": self.nodes.n_depths,
            "SHAPE": self.weights.shape,
        }

    def check_depths(self, depths: range) -> None:
        """Raise ValueError unless the depths exist and are consecutive."""
        if not (depths.step == 1 and 1 <= depths.start < depths.stop <= self.nodes.n_depths + 1):
            raise ValueError(
                f"depths: expected some from 1 to {self.nodes.n_depths}, found {depths.start} to {depths.stop - 1}"
            )

    def __post_init__(self) -> None:
        (D, P, C), N, dtype = self.weights.shape, self.nodes.n_nodes, (self.weights.dtype,)
        tensors, nodes = self.tensors, self.nodes
        if nodes.n_directions != D:
            raise ValueError(f"nodes: expected {D} directions, as the weights have, found {nodes.n_directions}")
        check("x", tensors.x, [D, N, P], dtype)
        for name, tensor in (("x", tensors.x), ("nodes", nodes.starts)):
            check_device(name, tensor, self.weights)
        check("hidden", tensors.hidden, [D, N, P], dtype)
        check("parent_hidden", tensors.parent_hidden, [D, N, P], dtype)
        if self.weights.int8:
            check("x_int8", tensors.x_int8, [D, N, P], [torch.int8])
            check("hidden_int8", tensors.hidden_int8, [D, N, P], [torch.int8])
            check("row_scale", tensors.row_scale, [D, N], [torch.float32])
        check("children", nodes.children, [D, N + 1], [torch.int32])
        check("cell", tensors.cell, [2, D, None, C], [torch.float32])
        R = tensors.cell.shape[2]
        if nodes.max_rows > R:
            raise ValueError(f"cell: expected at least {nodes.max_rows} rows, those of the largest depth, found {R}")
        if R * C > MOST:  # some kernels count a direction's cells in 32 bits
            raise ValueError(f"cell: expected at most {MOST // C} rows of {C} cells, found {R}")
        check("unprojected", tensors.unprojected, [D, R, C], dtype)
        check("partial_sums", tensors.partial_sums, [None], [torch.float32])
        check("counters", tensors.counters, [None], [torch.int32])
        check("exchange", tensors.exchange, [exchange_size(D, P, C)], [torch.int64])
        if tensors.outputs is not None:
            check("outputs", tensors.outputs, [D, N, P], dtype)
        if self.words is not None:
            check("words.x", self.words.x, [D, None, P], dtype)
            check("words.of_nodes", self.words.of_nodes, [D, N], [torch.int32])
            check("words.n_words", self.words.n_words, [1], [torch.int32])
            check("words.gates", self.words.gates, [D, self.words.x.shape[1], 4 * C], dtype)
        if tensors.root_hidden is not None:
            check("root_hidden", tensors.root_hidden[0], [nodes.n_roots, P], dtype)
            check("root_cell", tensors.root_cell[0], [nodes.n_roots, C], [torch.float32])


def new_tensors(
    weights: LstmWeights,
    nodes: Nodes,
    x: Tensor,
    *,
    skip: bool = False,
    roots: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> LstmTensors:
    """Return new, unfilled tensors for one layer.

    Args:
        x: [D, N, P], the layer's input at every node.
        skip: whether x is added to the layer's output.
        roots: hidden [D, n_roots, P] and float32 cell [D, n_roots, C] of the roots; zero if None.
        out: [D, N, P], where to write the layer's output; new if None.
        workspace: for split sums; new if None.

    Raises:
        ValueError: `out` does not have the expected shape, type, layout or device.
    """
    D, P, C = weights.shape
    N, R = nodes.n_nodes, nodes.max_rows

    def new(*shape: int, dtype: torch.dtype = weights.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=weights.device)

    if out is None:
        out = new(D, N, P)
    check("out", out, [D, N, P], [weights.dtype])
    check_device("out", out, weights)
    workspace = workspace or Workspace.of(weights.shape, weights.device)
    return LstmTensors(
        x=x,
        hidden=new(D, N, P) if skip else out,
        parent_hidden=new(D, N, P),
        cell=new(2, D, R, C, dtype=torch.float32),
        unprojected=new(D, R, C),
        outputs=out if skip else None,
        partial_sums=workspace.partial_sums,
        counters=workspace.counters,
        exchange=workspace.exchange,
        root_hidden=None if roots is None else roots[0],
        root_cell=None if roots is None else roots[1],
        x_int8=new(D, N, P, dtype=torch.int8) if weights.int8 else None,
        hidden_int8=new(D, N, P, dtype=torch.int8) if weights.int8 else None,
        row_scale=new(D, N, dtype=torch.float32) if weights.int8 else None,
    )


def check_device(name: str, tensor: Tensor, weights: LstmWeights) -> None:
    """Raise ValueError, naming the argument, unless the tensor is on the weights' device."""
    if tensor.device != weights.device:
        raise ValueError(f"{name}: expected a tensor on {weights.device} as weights, found {tensor.device}")
