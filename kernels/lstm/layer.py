"""One layer of the bidirectional LSTM: its variants, packing of weights at load, and steps over a schedule's nodes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache, partial
from itertools import groupby
from pathlib import Path

import torch
import triton
from torch import Tensor

from flashelmo.kernels.launch import run_in_order
from flashelmo.kernels.lstm import fused, hoisted, int8, tma
from flashelmo.kernels.lstm.hopper import hopper_layout
from flashelmo.kernels.lstm.int8 import int8_layout
from flashelmo.kernels.lstm.proven import is_proven
from flashelmo.kernels.lstm.run import (
    DEFAULT_OPTIONS,
    InputWords,
    LaunchOptions,
    LayerRun,
    LstmTensors,
    Nodes,
    Workspace,
    new_tensors,
)
from flashelmo.kernels.lstm.steps import Variant
from flashelmo.kernels.lstm.weights import CanonicalLstm, Format, LstmWeights, interleave

logger = logging.getLogger("flashelmo")


def in_gluon() -> tuple[Variant, ...]:
    """Return the Hopper variants written in Gluon; none where Triton has no Gluon, or not the one they need."""
    try:
        from flashelmo.kernels.lstm import few_rows, int8_specialized, persistent, warp_specialized
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("Triton %s: expected Gluon, found %s; other kernels serve on sm_90", triton.__version__, error)
        return ()
    # Weights load before the step begins; 12.5 us for 1 row, 14.5 for 32, 16.3 for 64, where hoisted steps take 14.7,
    # 18.4 and 23.1.
    few = Variant("few_rows", few_rows.serves, few_rows.launches, hopper_layout, blind=True)
    return (
        # Weights stay on the chip from step to step. Not yet run on any card.
        Variant("persistent", persistent.serves, persistent.launches, hopper_layout, blind=True, rival=few),
        few,
        # Tensor cores never wait for arithmetic; 32.5 us for 128 rows, 40 for 256, 115 for 1,024.
        Variant("warp_specialized", warp_specialized.serves, warp_specialized.launches, hopper_layout, blind=True),
        # For 8 bits only: prototypes' gates took 19 us for 256 rows, 61 for 1,024, where bf16's took 30 and 102.
        Variant("int8_specialized", int8_specialized.serves, int8_specialized.launches, int8_layout, blind=True),
    )


# In order of preference: the first that serves is used. Each has its reason, and a step's time on an H200 in bf16
# inside a captured graph, where launches cost the host nothing (`benchmarks/results/gpu/steps-h200.txt`).
VARIANTS = (
    *in_gluon(),
    # Blocks are loaded by the card's copy engine, on sm_100 too; 47 us for 256 rows, 152 for 1,024.
    Variant("tma", tma.serves, tma.launches, hopper_layout, blind=True),
    Variant("int8", int8.serves, int8.launches, int8_layout),
    # A step reads only its recurrent weights.
    Variant("hoisted", hoisted.serves, hoisted.launches, interleave),
    # Only the states go through memory; 57 us for 256 rows, 167 for 1,024.
    Variant("fused", fused.serves, fused.launches, interleave),
)


def choose(run: LayerRun, rows: int) -> Variant:
    """Return the variant for depths of so many rows."""
    return next(
        variant for variant in VARIANTS if variant.serves(run, rows) and (not variant.blind or is_proven(variant, run))
    )


def cut(run: LayerRun) -> Iterator[tuple[Variant, range]]:
    """Yield all depths in order, 1 ... T, in runs that one variant computes."""
    of_rows = cache(partial(choose, run))  # many depths have the same number of rows
    for variant, group in groupby(range(1, run.nodes.n_depths + 1), lambda depth: of_rows(run.nodes.rows(depth))):
        depths = list(group)
        yield variant, range(depths[0], depths[-1] + 1)


def pack_lstm(
    weights: CanonicalLstm,
    *,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    device: torch.device | str = "cpu",
    bound: float | None = None,
    cache: Path | None = None,
) -> LstmWeights:
    """Lay out one layer's weights on a device, once in each layout that a variant reads.

    A layer without projection gets the identity as its projection, which is exact, without a clip, as in bilm-tf.

    Args:
        weights: [D, ...] of any floating-point types, on any device.
        dtype: the compute type.
        int8: multiply the gates in 8 bits.
        device: where the packed weights go.
        bound: the largest relative error, against the reference, with which a blind variant is used; None for any.
        cache: see `LstmWeights`.

    Raises:
        ValueError: a layout is not what its kernels rely on.
    """
    device = torch.empty(0, device=device).device  # gives "cuda" its number
    packs = dict.fromkeys(variant.pack for variant in VARIANTS)
    weights = weights.projected()
    packed = {pack: pack(weights, Format(dtype, int8, device)) for pack in packs}
    layouts = {pack: layout for pack, layout in packed.items() if layout is not None}
    return LstmWeights(weights.shape, dtype, int8, device, layouts, bound, cache)


def lstm_layer(
    weights: LstmWeights,
    nodes: Nodes,
    x: Tensor,
    *,
    skip: bool = False,
    roots: tuple[Tensor, Tensor] | None = None,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
    options: LaunchOptions = DEFAULT_OPTIONS,
    words: InputWords | None = None,
) -> tuple[Tensor, LstmTensors]:
    """Return the layer's output for every node, [D, N, P], and the tensors it was computed in.

    Rows of the roots and those beyond a direction's last node are undefined. Nothing waits for the device, so that a
    CUDA graph may capture the launches once each has run before.

    Args:
        x: [D, N, P], the layer's input at every node: the words' vectors, or the layer below's outputs.
        skip: add x to the output.
        roots: states to start from, hidden [D, n_roots, P] and float32 cell [D, n_roots, C], which may be rows of
            larger tensors; zero if None.
        out: [D, N, P], where to write the layer's output, for example a slice of all layers' outputs; not x.
        workspace: for split sums, used by one layer at a time; a new one if None.
        words: the words whose vectors x holds, to compute their input part by word (`pays_by_word`).

    Raises:
        ValueError: a tensor does not have the expected shape, type, layout or device.
    """
    tensors = new_tensors(weights, nodes, x, skip=skip, roots=roots, out=out, workspace=workspace)
    run = LayerRun(weights, tensors, nodes, options, words)
    run_in_order(launch for variant, depths in cut(run) for launch in variant.launches(run, depths))
    return tensors.outputs if skip else tensors.hidden, tensors
