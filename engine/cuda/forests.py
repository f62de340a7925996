"""Forests built by a C function: several times as fast as with NumPy, while other threads run.

While one thread launches kernels, those that plan windows get the interpreter only now and then, and NumPy needs it
between any two of its operations. The CUDA runtime has a C compiler available, which Triton uses for its launchers.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.engine.errors import first_line
from flashelmo.engine.text.schedule import ForestNodes, Walks, build_forests

TYPES = (np.int32, np.int64, np.int64, np.int64)  # of `Walks`, as C takes them

logger = logging.getLogger("flashelmo")


def build_native_forests(walks: Walks, share: bool) -> tuple[ForestNodes, ForestNodes]:
    """Do as `engine.text.schedule.build_forests`, node for node; call it where there is no compiler."""
    module = _module()
    if module is None:
        return build_forests(walks, share)
    sequences, firsts, steps, order = (np.ascontiguousarray(a, t) for a, t in zip(walks, TYPES, strict=True))
    most = int(steps.sum())
    words, parents = np.empty((2, 2, most), np.int32)
    depths = np.zeros((2, int(steps.max(initial=0)) + 1), np.int64)
    position_nodes = np.full((2, len(sequences)), -1, np.int32)
    n_nodes = module.build_forests(sequences, firsts, steps, order, share, words, parents, depths, position_nodes)
    forward, backward = (
        ForestNodes(words[d, :n], parents[d, :n], depths[d], position_nodes[d]) for d, n in enumerate(n_nodes)
    )
    return forward, backward


@cache
def _module() -> Any:
    """Return the compiled module, cached by Triton after the first time; None, after one warning, if that fails."""
    from triton.runtime.build import compile_module_from_src

    try:
        source = Path(__file__).with_suffix(".c").read_text(encoding="utf-8")
        return compile_module_from_src(source, "flashelmo_forests")
    except Exception as error:
        logger.warning("schedules are made by NumPy, which is slower: %s", first_line(error))
        return None
