"""Plots of results: bars of bulk speed, latency by load, a word's senses, accuracy in the course of training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.tables import figure
from flashelmo.engine.arrays import Float32
from flashelmo.engine.errors import FlashElmoError, MissingExtraError, first_line

BAR_COLOURS = {"reference": "#9aa5b1", "fp32": "#2f6f9f", "bf16": "#5aa469", "int8": "#d1843c"}
COLOURS = ("#2f6f9f", "#d1843c", "#5aa469", "#b0413e", "#7d5ba6", "#9aa5b1")


def draw(results: Results, path: Path) -> list[Path]:
    """Write plots of the results, beside their file and under its name; return the paths.

    The same figures give the same SVG.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn = []
    for section, (end, plot) in PLOTS.items():
        if rows := [row for row in results.section(section) if row.median is not None]:
            drawn.append(path.with_name(f"{path.stem}{end}.svg"))
            plot(rows).savefig(drawn[-1], metadata={"Date": None})
    return drawn


def _panels(n: int, width: float, height: float) -> tuple[Any, Sequence[Any]]:
    """Return a plot of n panels in a row, each of this size in inches, and their axes."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "bench", "drawing plots") from error
    except ValueError as error:  # MPLBACKEND, of a notebook whose cell started this, may name what is not here
        raise FlashElmoError(f"matplotlib: {first_line(error)}") from error
    matplotlib.rcParams["svg.hashsalt"] = "flashelmo"
    plot = Figure(figsize=(n * width, height), layout="constrained")
    return plot, plot.subplots(1, n, squeeze=False)[0]


def _bars(rows: Iterable[Row]) -> Any:
    """Draw bars of speed for each model, with a line across each at its ceiling."""
    models: dict[str, list[Row]] = {}
    for row in rows:
        models.setdefault(row.model, []).append(row)
    plot, axes = _panels(len(models), 5.5, 0.8 + 0.4 * max(map(len, models.values())))
    for axis, (model, bars) in zip(axes, models.items(), strict=True):
        colours = [BAR_COLOURS[row.name.partition(" ")[0]] for row in bars]
        drawn = axis.barh(range(len(bars)), [row.median for row in bars], color=colours)
        axis.bar_label(drawn, [figure(row.median) for row in bars], padding=3, fontsize=10)
        for place, row in enumerate(bars):
            if row.ceiling:
                axis.vlines(row.ceiling, place - 0.45, place + 0.45, colors="black", linestyles="dashed")
        axis.set_yticks(range(len(bars)), [row.label for row in bars], fontsize=10)
        axis.invert_yaxis()
        axis.margins(x=0.2)
        axis.set_title(f"{model} model, tokens/s (dashed: ceiling of the LSTM alone)", fontsize=9)
    return plot


def _latency(rows: Iterable[Row]) -> Any:
    """Draw latency by the number of clients, with which details begin: a line for each model and quantile."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row.unit == "ms":
            lines.setdefault(f"{row.model} model, {row.name}", []).append(row)
    plot, (axis,) = _panels(1, 5.5, 3.2)
    for label, points in lines.items():
        axis.plot(
            [int(row.detail.split()[0]) for row in points], [row.median for row in points], marker="o", label=label
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("clients of one sentence each")
    axis.set_ylabel("ms a request")
    axis.legend(fontsize=8)
    return plot


def _picture(rows: Iterable[Row]) -> Any:
    """Draw points of each sense; a panel for each model or layer, whose name is the row's model."""
    panels: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows:
        panels.setdefault(row.model, {}).setdefault(row.name, {})[row.detail] = row.samples
    plot, axes = _panels(len(panels), 4.6, 4.4)
    for axis, (title, senses) in zip(axes, panels.items(), strict=True):
        for colour, (sense, points) in zip(COLOURS, senses.items(), strict=False):
            axis.scatter(points["x"], points["y"], s=14, color=colour, label=sense, alpha=0.7, linewidths=0)
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
    axes[-1].legend(fontsize=8)
    return plot


def _curves(rows: Iterable[Row]) -> Any:
    """Draw a panel for each group of words, a line for each layer; rows are named as "2.5 million tokens, layer 1"."""
    groups: dict[str, dict[str, list[Row]]] = {}
    unit = ""
    for row in rows:
        done, _, layer = row.name.partition(", ")
        unit = done.partition(" ")[2]
        groups.setdefault(row.detail, {}).setdefault(layer, []).append(row)
    plot, axes = _panels(len(groups), 4.2, 3.4)
    for axis, (group, lines) in zip(axes, groups.items(), strict=True):
        for colour, (layer, points) in zip(COLOURS, lines.items(), strict=False):
            steps, found = [float(row.name.split()[0]) for row in points], np.array([row.median for row in points])
            margins = np.abs(np.array([row.interval for row in points]).T - found)
            axis.errorbar(steps, found, margins, color=colour, label=layer, capsize=3, marker="o", markersize=3)
        axis.set_title(group, fontsize=10)
        axis.set_xlabel(unit, fontsize=9)
    axes[0].set_ylabel("nearest neighbour of the same sense", fontsize=9)
    axes[-1].legend(fontsize=8)
    return plot


def plane(vectors: Float32) -> Float32:
    """Return the first two principal components [N, 2] of vectors [N, D] of length 1."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    left, sizes, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    first: Float32 = (left[:, :2] * sizes[:2] * np.where(left[:1, :2] < 0, -1, 1)).astype(np.float32)
    return first


# By section: the plot's file name, after the results', and what draws it.
PLOTS = {
    "bulk": ("", _bars),
    "latency": ("", _latency),
    "picture": ("-words", _picture),
    "training": ("-training", _curves),
}
