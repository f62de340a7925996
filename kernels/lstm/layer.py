"""One layer of the bidirectional LSTM: its variants, its weights packed at load, its steps over a schedule's nodes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache, partial
from itertools import groupby

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
    """Those for Hopper that are written in Gluon; none where Triton has none, or another one than they need."""
    try:
        from flashelmo.kernels.lstm import few_rows, int8_specialized, persistent, warp_specialized
    except (ImportError, AttributeError, TypeError) as error:
        logger.warning("Triton %s: expected Gluon, found %s; other kernels serve on sm_90", triton.__version__, error)
        return ()
    # Weights are under way before the step; 12.5 us for 1 row, 14.5 for 32, 16.3 for 64, where hoisted steps take 14.7,
    # 18.4 and 23.1.
    few = Variant("few_rows", few_rows.serves, few_rows.launches, hopper_layout, blind=True)
    return (
        # Weights stay on the chip from step to step. No card has run it yet.
        Variant("persistent", persistent.serves, persistent.launches, hopper_layout, blind=True, rival=few),
        few,
        # Tensor cores never wait for arithmetic; 32.5 us for 128 rows, 40 for 256, 115 for 1,024.
        Variant("warp_specialized", warp_specialized.serves, warp_specialized.launches, hopper_layout, blind=True),
        # In 8 bits alone: prototypes' gates took 19 us for 256 rows, 61 for 1,024, where bf16's took 30 and 102.
        Variant("int8_specialized", int8_specialized.serves, int8_specialized.launches, int8_layout, blind=True),
    )


# In order of preference: the first that serves. Each with its reason, and a step's time on an H200 in bf16 inside a
# captured graph, where launches cost the host nothing (`benchmarks/results/gpu/steps-h200.txt`).
VARIANTS = (
    *in_gluon(),
    # Blocks come by the card's copy engine, on sm_100 too; 47 us for 256 rows, 152 for 1,024.
    Variant("tma", tma.serves, tma.launches, hopper_layout, blind=True),
    Variant("int8", int8.serves, int8.launches, int8_layout),
    # A step reads its recurrent weights alone.
    Variant("hoisted", hoisted.serves, hoisted.launches, interleave),
    # Nothing but the states goes through memory; 57 us for 256 rows, 167 for 1,024.
    Variant("fused", fused.serves, fused.launches, interleave),
)


def choose(run: LayerRun, rows: int) -> Variant:
    """The variant for depths of so many rows."""
    return next(
        variant for variant in VARIANTS if variant.serves(run, rows) and (not variant.blind or is_proven(variant, run))
    )


def cut(run: LayerRun) -> Iterator[tuple[Variant, range]]:
    """All depths in order, 1 ... T, as many at a time as one variant computes."""
    of_rows = cache(partial(choose, run))  # many depths have as many rows as others
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
) -> LstmWeights:
    """Lay out the weights of one layer on a device, once in each layout that a variant reads.

    A layer without projection gets the identity as its projection, which is exact, and no clip, as bilm-tf has it.

    Args:
        weights: [D, ...] in any floating-point types, on any device.
        dtype: the compute type.
        int8: multiply the gates in 8 bits.
        device: where the packed weights go.
        bound: how far a blind variant may be from the reference where it is used (relative error); None asks nothing.

    Raises:
        ValueError: a layout is not as its kernels rely on.
    """
    device = torch.empty(0, device=device).device  # "cuda" is one with a number
    packs = dict.fromkeys(variant.pack for variant in VARIANTS)
    weights = weights.projected()
    packed = {pack: pack(weights, Format(dtype, int8, device)) for pack in packs}
    layouts = {pack: layout for pack, layout in packed.items() if layout is not None}
    return LstmWeights(weights.shape, dtype, int8, device, layouts, bound)


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
    """What the layer puts out for every node, [D, N, P], and the tensors it was computed in.

    Rows of the roots and those beyond a direction's last node mean nothing. Nothing waits for the device, so that a
    CUDA graph may capture the launches once each has run before.

    Args:
        x: [D, N, P], the layer's input at every node: the words' vectors, or the layer below's outputs.
        skip: add x to the output.
        roots: states to start from, hidden [D, n_roots, P] and float32 cell [D, n_roots, C], perhaps rows of larger
            tensors; zero where absent.
        out: [D, N, P], what the layer puts out is written to it, as to a slice of all layers' outputs; not x.
        workspace: for split sums, of one layer at a time; a new one where absent.
        words: those whose vectors x has, where their input part is to be computed by word (`pays_by_word`).

    Raises:
        ValueError: a tensor has another shape, type, layout or device than it should.
    """
    tensors = new_tensors(weights, nodes, x, skip=skip, roots=roots, out=out, workspace=workspace)
    run = LayerRun(weights, tensors, nodes, options, words)
    run_in_order(launch for variant, depths in cut(run) for launch in variant.launches(run, depths))
    return tensors.outputs if skip else tensors.hidden, tensors
