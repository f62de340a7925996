"""One layer of the bidirectional LSTM over all nodes of a schedule: which launches, in which order.

Depths that follow each other and are of one kind form a slab:

    fused       many rows: input and recurrent state are multiplied in one pass, two launches a depth
    hoisted     few rows: the input's part of the whole slab is one product beforehand, two launches a depth
    persistent  very few rows: likewise beforehand, and one launch for all depths of the slab
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from flashelmo.kernels.launch import Launch, Precision, check
from flashelmo.kernels.linear import linear
from flashelmo.kernels.lstm_launches import slab_launches
from flashelmo.kernels.lstm_persistent import Barrier, persistent_launch
from flashelmo.kernels.lstm_tensors import LstmTensors, check_weights
from flashelmo.kernels.lstm_weights import LstmWeights
from flashelmo.kernels.nodes import Nodes
from flashelmo.kernels.tuning import HOISTED_BYTES, PERSISTENT_ROWS, TILES, WEIGHT_BOUND_ROWS, is_hoisted

Kind: TypeAlias = Literal["fused", "hoisted", "persistent"]


class Slab(NamedTuple):
    """Depths first ... first + n_depths - 1, computed alike."""

    kind: Kind
    first: int
    n_depths: int


def lstm_layer(
    weights: LstmWeights,
    nodes: Nodes,
    x: Tensor,
    *,
    by_word: bool = False,
    skip: bool = False,
    roots: tuple[Tensor, Tensor] | None = None,
    barrier: Barrier | None = None,
    out: Tensor | None = None,
    precision: Precision = "ieee",
    dependent: bool = False,
    keep_weights: bool = True,
) -> tuple[Tensor, LstmTensors]:
    """What the layer puts out for every node, [D, N, P] with the roots' rows first, and the tensors it was computed in.

    Rows beyond a direction's last node are not written. Nothing waits for the device, so that a CUDA graph may capture
    the launches once each has run before.

    Args:
        x: the layer's input: word vectors [words, P] where `by_word`, else the layer below's outputs [D, N, P].
        skip: add x to the output.
        roots: states to start from, hidden [D, n_roots, P] and float32 cell [D, n_roots, C]; zero where absent.
        barrier: lets depths of very few rows run as one launch; none, and they run as two launches each. Whoever takes
            the results calls `barrier.check()`, which waits for the device: after a time-out they are wrong.
        out: [D, N, P], what the layer puts out is written to it, as to a slice of all layers' outputs; not x.
        precision: of float32 products.
        dependent: each launch of a step may begin before the one before it ends (`lstm_launches.step_launches`).
        keep_weights: ask the L2 cache to keep the weights of depths whose time is that of reading them.

    Raises:
        ValueError: a tensor has another shape, type, layout or device than it should, or the device has no dependent
            launches.
    """
    D, C, P = check_weights(weights)
    if nodes.n_directions != D:
        raise ValueError(f"nodes: expected {D} directions, as the weights have, found {nodes.n_directions}")
    check("x", x, [None, P] if by_word else [D, nodes.n_nodes, P], [weights.dtype])
    if out is not None:
        check("out", out, [D, nodes.n_nodes, P], [weights.dtype])
    for name, tensor in (("x", x), ("nodes", nodes.starts), ("out", x if out is None else out)):
        if tensor.device != weights.bias.device:
            raise ValueError(f"{name}: expected a tensor on {weights.bias.device} as weights, found {tensor.device}")
    if by_word and len(x) < nodes.n_words:
        raise ValueError(f"x: expected at least {nodes.n_words} words, as the nodes name, found {len(x)}")
    tensors = new_tensors(weights, nodes, x, skip=skip, out=out)
    n_roots = nodes.n_roots
    if roots is not None:
        check("roots' hidden", roots[0], [D, n_roots, P], [weights.dtype])
        check("roots' cell", roots[1], [D, n_roots, C], [torch.float32])
        tensors.hidden[:, :n_roots], tensors.cell[0, :, :n_roots] = roots
    for slab in slabs(weights, nodes, persistent=barrier is not None):
        for launch in _launches(
            slab, weights, tensors, nodes, by_word, barrier,
            precision=precision, dependent=dependent, keep_weights=keep_weights,
        ):  # fmt: skip
            launch.run()
    outputs: Tensor = tensors.outputs if skip else tensors.hidden
    return outputs, tensors


def _launches(
    slab: Slab,
    weights: LstmWeights,
    tensors: LstmTensors,
    nodes: Nodes,
    by_word: bool,
    barrier: Barrier | None,
    *,
    precision: Precision,
    dependent: bool,
    keep_weights: bool,
) -> Iterator[Launch]:
    if slab.kind != "fused":
        x = slab_inputs(slab, nodes, tensors.x, by_word)
        x_gates = linear(x, weights.input, weights.bias, out_dtype=torch.float32, precision=precision)
        tensors = tensors._replace(x_gates=x_gates)
    if slab.kind == "persistent" and barrier is not None:
        yield persistent_launch(
            weights, tensors, nodes, slab.first, slab.n_depths, barrier,
            by_word=by_word, slab_depth=slab.first, precision=precision,
        )  # fmt: skip
        return
    depths = range(slab.first, slab.first + slab.n_depths)
    yield from slab_launches(
        weights, tensors, nodes, depths,
        by_word=by_word, slab_depth=slab.first, precision=precision, dependent=dependent, keep_weights=keep_weights,
    )  # fmt: skip


def new_tensors(
    weights: LstmWeights, nodes: Nodes, x: Tensor, *, skip: bool = False, out: Tensor | None = None
) -> LstmTensors:
    """Tensors for one layer on x's device, the roots' states zero; what the layer puts out is `out`, if given."""
    D, C, P = weights.projection.shape
    N, R = nodes.n_nodes, nodes.max_rows
    hidden = x.new_empty(D, N, P) if skip or out is None else out
    cell = x.new_empty(2, D, R, C, dtype=torch.float32)
    hidden[:, : nodes.n_roots] = 0
    cell[0, :, : nodes.n_roots] = 0
    outputs = None
    if skip:
        outputs = x.new_empty(D, N, P) if out is None else out
        outputs[:, : nodes.n_roots] = 0
    n_shares, n_blocks = _shares(R)
    return LstmTensors(
        x=x,
        x_gates=None,
        hidden=hidden,
        cell=cell,
        exposed=x.new_empty(D, R, C),
        outputs=outputs,
        partial=x.new_empty(D * n_shares * P, dtype=torch.float32),
        arrivals=x.new_zeros(D * n_blocks * P, dtype=torch.int32),
    )


def _shares(rows: int) -> tuple[int, int]:
    """Rows of partial sums, and blocks of rows, that some tile with shared sums needs for up to so many rows.

    Persistent launches share them whatever their rows, but are of use for few rows alone.
    """
    n_shares = n_blocks = 1
    for (operation, _), entries in TILES.items():
        for most, tile in entries:
            if operation.endswith("projection") and tile.splits > 1:
                most = min(most, WEIGHT_BOUND_ROWS) if operation.startswith("persistent") else most
                blocks = -(-min(most, rows) // tile.rows)
                n_shares, n_blocks = max(n_shares, blocks * tile.rows * tile.splits), max(n_blocks, blocks)
    return n_shares, n_blocks


def slabs(weights: LstmWeights, nodes: Nodes, *, persistent: bool) -> Iterator[Slab]:
    """All depths in order, 1 ... T, in slabs as long as can be."""
    most = max(1, HOISTED_BYTES // (4 * weights.bias.numel()))  # nodes of a slab
    slab: Slab | None = None
    for depth in range(1, nodes.n_depths + 1):
        kind = _kind(nodes.rows(depth), persistent, weights)
        fits = slab is not None and (
            kind == "fused" or slab_rows(Slab(kind, slab.first, slab.n_depths + 1), nodes) <= most
        )
        if slab is not None and slab.kind == kind and fits:
            slab = slab._replace(n_depths=slab.n_depths + 1)
            continue
        if slab is not None:
            yield slab
        slab = Slab(kind, depth, 1)
    if slab is not None:
        yield slab


def _kind(rows: int, persistent: bool, weights: LstmWeights) -> Kind:
    if persistent and rows <= PERSISTENT_ROWS:
        return "persistent"
    if weights.is_int8 or is_hoisted(rows, weights.projection.shape[2], weights.dtype):
        return "hoisted"
    return "fused"


def slab_rows(slab: Slab, nodes: Nodes) -> int:
    """Nodes of a slab, in the direction that has most."""
    return nodes.span(slab.first, slab.first + slab.n_depths - 1)


def slab_inputs(slab: Slab, nodes: Nodes, x: Tensor, by_word: bool) -> Tensor:
    """The layer's inputs of a slab's nodes, [D, M, P]; a direction with fewer nodes repeats its last."""
    starts = nodes.starts.long()
    last = (starts[:, -1:] - 1).clamp_(min=0)
    node = torch.minimum(starts[:, slab.first, None] + torch.arange(slab_rows(slab, nodes), device=x.device), last)
    if by_word:
        return x[nodes.words.gather(1, node).long()]
    return x.gather(1, node[..., None].expand(-1, -1, x.shape[-1]))
