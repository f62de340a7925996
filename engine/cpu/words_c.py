"""Words to vectors in 16 bits by `words.c`: the characters' convolutions, highways and projection."""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_void_p

import numpy as np

from flashelmo.engine.arrays import Float32, Int32, Int64
from flashelmo.engine.cpu.lstm_c import LOG2_E, Team, in_blocks, in_groups, pack, pointer, to_bfloat16
from flashelmo.engine.graph.builder import Tensors
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import ElmoWeights

ACTIVATIONS = {"": 0, "relu": 1, "tanh": 2}
GROUPS = 4  # of 16 columns, per block
ROWS = 1 << 15  # per call: convolutions have one for each position of each word


class CharCnn:
    """The part of the network that turns words' characters into vectors.

    Args:
        config, weights: of the model.
        tensors: the result of `prepare_tensors` for float32; its table of characters and its convolutions are used.
        threads: threads to use.
    """

    def __init__(self, config: ElmoConfig, weights: ElmoWeights, tensors: Tensors, threads: int) -> None:
        self._characters: Float32 = tensors["characters"]
        self._embedding = weights.word_embedding
        self._team = Team(threads)

        def dense(weight: Float32, bias: Float32, activation: str = "") -> _Layer:
            groups = in_groups(weight, GROUPS), in_groups(bias[None], GROUPS)
            return _Layer(*groups, weight.shape[1], ACTIVATIONS[activation])

        self._convolutions = dense(tensors["convolutions"], tensors["convolutions.bias"], config.activation)
        self._layers = []
        for layer in weights.highways:
            parts = (layer.transform.weight, layer.gate.weight * -LOG2_E)
            biases = (layer.transform.bias[None], layer.gate.bias[None] * -LOG2_E)
            weight, bias = (np.concatenate([in_groups(each, 2) for each in pair]) for pair in (parts, biases))
            self._layers.append(_Layer(weight, bias, len(layer.gate.bias), is_highway=True))
        self._projection = (
            None if weights.projection is None else dense(weights.projection.weight, weights.projection.bias)
        )

    def compute(self, windows: Int32 | None, word_ids: Int64 | None, vectors: Float32) -> None:
        """Compute words' vectors: windows [W, m, width], word_ids [W] -> vectors [W, P]; see `character_windows`."""
        assert windows is not None
        n_words, n_positions, _ = windows.shape
        some = max(1, ROWS // n_positions)
        for first in range(0, n_words, some):
            part = slice(first, first + some)
            rows = self._characters[windows[part]].reshape(len(windows[part]) * n_positions, -1)
            x = self._run(self._convolutions, rows, n_positions)
            for layer in self._layers:
                x = self._run(layer, x)
            if self._embedding is not None:
                assert word_ids is not None
                x = np.concatenate([self._embedding[word_ids[part]], x], axis=1)
            vectors[part] = x if self._projection is None else self._run(self._projection, x)

    def _run(self, layer: _Layer, x: Float32, together: int = 1) -> Float32:
        """Run a layer: [n, K] -> [n / together, N]."""
        x = np.ascontiguousarray(x)
        y = np.empty((len(x) // together, layer.struct.n_outputs), np.float32)
        told = layer.struct
        told.n_rows, told.n_inputs, told.together, told.x, told.y = *x.shape, together, pointer(x), pointer(y)
        self._team.call("run_layer", ctypes.byref(told))
        return y


class _LayerStruct(ctypes.Structure):
    """`Layer` in words.c."""

    _fields_ = [
        *((name, c_int32) for name in ("n_rows", "n_inputs", "n_outputs")),
        *((name, c_int32) for name in ("activation", "together", "is_highway")),
        *((name, c_void_p) for name in ("x", "bias", "weights", "y")),
    ]


class _Layer:
    """A layer's weights [groups, K, N / groups] and biases [groups, 1, N / groups], packed; `struct` points to them."""

    def __init__(
        self,
        weight: Float32,
        bias: Float32,
        n_outputs: int,
        activation: int = 0,
        is_highway: bool = False,
    ) -> None:
        self._bias, self._weights = in_blocks(bias[:, 0]), pack(to_bfloat16(weight))
        self.struct = _LayerStruct(0, 0, n_outputs, activation, 1, is_highway)
        self.struct.bias, self.struct.weights = pointer(self._bias), pointer(self._weights)
