"""Fused steps, for many rows: input and recurrent state are multiplied in one pass, [x, r] @ [W_x; W_r].

Two launches a depth, of `step.gates_kernel` and `step.projection_kernel`.
"""

from __future__ import annotations

from collections.abc import Iterator

from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.lstm.step import step_launches


def serves(run: LayerRun, rows: int) -> bool:
    """Any number of rows, but not 8-bit weights: those of the input are not of their type."""
    return not run.weights.int8


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """The launches of some depths that follow each other, in order.

    Raises:
        ValueError: a depth does not exist, or the weights have 8 bits.
    """
    if run.weights.int8:
        raise ValueError("weights: expected all in one type, as fused steps need, found some of 8 bits")
    yield from step_launches(run, depths)
