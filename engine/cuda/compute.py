"""The kernels in order: a window from word vectors to the requested layers, without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashelmo.engine.cuda.layout import D, Layout, Sizes
from flashelmo.engine.cuda.model import DeviceModel
from flashelmo.engine.cuda.state import DeviceState
from flashelmo.kernels.gather import gather_words
from flashelmo.kernels.lstm.layer import lstm_layer
from flashelmo.kernels.lstm.run import InputWords, LaunchOptions, Nodes, Workspace
from flashelmo.kernels.token_layers import Tokens, token_layers


@dataclass(frozen=True)
class DeviceOutput:
    """What is requested of a window, on the device.

    Attributes:
        mix: float32 [O, L], coefficients of the layers for each output.
        dtype: of the result.
        pool: "mean" or "max", over sentences, where the schedule has their offsets.
        overflow: int32 [1] in host memory, set where a result is infinite or NaN.
    """

    mix: Tensor
    dtype: torch.dtype
    overflow: Tensor | None = None
    pool: str = "mean"


def compute(
    model: DeviceModel,
    word_vectors: Tensor,
    packed_schedule: Tensor,
    sizes: Sizes,
    output: DeviceOutput,
    options: LaunchOptions,
    *,
    workspace: Workspace,
    state: DeviceState | None = None,
    first_row: int = 0,
) -> Tensor:
    """Return layers of a window's tokens [O, tokens, 2P], or pooled over sentences [O, B, 2P].

    Nothing is read back, so that all of it can be captured in a CUDA graph.

    Args:
        word_vectors: [rows, P], the table that words in `packed_schedule` refer to.
        packed_schedule: int32 [size], as written by `layout.fill` for these sizes.
        workspace: of the computing stream, for the LSTM's split sums.
        state: to start from and to update, from row `first_row` on.
    """
    parts: dict[str, Any] = Layout.of(sizes).views(packed_schedule)
    n_layers, n_nodes, size = len(model.lstm), sizes.n_nodes, word_vectors.shape[1]
    nodes = nodes_of(parts, sizes)
    outputs = word_vectors.new_empty(n_layers, D, n_nodes, size)
    x, final, words = gather_words(word_vectors, parts["words"]), [], None
    if sizes.n_words:
        distinct = gather_words(word_vectors, parts["distinct"])
        words = InputWords.of(model.lstm[0], distinct, parts["node_words"], parts["n_words"])
    for layer, weights in enumerate(model.lstm):
        x, tensors = lstm_layer(
            weights,
            nodes,
            x,
            skip=layer > 0 and model.config.skip_connections,
            roots=None if state is None else state.roots(layer, first_row, sizes.n_roots),
            out=outputs[layer],
            workspace=workspace,
            options=options,
            words=words if layer == 0 else None,
        )
        if state is not None:
            final.append((tensors.hidden, tensors.cell))
        del tensors  # frees memory for the next layer, except states that are carried on
    tokens = Tokens(parts["token_words"], parts["token_nodes"], parts.get("offsets"))
    results = token_layers(
        word_vectors, outputs, tokens, output.mix, out_dtype=output.dtype, flag=output.overflow, pool=output.pool
    )
    if state is not None:
        state.write_back(parts, final)
    return results


def nodes_of(parts: Mapping[str, Tensor], sizes: Sizes) -> Nodes:
    """Return a schedule's nodes on the device, from the parts of `layout.Layout` that `layout.fill` wrote."""
    return Nodes(parts["starts"], parts["parents"], parts["children"], sizes.depths)
