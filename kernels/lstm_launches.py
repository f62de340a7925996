"""The launches of the LSTM's time steps: `lstm.gates_kernel` and `lstm.projection_kernel`, depth by depth."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import triton

from flashelmo.kernels.launch import Launch, Precision, check_dependent
from flashelmo.kernels.lstm import gates_kernel, projection_kernel
from flashelmo.kernels.lstm_tensors import LstmTensors, NodeTensors, check_tensors, choose_projection
from flashelmo.kernels.lstm_weights import LstmWeights
from flashelmo.kernels.nodes import Nodes
from flashelmo.kernels.tuning import WEIGHT_BOUND_ROWS, choose_tile


def step_launches(
    weights: LstmWeights,
    tensors: LstmTensors,
    nodes: Nodes,
    depth: int,
    *,
    by_word: bool = False,
    slab_depth: int = 1,
    precision: Precision = "ieee",
    dependent: bool = False,
) -> tuple[Launch, Launch]:
    """The two launches of one depth, 1 ... T; they must follow each other.

    Args:
        tensors: see `LstmTensors`; hidden, cell, exposed, outputs, partial and arrivals are written.
        by_word: x has a row for each word, not for each node.
        slab_depth: the depth whose first node is row 0 of `tensors.x_gates`.
        precision: of float32 products; "tf32" is fast and off by about 3e-4.
        dependent: each may begin before the launch before it ends, whatever that is, and reads the schedule and the
            weights meanwhile: these must not be what that launch writes. Triton's interpreter takes no notice.

    Raises:
        ValueError: a tensor has another shape, type or layout than it should, depth does not exist, or the device has
            no dependent launches.
    """
    if not 1 <= depth <= nodes.n_depths:
        raise ValueError(f"depth: expected 1 to {nodes.n_depths}, found {depth}")
    gates, projection = slab_launches(
        weights, tensors, nodes, range(depth, depth + 1),
        by_word=by_word, slab_depth=slab_depth, precision=precision, dependent=dependent,
    )  # fmt: skip
    return gates, projection


def slab_launches(
    weights: LstmWeights,
    tensors: LstmTensors,
    nodes: Nodes,
    depths: range,
    *,
    by_word: bool,
    slab_depth: int,
    precision: Precision,
    dependent: bool,
    keep_weights: bool = True,
) -> Iterator[Launch]:
    """Those of depths that follow each other, in order, checked once for all; arguments and errors are the same.

    Args:
        keep_weights: ask the L2 cache to keep the weights of depths whose time is that of reading them.
    """
    shape = check_tensors(weights, tensors, nodes, by_word, slab_depth, depths[0], depths[-1])
    dependent = dependent and not triton.knobs.runtime.interpret
    if dependent:
        check_dependent(tensors.hidden.device)
    hoisted, skip = tensors.x_gates is not None, tensors.outputs is not None
    shared = {
        "weights": weights,
        "N": nodes.n_nodes,
        "R": tensors.cell.shape[2],
        "T": nodes.n_depths,
        "SHAPE": shape,
        "PRECISION": precision,
        "DEPENDENT": dependent,
    }
    # A kernel is compiled for which tensors there are: none that it leaves alone.
    only_gates = {
        "tensors": tensors._replace(x=None if hoisted else tensors.x, outputs=None, partial=None, arrivals=None),
        "nodes": NodeTensors(nodes.starts, nodes.parents, nodes.words if by_word and not hoisted else None),
        "slab_depth": slab_depth,
        "M": tensors.x_gates.shape[1] if hoisted else 0,
        "APPROXIMATE": is_approximate(weights.dtype),
    }
    only_projection = {
        "tensors": tensors._replace(x=tensors.x if skip else None, x_gates=None, cell=None),
        "nodes": NodeTensors(nodes.starts, None, None),
    }
    options = {"launch_pdl": True} if dependent else {}
    device = None if hoisted else tensors.hidden.device

    @cache
    def of_rows(rows: int) -> tuple[Launch, Launch]:
        """Both of any depth that has so many, but for the depth."""
        gates = choose_tile("gates", weights.dtype, precision, rows, device=device, int8=weights.is_int8)
        projection = choose_projection("projection", weights, tensors, precision, rows)
        keep = {"KEEP": "evict_last" if keep_weights and rows <= WEIGHT_BOUND_ROWS else ""}
        blocks = triton.cdiv(rows, gates.rows), triton.cdiv(shape.C, gates.columns), shape.D
        columns = triton.cdiv(shape.P, projection.columns) * projection.splits
        shares = triton.cdiv(rows, projection.rows), columns, shape.D
        return (
            Launch(gates_kernel, blocks, shared | only_gates | keep | {"TILE": gates}, gates.options | options),
            Launch(
                projection_kernel,
                shares,
                shared | only_projection | keep | {"TILE": projection},
                projection.options | options,
            ),
        )

    for depth in depths:
        for launch in of_rows(nodes.rows(depth)):
            yield launch._replace(arguments={**launch.arguments, "depth": depth})


def is_approximate(dtype: torch.dtype) -> bool:
    """Whether tanh and the output gate are the card's approximate ones: where h is rounded to bf16 at once."""
    return dtype == torch.bfloat16 and not triton.knobs.runtime.interpret
