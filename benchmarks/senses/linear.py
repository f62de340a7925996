"""A linear classifier on fixed vectors, of one layer or of a learned mix of several (`ScalarMix`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np

from flashelmo.engine.arrays import Float32, Float64, Int64
from flashelmo.engine.reference.scalar_mix import ScalarMix

# isort: split
import torch  # after the reference, whose error says how to install it
from torch import Tensor
from torch.nn import functional as F

BATCHES, EPOCHS = 4000, 40  # whichever is less
BATCH, RATE, DECAY, DROPOUT = 64, 5e-3, 1e-2, 0.2


class Part(NamedTuple):
    """Vectors [N, L, D] and their classes [N], -1 for those that cannot be learned."""

    vectors: Tensor
    classes: Tensor


class Classifier(torch.nn.Module):
    """A mix of layers, and a linear function of it.

    Args:
        train: vectors [N, L, D], whose mean and deviation normalise all others.
        n_classes: of the output.
    """

    def __init__(self, train: Tensor, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", train.mean(dim=0))
        self.register_buffer("deviation", train.std(dim=0).clamp(min=1e-6))
        self.mix = ScalarMix(train.shape[1])
        self.dropout = torch.nn.Dropout(DROPOUT)
        self.output = torch.nn.Linear(train.shape[2], n_classes)

    def normal(self, vectors: Tensor) -> Tensor:
        """Return vectors [N, L, D] less the mean, in deviations."""
        return (vectors - self.get_buffer("mean")) / self.get_buffer("deviation")

    def forward(self, normal: Tensor) -> Tensor:
        """Classify normalised vectors: [N, L, D] -> [N, classes]."""
        result: Tensor = self.output(self.dropout(self.mix(normal.unbind(dim=1))))
        return result

    def shares(self) -> list[float]:
        """Return the share of each layer in the mix."""
        weights: list[float] = torch.cat([p.detach() for p in self.mix.scalar_parameters]).softmax(dim=0).tolist()
        return weights


def part(vectors: Float32, classes: Int64, layers: slice = slice(None)) -> Part:
    """Return a part with some of the layers."""
    return Part(torch.from_numpy(np.ascontiguousarray(vectors[:, layers])), torch.from_numpy(classes))


def learn(train: Part, dev: Part, n_classes: int, seed: int) -> Classifier:
    """Return a classifier as it was after the epoch in which it was right most often on `dev`."""
    with one_thread():
        return _learn(train, dev, n_classes, seed)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: products of this size gain nothing from more, and lose if others are working."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _learn(train: Part, dev: Part, n_classes: int, seed: int) -> Classifier:
    torch.manual_seed(seed)
    model = Classifier(train.vectors, n_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    normal, dev = model.normal(train.vectors), Part(model.normal(dev.vectors), dev.classes)
    best, kept = -1.0, deepcopy(model.state_dict())
    for _ in range(max(1, min(EPOCHS, BATCHES * BATCH // len(normal)))):
        model.train()
        for rows in torch.randperm(len(normal)).split(BATCH):
            optimizer.zero_grad()
            backward: Any = F.cross_entropy(model(normal[rows]), train.classes[rows]).backward
            backward()
            optimizer.step()
        if (accuracy := float(_right(model, dev).mean())) > best:
            best, kept = accuracy, deepcopy(model.state_dict())
    model.load_state_dict(kept)
    return model


def right(model: Classifier, judged: Part) -> Float64:
    """Return 1 where it is right, else 0 [N]."""
    return _right(model, Part(model.normal(judged.vectors), judged.classes))


@torch.no_grad()
def _right(model: Classifier, normal: Part) -> Float64:
    model.eval()
    found: Float64 = (model(normal.vectors).argmax(dim=1) == normal.classes).double().numpy()
    return found
