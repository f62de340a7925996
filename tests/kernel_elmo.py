"""A whole model run by the kernels alone, over the engine's own schedule."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flashelmo.engine.model.weights import Dense, ElmoModel, LstmCell
from flashelmo.engine.text.characters import WordEncoder
from flashelmo.engine.text.schedule import Boundaries, build_schedule
from flashelmo.kernels.char_cnn import char_cnn, group_words, pack_char_cnn
from flashelmo.kernels.highway import highway, pack_highway
from flashelmo.kernels.linear import linear
from flashelmo.kernels.lstm_layer import lstm_layer
from flashelmo.kernels.lstm_persistent import Barrier
from flashelmo.kernels.lstm_weights import LstmWeights, pack_lstm
from flashelmo.kernels.nodes import Nodes
from flashelmo.kernels.token_layers import Tokens, token_layers


def word_vectors(model: ElmoModel, words: Sequence[str], dtype: torch.dtype, device: str) -> Tensor:
    """[words, P] of distinct words."""
    config, weights = model.config, model.weights
    encoder = WordEncoder(config, model.lexicon)
    parts = []
    word_ids = encoder.word_ids(words)
    if word_ids is not None and weights.word_embedding is not None:
        parts.append(tensor(weights.word_embedding)[torch.from_numpy(word_ids)].to(device, dtype))
    if weights.character_embedding is not None:
        grouped = group_words(
            torch.from_numpy(encoder.character_ids(words)),
            n_characters=config.n_characters,
            padding_id=encoder.padding_id,
            device=device,
        )
        packed = pack_char_cnn(
            tensor(weights.character_embedding),
            [pair(convolution) for convolution in weights.convolutions],
            padding_id=encoder.padding_id,
            activation=config.activation,
            dtype=dtype,
            device=device,
        )
        features = char_cnn(grouped, packed)
        for layer in weights.highways:
            both = pack_highway(*pair(layer.transform), *pair(layer.gate), dtype=dtype, device=device)
            features = highway(features, both)
        parts.append(features)
    x = torch.cat(parts, dim=1)
    if weights.projection is None:
        return x
    return linear(x, tensor(weights.projection.weight).to(device, dtype), tensor(weights.projection.bias).to(device))


def layer_weights(model: ElmoModel, layer: int, dtype: torch.dtype, device: str, int8: bool = False) -> LstmWeights:
    """One LSTM layer's weights, both directions."""
    cells: tuple[LstmCell, LstmCell] = model.weights.lstm[layer]

    def stacked(name: str) -> Tensor | None:
        values = [getattr(cell, name) for cell in cells]
        return None if values[0] is None else torch.stack([tensor(value) for value in values])

    return pack_lstm(
        stacked("input_weight"),  # type: ignore[arg-type]
        stacked("recurrent_weight"),  # type: ignore[arg-type]
        stacked("bias"),  # type: ignore[arg-type]
        stacked("projection"),
        cell_clip=model.config.cell_clip,
        projection_clip=model.config.projection_clip,
        dtype=dtype,
        int8=int8,
        device=device,
    )


def embed(
    model: ElmoModel,
    sentences: Sequence[Sequence[str]],
    device: str,
    *,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    persistent: bool = True,
    keep_boundaries: bool = False,
) -> list[npt.NDArray[np.float32]]:
    """Every sentence's layers [L, T, 2P]."""
    config = model.config
    words = list(dict.fromkeys(word for sentence in sentences for word in sentence))
    rows = {word: row for row, word in enumerate(words)}
    boundaries = Boundaries(begin=len(words), end=len(words) + 1, keep=keep_boundaries)
    words += WordEncoder(config, model.lexicon).boundary_words
    vectors = word_vectors(model, words, dtype, device)
    schedule = build_schedule(
        np.array([rows[word] for sentence in sentences for word in sentence], np.int32),
        np.cumsum([0, *map(len, sentences)], dtype=np.int64),
        boundaries,
    )
    forests = (schedule.forward, schedule.backward)
    nodes = Nodes.of(
        [(tensor(f.words), tensor(f.parents), tensor(f.depths)) for f in forests], n_words=len(words), device=device
    )
    barrier = Barrier.on(device) if persistent else None
    outputs: list[Tensor] = []
    for layer in range(config.n_layers):
        output, _ = lstm_layer(
            layer_weights(model, layer, dtype, device, int8),
            nodes,
            outputs[-1] if outputs else vectors,
            by_word=not outputs,
            skip=layer > 0 and config.skip_connections,
            barrier=barrier,
        )
        outputs.append(output)
    if barrier is not None:
        barrier.check()
    tokens = Tokens.of(
        tensor(schedule.token_words),
        torch.stack([tensor(forest.token_nodes) for forest in forests]),
        None,
        n_words=len(words),
        n_nodes=max(forest.n_nodes for forest in forests),
        device=device,
    )
    all_layers = torch.eye(config.n_layers + 1, device=device)
    layers = token_layers(vectors, torch.stack(outputs), tokens, all_layers).cpu().numpy()
    return np.split(layers, schedule.offsets[1:-1], axis=1)


def tensor(array: npt.NDArray[np.generic]) -> Tensor:
    """A copy, since mapped arrays can't be written."""
    return torch.from_numpy(np.array(array))


def pair(dense: Dense) -> tuple[Tensor, Tensor]:
    """Weight and bias."""
    return tensor(dense.weight), tensor(dense.bias)
