"""The picture of a word's senses, and accuracy in the course of training; the same SVG from the same figures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.senses.vectors import Float32
from flashelmo.engine.errors import MissingExtraError

COLOURS = ("#2f6f9f", "#d1843c", "#5aa469", "#b0413e", "#7d5ba6", "#9aa5b1")


def plane(vectors: Float32) -> Float32:
    """The first two principal components [N, 2] of vectors [N, D] of length 1."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    left, sizes, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    first: Float32 = (left[:, :2] * sizes[:2] * np.where(left[:1, :2] < 0, -1, 1)).astype(np.float32)
    return first


def draw(results: Results, path: Path) -> list[Path]:
    """Write the plots of what there is beside the results' file, and under its name; their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn = []
    for section, name, plot in (("picture", "words", _picture), ("training", "training", _curves)):
        if rows := [row for row in results.rows if row.section == section and row.median is not None]:
            pyplot = _pyplot()
            figure = plot(pyplot, rows)
            drawn.append(path.with_name(f"{path.stem}-{name}.svg"))
            figure.savefig(drawn[-1], metadata={"Date": None})
            pyplot.close(figure)
    return drawn


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "bench", "drawing plots") from error
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flashelmo"
    from matplotlib import pyplot

    return pyplot


def _picture(pyplot: Any, rows: Iterable[Row]) -> Any:
    """Points of each sense; a panel for each model or layer, whose name is the row's model."""
    panels: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        panels.setdefault(row.model, {}).setdefault(row.name, {})[row.detail] = row.samples
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 4.4), squeeze=False, layout="constrained"
    )
    for axis, (title, senses) in zip(axes[0], panels.items(), strict=True):
        for colour, (sense, points) in zip(COLOURS, senses.items(), strict=False):
            axis.scatter(points["x"], points["y"], s=14, color=colour, label=sense, alpha=0.7, linewidths=0)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0][-1].legend(fontsize=8)
    return figure


def _curves(pyplot: Any, rows: Iterable[Row]) -> Any:
    """A panel for each group of words, a line for each layer; rows are named as "2.5 million tokens, layer 1"."""
    groups: dict[str, dict[str, list[Row]]] = {}
    unit = ""
    for row in rows:
        done, _, layer = row.name.partition(", ")
        unit = done.partition(" ")[2]
        groups.setdefault(row.detail, {}).setdefault(layer, []).append(row)
    figure, axes = pyplot.subplots(
        1, len(groups), figsize=(4.2 * len(groups), 3.4), squeeze=False, layout="constrained"
    )
    for axis, (group, lines) in zip(axes[0], groups.items(), strict=True):
        for colour, (layer, points) in zip(COLOURS, lines.items(), strict=False):
            steps, found = [float(row.name.split()[0]) for row in points], np.array([row.median for row in points])
            margins = np.abs(np.array([row.interval for row in points]).T - found)
            axis.errorbar(steps, found, margins, color=colour, label=layer, capsize=3, marker="o", markersize=3)
        axis.set_title(group, fontsize=10)
        axis.set_xlabel(unit, fontsize=9)
    axes[0][0].set_ylabel("nearest neighbour of the same sense", fontsize=9)
    axes[0][-1].legend(fontsize=8)
    return figure
