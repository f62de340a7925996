"""Within what a figure lies with 95% confidence."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Float64: TypeAlias = npt.NDArray[np.float64]
SEED = 0
CONFIDENCE = 0.95
AT_ONCE = 1 << 22  # drawn indices that lie in memory


def by_resampling(scores: Float64, resamples: int, weights: Float64 | None = None) -> list[float]:
    """Of the mean of scores: quantiles of the means of as many, drawn again and again (the bootstrap).

    Args:
        scores: [N], or of several runs [runs, N], which are drawn again too.
        weights: [N], of a weighted mean, as the tokens of sentences whose shares of right ones are the scores.
    """
    rng = np.random.default_rng(SEED)
    runs = np.atleast_2d(scores)
    n_runs, n = runs.shape
    weights = np.ones(n) if weights is None else weights
    means, step = np.empty(resamples), max(1, AT_ONCE // n)
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn, drawn_runs = rng.integers(n, size=(size, n)), rng.integers(n_runs, size=(size, n_runs))
        sums = np.stack([(run * weights)[drawn].sum(axis=1) for run in runs])  # [runs, size]
        over_runs = np.take_along_axis(sums.T, drawn_runs, axis=1).mean(axis=1)
        means[start : start + size] = over_runs / weights[drawn].sum(axis=1)
    return [float(quantile) for quantile in np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])]
