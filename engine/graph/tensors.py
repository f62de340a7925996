"""The tensors that the ONNX pieces name, from a model's weights: views of them, or in 16 or 8 bits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flashelmo.engine.arrays import Arrays, Float32
from flashelmo.engine.graph.builder import Tensors
from flashelmo.engine.graph.pieces import widest
from flashelmo.engine.model.config import ElmoConfig
from flashelmo.engine.model.weights import GATES, ElmoWeights
from flashelmo.engine.precision import NumberType
from flashelmo.engine.system.processor import int8_levels, n_cores
from flashelmo.engine.system.threads import in_order

MASKED = np.float32(-1e30)  # a window that reaches beyond the word's last position can never be the maximum
MASKED_FLOAT16 = np.float32(-3e4)  # the same in 16 bits, where infinity times zero would be NaN


def prepare_tensors(
    config: ElmoConfig, weights: ElmoWeights, weight_type: NumberType, levels: int | None = None
) -> Tensors:
    """Return an array for every weight that the graphs name, in the order of `weights`.

    float32: views of the model's own tensors, except for the small convolutions. float16: all of them rounded. int8:
    the LSTM's matrices, quantized symmetrically by column to integers in [-levels, levels] (by default those that this
    processor adds up exactly), with `NAME.scale`; the characters' matrices stay float32, as they run once per distinct
    word and their error would reach every layer.
    """
    tensors: Arrays = {}
    if config.character_size:
        tensors |= _prepare_convolutions(config, weights)
    for name, tensor in weights.named_tensors():
        if name.startswith("lstm.") and not name.endswith(".projection"):
            tensors |= {f"{name}.{gate}": part for gate, part in zip(GATES, tensor, strict=True)}
        elif not name.startswith(("character_embedding", "convolutions.")):
            tensors[name] = tensor
    if weight_type == "float16":
        return {name: np.maximum(tensor, MASKED_FLOAT16).astype(np.float16) for name, tensor in tensors.items()}
    if weight_type == "int8":
        matrices = {name: tensor for name, tensor in tensors.items() if name.startswith("lstm.") and tensor.ndim == 2}
        bound = levels or int8_levels()
        quantized = in_order(lambda matrix: quantize(matrix, bound), matrices.values(), n_cores())
        for name, (integers, scale) in zip(matrices, quantized, strict=True):
            tensors[name], tensors[f"{name}.scale"] = integers, scale
    return tensors


def _prepare_convolutions(config: ElmoConfig, weights: ElmoWeights) -> Arrays:
    """Return all widths as one matrix [width * (E + 1), F], and the embedding [n_characters + 1, E + 1] with a mask."""
    assert weights.character_embedding is not None
    size = config.character_size
    table = np.zeros((config.n_characters + 1, size + 1), np.float32)
    table[:-1, :-1] = weights.character_embedding
    table[-1, -1] = 1.0
    matrix = np.zeros((widest(config), size + 1, config.n_filters), np.float32)
    first = 0
    for convolution in weights.convolutions:
        width, _, number = convolution.weight.shape
        matrix[:width, :-1, first : first + number] = convolution.weight
        matrix[:width, -1, first : first + number] = MASKED
        first += number
    bias = np.concatenate([convolution.bias for convolution in weights.convolutions])
    return {"characters": table, "convolutions": matrix.reshape(-1, config.n_filters), "convolutions.bias": bias}


def quantize(weight: Float32, levels: int) -> tuple[npt.NDArray[np.int8], Float32]:
    """Quantize symmetrically by column: weight [K, N] ~ int8 [K, N] * scale [N], integers in [-levels, levels]."""
    scale = np.maximum(np.abs(weight).max(axis=0) / levels, np.finfo(np.float32).tiny).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale
