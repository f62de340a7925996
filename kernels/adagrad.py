"""A step of Adagrad, as TensorFlow has it, for one parameter:

    g = scale * gradient
    accumulator += g * g
    parameter -= lr * g / sqrt(accumulator)

Bound by memory: five values are moved for each of the parameter's, where PyTorch's operations one after another move
fifteen. The rate, and the scale that clips the norm of all gradients, lie on the card, so that nothing waits for them.

Letter: N values.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, float32

from flashelmo.kernels.arguments import check
from flashelmo.kernels.launch import Launch, cdiv
from flashelmo.kernels.tuning import Tile

TILE = Tile(1, 2048, k=1, warps=4, stages=1)  # each thread has four loads of 16 bytes on their way at once


@triton.jit  # that N is a multiple of 16 lets 16 bytes move at once
def adagrad_kernel(parameter, accumulator, gradient, lr, scale, N, TILE: tl.constexpr):
    """A block of values. Grid: blocks."""
    o_value = tl.program_id(0).to(tl.int64) * TILE.columns + tl.arange(0, TILE.columns)
    m_value = o_value < N
    g = tl.load(gradient + o_value, mask=m_value, other=0.0) * tl.load(scale)
    a = tl.load(accumulator + o_value, mask=m_value, other=1.0) + g * g
    p = tl.load(parameter + o_value, mask=m_value, other=0.0)
    tl.store(accumulator + o_value, a, mask=m_value)
    tl.store(parameter + o_value, p - tl.load(lr) * g / tl.sqrt(a), mask=m_value)


def adagrad_launch(parameter: Tensor, accumulator: Tensor, gradient: Tensor, lr: Tensor, scale: Tensor) -> Launch:
    """The launch of a step for one parameter.

    Args:
        parameter, accumulator: float32, of one shape; both are replaced.
        gradient: float32, of that shape.
        lr, scale: float32 [], on the card.

    Raises:
        ValueError: a tensor has another shape, type or layout than it should.
    """
    shape: list[int | None] = [*parameter.shape]
    for name, tensor in (("parameter", parameter), ("accumulator", accumulator), ("gradient", gradient)):
        check(name, tensor, shape, [float32])
    for name, tensor in (("lr", lr), ("scale", scale)):
        check(name, tensor, [], [float32])
    N = parameter.numel()
    arguments = {
        "parameter": parameter, "accumulator": accumulator, "gradient": gradient, "lr": lr, "scale": scale, "N": N,
        "TILE": TILE,
    }  # fmt: skip
    return Launch(adagrad_kernel, (cdiv(N, TILE.columns),), arguments, TILE.options)
