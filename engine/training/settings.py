"""Everything that can be chosen of a training run, in one frozen object."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

from flashelmo.engine.arguments import FLOAT32_MAX, check, whole_number

RATES = {"adam": 2e-3, "adagrad": 0.2}  # learning rates by default; Adagrad's is the published one
MAX_SEED = 2**31 - 1
MAX_SNAPSHOTS = 100  # their names are the run's share in percent
WHOLE: dict[str, tuple[int, int | None]] = {  # from and to, where there is a limit
    **dict.fromkeys(("batch", "unroll", "steps", "min_count", "log_every"), (1, None)),
    "negatives": (0, None),
    "max_words": (4, None),
    "seed": (0, MAX_SEED),
    "snapshots": (0, MAX_SNAPSHOTS),
}
SHARES = ("dropout", "warm_up", "heldout_share")
POSITIVE = ("lr", "clip", "epochs", "seconds", "save_every")
UNCHECKED = {"cuda_graph", "save_every", "log_every"}  # do not change the result


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained; defaults are as published (Peters et al. 2018, bilm-tf's `bin/train_elmo.py`).

    Attributes:
        batch: streams of sentences per process, B.
        unroll: time steps that gradients go back, T.
        negatives: words that the sampled softmax compares a target with; 0, or at least their number, means all words.
        dropout: of the layers' inputs and the softmax's.
        optimizer: "adam", or "adagrad" as published.
        lr: the learning rate's peak; None is the optimizer's default.
        clip: limit of the gradients' joint norm, for the loss summed over a row's time steps.
        warm_up: share of the run in which the rate grows.
        epochs, steps, seconds: how long; exactly one is given. Seconds include those of earlier attempts.
        seed: of initial weights, order of sentences, dropout and negatives.
        min_count, max_words: the softmax's words: those at least this frequent, and at most this many.
        heldout_share: share of the sentences that are kept out of training for evaluation; 0 for none.
        precision: of products: "fp32", "bf16", or "auto", which is bf16 if the device multiplies it fast.
        device: "auto", "cpu", "cuda" or "cuda:1".
        cuda_graph: capture a step on a card as a graph.
        save_every: seconds between checkpoints.
        log_every: steps between two points of the curve.
        snapshots: model folders written at evenly spaced points of the run, besides one at its beginning.
    """

    batch: int = 128
    unroll: int = 20
    negatives: int = 8192
    dropout: float = 0.1
    optimizer: str = "adam"
    lr: float | None = None
    clip: float = 10.0
    warm_up: float = 0.02
    epochs: float | None = None
    steps: int | None = None
    seconds: float | None = None
    seed: int = 0
    min_count: int = 1
    max_words: int | None = None
    heldout_share: float = 0.0
    precision: str = "auto"
    device: str = "auto"
    cuda_graph: bool = True
    save_every: float = 300.0
    log_every: int = 20
    snapshots: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None or field.default is not None:
                object.__setattr__(self, field.name, _checked(field.name, value))
        given = [name for name in ("epochs", "steps", "seconds") if getattr(self, name) is not None]
        check(len(given) <= 1, "length", "one of epochs, steps and seconds", " and ".join(given))
        if not given:
            object.__setattr__(self, "epochs", 10.0)
        for name, allowed in (("optimizer", tuple(RATES)), ("precision", ("auto", "fp32", "bf16"))):
            check(getattr(self, name) in allowed, name, f"one of {', '.join(allowed)}", getattr(self, name))
        if self.lr is None:
            object.__setattr__(self, "lr", RATES[self.optimizer])

    @property
    def peak(self) -> float:
        """The learning rate's peak."""
        assert self.lr is not None  # set in `__post_init__`
        return self.lr

    def fingerprint(self) -> dict[str, Any]:
        """Return what a checkpoint must agree with."""
        return {name: value for name, value in asdict(self).items() if name not in UNCHECKED}


def _checked(name: str, value: Any) -> Any:
    """Return a setting as Python's own number if it is one; FlashElmoError if it is out of range."""
    if name in WHOLE:
        return whole_number(name, value, *WHOLE[name])
    if name not in SHARES + POSITIVE:
        return value
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if name in SHARES:
        check(is_number and 0 <= value < 1, name, "0 or more and less than 1", value)
    else:
        check(is_number and 0 < value <= FLOAT32_MAX, name, "a positive number in float32's range", value)
    return float(value)
