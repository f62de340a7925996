"""What the LSTM's kernels read and write, and whether it fits together."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from flashelmo.kernels.launch import FLOATS, Precision, check
from flashelmo.kernels.lstm_weights import LstmWeights
from flashelmo.kernels.nodes import Nodes
from flashelmo.kernels.tuning import Tile, choose_tile


class LstmTensors(NamedTuple):
    """What the steps of one layer read and write; a kernel is given None for what it leaves alone.

    Attributes:
        x: the layer's input: word vectors [words, P], or the layer below's outputs [D, N, P].
        x_gates: float32 [D, M, 4C], x @ W_x + b of a slab (some depths that follow each other); None where not hoisted.
        hidden: [D, N, P], r of every node, the roots' first.
        cell: float32 [2, D, R, C], c of two depths in turn.
        exposed: [D, R, C], h of one depth.
        outputs: [D, N, P], r + x where there is a skip connection; else None.
        partial: float32 [values], shares of the projection's sums over cells.
        arrivals: int32 [values], how many programs have brought a share; zero between launches.
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
    """`Nodes` as the kernels take them; words is None where they don't say which input is a node's."""

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


def check_weights(weights: LstmWeights) -> tuple[int, int, int]:
    """D, C and P of weights that `pack_lstm` laid out.

    Raises:
        ValueError: they have another shape, type or layout, as copies of each by itself would.
    """
    check("projection", weights.projection, [None, None, None], [torch.int8 if weights.is_int8 else weights.dtype])
    D, C, P = weights.projection.shape
    check("bias", weights.bias, [D, 4 * C], [torch.float32])
    if weights.is_int8:
        check("recurrent", weights.recurrent, [D, P, 4 * C], [torch.int8])
        check("recurrent_scale", weights.recurrent_scale, [D, 4 * C], [torch.float32])
        check("projection_scale", weights.projection_scale, [D, P], [torch.float32])
        check("input", weights.input, [D, P, 4 * C], FLOATS)
        return D, C, P
    for name, weight in (("input", weights.input), ("recurrent", weights.recurrent)):
        check(name, weight[0], [P, 4 * C], FLOATS)
        if weight.shape[0] != D or weight.stride(0) != 8 * P * C:
            raise ValueError(f"{name}: expected one of {D} directions as pack_lstm lays them out, found another layout")
    behind = weights.recurrent.data_ptr() - weights.input.data_ptr()
    if behind != 4 * P * C * weights.dtype.itemsize and weights.input.device.type != "meta":
        raise ValueError("recurrent: expected to lie behind input in memory, as pack_lstm lays them out")
    return D, C, P


def check_tensors(
    weights: LstmWeights,
    tensors: LstmTensors,
    nodes: Nodes,
    by_word: bool,
    slab_depth: int,
    first_depth: int,
    last_depth: int,
) -> Shape:
    """The sizes of a model's layer.

    Args:
        slab_depth: the depth whose first node is row 0 of `tensors.x_gates`, where there is such a tensor.
        first_depth, last_depth: the depths to be computed.

    Raises:
        ValueError: a tensor has another shape, type or layout than the others ask for.
    """
    D, C, P = check_weights(weights)
    N, dtype = nodes.n_nodes, (weights.dtype,)
    check("hidden", tensors.hidden, [D, N, P], dtype)
    check("x", tensors.x, [None, P] if by_word else [D, N, P], dtype)
    if by_word and tensors.x.shape[0] < nodes.n_words:
        raise ValueError(f"x: expected at least {nodes.n_words} words, as the nodes name, found {tensors.x.shape[0]}")
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
        if not 1 <= slab_depth <= first_depth:
            raise ValueError(f"slab_depth: expected 1 to {first_depth}, the first depth, found {slab_depth}")
        rows = nodes.span(slab_depth, last_depth)
        if tensors.x_gates.shape[1] < rows:
            raise ValueError(
                f"x_gates: expected at least {rows} rows, those of the slab, found {tensors.x_gates.shape[1]}"
            )
    elif weights.is_int8:
        raise ValueError("x_gates: expected the input's part computed beforehand, as 8-bit weights need, found none")
    return Shape(D, P, C)
