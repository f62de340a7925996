"""A model's weights on the device, laid out for the kernels, and the words' way through them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flashelmo.engine.model.weights import Dense, ElmoModel, LstmCell
from flashelmo.engine.precision import PRECISIONS
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.kernels.char_cnn import Words, char_cnn, pack_char_cnn
from flashelmo.kernels.highway import highway, pack_highway
from flashelmo.kernels.launch import Precision
from flashelmo.kernels.linear import linear
from flashelmo.kernels.lstm.layer import pack_lstm
from flashelmo.kernels.lstm.weights import CanonicalLstm, LstmWeights


class DeviceModel:
    """What the kernels need of a model.

    Args:
        model: as it was read.
        device: where the weights go.
        precision: of the computation, a name of `PRECISIONS`.

    Attributes:
        dtype: of word vectors and hidden states; cells and sums are float32.
        products: how float32 is multiplied.
        lstm: each layer's weights, both directions.
    """

    def __init__(self, model: ElmoModel, device: torch.device, precision: str) -> None:
        self.config = model.config
        self.device = device
        arithmetic = PRECISIONS[precision].on("cuda")
        self.dtype: torch.dtype = getattr(torch, arithmetic.values)
        self.products: Precision = arithmetic.products
        weights = model.weights
        self._word_embedding = None
        if weights.word_embedding is not None:
            self._word_embedding = self._tensor(weights.word_embedding).to(self.dtype)
        self._char_cnn = None
        if weights.character_embedding is not None:
            self._char_cnn = pack_char_cnn(
                self._tensor(weights.character_embedding),
                [self._pair(convolution) for convolution in weights.convolutions],
                padding_id=WordEncoder(model.config, model.lexicon).padding_id,
                activation=model.config.activation,
                dtype=self.dtype,
                device=device,
            )
        self._highways = [
            pack_highway(*self._pair(layer.transform), *self._pair(layer.gate), dtype=self.dtype, device=device)
            for layer in weights.highways
        ]
        self._projection: tuple[Tensor, Tensor] | None = None
        if weights.projection is not None:
            weight, bias = self._pair(weights.projection)
            self._projection = weight.to(self.dtype), bias
        int8 = arithmetic.lstm_weights == "int8"
        self.lstm: list[LstmWeights] = [self._layer(cells, int8) for cells in weights.lstm]

    def word_vectors(self, words: Words | None, word_ids: Tensor | None) -> Tensor:
        """Context-free vectors [W, P] of words, by their characters, their rows of the word embedding, or both."""
        parts = []
        if self._word_embedding is not None and word_ids is not None:
            parts.append(self._word_embedding[word_ids])
        if self._char_cnn is not None and words is not None:
            features = char_cnn(words, self._char_cnn, precision=self.products)
            for layer in self._highways:
                features = highway(features, layer, precision=self.products)
            parts.append(features)
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return x if self._projection is None else linear(x, *self._projection, precision=self.products)

    def _layer(self, cells: tuple[LstmCell, LstmCell], int8: bool) -> LstmWeights:
        """One layer, packed where it is used: the device sorts the weights faster than the host."""

        def stacked(name: str) -> Tensor:
            return torch.stack([self._tensor(getattr(cell, name)) for cell in cells])

        canonical = CanonicalLstm(
            stacked("input_weight"),
            stacked("recurrent_weight"),
            stacked("bias"),
            None if cells[0].projection is None else stacked("projection"),
            self.config.cell_clip,
            self.config.projection_clip,
        )
        return pack_lstm(canonical, dtype=self.dtype, int8=int8, device=self.device)

    def _tensor(self, array: npt.NDArray[np.float32]) -> Tensor:
        """A copy on the device; the array may be a mapped file, which PyTorch must not own."""
        return torch.from_numpy(np.array(array)).to(self.device)

    def _pair(self, dense: Dense) -> tuple[Tensor, Tensor]:
        return self._tensor(dense.weight), self._tensor(dense.bias)
