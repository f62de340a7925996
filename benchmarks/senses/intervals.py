"""In what range a figure lies with 95% confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Float64: TypeAlias = npt.NDArray[np.float64]
SEED = 0
CONFIDENCE = 0.95
# The 97.5% quantile of Student's t by degrees of freedom; beyond, that of the normal distribution is 3% off at most.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
NORMAL = 1.96
AT_ONCE = 1 << 22  # drawn indices that lie in memory


def by_resampling(scores: Float64, resamples: int, weights: Float64 | None = None) -> list[float]:
    """Of the mean of scores [N]: quantiles of the means of as many, drawn again and again (the bootstrap).

    Args:
        weights: [N], of a weighted mean, as the tokens of sentences whose shares of right ones are the scores.
    """
    rng = np.random.default_rng(SEED)
    weights = np.ones(len(scores)) if weights is None else weights
    means, step = np.empty(resamples), max(1, AT_ONCE // len(scores))
    for start in range(0, resamples, step):
        drawn = rng.integers(len(scores), size=(min(step, resamples - start), len(scores)))
        means[start : start + step] = (scores * weights)[drawn].sum(axis=1) / weights[drawn].sum(axis=1)
    return [float(quantile) for quantile in np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])]


def over_runs(figures: Sequence[float]) -> list[float]:
    """Of the mean of several runs' figures, by Student's t; two or more."""
    degrees = len(figures) - 1
    factor = STUDENT[degrees - 1] if degrees <= len(STUDENT) else NORMAL
    mean, deviation = float(np.mean(figures)), float(np.std(figures, ddof=1))
    margin = factor * deviation / np.sqrt(len(figures))
    return [mean - margin, mean + margin]
