"""The variants, and which of them computes which depths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import NamedTuple

from flashelmo.kernels.launch import Launch
from flashelmo.kernels.lstm import fused, hoisted, persistent
from flashelmo.kernels.lstm.run import LayerRun
from flashelmo.kernels.lstm.weights import CanonicalLstm, Format, Layout, interleave


class Variant(NamedTuple):
    """A way to compute some depths that follow each other.

    Attributes:
        serves: whether it is of use for depths of so many rows, in a run's type and on its card.
        launches: its launches for some depths of a run, in order.
        pack: lays out the weights as it reads them.
    """

    name: str
    serves: Callable[[LayerRun, int], bool]
    launches: Callable[[LayerRun, range], Iterator[Launch]]
    pack: Callable[[CanonicalLstm, Format], Layout]


# In order of preference: the first that serves. Each with its reason, and a step's time on an H200 in bf16 inside a
# captured graph, where launches cost the host nothing.
VARIANTS = (
    # One launch for all steps where the host would launch each by itself; 14 to 20 us for 1 to 32 rows.
    Variant("persistent", persistent.serves, persistent.launches, interleave),
    # A step reads its recurrent weights alone; 13 us for 1 row, 18 for 32, 25 for 64, 47 for 128.
    Variant("hoisted", hoisted.serves, hoisted.launches, interleave),
    # Nothing but the states goes through memory; 60 us for 256 rows, 187 for 1,024.
    Variant("fused", fused.serves, fused.launches, interleave),
)


def choose(run: LayerRun, rows: int) -> Variant:
    """The variant for depths of so many rows."""
    return next(variant for variant in VARIANTS if variant.serves(run, rows))


def cut(run: LayerRun) -> Iterator[tuple[Variant, range]]:
    """All depths in order, 1 ... T, as many at a time as one variant computes."""
    for variant, group in groupby(range(1, run.nodes.n_depths + 1), lambda depth: choose(run, run.nodes.rows(depth))):
        depths = list(group)
        yield variant, range(depths[0], depths[-1] + 1)
