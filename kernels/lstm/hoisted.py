"""Hoisted steps, for few rows: the input part x @ W_x + b of all nodes of some depths is one product beforehand.

A step's time then goes into reading weights, and it has only half of them to read. Depths whose input part is computed
at once form a slab: as many as fit SLAB_BYTES. After this product, each depth has the two launches of a fused step.

In the lowest layer a node's input is its word's vector. Where the words are given (`run.InputWords`), the product is
computed once per word, for all depths, and a node reads its word's row. There are then fewer products, so hoisting pays
for more rows; in float32, whose products take far longer than reading their operands, it pays for any number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flashelmo.kernels.launch import Launch
from flashelmo.kernels.linear import linear_launch
from flashelmo.kernels.lstm.fused import step_launches
from flashelmo.kernels.lstm.run import LaunchOptions, LayerRun
from flashelmo.kernels.lstm.weights import LstmWeights, interleave
from flashelmo.kernels.tuning import ANY, copies_in_bulk, is_hopper

SLAB_BYTES = 256 << 20  # of a slab's input part, both directions

# The time that hoisting saves per row, divided by the time of one word's product: hoisting rows by word pays where
# rows * ROW_GAIN > words. On an H200 in bf16, a row of 128 saves 38 ns (`few_rows` twice for 64 rows instead of
# `warp_specialized`) and a word costs 58 ns. In float32 the quotient is larger: a row of 512 saves 0.99 us, half of a
# fused step's gates, and a word costs 0.87 us at most.
ROW_GAIN = 0.65


def serves(run: LayerRun, rows: int) -> bool:
    """Whether it pays to compute the input part of so many rows beforehand, for a whole slab or for all words."""
    return is_able(run.weights, run.options) and rows <= most_rows(run.weights, by_word=run.words is not None)


def is_able(weights: LstmWeights, options: LaunchOptions) -> bool:
    """Whether any rows are hoisted: not 8-bit products, and none where the number of rows must not decide anything."""
    return interleave in weights.layouts and not options.batch_invariant


def most_rows(weights: LstmWeights, *, by_word: bool) -> int:
    """Return the number of rows of the largest depth that is hoisted.

    By node, a cell's part is written and read again, 2 * 4 gates * itemsize per row, instead of its input weights, 4
    gates * P * itemsize: fewer bytes up to 2 * rows = P. As measured on an H200, it pays up to a quarter of that, 64
    rows at P = 512: with 128 a step takes 40.6 us and its input part 11.7, a fused one 44.8. By word, the input part
    takes less than that, so that 128 rows pay too; with 256 in bf16 the gates took 56 us hoisted and 41 fused. On
    sm_100, 128 do not pay, as `tma` is as fast for them.
    """
    if by_word and weights.dtype == torch.float32:
        return ANY
    more = by_word and (is_hopper(weights.device) or not copies_in_bulk(weights.device))
    return weights.shape.P // (4 if more else 8)


def pays_by_word(weights: LstmWeights, options: LaunchOptions, rows: Sequence[int], n_words: int) -> bool:
    """Whether the input part of `n_words` words takes less time than that of all nodes, in depths of `rows` rows."""
    if not is_able(weights, options):
        return False
    least, most = most_rows(weights, by_word=False), most_rows(weights, by_word=True)
    few = sum([n for n in rows if n <= least])
    return n_words < few + ROW_GAIN * sum([n for n in rows if least < n <= most])


def row_bytes(weights: LstmWeights) -> int:
    """Return the bytes of the input part of one node or word, both directions."""
    D, _, C = weights.shape
    return D * 4 * C * weights.dtype.itemsize


def launches(run: LayerRun, depths: range) -> Iterator[Launch]:
    """Yield the launches of consecutive depths, in order: each slab's product, then its steps.

    Raises:
        ValueError: a depth does not exist.
    """
    weights = run.weights.layout(interleave)
    for slab, product, x_gates in input_parts(run, depths, weights.input, weights.bias):
        if product is not None:
            yield product
        yield from step_launches(run, slab, x_gates)


def input_parts(
    run: LayerRun, depths: range, weight: Tensor, bias: Tensor
) -> Iterator[tuple[range, Launch | None, Tensor]]:
    """Yield each slab of some depths, the launch that computes its input part, and that part, [D, M, 4C].

    By word, all depths are one slab, whose launch is None where the words' part has already been computed in this order
    of columns: ask for depths in the order in which they are launched.

    Args:
        weight, bias: [D, P, 4C] and float32 [D, 4C], with columns in the order that the variant reads.

    Raises:
        ValueError: a depth does not exist.
    """
    run.check_depths(depths)
    if run.words is None:
        for slab in slabs(run, depths):
            yield slab, *slab_product(run, slab, weight, bias)
        return
    is_made = depths.start > 1 and run.multiplied[-1:] == [id(weight)]
    run.multiplied.append(id(weight))
    yield depths, None if is_made else word_product(run, weight, bias), run.words.gates


def slabs(run: LayerRun, depths: range) -> Iterator[range]:
    """Yield the depths in slabs that are as long as possible, each of at least one depth."""
    run.check_depths(depths)
    most, first = SLAB_BYTES // row_bytes(run.weights), depths.start  # most: nodes per slab
    for depth in depths[1:]:
        if run.nodes.span(range(first, depth + 1)) > most:
            yield range(first, depth)
            first = depth
    yield range(first, depths.stop)


def slab_product(run: LayerRun, slab: range, weight: Tensor, bias: Tensor) -> tuple[Launch, Tensor]:
    """Return the launch that computes a slab's input part, and its result: [D, M, 4C] in the compute type.

    The columns of weight, [D, P, 4C], and bias, float32 [D, 4C], may be in any order.

    The slab's first node is read on the device, unless it is the same in all directions.
    """
    (D, _, C), x = run.weights.shape, run.tensors.x
    x_gates = torch.empty(D, run.nodes.span(slab), 4 * C, dtype=x.dtype, device=x.device)
    first_rows = run.nodes.n_roots if slab.start == 1 else run.nodes.starts[:, slab.start]
    return linear_launch(x, weight, bias, x_gates, first_rows=first_rows, precision=run.options.precision), x_gates


def word_product(run: LayerRun, weight: Tensor, bias: Tensor) -> Launch:
    """Return the launch that computes the words' input part."""
    words = run.words
    assert words is not None
    return linear_launch(words.x, weight, bias, words.gates, count=words.n_words, precision=run.options.precision)
