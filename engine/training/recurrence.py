"""One LSTM layer of both directions over a window of time steps, with its own backward pass.

    gates_t = x_t W_in + h_{t-1} W_rec + bias                (i, f, g, o)
    c_t     = clip(sigmoid(f) c_{t-1} + sigmoid(i) tanh(g))
    u_t     = sigmoid(o) tanh(c_t)
    h_t     = clip(u_t W_proj)

What PyTorch's autograd would do step by step is done once for all steps: the product over inputs before the recurrence,
and after it the four products for the weights' gradients and the one for the inputs'. Both directions are one batched
product. A clip passes no gradient where it acts, as in `tf.clip_by_value`. The state before the window is a constant
(truncated backpropagation).

Letters: T time steps, B rows, P size of x and h, C of c and u; both directions are the first dimension, 2.
Products are computed in the type of the given weights (bf16, fp16 or float32), states and pointwise parts in the
state's (float32); autocast changes nothing here.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flashelmo.engine.errors import first_line
from flashelmo.engine.system.autocast import without_autocast


class Clips(NamedTuple):
    """Bounds of the cell state and of the projected hidden state; None if unbounded."""

    cell: float | None
    projection: float | None


class Weights(NamedTuple):
    """input, recurrent [2, P, 4C], bias [2, 4C], projection [2, C, P] or None where u is h and P = C."""

    input: Tensor
    recurrent: Tensor
    bias: Tensor
    projection: Tensor | None


def lstm_layer(
    x: Tensor, weights: Weights, hidden: Tensor, cell: Tensor, clips: Clips, kernels: bool = False
) -> tuple[Tensor, ...]:
    """Run one layer over a window.

    Args:
        x: [2, T, B, P].
        weights: of the layer.
        hidden, cell: the previous state, [2, B, P] and [2, B, C].
        clips: bounds.
        kernels: whether Triton's kernels compute the pointwise parts.

    Returns:
        h [2, T, B, P], and the new state.
    """
    result: tuple[Tensor, ...]
    with without_autocast(x.device):
        result = _Layer.apply(x, *weights, hidden, cell, clips, kernels)  # type: ignore[no-untyped-call]
    return result


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, w_rec: Tensor, bias: Tensor, w_proj: Tensor | None,
                hidden: Tensor, cell: Tensor, clips: Clips, kernels: bool) -> tuple[Tensor, ...]:  # fmt: skip
        _, steps, rows, size = x.shape
        kind, n_cells = w_rec.dtype, cell.shape[-1]
        step = _launch_forward if kernels else cell_forward
        x, h = x.to(kind), hidden.to(kind)
        gates = torch.baddbmm(bias.to(kind)[:, None], x.reshape(2, -1, size), w_in).view(2, steps, rows, -1)
        cells, outputs = cell.new_empty(2, steps, rows, n_cells), x.new_empty(2, steps, rows, size)
        u = x.new_empty(2, rows, n_cells)
        first = h, cell
        for t in range(steps):
            gates[:, t].baddbmm_(h, w_rec)
            step(gates[:, t], cell, cells[:, t], u, clips.cell)
            h, cell = outputs[:, t], cells[:, t]
            if w_proj is None:
                h.copy_(u)
                continue
            torch.bmm(u, w_proj, out=h)
            if clips.projection is not None:
                h.clamp_(-clips.projection, clips.projection)
        ctx.save_for_backward(x, w_in, w_rec, w_proj, gates, cells, outputs, *first)
        ctx.clips, ctx.kernels = clips, kernels
        last = h.to(cell.dtype, copy=True), cell.clone()
        ctx.mark_non_differentiable(*last)
        return outputs.to(cell.dtype, copy=True), *last

    @staticmethod
    @once_differentiable  # gradients of gradients would be wrong
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with without_autocast(gradients[0].device):
            return _Layer._gradients(ctx, gradients[0])

    @staticmethod
    def _gradients(ctx: Any, d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, w_in, w_rec, w_proj, gates, cells, outputs, first_hidden, first_cell = ctx.saved_tensors
        _, steps, rows, size = x.shape
        step = _launch_backward if ctx.kernels else cell_backward
        passes = None if w_proj is None else _passes(outputs, ctx.clips.projection)
        w_rec_t, w_proj_t = w_rec.transpose(1, 2), None if w_proj is None else w_proj.transpose(1, 2)
        d_gates, d_hidden = torch.empty_like(gates), torch.empty_like(outputs)
        d_c, d_u = torch.zeros_like(first_cell), x.new_empty(2, rows, first_cell.shape[-1])
        d_h = x.new_zeros(2, rows, size)
        for t in reversed(range(steps)):
            torch.add(d_outputs[:, t], d_h, out=d_hidden[:, t])
            if passes is not None:
                d_hidden[:, t].mul_(passes[:, t])
            if w_proj_t is not None:
                torch.bmm(d_hidden[:, t], w_proj_t, out=d_u)
            before = cells[:, t - 1] if t else first_cell
            d_top = d_u if w_proj_t is not None else d_hidden[:, t].contiguous()
            step(d_top, d_c, gates[:, t], cells[:, t], before, d_gates[:, t], ctx.clips.cell)
            if t:
                torch.bmm(d_gates[:, t], w_rec_t, out=d_h)
        flat = d_gates.view(2, steps * rows, -1)
        h_before = torch.cat([first_hidden[:, None], outputs[:, :-1]], dim=1).view(2, -1, size)
        d_proj = None
        if w_proj is not None:
            u = (gates[..., 3 * cells.shape[-1] :] * torch.tanh(cells)).to(x.dtype)
            d_proj = torch.bmm(u.view(2, steps * rows, -1).transpose(1, 2), d_hidden.view(2, -1, size))
        return (
            torch.bmm(flat, w_in.transpose(1, 2)).view_as(x),
            torch.bmm(x.reshape(2, -1, size).transpose(1, 2), flat),
            torch.bmm(h_before.transpose(1, 2), flat),
            flat.sum(dim=1, dtype=cells.dtype),
            d_proj,
            *(None,) * 4,
        )


def _passes(outputs: Tensor, clip: float | None) -> Tensor | None:
    """Return where the projection's clip passes gradients; None if it does everywhere."""
    if clip is None:
        return None
    rounded = torch.tensor(clip, dtype=torch.float64, device="cpu").to(outputs.dtype).item()  # where it acts
    return outputs.abs() < rounded


def cell_forward(gates: Tensor, before: Tensor, after: Tensor, u: Tensor, clip: float | None) -> None:
    """Compute the pointwise part of a step; `kernels.lstm.training` does the same.

    Args:
        gates: [2, B, 4C], activated in place.
        before: the cell state [2, B, C].
        after: the next cell state, written.
        u: [2, B, C], written.
        clip: bound of the cell state.
    """
    n_cells = before.shape[-1]
    gates[..., : 2 * n_cells].sigmoid_()
    gates[..., 2 * n_cells : 3 * n_cells].tanh_()
    gates[..., 3 * n_cells :].sigmoid_()
    i, f, g, o = gates.split(n_cells, dim=-1)
    torch.mul(f, before, out=after)
    after.addcmul_(i.to(after.dtype), g.to(after.dtype))
    if clip is not None:
        after.clamp_(-clip, clip)
    torch.mul(o, torch.tanh(after), out=u)


def cell_backward(d_u: Tensor, d_c: Tensor, gates: Tensor, cell: Tensor, before: Tensor, d_gates: Tensor,
                  clip: float | None) -> None:  # fmt: skip
    """Compute the gradient of `cell_forward`; `kernels.lstm.training` does the same.

    Args:
        d_u: gradient of u [2, B, C].
        d_c: gradient of this step's cell state, from the next step; replaced by that of the previous state.
        gates: activated.
        cell, before: states after and before this step.
        d_gates: gradient of the gates before activation [2, B, 4C], written.
        clip: bound of the cell state.
    """
    i, f, g, o = (gate.to(cell.dtype) for gate in gates.split(cell.shape[-1], dim=-1))
    tanh, d_u = torch.tanh(cell), d_u.to(cell.dtype)
    d_c.addcmul_(d_u * o, 1 - tanh * tanh)
    if clip is not None:
        d_c.mul_(cell.abs() < clip)
    d_i, d_f, d_g, d_o = d_gates.split(cell.shape[-1], dim=-1)
    torch.mul(d_c * g, i * (1 - i), out=d_i)
    torch.mul(d_c * before, f * (1 - f), out=d_f)
    torch.mul(d_c * i, 1 - g * g, out=d_g)
    torch.mul(d_u * tanh, o * (1 - o), out=d_o)
    d_c.mul_(f)


def _launch_forward(gates: Tensor, before: Tensor, after: Tensor, u: Tensor, clip: float | None) -> None:
    from flashelmo.kernels.lstm.training import cell_forward_launch

    cell_forward_launch(gates, before, after, u, clip).run()


def _launch_backward(d_u: Tensor, d_c: Tensor, gates: Tensor, cell: Tensor, before: Tensor, d_gates: Tensor,
                     clip: float | None) -> None:  # fmt: skip
    from flashelmo.kernels.lstm.training import cell_backward_launch

    cell_backward_launch(d_u, d_c, gates, cell, before, d_gates, clip).run()


@cache
def kernels_work(device: torch.device) -> bool:
    """Whether Triton's kernels can be used on a card: they are tried there, and must agree with the formula."""
    if device.type != "cuda":
        return False
    results = []
    try:
        for kernels in (False, True):
            generator = torch.Generator().manual_seed(0)
            shapes = (2, 3, 4, 64), (2, 64, 512), (2, 64, 512), (2, 512), (2, 128, 64), (2, 4, 64), (2, 4, 128)
            drawn = [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") for shape in shapes]
            tensors = [(0.3 * tensor).to(device) for tensor in drawn]
            for tensor in tensors[:5]:
                tensor.requires_grad_()
            x, *weights, hidden, cell = tensors
            h, *_ = lstm_layer(x, Weights(*weights), hidden, cell, Clips(0.2, 0.1), kernels)
            results.append([h, *torch.autograd.grad((h * h).sum(), tensors[:5])])
        for ours, formula in zip(*results, strict=True):
            torch.testing.assert_close(ours, formula, rtol=1e-3, atol=1e-4)
    except Exception as error:  # no Triton, no compiler for it, or a card that it does not know
        logging.getLogger("flashelmo").warning(
            "Triton's kernels are not used, PyTorch's operations are: %s", first_line(error)
        )
        return False
    return True
