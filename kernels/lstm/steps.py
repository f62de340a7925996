"""What variants are and share on the host: the launches of steps, and their arguments.

A variant describes each launch of a step once (`Part`), for any number of rows; `depth_launches` turns these parts into
the launches of consecutive depths.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import torch
import triton

from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.lstm.cell import ProjectionTensors
from flashelmo.kernels.lstm.roots import roots_launch
from flashelmo.kernels.lstm.run import LayerRun, NodeTensors
from flashelmo.kernels.lstm.weights import CanonicalLstm, Format, Layout
from flashelmo.kernels.tuning import WEIGHT_BOUND_ROWS, Tile, choose_tile


class Variant(NamedTuple):
    """A way to compute consecutive depths.

    Attributes:
        serves: whether it is useful for depths of so many rows, with a run's type on its card.
        launches: its launches for some depths of a run, in order.
        pack: lays out the weights as it reads them; returns None for weights that it does not serve.
        blind: written without a card: its first use on one is compared with the reference (`proven`).
        rival: for a variant that no card has timed: the one that it must be as fast as, or else is replaced by.
    """

    name: str
    serves: Callable[[LayerRun, int], bool]
    launches: Callable[[LayerRun, range], Iterator[Launch]]
    pack: Callable[[CanonicalLstm, Format], Layout | None]
    blind: bool = False
    rival: Variant | None = None


class Part(NamedTuple):
    """One of the launches of a step, gates or projection, for any number of rows.

    Attributes:
        kind: returns, for a number of rows, all that the launch depends on except its grid: usually its tile.
        launch: makes the launch of a kind, which serves any depth and grid.
        grid: returns the grid for a number of rows and its kind.
    """

    kind: Callable[[int], Hashable]
    launch: Callable[[Any], Launch]
    grid: Callable[[int, Any], tuple[int, ...]]


def depth_launches(run: LayerRun, depths: range, *parts: Part) -> Iterator[Launch]:
    """Yield the launches of each depth, in order.

    A launch is made once for all depths of a kind: making one takes the host longer than changing its depth and grid.

    Raises:
        ValueError: a depth does not exist.
    """
    run.check_depths(depths)
    made: dict[Any, Launch] = {}
    for depth in depths:
        if depth == 1:
            yield roots_launch(run)
        rows = run.nodes.rows(depth)
        for k, part in enumerate(parts):
            kind = part.kind(rows)
            launch = made.get((k, kind)) or made.setdefault((k, kind), part.launch(kind))
            yield launch.at(part.grid(rows, kind), depth=depth)


def block_gates_arguments(run: LayerRun, weights: Any) -> dict[str, Any]:
    """Return the arguments shared by all gates that read blocks by bulk copies, given the layout that they read."""
    return run.arguments | {
        "cell_clip": weights.cell_clip,
        "cell_ptr": run.tensors.cell,
        "unprojected": run.tensors.unprojected,
        "nodes": NodeTensors(run.nodes.starts, run.nodes.parents),
        "APPROXIMATE": is_approximate(run.weights.dtype),
    }


def block_projection_arguments(run: LayerRun, weights: Any) -> dict[str, Any]:
    """Return the arguments of a projection that reads blocks by bulk copies, given the layout that it reads."""
    return run.arguments | {
        "projection_clip": weights.projection_clip,
        "polls": run.options.polls,
        "tensors": run.tensors.only(ProjectionTensors)._replace(x=run.tensors.skipped, unprojected=None),
        "nodes": NodeTensors(run.nodes.starts, None, run.nodes.children),
    }


def choose_projection(run: LayerRun, rows: int) -> Tile:
    """Return the projection's tile for so many rows; its sums are split where the cells divide evenly.

    Raises:
        ValueError: the tensors for split sums are too small.
    """
    (D, P, C), weights = run.weights.shape, run.weights
    options = run.options
    tile = choose_tile("projection", weights.dtype, options.precision, rows, batch_invariant=options.batch_invariant)
    if C % tile.splits or tile.splits == 1:
        return tile._replace(splits=1)
    blocks = D * cdiv(rows, tile.rows)
    needed = {"partial_sums": blocks * tile.splits * tile.rows * P, "counters": blocks * cdiv(P, tile.columns)}
    for name, values in needed.items():
        if len(getattr(run.tensors, name)) < values:
            raise ValueError(f"{name}: expected at least {values} values, found {len(getattr(run.tensors, name))}")
    return tile


def eviction_policy(run: LayerRun, rows: int) -> str:
    """Return that of the weights, which the L2 cache keeps where time goes into reading them."""
    options = run.options
    keeps = options.keep_weights and rows <= WEIGHT_BOUND_ROWS and not options.batch_invariant
    return "evict_last" if keeps else ""


def is_approximate(dtype: torch.dtype) -> bool:
    """Whether tanh and the output gate use the card's approximations: where h is rounded to bf16 right away."""
    return dtype == torch.bfloat16 and not triton.knobs.runtime.interpret
