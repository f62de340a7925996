"""Who else can do the work on the same card: each is made once and called with sentences.

Eager is the published algorithm in PyTorch, `ReferenceRuntime`: a padded batch at a time, every token's characters, all
boundaries; its vectors stay on the device.

Stacks are the LSTM alone by torch.nn.LSTM, which on a card is cuDNN's: ELMo's two directions are separate stacks of two
layers, each layer with input P, cell C and projection P, so two unidirectional LSTMs of two layers with proj_size do
the same products. They have no clips, no skip connection and no boundaries, start from vectors that are there, and read
the same order in both directions: a peer in speed alone. One runs after the other: on two streams they are no faster.
Their fp16 is a peer of our bf16 where PyTorch hands no bf16 to cuDNN: both have 16 bits.
"""

from __future__ import annotations

import torch

from flashelmo.benchmarks.accuracy import largest_relative
from flashelmo.benchmarks.contestant import Way
from flashelmo.benchmarks.kernels.card import Device
from flashelmo.benchmarks.kernels.problems import dtype_of
from flashelmo.benchmarks.text import Sentences, batches
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.reference.reference import ReferenceRuntime

BOUND = 0.1  # relative error: with cells in bf16 rounding adds up over the steps; wrong work is off by more


class Eager(ReferenceRuntime):
    """The reference on a device, with PyTorch's own settings (convolutions may use TF32, products do not)."""

    def __init__(self, model: ElmoModel, device: Device, precision: str) -> None:
        super().__init__(model, device=device.torch)
        self.elmo.to(dtype=dtype_of(precision))
        self._synchronize = device.synchronize

    def check(self, sentences: Sentences, expected: list[Array]) -> Eager:
        """Itself, if its vectors are about right.

        Raises:
            FlashElmoError: they are not.
        """
        if not (worst := largest_relative(self.vectors(sentences), expected)) < BOUND:
            raise FlashElmoError(f"expected vectors within {BOUND} of the reference's, found {worst:.2g}")
        return self

    def way(self, batch_size: int) -> Way:
        """Embeds in batches, and drops the vectors on the device."""

        def run(sentences: Sentences) -> None:
            for batch in batches(sentences, batch_size):
                self.activations(batch)

        return Way(self.vectors, run, wait=self._synchronize)

    def vectors(self, batch: Sentences) -> list[Array]:
        """Layers [L, T, 2P] of each sentence of one batch, on the host."""
        stacked = self.activations(batch).float().cpu().numpy()
        return [stacked[:, row, 1 : 1 + len(sentence)] for row, sentence in enumerate(batch)]


def lstm_stacks(config: ElmoConfig) -> list[torch.nn.LSTM]:
    """Both directions' layers as torch.nn.LSTM has them."""
    C, P = config.cell_size, config.projection_size
    return [torch.nn.LSTM(P, C, num_layers=config.n_layers, proj_size=P if P < C else 0).eval() for _ in range(2)]


def stacks(config: ElmoConfig, rows: int, steps: int, device: Device, precision: str) -> Way:
    """Both directions' stacks of layers over a batch of so many equal sentences of so many steps, by torch.nn.LSTM.

    Raises:
        FlashElmoError: on a card, PyTorch would not hand this type to cuDNN, but run kernels of its own.
    """
    dtype = dtype_of(precision)
    x = torch.randn(steps, rows, config.projection_size).to(device.torch, dtype)
    if device.is_cuda and not torch.cudnn_is_acceptable(x):
        raise FlashElmoError(f"cuDNN: PyTorch {torch.__version__} does not hand {dtype} to it")
    both = [stack.to(device.torch, dtype) for stack in lstm_stacks(config)]

    def run(sentences: Sentences) -> None:
        with torch.inference_mode():
            for stack in both:
                stack(x)

    def vectors(sentences: Sentences) -> list[Array]:
        raise FlashElmoError("expected vectors, found a peer in speed alone")

    return Way(vectors, run, wait=device.synchronize)
