"""Plots as SVG, the same file from the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.tables import figure
from flashelmo.engine.errors import MissingExtraError


def subplots(height: int, across: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A plot and its axes, [height, across].

    Args:
        size: of the whole, in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "bench", "drawing plots") from error
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flashelmo"
    from matplotlib import pyplot

    plot, axes = pyplot.subplots(height, across, figsize=size, squeeze=False, layout="constrained")
    return plot, axes


def bars(axis: Any, rows: Sequence[Row], colours: Sequence[str], ceilings: Sequence[float | None], size: int) -> None:
    """A bar for each row, its figure beside it, and a dashed line across it at its ceiling.

    Args:
        size: of the letters.
    """
    places = range(len(rows))
    drawn = axis.barh(places, [row.median for row in rows], color=colours)
    axis.bar_label(drawn, [figure(row.median) for row in rows], padding=3, fontsize=size)
    for place, ceiling in zip(places, ceilings, strict=True):
        if ceiling:
            axis.vlines(ceiling, place - 0.45, place + 0.45, colors="black", linestyles="dashed")
    axis.set_yticks(places, [row.label for row in rows], fontsize=size)
    axis.invert_yaxis()
    axis.margins(x=0.2)


def save(plot: Any, path: Path) -> None:
    """Write and let go."""
    from matplotlib import pyplot

    plot.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(plot)
