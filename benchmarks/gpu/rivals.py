"""Who else can do the work on the same card: each is made once and called with sentences.

Eager, Compiled   the published algorithm in PyTorch, `ReferenceElmo`: a padded batch at a time, every token's
                  characters, all boundaries; its vectors stay on the device. Compiled is the same module under
                  torch.compile in its default mode.
Stacks            the LSTM alone by torch.nn.LSTM, which on a card is cuDNN's: ELMo's two directions are separate
                  stacks of two layers, each layer with input P, cell C and projection P, so two unidirectional
                  LSTMs of two layers with proj_size do the same products. It has no clips, no skip connection and
                  no boundaries, starts from vectors that are there, and reads the same order in both directions:
                  a peer in speed alone. Its stacks run one after the other, or side by side on two streams.
                  Its fp16 is a peer of our bf16 where PyTorch hands no bf16 to cuDNN: both have 16 bits.
Onnx              an exported file in ONNX Runtime's CUDA provider, ids made from tokens, its outputs left on the
                  device. Its weights may be others than ours: a peer in speed alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashelmo.benchmarks.gpu.wall_timing import at_most
from flashelmo.benchmarks.gpu.workloads import batches
from flashelmo.benchmarks.text import Sentences
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoModel
from flashelmo.engine.reference.padding import pad_tokens, positions_before
from flashelmo.engine.reference.reference import ReferenceElmo, encode
from flashelmo.engine.text.characters import WordEncoder

COMPILED_BOUND = 0.01  # largest absolute difference: convolutions may use TF32 in one and not in the other


class Eager:
    """The reference on a device, with PyTorch's own settings (convolutions may use TF32, products do not)."""

    def __init__(self, model: ElmoModel, device: str, dtype: torch.dtype) -> None:
        self._encoder = WordEncoder(model.config, model.lexicon)
        self._device = device
        self._elmo: Any = ReferenceElmo(model.config, model.weights, model.lexicon).eval().to(device, dtype)

    def __call__(self, sentences: Sentences, batch_size: int) -> None:
        """Embed in batches, and drop the vectors on the device."""
        for batch in batches(sentences, batch_size):
            self._layers(batch)

    def vectors(self, batch: Sentences) -> list[Array]:
        """Layers [L, T, 2P] of each sentence of one batch, on the host."""
        stacked = torch.stack(self._layers(batch)).float().cpu().numpy()
        return [stacked[:, row, 1 : 1 + len(sentence)] for row, sentence in enumerate(batch)]

    def _layers(self, batch: Sentences) -> list[Tensor]:
        mask = positions_before(torch.tensor([len(sentence) for sentence in batch]), max(map(len, batch)))
        ids = encode(self._encoder, [word for sentence in batch for word in sentence])
        with torch.inference_mode():
            padded = [None if flat is None else pad_tokens(flat, mask).to(self._device) for flat in ids]
            layers: list[Tensor] = self._elmo(*padded, mask.to(self._device))["activations"]
        return layers


class Compiled(Eager):
    """The reference under torch.compile, for batches of one shape.

    Args:
        sentences: one batch; it is compiled for them here.
        seconds: that compiling may take.

    Raises:
        TimeoutError: it takes longer.
        FlashElmoError: it computes something else.
    """

    def __init__(self, model: ElmoModel, device: str, sentences: Sentences, seconds: float) -> None:
        super().__init__(model, device, torch.float32)
        expected = self.vectors(sentences)
        self._elmo = torch.compile(self._elmo, dynamic=False)
        with at_most(seconds):
            found = self.vectors(sentences)
        largest = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
        if not largest < COMPILED_BOUND:
            raise FlashElmoError(f"expected vectors within {COMPILED_BOUND} of eager ones, found {largest:.2g}")


class Stacks:
    """Both directions' stacks of layers over a batch of equal sentences, by torch.nn.LSTM.

    Args:
        rows, steps: of the batch.
        streams: 1, one stack after the other; 2, side by side.

    Raises:
        FlashElmoError: on a card, PyTorch would not hand this type to cuDNN, but run kernels of its own.
    """

    def __init__(
        self, config: ElmoConfig, rows: int, steps: int, device: str, dtype: torch.dtype, streams: int
    ) -> None:
        C, P = config.cell_size, config.projection_size
        self._x = torch.randn(steps, rows, P).to(device, dtype)
        if self._x.is_cuda and not torch.cudnn_is_acceptable(self._x):
            raise FlashElmoError(f"cuDNN: PyTorch {torch.__version__} does not hand {dtype} to it")
        self._stacks = [
            torch.nn.LSTM(P, C, num_layers=config.n_layers, proj_size=P if P < C else 0).eval().to(device, dtype)
            for _ in range(2)
        ]
        self._side = torch.cuda.Stream(device) if streams == 2 else None

    def __call__(self, sentences: Sentences) -> None:
        """Run both; of the sentences only the number and the length count, which were given before."""
        with torch.inference_mode():
            if self._side is None:
                for stack in self._stacks:
                    stack(self._x)
                return
            current = torch.cuda.current_stream(self._x.device)
            self._side.wait_stream(current)
            with torch.cuda.stream(self._side):
                self._stacks[1](self._x)
            self._stacks[0](self._x)
            current.wait_stream(self._side)


class Onnx:
    """An exported file, its ids made from tokens, every output of it.

    Raises:
        FlashElmoError: there is no ONNX Runtime, or none with CUDA, or this is no exported file.
    """

    def __init__(self, path: Path) -> None:
        from flashelmo.export.onnx_elmo import OnnxElmo  # which needs onnxruntime

        self._elmo = OnnxElmo(path, providers="cuda")

    def __call__(self, sentences: Sentences) -> None:
        """Embed one batch; the outputs stay on the device."""
        self._elmo.run(on_device=True, **self._elmo.inputs(sentences))
