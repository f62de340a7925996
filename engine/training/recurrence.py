"""One LSTM layer of both directions over a window of time steps, with a backward pass of its own.

    gates_t = x_t W_in + h_{t-1} W_rec + bias                (i, f, g, o)
    c_t     = clip(sigmoid(f) c_{t-1} + sigmoid(i) tanh(g))
    u_t     = sigmoid(o) tanh(c_t)
    h_t     = clip(u_t W_proj)

What PyTorch's autograd would do step by step is done once for all steps: the product over inputs before the recurrence,
the four products for the weights' gradients and that for the inputs' after it. Both directions are one batched product.
A clip lets no gradient through where it acts, as `tf.clip_by_value`. The state before the window is a constant
(truncated backpropagation).

Letters: T time steps, B rows, P size of x and h, C of c and u; both directions are the first dimension, 2.
Products are computed in the type of the weights that are given (bf16 or float32), states and pointwise parts in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from flashelmo.engine.errors import MissingExtraError

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise MissingExtraError("torch", "torch", "training") from error


class Clips(NamedTuple):
    """Bounds of the cell state and of the projected hidden state; None where unbounded."""

    cell: float | None
    projection: float | None


class Weights(NamedTuple):
    """input, recurrent [2, P, 4C], bias [2, 4C], projection [2, C, P] or None where u is h and P = C."""

    input: Tensor
    recurrent: Tensor
    bias: Tensor
    projection: Tensor | None


def lstm_layer(x: Tensor, weights: Weights, hidden: Tensor, cell: Tensor, clips: Clips) -> tuple[Tensor, ...]:
    """x [2, T, B, P], hidden [2, B, P] and cell [2, B, C] before -> h [2, T, B, P], and the state after."""
    result: tuple[Tensor, ...] = _Layer.apply(x, *weights, hidden, cell, clips)
    return result


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w_in: Tensor, w_rec: Tensor, bias: Tensor, w_proj: Tensor | None,
                hidden: Tensor, cell: Tensor, clips: Clips) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        _, steps, rows, size = x.shape
        kind, n_cells = w_rec.dtype, cell.shape[-1]
        x = x.to(kind)
        gates = torch.baddbmm(bias.to(kind)[:, None], x.reshape(2, -1, size), w_in).view(2, steps, rows, -1)
        cells = cell.new_empty(2, steps, rows, n_cells)
        outputs = hidden.new_empty(2, steps, rows, size)
        first_hidden, first_cell = hidden, cell
        h = hidden.to(kind)
        for t in range(steps):
            step_gates = torch.baddbmm(gates[:, t], h, w_rec)
            u = cell_forward(step_gates, cell, cells[:, t], clips.cell)
            gates[:, t] = step_gates  # activated
            cell = cells[:, t]
            u = u.to(kind)
            h = u if w_proj is None else torch.bmm(u, w_proj)
            if w_proj is not None and clips.projection is not None:
                h = h.clamp_(-clips.projection, clips.projection)
            outputs[:, t] = h
        ctx.save_for_backward(x, w_in, w_rec, w_proj, gates, cells, outputs, first_hidden, first_cell)
        ctx.clips = clips
        last = outputs[:, -1].clone(), cells[:, -1].clone()
        ctx.mark_non_differentiable(*last)
        return outputs, *last

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w_in, w_rec, w_proj, gates, cells, outputs, first_hidden, first_cell = ctx.saved_tensors
        d_outputs, clips, kind = gradients[0], ctx.clips, w_rec.dtype
        _, steps, rows, size = x.shape
        w_rec_t = w_rec.transpose(1, 2)
        w_proj_t = None if w_proj is None else w_proj.transpose(1, 2)
        d_gates, d_hidden = torch.empty_like(gates), torch.empty_like(x)
        d_h = d_c = None
        for t in reversed(range(steps)):
            d_h = d_outputs[:, t] if d_h is None else d_outputs[:, t] + d_h
            if w_proj_t is None:
                d_u = d_h
            else:
                if clips.projection is not None:
                    d_h = d_h * (outputs[:, t].abs() < clips.projection)
                d_hidden[:, t] = d_h
                d_u = torch.bmm(d_hidden[:, t], w_proj_t)
            before = cells[:, t - 1] if t else first_cell
            d_c = cell_backward(d_u, d_c, gates[:, t], cells[:, t], before, d_gates[:, t], clips.cell)
            if t:
                d_h = torch.bmm(d_gates[:, t], w_rec_t)
        d_all = d_gates.view(2, steps * rows, -1)
        d_x = torch.bmm(d_all, w_in.transpose(1, 2)).view_as(x)
        d_in = torch.bmm(x.reshape(2, -1, size).transpose(1, 2), d_all)
        before = torch.cat([first_hidden[:, None], outputs[:, :-1]], dim=1).to(kind).view(2, -1, size)
        d_rec = torch.bmm(before.transpose(1, 2), d_all)
        d_bias = d_all.sum(dim=1, dtype=cells.dtype)
        d_proj = None
        if w_proj is not None:
            u = (gates[..., 3 * cells.shape[-1] :] * torch.tanh(cells)).to(kind)
            d_proj = torch.bmm(u.view(2, steps * rows, -1).transpose(1, 2), d_hidden.view(2, -1, size))
        return d_x, d_in, d_rec, d_bias, d_proj, None, None, None


def cell_forward(gates: Tensor, before: Tensor, after: Tensor, clip: float | None) -> Tensor:
    """Activate gates [2, B, 4C] in place, write the next cell state [2, B, C]; returns u [2, B, C]."""
    n_cells = before.shape[-1]
    gates[..., : 2 * n_cells].sigmoid_()
    gates[..., 2 * n_cells : 3 * n_cells].tanh_()
    gates[..., 3 * n_cells :].sigmoid_()
    i, f, g, o = (gate.to(after.dtype) for gate in gates.split(n_cells, dim=-1))
    after.copy_(torch.addcmul(f * before, i, g))
    if clip is not None:
        after.clamp_(-clip, clip)
    return o * torch.tanh(after)


def cell_backward(d_u: Tensor, d_c: Tensor | None, gates: Tensor, cell: Tensor, before: Tensor, d_gates: Tensor,
                  clip: float | None) -> Tensor:  # fmt: skip
    """Gradient of the gates before activation [2, B, 4C], written; returns that of the cell state before [2, B, C].

    Args:
        d_u: gradient of u [2, B, C].
        d_c: of this step's cell state, from the step behind it; None at the last one.
        gates: activated.
        cell, before: states after and before this step.
        d_gates: where to write.
    """
    i, f, g, o = (gate.to(cell.dtype) for gate in gates.split(cell.shape[-1], dim=-1))
    tanh = torch.tanh(cell)
    d_u = d_u.to(cell.dtype)
    through = d_u * o * (1 - tanh * tanh)
    d_c = through if d_c is None else d_c + through
    if clip is not None:
        d_c = d_c * (cell.abs() < clip)
    d_i, d_f, d_g, d_o = d_gates.split(cell.shape[-1], dim=-1)
    d_i.copy_(d_c * g * (i * (1 - i)))
    d_f.copy_(d_c * before * (f * (1 - f)))
    d_g.copy_(d_c * i * (1 - g * g))
    d_o.copy_(d_u * tanh * (o * (1 - o)))
    return d_c * f
