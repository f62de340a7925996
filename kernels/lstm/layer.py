"""One layer of the bidirectional LSTM: its weights packed at load, and its steps over all nodes of a schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from flashelmo.kernels.launch import check
from flashelmo.kernels.lstm.nodes import Nodes
from flashelmo.kernels.lstm.run import DEFAULT, LaunchOptions, LayerRun, LstmTensors, new_tensors
from flashelmo.kernels.lstm.variants import VARIANTS, cut
from flashelmo.kernels.lstm.weights import CanonicalLstm, Format, LstmWeights


def pack_lstm(
    weights: CanonicalLstm,
    *,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    device: torch.device | str = "cpu",
) -> LstmWeights:
    """Lay out the weights of one layer on a device, once in each layout that a variant reads.

    A layer without projection gets the identity as its projection, which is exact, and no clip, as bilm-tf has it.

    Args:
        dtype: the compute type.
        int8: round the recurrent weight and the projection to 8 bits, by column.
    """
    device = torch.empty(0, device=device).device  # "cuda" is one with a number
    packs = dict.fromkeys(variant.pack for variant in VARIANTS)
    weights = weights.projected()
    layouts = {pack: pack(weights, Format(dtype, int8, device)) for pack in packs}
    return LstmWeights(weights.shape, dtype, int8, device, layouts)


def lstm_layer(
    weights: LstmWeights,
    nodes: Nodes,
    x: Tensor,
    *,
    by_word: bool = False,
    skip: bool = False,
    roots: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
    options: LaunchOptions = DEFAULT,
) -> tuple[Tensor, LstmTensors]:
    """What the layer puts out for every node, [D, N, P] with the roots' rows first, and the tensors it was computed in.

    Rows beyond a direction's last node are not written. Nothing waits for the device, so that a CUDA graph may capture
    the launches once each has run before.

    Args:
        x: the layer's input: word vectors [words, P] where `by_word`, else the layer below's outputs [D, N, P].
        skip: add x to the output.
        roots: states to start from, hidden [D, n_roots, P] and float32 cell [D, n_roots, C]; zero where absent.
        out: [D, N, P], what the layer puts out is written to it, as to a slice of all layers' outputs; not x.

    Raises:
        ValueError: a tensor has another shape, type, layout or device than it should, or the device has no dependent
            launches.
    """
    tensors = new_tensors(weights, nodes, x, skip=skip, out=out)
    run = LayerRun(weights, tensors, nodes, by_word, options)
    if roots is not None:
        (D, P, C), n_roots = weights.shape, nodes.n_roots
        check("roots' hidden", roots[0], [D, n_roots, P], [weights.dtype])
        check("roots' cell", roots[1], [D, n_roots, C], [torch.float32])
        tensors.hidden[:, :n_roots], tensors.cell[0, :, :n_roots] = roots
    for variant, depths in cut(run):
        for launch in variant.launches(run, depths):
            launch.run()
    return tensors.outputs if skip else tensors.hidden, tensors
