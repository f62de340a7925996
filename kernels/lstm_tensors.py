"""What the LSTM's kernels read and write, and whether it fits together."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from flashelmo.kernels.launch import Precision, check
from flashelmo.kernels.lstm_weights import LstmWeights
from flashelmo.kernels.nodes import Nodes
from flashelmo.kernels.tuning import Tile, choose_tile


class LstmTensors(NamedTuple):
    """What the steps of one layer read and write.

    Attributes:
        x: the layer's input: word vectors [words, P], or the layer below's outputs [D, N, P].
        x_gates: float32 [D, M, 4C], x @ W_x + b of a slab (some depths that follow each other); None where not hoisted.
        hidden: [D, N, P], r of every node, the roots' first.
        cell: float32 [2, D, R, C], c of two depths in turn.
        exposed: [D, R, C], h of one depth.
        outputs: [D, N, P], r + x where there is a skip connection; else None.
        partial: float32, shares of the projection's sums over cells: [blocks of rows, D, splits, rows, P].
        arrivals: int32, how many programs have brought a share, zero between launches:
            [blocks of rows, D, blocks of columns].
    """

    x: Any
    x_gates: Any
    hidden: Any
    cell: Any
    exposed: Any
    outputs: Any
    partial: Any
    arrivals: Any


class NodeTensors(NamedTuple):
    """`Nodes` as the kernels take them; words is None where a node's input has the node's own number."""

    starts: Any
    parents: Any
    words: Any


class Shape(NamedTuple):
    """Constants of a model: one compilation each."""

    D: int
    P: int
    C: int


def choose_projection(
    operation: str, weights: LstmWeights, tensors: LstmTensors, precision: Precision, rows: int
) -> Tile:
    """The projection's tile for so many rows, its sums shared where the cells can be split evenly.

    Raises:
        ValueError: the tensors of shared sums are too small.
    """
    D, C, P = weights.projection.shape
    tile = choose_tile(operation, weights.dtype, precision, rows, int8=weights.is_int8)
    if C % tile.splits or tile.splits == 1:
        return tile._replace(splits=1)
    check("partial", tensors.partial, [None], [torch.float32])
    check("arrivals", tensors.arrivals, [None], [torch.int32])
    blocks = D * triton.cdiv(rows, tile.rows)
    needed = {"partial": blocks * tile.splits * tile.rows * P, "arrivals": blocks * triton.cdiv(P, tile.columns)}
    for name, values in needed.items():
        if len(getattr(tensors, name)) < values:
            raise ValueError(f"{name}: expected at least {values} values, found {len(getattr(tensors, name))}")
    return tile


def check_tensors(
    weights: LstmWeights, tensors: LstmTensors, nodes: Nodes, by_word: bool, slab_depth: int, last_depth: int
) -> Shape:
    """The sizes of a model's layer.

    Args:
        slab_depth, last_depth: the depths that `tensors.x_gates` must cover, where there is such a tensor.

    Raises:
        ValueError: a tensor has another shape, type or layout than the others ask for.
    """
    D, C, P = weights.projection.shape
    N, dtype = nodes.n_nodes, (weights.dtype,)
    check("hidden", tensors.hidden, [D, N, P], dtype)
    check("x", tensors.x, [None, P] if by_word else [D, N, P], dtype)
    check("cell", tensors.cell, [2, D, None, C], [torch.float32])
    R = tensors.cell.shape[2]
    if nodes.n_directions != D:
        raise ValueError(f"nodes: expected {D} directions, as the weights have, found {nodes.n_directions}")
    if nodes.max_rows > R:
        raise ValueError(f"cell: expected at least {nodes.max_rows} rows, those of the largest depth, found {R}")
    check("exposed", tensors.exposed, [D, R, C], dtype)
    if tensors.outputs is not None:
        if by_word:
            raise ValueError("outputs: expected none, as words are no nodes and a lowest layer has no skip connection")
        check("outputs", tensors.outputs, [D, N, P], dtype)
    if tensors.x_gates is not None:
        check("x_gates", tensors.x_gates, [D, None, 4 * C], [torch.float32])
        rows = max(starts[last_depth + 1] - starts[slab_depth] for starts in nodes.depths)
        if tensors.x_gates.shape[1] < rows:
            raise ValueError(
                f"x_gates: expected at least {rows} rows, those of the slab, found {tensors.x_gates.shape[1]}"
            )
    elif weights.is_int8:
        raise ValueError("x_gates: expected the input's part computed beforehand, as 8-bit weights need, found none")
    return Shape(D, P, C)
