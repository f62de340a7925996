"""Adagrad as published, Adam, and the learning rate over a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ADAGRAD_START = 1.0  # of the accumulator, as published
ADAM_BETAS = (0.9, 0.99)


class RowGradient(NamedTuple):
    """The gradient of a parameter that is zero except in some rows, which may be listed several times.

    Attributes:
        parameter: [V, ...].
        rows: int64 [M].
        sums: [M, ...], the total gradient of each listed row.
        shares: [M], 1 over the number of times that a row is listed.
    """

    parameter: Tensor
    rows: Tensor
    sums: Tensor
    shares: Tensor

    @property
    def norm(self) -> Tensor:
        """The norm of the whole gradient."""
        return (self.sums.square().view(len(self.rows), -1).sum(1) * self.shares).sum().sqrt()


def row_gradients(parameters: Iterable[Tensor], rows: Tensor, gradients: Iterable[Tensor]) -> list[RowGradient]:
    """Return gradients of parameters, given those [M, ...] of rows [M], however often rows repeat."""
    ordered, order = rows.sort(stable=True)
    begins = torch.ones_like(rows)
    begins[1:] = ordered[1:] != ordered[:-1]
    group = torch.empty_like(rows).index_copy_(0, order, begins.cumsum(0) - 1)  # a number for each distinct row

    def sums(values: Tensor) -> Tensor:
        return torch.zeros_like(values).index_add_(0, group, values).index_select(0, group)

    shares = 1 / sums(torch.ones_like(rows, dtype=torch.float32))
    return [
        RowGradient(parameter, rows, sums(gradient.reshape(len(rows), -1)).view_as(gradient), shares)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]


class Adagrad(torch.optim.Optimizer):
    """accumulator += g^2, parameter -= lr g / sqrt(accumulator), as in TensorFlow; nothing waits for the device.

    Args:
        parameters: to train.
        lr: a tensor on their device, which may change between steps.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: Tensor) -> None:
        super().__init__(list(parameters), {"lr": lr})
        for parameter in self._parameters():
            self.state[parameter]["accumulator"] = torch.full_like(parameter, ADAGRAD_START)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update once, using the gradients."""
        parameters: list[Tensor] = [each for each in self._parameters() if each.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        accumulators = [self.state[parameter]["accumulator"] for parameter in parameters]
        torch._foreach_addcmul_(accumulators, gradients, gradients)
        updates: Any = torch._foreach_div(gradients, [*torch._foreach_sqrt(accumulators)])
        torch._foreach_mul_(updates, self.param_groups[0]["lr"])
        torch._foreach_sub_(parameters, updates)

    @torch.no_grad()
    def step_by_kernels(self, scale: Tensor) -> None:
        """Update by the gradients times `scale`, float32 [], on a card: each value is read once."""
        from flashelmo.kernels.adagrad import adagrad_launch

        for parameter in self._parameters():
            if parameter.grad is not None:
                accumulator = self.state[parameter]["accumulator"]
                gradient = parameter.grad.contiguous()
                adagrad_launch(parameter, accumulator, gradient, self.param_groups[0]["lr"], scale).run()

    @torch.no_grad()
    def step_by_rows(self, gradients: Iterable[RowGradient], scale: Tensor) -> None:
        """Update parameters that have these gradients instead, times `scale`; all other rows stay unchanged."""
        for parameter, rows, sums, _ in gradients:
            sums.mul_(scale)
            accumulator = self.state[parameter]["accumulator"]
            squares = accumulator.index_select(0, rows).addcmul_(sums, sums)
            accumulator.index_copy_(0, rows, squares)  # all entries of a repeated row have the same values
            update = sums / squares.sqrt_() * self.param_groups[0]["lr"]
            parameter.index_copy_(0, rows, parameter.index_select(0, rows) - update)

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def make_optimizer(name: str, parameters: Iterable[torch.nn.Parameter], lr: Tensor) -> torch.optim.Optimizer:
    """Return an optimizer, "adagrad" or "adam", whose learning rate is on the device."""
    if name == "adagrad":
        return Adagrad(parameters, lr)
    return torch.optim.Adam(parameters, lr=lr, betas=ADAM_BETAS, fused=True, capturable=lr.is_cuda)


@torch.no_grad()
def clip_scale(parameters: Iterable[torch.nn.Parameter], largest: float, by_rows: Sequence[RowGradient] = ()) -> Tensor:
    """Return what to multiply gradients by so that their joint norm is at most `largest`: [], on the device.

    Args:
        by_rows: those of parameters that have no others.
    """
    norms = torch._foreach_norm(_gradients(parameters))
    norm: Tensor = torch.stack([*norms, *(each.norm for each in by_rows)]).norm()
    return (largest / (norm + 1e-6)).clamp(max=1.0)


@torch.no_grad()
def scale_gradients(parameters: Iterable[torch.nn.Parameter], scale: Tensor) -> None:
    """Multiply all gradients by a number on their device."""
    torch._foreach_mul_(_gradients(parameters), scale)


def _gradients(parameters: Iterable[torch.nn.Parameter]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def rate_at(done: float, warm_up: float, peak: float, decays: bool) -> float:
    """Return the learning rate when a share `done` of the run is over: linear up to the peak, then a cosine down to 0.

    Without decay it stays at the peak.
    """
    if done < warm_up:
        return peak * max(done, 1e-3 * warm_up) / warm_up
    if not decays:
        return peak
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm_up) / max(1e-9, 1 - warm_up))))
