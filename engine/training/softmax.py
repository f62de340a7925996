"""Cross-entropy over the vocabulary: sampled for training, full for training on few words and for evaluation.

Loss and gradients come from one pass over rows in pieces, so that the logits [N, S] are never in memory as a whole.

Negatives are drawn from the log-uniform distribution over ranks, p_k = log((k + 2) / (k + 1)) / log(V + 1), without
replacement, as in TensorFlow's `log_uniform_candidate_sampler(unique=True)`: until S distinct ones are found. Here that
is a race: word k arrives after an exponential time of rate p_k, and the first S to arrive are the sample. By the
arrival time n of the next one, a word has arrived with probability 1 - exp(-n p_k). With the logarithm of this number
subtracted from its logit, the sum over the sample estimates the sum over all words (Jean et al. 2015). The target's own
logit is not corrected, since the target is always included. (`tf.nn.sampled_softmax_loss` corrects that one too: the
same weights minimise it, but its value differs from the full softmax's.)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

PIECE_VALUES = 1 << 26  # logits that are in memory at the same time


class Negatives(NamedTuple):
    """Distinct rows [S] of the softmax, and the logarithms of their expected counts [S]."""

    rows: Tensor
    log_counts: Tensor


def log_uniform(n_words: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the probability of each rank, [V]."""
    ranks = torch.arange(1, n_words + 1, dtype=torch.float64, device=device)
    return ((1 / ranks).log1p() / math.log(n_words + 1)).float()


def draw(probabilities: Tensor, number: int) -> Negatives:
    """Draw distinct words with the device's default generator. number < V."""
    times = torch.empty_like(probabilities).exponential_() / probabilities
    first, words = torch.topk(times, number + 1, largest=False, sorted=False)
    draws, last = first.max(dim=0)
    places = torch.arange(number, device=words.device)
    rows = torch.where(places == last, words[-1], words[:-1])  # all except the last to arrive
    return Negatives(rows, log_counts(probabilities[rows], draws))


def log_counts(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Return the logarithms of how often words are expected in a sample of so many draws."""
    return (-torch.expm1(-draws * probabilities)).log()


class Picked(NamedTuple):
    """What a step reads of the softmax: the rows of the negatives, then those of the targets.

    Attributes:
        rows: int64 [S + N], which may repeat.
        weight, bias: of these rows, [S + N, P] and [S + N].
    """

    rows: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor, targets: Tensor, negatives: Negatives) -> Picked:
        """Copy the rows; their gradients add up in the whole softmax's, if it has one."""
        rows = torch.cat([negatives.rows, targets])
        return cls(rows, weight.index_select(0, rows), bias.index_select(0, rows))

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients of weight and bias, after a backward pass to `leaves`."""
        return [leaf.grad for leaf in (self.weight, self.bias) if leaf.grad is not None]

    @classmethod
    def leaves(cls, weight: Tensor, bias: Tensor, targets: Tensor, negatives: Negatives) -> Picked:
        """Copy the rows as leaves with their own gradients; no zeros are then written and read for other rows."""
        rows, *copies = cls.of(weight.detach(), bias.detach(), targets, negatives)
        return cls(rows, *(copy.requires_grad_() for copy in copies))


def cross_entropy(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor,
    negatives: Negatives | None = None, compute: torch.dtype = torch.float32, picked: Picked | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the mean loss, and all losses [N] without gradients, of hidden [N, P] that should predict targets [N].

    Args:
        hidden, targets: as above.
        weight, bias: of the softmax, [V, P] and [V].
        negatives: the words against which the target must win; None for all words.
        compute: type of the products.
        picked: what is read of the softmax if there are negatives; made here by default.
    """
    result: tuple[Tensor, Tensor]
    if negatives is None:
        result = _Full.apply(hidden, targets, weight, bias, compute)  # type: ignore[no-untyped-call]
        return result
    picked = picked or Picked.of(weight, bias, targets, negatives)
    place = torch.full((len(weight),), -1, device=targets.device)
    place.scatter_(0, negatives.rows, torch.arange(len(negatives.rows), device=targets.device))
    place = place[targets]  # the target's index among the negatives; -1 if it is not there
    result = _Sampled.apply(hidden, picked.weight, picked.bias, negatives.log_counts, place, compute)  # type: ignore[no-untyped-call]
    return result


class _Full(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor,
                compute: torch.dtype) -> tuple[Tensor, Tensor]:  # fmt: skip
        return _keep(ctx, *_full(hidden, targets, weight, bias, compute, any(ctx.needs_input_grad)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = (gradient * gradients[0] for gradient in ctx.saved_tensors)
        return d_hidden, None, d_weight, d_bias, None


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, log_counts: Tensor, place: Tensor,
                compute: torch.dtype) -> tuple[Tensor, Tensor]:  # fmt: skip
        return _keep(ctx, *_sampled(hidden, weight, bias, log_counts, place, compute, any(ctx.needs_input_grad)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * gradients[0] for gradient in ctx.saved_tensors), None, None, None


def _keep(ctx: Any, losses: Tensor, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Save the gradients of the mean loss, and return it with all losses."""
    ctx.save_for_backward(*gradients)
    ctx.mark_non_differentiable(losses)
    return losses.mean(), losses


def _full(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, compute: torch.dtype,
          differentiates: bool) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Return the losses, and the gradients of their mean if any are needed."""
    losses, typed, scale = hidden.new_empty(len(hidden)), weight.to(compute), 1 / len(hidden)
    gradients = [torch.zeros_like(tensor) for tensor in (hidden, weight, bias)] if differentiates else []
    for part in _pieces(hidden, len(weight)):
        h, target = hidden[part].to(compute), targets[part, None]
        logits = (h @ typed.t()).to(hidden.dtype).add_(bias)
        log_sum = logits.logsumexp(1, keepdim=True)
        losses[part] = (log_sum - logits.gather(1, target))[:, 0]
        if gradients:
            error = logits.sub_(log_sum).exp_().mul_(scale)
            error.scatter_(1, target, error.gather(1, target).sub_(scale))
            _add_products(error, h, typed, part, gradients)
    return losses, gradients


def _sampled(hidden: Tensor, weight: Tensor, bias: Tensor, log_counts: Tensor, place: Tensor, compute: torch.dtype,
             differentiates: bool) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Do as `_full`, for the target among the negatives; weight and bias are those of `Picked`."""
    losses, n, scale = hidden.new_empty(len(hidden)), len(log_counts), 1 / len(hidden)
    typed, others_bias = weight[:n].to(compute), bias[:n] - log_counts
    target_logits = (hidden * weight[n:]).sum(1) + bias[n:]
    gradients = [torch.zeros_like(tensor) for tensor in (hidden, weight, bias)] if differentiates else []
    others = [gradients[0], gradients[1][:n], gradients[2][:n]] if gradients else []
    for part in _pieces(hidden, n):
        h = hidden[part].to(compute)
        logits = (h @ typed.t()).to(hidden.dtype).add_(others_bias)
        _remove_hits(logits, place[part])
        log_sum = torch.logaddexp(logits.logsumexp(1), target_logits[part])
        losses[part] = log_sum - target_logits[part]
        if others:
            error = logits.sub_(log_sum[:, None]).exp_().mul_(scale)
            _add_products(error, h, typed, part, others)
    if gradients:
        target_error = torch.expm1(-losses) * scale
        gradients[0].addcmul_(target_error[:, None], weight[n:])
        torch.mul(target_error[:, None], hidden, out=gradients[1][n:])
        gradients[2][n:] = target_error
    return losses, gradients


def _pieces(hidden: Tensor, n_words: int) -> list[slice]:
    """Return slices of rows whose logits are in memory at the same time."""
    size = max(1, PIECE_VALUES // n_words)
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _add_products(error: Tensor, h: Tensor, typed: Tensor, part: slice, gradients: list[Tensor]) -> None:
    """Add what an error of the logits [n, S] contributes to the gradients of hidden, weight [S, P] and bias [S]."""
    typed_error = error.to(typed.dtype)
    gradients[0][part] += typed_error @ typed
    gradients[1] += typed_error.t() @ h
    gradients[2] += error.sum(0)


def _remove_hits(logits: Tensor, place: Tensor) -> None:
    """Exclude negatives that are the target itself."""
    column = place.clamp(min=0)[:, None]
    kept = logits.gather(1, column)
    logits.scatter_(1, column, kept.masked_fill(place[:, None] >= 0, -torch.inf))
