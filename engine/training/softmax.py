"""Cross-entropy over the vocabulary: sampled for training, full for training on few words and for evaluation.

Loss and gradients come from one pass over rows in pieces, so that the logits [N, S] never lie in memory as a whole.

Negatives are drawn from the log-uniform distribution over ranks, p_k = log((k + 2) / (k + 1)) / log(V + 1), without
replacement, as TensorFlow's `log_uniform_candidate_sampler(unique=True)` draws them: until S different ones are found.
Here that is a race: word k arrives after an exponential time of rate p_k, and the first S to arrive are the sample. By
the time n that the next one takes, a word has arrived with probability 1 - exp(-n p_k). With the logarithm of this
number taken from its logit, the sum over the sample estimates the sum over all words (Jean et al. 2015). The target's
own logit stands as it is, since it is always there. (`tf.nn.sampled_softmax_loss` corrects that one too: the same
weights minimise it, but its value is another than the full softmax's.)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from flashelmo.engine.errors import MissingExtraError

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise MissingExtraError("torch", "torch", "training") from error

PIECE_VALUES = 1 << 26  # logits that lie in memory at the same time


class Negatives(NamedTuple):
    """Rows [S] of the softmax, all different, and the logarithms of their expected counts [S]."""

    rows: Tensor
    log_counts: Tensor


def log_uniform(n_words: int, device: torch.device | str = "cpu") -> Tensor:
    """Probability of each rank, [V]."""
    ranks = torch.arange(1, n_words + 1, dtype=torch.float64, device=device)
    return ((1 / ranks).log1p() / math.log(n_words + 1)).float()


def draw(probabilities: Tensor, number: int) -> Negatives:
    """Different words, drawn by the device's default generator. number < V."""
    times = torch.empty_like(probabilities).exponential_() / probabilities
    first, words = torch.topk(times, number + 1, largest=False, sorted=False)
    draws, last = first.max(dim=0)
    places = torch.arange(number, device=words.device)
    rows = torch.where(places == last, words[-1], words[:-1])  # all but the last to arrive
    return Negatives(rows, log_counts(probabilities[rows], draws))


def log_counts(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Logarithms of how often words are expected in a sample of so many draws."""
    return (-torch.expm1(-draws * probabilities)).log()


def cross_entropy(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor,
    negatives: Negatives | None = None, compute: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The mean loss, and all losses [N] without gradients, of hidden [N, P] that should predict targets [N].

    Args:
        hidden, targets: as above.
        weight, bias: of the softmax, [V, P] and [V].
        negatives: the words against which the target must win; None for all words.
        compute: type of the products.
    """
    result: tuple[Tensor, Tensor] = _CrossEntropy.apply(hidden, targets, weight, bias, negatives, compute)  # type: ignore[no-untyped-call]
    return result


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, negatives: Any,
                compute: torch.dtype) -> tuple[Tensor, Tensor]:  # fmt: skip
        losses = hidden.new_empty(len(hidden))
        gradients = [torch.zeros_like(tensor) for tensor in (hidden, weight, bias)] if any(ctx.needs_input_grad) else []
        (_full if negatives is None else _sampled)(hidden, targets, weight, bias, negatives, compute, losses, gradients)
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses)
        return losses.mean(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = (gradient * gradients[0] for gradient in ctx.saved_tensors)
        return d_hidden, None, d_weight, d_bias, None, None


def _full(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, _: None, compute: torch.dtype,
          losses: Tensor, gradients: list[Tensor]) -> None:  # fmt: skip
    """Fill in the losses, and the gradients of their mean where any are asked for."""
    typed, scale = weight.to(compute), 1 / len(hidden)
    for part in _pieces(hidden, len(weight)):
        h, target = hidden[part].to(compute), targets[part, None]
        logits = (h @ typed.t()).to(hidden.dtype).add_(bias)
        log_sum = logits.logsumexp(1, keepdim=True)
        losses[part] = (log_sum - logits.gather(1, target))[:, 0]
        if gradients:
            error = logits.sub_(log_sum).exp_().mul_(scale)
            error.scatter_(1, target, error.gather(1, target).sub_(scale))
            _add_products(error, h, typed, part, gradients)


def _sampled(hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor, negatives: Negatives, compute: torch.dtype,
             losses: Tensor, gradients: list[Tensor]) -> None:  # fmt: skip
    """As `_full`, of the target among the negatives."""
    rows, expected = negatives
    typed, others_bias, scale = weight[rows].to(compute), bias[rows] - expected, 1 / len(hidden)
    place = torch.full((len(weight),), -1, device=rows.device)
    place.scatter_(0, rows, torch.arange(len(rows), device=rows.device))
    place = place[targets]  # where the target is among the negatives; -1 where it is not
    target_weight = weight[targets]
    target_logits = (hidden * target_weight).sum(1) + bias[targets]
    d_hidden, d_others, d_others_bias = (
        (gradients[0], torch.zeros_like(weight[rows]), torch.zeros_like(others_bias)) if gradients else (None,) * 3
    )
    for part in _pieces(hidden, len(rows)):
        h = hidden[part].to(compute)
        logits = (h @ typed.t()).to(hidden.dtype).add_(others_bias)
        _remove_hits(logits, place[part])
        log_sum = torch.logaddexp(logits.logsumexp(1), target_logits[part])
        losses[part] = log_sum - target_logits[part]
        if d_hidden is not None and d_others is not None and d_others_bias is not None:
            error = logits.sub_(log_sum[:, None]).exp_().mul_(scale)
            _add_products(error, h, typed, part, [d_hidden, d_others, d_others_bias])
    if d_hidden is not None and d_others is not None and d_others_bias is not None:
        target_error = torch.expm1(-losses) * scale
        d_hidden.addcmul_(target_error[:, None], target_weight)
        gradients[1].index_add_(0, rows, d_others).index_add_(0, targets, target_error[:, None] * hidden)
        gradients[2].index_add_(0, rows, d_others_bias).index_add_(0, targets, target_error)


def _pieces(hidden: Tensor, n_words: int) -> list[slice]:
    """Rows whose logits lie in memory at the same time."""
    size = max(1, PIECE_VALUES // n_words)
    return [slice(start, start + size) for start in range(0, len(hidden), size)]


def _add_products(error: Tensor, h: Tensor, typed: Tensor, part: slice, gradients: list[Tensor]) -> None:
    """What an error of the logits [n, S] adds to the gradients of hidden, weight [S, P] and bias [S]."""
    typed_error = error.to(typed.dtype)
    gradients[0][part] += typed_error @ typed
    gradients[1] += typed_error.t() @ h
    gradients[2] += error.sum(0)


def _remove_hits(logits: Tensor, place: Tensor) -> None:
    """A negative that is the target itself does not count."""
    column = place.clamp(min=0)[:, None]
    kept = logits.gather(1, column)
    logits.scatter_(1, column, kept.masked_fill(place[:, None] >= 0, -torch.inf))
