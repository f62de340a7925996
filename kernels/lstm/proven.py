"""Whether a variant of the LSTM that was written without a card is right on this one, and fast.

Such a variant ("blind") is compared with the reference when it is first used: on random inputs, with the layer's own
weights, a few milliseconds of the card after its kernels are compiled. That is plain PyTorch, as the portable kernels
would take longer to compile than all else. One that no card has timed is timed beside the one that serves in its place
(`rival`). The verdict is kept in the cache folder that the weights name, for this card, driver, PyTorch, Triton and
these sources. A variant that is wrong, raises or takes longer is not used: others serve, and one warning says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from flashelmo.kernels import reference
from flashelmo.kernels.launch import run_in_order
from flashelmo.kernels.lstm.int8 import dequantized, int8_layout, rounded, row_scales
from flashelmo.kernels.lstm.run import InputWords, LayerRun, Nodes, Workspace, new_tensors
from flashelmo.kernels.lstm.steps import Variant
from flashelmo.kernels.lstm.weights import LstmWeights, interleave
from flashelmo.kernels.pytorch import float32_products, is_out_of_memory

ROWS = (1, 5, 16, 17, 32, 40, 64, 100, 128, 129, 256, 300, 520, 1100)  # of depths that are compared, if it serves them
TIMES = 3  # each: programs that do not wait for each other as they should may be right by chance
TIMES_OF_NEW = 20  # where no card has run the variant
# Of a program's wait for others, a tenth of a second by estimate. Programs of a variant that is wrong wait in vain some
# hundred times.
POLLS = 1 << 17
TIMED = 8, 32  # rows of depths that are timed, if both serve them
N_TIMED = 24  # depths, about a sentence's
ASLEEP = 10_000_000  # cycles of a card, in which the host queues these: five milliseconds
SLOWER = 1.1  # times as long is longer, as no time is exact
TRIES = 3  # of which each must say so: others' work on the card, or a clock that rises, may slow one of the two
N_ROOTS = 2
N_WORDS = 50  # where the input part is by word

logger = logging.getLogger("flashelmo")


_verdicts: dict[tuple[Any, ...], bool] = {}
_said: set[tuple[str, torch.device]] = set()


def is_proven(variant: Variant, run: LayerRun) -> bool:
    """Whether a variant may serve a run: it computes what it should, or nothing is to be proven.

    Args:
        run: whose weights say how far from the reference it may be, `LstmWeights.bound`; None where nothing is to be
            proven.
    """
    weights, key = run.weights, (variant.name, *_ways(run))
    if weights.bound is None:
        return True
    found = weights.verdicts.get(key)  # asked for each depth of each window
    if found is None:
        if weights.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return False  # nothing can be compared in here; the next use will do it
        found = weights.verdicts[key] = _verdict(variant, run, weights.bound)
    return found


def _verdict(variant: Variant, run: LayerRun, bound: float) -> bool:
    """Known to this process, kept on disk, or found out now."""
    weights = run.weights
    key = variant.name, weights.shape, weights.dtype, weights.device, weights.int8, bound, *_ways(run)
    if key not in _verdicts:
        path, identity = _place(variant, run, bound)
        why = _read(path, identity)
        if why is None:
            try:
                why = _why_wrong(variant, run, bound) or _why_slow(variant, run)
                _write(path, identity, why)
            except RuntimeError as problem:  # of the reference, or of what was queued before: no verdict
                if is_out_of_memory(problem):
                    raise
                why = str(problem) if isinstance(problem, KeptWaitingError) else f"the reference {_said_of(problem)}"
        _verdicts[key] = not why
        if why and (variant.name, weights.device) not in _said:
            _said.add((variant.name, weights.device))
            said = "device %s: LSTM variant '%s' is not used, as %s; others serve in its place"
            logger.warning(said, weights.device, variant.name, why)
    return _verdicts[key]


def _ways(run: LayerRun) -> tuple[bool, bool, bool]:
    """Whether there is a skip connection, tiles are those for any number of rows, and the input part is by word."""
    return run.tensors.outputs is not None, run.options.batch_invariant, run.words is not None


# ---------------------------------------------------------------------------------------------------------- comparison


def _why_wrong(variant: Variant, run: LayerRun, bound: float) -> str:
    """Empty where a variant is right.

    Raises:
        KeptWaitingError: it was only right the second time.
    """
    try:
        error = first = difference(variant, run)
        if math.isnan(first):
            error = difference(variant, run)
    except VariantError as raised:
        return f"it {_said_of(raised.__cause__)}"
    if error < bound:  # NaN is not
        if math.isnan(first):
            raise KeptWaitingError("its programs waited in vain, perhaps for other work on the card")
        return ""
    return f"its vectors are off by {error:.2g} where {bound:g} is allowed"


class KeptWaitingError(RuntimeError):
    """What would be a verdict another time: others' work held the card for longer than programs wait, or they hang."""


class VariantError(Exception):
    """Its cause is what a variant raised: whatever a compiler or a driver raises, unless that may pass."""


def _said_of(problem: BaseException | None) -> str:
    return f"raises {type(problem).__name__}: {(str(problem).strip().splitlines() or [''])[0]}"[:300]


def difference(variant: Variant, run: LayerRun) -> float:
    """||found - expected|| / ||expected|| of a variant and the reference, the largest of some times.

    Over depths of all `ROWS` that the variant serves, with random inputs and the run's weights.

    Raises:
        VariantError: by the variant; all else that is raised says nothing of it.
    """
    weights, has_skip = run.weights, run.tensors.outputs is not None
    rows = [n for n in ROWS if variant.serves(run, n)]
    if not rows:
        return 0.0
    # In two launches, as tiles may be by the most rows. Up and down: most nodes have children, some none.
    parts = [[*few, *few[::-1], *few] for few in (rows[: 1 + len(rows) // 2], rows[1 + len(rows) // 2 :]) if few]
    nodes = _nodes(list(chain.from_iterable(parts)), weights.shape.D, weights.device)
    ends = list(accumulate(map(len, parts), initial=1))
    generator = torch.Generator(weights.device).manual_seed(0)
    size = weights.shape.D, nodes.n_nodes, weights.shape.P
    x = torch.randn(size, generator=generator, dtype=torch.float32, device=weights.device).to(weights.dtype)
    words = None
    if run.words is not None:
        words, x = _words(weights, nodes, x)

    def error(found: Tensor, expected: Tensor) -> float:
        ends = [(starts[1], starts[-1]) for starts in nodes.depths]
        a, b = (torch.cat([each[d, i:j].float() for d, (i, j) in enumerate(ends)]) for each in (found, expected))
        return float((a - b).norm() / b.norm().clamp(min=torch.finfo(torch.float32).tiny))

    def wait() -> None:
        if weights.device.type == "cuda":
            torch.cuda.current_stream(weights.device).synchronize()

    with float32_products("ieee"):
        expected, workspace = _expected(weights, nodes, x), Workspace.of(weights.shape, weights.device)
    wait()  # raises what earlier work has done wrong
    largest = 0.0
    for _ in range(TIMES if variant.rival is None else TIMES_OF_NEW):
        tensors = new_tensors(weights, nodes, x, skip=has_skip, workspace=workspace)
        tensors.poison()
        if words is not None:
            words.gates.fill_(torch.nan)
        again = LayerRun(weights, tensors, nodes, replace(run.options, polls=POLLS), words)
        try:
            for depths in map(range, ends, ends[1:]):
                run_in_order(variant.launches(again, depths))
            wait()
        except Exception as problem:
            if isinstance(problem, OSError) or is_out_of_memory(problem):
                raise
            raise VariantError from problem
        errors = [error(tensors.hidden, expected)]
        if has_skip:
            errors.append(error(tensors.outputs, expected + x))
        largest = max(largest, *errors, key=lambda each: (math.isnan(each), each))
        if math.isnan(largest):  # what waits in vain may take long
            break
    return largest


def _why_slow(variant: Variant, run: LayerRun) -> str:
    """Empty where a variant takes no longer than its rival, or has none."""
    rival = variant.rival
    if rival is None or run.weights.device.type != "cuda":
        return ""
    timed = [n for n in TIMED if variant.serves(run, n) and rival.serves(run, n)]
    ours = theirs = 0.0
    for _ in range(TRIES):
        try:
            ours, theirs = map(sum, zip(*(milliseconds((variant, rival), run, n) for n in timed), strict=True))
        except Exception as problem:  # of a rival that fails, which is no reason against this one
            logger.debug("variant '%s' is not timed: %s", variant.name, problem)
            return ""
        if ours <= SLOWER * theirs:
            return ""
    rows = " and ".join(map(str, timed))
    return f"{N_TIMED} steps of {rows} rows take {ours:.3f} ms where '{rival.name}' takes {theirs:.3f}"


def milliseconds(variants: Sequence[Variant], run: LayerRun, rows: int) -> list[float]:
    """What depths of so many rows take by each variant on a card: in turns, each the least of some times.

    The host queues them beforehand.
    """
    weights = run.weights
    nodes = _nodes((rows,) * N_TIMED, weights.shape.D, weights.device)
    x = torch.zeros(weights.shape.D, nodes.n_nodes, weights.shape.P, dtype=weights.dtype, device=weights.device)
    words = None if run.words is None else _words(weights, nodes, x)[0]
    tensors = new_tensors(weights, nodes, x, skip=run.tensors.outputs is not None)
    timed = LayerRun(weights, tensors, nodes, run.options, words)
    found = [math.inf] * len(variants)
    with torch.cuda.device(weights.device):
        for k, variant in list(enumerate(variants)) * (2 * TIMES):  # the first time also compiles
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(ASLEEP)
            start.record()
            run_in_order(variant.launches(timed, range(1, nodes.n_depths + 1)))
            end.record()
            end.synchronize()
            found[k] = min(found[k], start.elapsed_time(end))
    return found


def _words(weights: LstmWeights, nodes: Nodes, vectors: Tensor) -> tuple[InputWords, Tensor]:
    """A word for each node, all among the first of some vectors [D, N, P], and what the nodes' inputs are then."""
    of_nodes = torch.arange(nodes.n_nodes, device=vectors.device) * 7 % min(N_WORDS, nodes.n_nodes)
    count = of_nodes.max().int().view(1) + 1
    both = of_nodes.int().expand(len(vectors), -1).contiguous()
    return InputWords.of(weights, vectors, both, count), vectors[:, of_nodes].contiguous()


def _expected(weights: LstmWeights, nodes: Nodes, x: Tensor) -> Tensor:
    """Hidden states [D, N, P] by the reference in float32, from weights and states as kernels hold them."""
    (D, P, C), (matrices, clips) = weights.shape, _held(weights)
    hidden, cell = (torch.zeros(D, nodes.n_nodes, n, dtype=torch.float32, device=x.device) for n in (P, C))
    for d, starts in enumerate(nodes.depths):
        given: list[Any] = [matrix[d].float() for matrix in matrices] + clips
        for before, first, last in zip(starts, starts[1:], starts[2:], strict=False):
            parents = before + nodes.parents[d, first:last].long()
            rows = x[d, first:last].float(), hidden[d, parents]
            if weights.int8:
                scale = row_scales(*rows)
                rows = rounded(rows[0], scale), rounded(rows[1], scale)
            hidden[d, first:last], cell[d, first:last] = reference.lstm_step(*rows, cell[d, parents], *given)
            hidden[d, first:last] = hidden[d, first:last].to(weights.dtype)
    return hidden


def _held(weights: LstmWeights) -> tuple[list[Tensor], list[float]]:
    """Canonical input's and recurrent weight, bias and projection with the values that kernels hold; both clips."""
    D, P, C = weights.shape
    if weights.int8:
        integers = weights.layout(int8_layout)
        matrices = [*dequantized(integers, weights.shape).split(P, dim=2), integers.bias, integers.projection]
        return matrices, [integers.cell_clip, integers.projection_clip]
    layout = weights.layout(interleave)
    gates = [each.view(D, P, C, 4).permute(0, 3, 1, 2) for each in (layout.input, layout.recurrent)]
    return [*gates, layout.bias.view(D, C, 4).mT, layout.projection], [layout.cell_clip, layout.projection_clip]


def _nodes(rows: Sequence[int], n_directions: int, device: torch.device) -> Nodes:
    """Depths of so many nodes in the first direction, in others of about half as many and none at last.

    Parents have no child to many.
    """
    fewer = [*(1 + n // 2 for n in rows[:-1]), 0]
    of_directions = [rows if d == 0 else fewer for d in range(n_directions)]
    depths = tuple((0, *accumulate((N_ROOTS, *each))) for each in of_directions)
    N = max(starts[-1] for starts in depths)
    parents = torch.zeros(n_directions, N, dtype=torch.int32, device="cpu")
    children = torch.empty(n_directions, N + 1, dtype=torch.int32, device="cpu")
    for d, (firsts, counts) in enumerate(zip(depths, of_directions, strict=True)):
        sizes = zip((N_ROOTS, *counts), counts, strict=False)
        above = [torch.arange(n, device="cpu") * before // n for before, n in sizes]
        parents[d, N_ROOTS : firsts[-1]] = torch.cat(above)
        named = torch.cat([first + each for first, each in zip(firsts, above, strict=False)])
        children[d, 0] = N_ROOTS
        children[d, 1:] = N_ROOTS + torch.bincount(named, minlength=N).cumsum(0)
    starts = torch.tensor(depths, dtype=torch.int32, device=device)
    return Nodes(starts, parents.to(device), children.to(device), depths)


# ------------------------------------------------------------------------------------------------------------- verdicts


def _place(variant: Variant, run: LayerRun, bound: float) -> tuple[Path | None, dict[str, Any]]:
    """The file of a verdict, None if none is kept, and what it is a verdict of."""
    weights = run.weights
    is_cuda = weights.device.type == "cuda"
    identity = {
        "variant": variant.name,
        "shape": list(weights.shape),
        "dtype": str(weights.dtype),
        "int8": weights.int8,
        "skip": run.tensors.outputs is not None,
        "batch_invariant": run.options.batch_invariant,
        "by_word": run.words is not None,
        "bound": bound,
        "card": torch.cuda.get_device_name(weights.device) if is_cuda else weights.device.type,
        "driver": driver_version() if is_cuda else "",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "sources": _sources(),
    }
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return weights.cache and weights.cache / f"{variant.name}-{name}.json", identity


def _read(path: Path | None, identity: dict[str, Any]) -> str | None:
    """Why a variant is wrong, empty where it is right; None where no verdict is kept, or none that can be read."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return kept["why"] if kept["identity"] == identity and isinstance(kept["why"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path | None, identity: dict[str, Any], why: str) -> None:
    """Keep a verdict where that is possible; the file appears whole."""
    if path is None:
        return
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps({"identity": identity, "why": why}, indent=1) + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        logger.debug("not kept: %s", error)


@cache
def _sources() -> str:
    """A hash of all kernels' source files, and of what launches them."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.*")):
        if path.suffix in (".py", ".c"):
            found.update(path.read_bytes())
    return found.hexdigest()


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Of the NVIDIA driver, as "550.54.15"; "unknown" where the system does not say."""
    try:
        found = re.search(r"Module\b.*?\s(\d+(?:\.\d+)+)\s", path.read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else "unknown"
