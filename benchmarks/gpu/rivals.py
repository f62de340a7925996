"""Who else can do the work on the same card: each is made once and called with sentences.

eager, compiled   the published algorithm in PyTorch, `ReferenceElmo`: a padded batch at a time, every token's
                  characters, all boundaries; its vectors stay on the device. Compiled is the same module under
                  torch.compile in its default mode.
stacks            the LSTM alone by torch.nn.LSTM, which on a card is cuDNN's: ELMo's two directions are separate
                  stacks of two layers, each layer with input P, cell C and projection P, so two unidirectional
                  LSTMs of two layers with proj_size do the same products. It has no clips, no skip connection and
                  no boundaries, starts from vectors that are there, and reads the same order in both directions:
                  a peer in speed alone. Its stacks run one after the other: on two streams they are no faster.
                  Its fp16 is a peer of our bf16 where PyTorch hands no bf16 to cuDNN: both have 16 bits.
onnx              an exported file in ONNX Runtime's CUDA provider, ids made from tokens, its outputs left on the
                  device. Its weights may be others than ours: a peer in speed alone.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashelmo.benchmarks.contestant import Way
from flashelmo.benchmarks.gpu.workloads import batches
from flashelmo.benchmarks.kernels.card import Device
from flashelmo.benchmarks.kernels.problems import dtype_of
from flashelmo.benchmarks.text import Sentences
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.reference.padding import pad_tokens, positions_before
from flashelmo.engine.reference.reference import ReferenceElmo, encode
from flashelmo.engine.text.characters import WordEncoder

COMPILED_BOUND = 0.01  # largest absolute difference: convolutions may use TF32 in one and not in the other


def no_vectors(sentences: Sentences) -> list[Array]:
    """Of a peer in speed alone."""
    raise FlashElmoError("expected vectors, found a peer in speed alone")


class Eager:
    """The reference on a device, with PyTorch's own settings (convolutions may use TF32, products do not)."""

    def __init__(self, model: ElmoModel, device: Device, precision: str) -> None:
        self._encoder, self._device = WordEncoder(model.config, model.lexicon), device
        elmo = ReferenceElmo(model.config, model.weights, model.lexicon).eval()
        self.elmo: Any = elmo.to(device.torch, dtype_of(precision))

    def way(self, batch_size: int) -> Way:
        """Embeds in batches, and drops the vectors on the device."""

        def run(sentences: Sentences) -> None:
            for batch in batches(sentences, batch_size):
                self.layers(batch)

        return Way(self.vectors, run, wait=self._device.synchronize)

    def vectors(self, batch: Sentences) -> list[Array]:
        """Layers [L, T, 2P] of each sentence of one batch, on the host."""
        stacked = torch.stack(self.layers(batch)).float().cpu().numpy()
        return [stacked[:, row, 1 : 1 + len(sentence)] for row, sentence in enumerate(batch)]

    def layers(self, batch: Sentences) -> list[Tensor]:
        """Of one batch, padded, on the device."""
        mask = positions_before(torch.tensor([len(sentence) for sentence in batch]), max(map(len, batch)))
        ids = encode(self._encoder, [word for sentence in batch for word in sentence])
        with torch.inference_mode():
            padded = [None if flat is None else pad_tokens(flat, mask).to(self._device.torch) for flat in ids]
            layers: list[Tensor] = self.elmo(*padded, mask.to(self._device.torch))["activations"]
        return layers


def compiled(model: ElmoModel, device: Device, sentences: Sentences, seconds: float) -> Way:
    """The reference under torch.compile, compiled here for one batch.

    Args:
        seconds: that compiling may take.

    Raises:
        TimeoutError: it takes longer.
        FlashElmoError: it computes something else.
    """
    eager = Eager(model, device, "fp32")
    expected = eager.vectors(sentences)
    eager.elmo = torch.compile(eager.elmo, dynamic=False)
    with at_most(seconds):
        found = eager.vectors(sentences)
    largest = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    if not largest < COMPILED_BOUND:
        raise FlashElmoError(f"expected vectors within {COMPILED_BOUND} of eager ones, found {largest:.2g}")
    return eager.way(len(sentences))


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer; in the main thread alone, elsewhere it may take what it likes."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*arguments: object) -> None:
        raise TimeoutError(f"expected an end within {seconds:.0f} seconds, found none")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 5.0)  # again, where somebody swallowed the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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

    return Way(no_vectors, run, wait=device.synchronize)


def onnx(path: Path, device: Device) -> Way:
    """An exported file, its ids made from tokens, every output of it.

    Raises:
        FlashElmoError: there is no ONNX Runtime, or none with CUDA, or this is no exported file.
    """
    from flashelmo.export.onnx_elmo import OnnxElmo  # which needs onnxruntime

    elmo = OnnxElmo(path, providers="cuda")

    def run(sentences: Sentences) -> object:
        return elmo.run(on_device=True, **elmo.inputs(sentences))

    return Way(no_vectors, run, wait=device.synchronize)
