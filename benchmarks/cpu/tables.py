"""Tables and the plot of a run on the processor."""

from __future__ import annotations

from pathlib import Path

from flashelmo.benchmarks import plots
from flashelmo.benchmarks.results import Results
from flashelmo.benchmarks.tables import absent, cost_table, describe_run, pivot, speed_table
from flashelmo.engine.errors import FlashElmoError

# Section -> title of its table, what its figures are.
SPEEDS = {"bulk": "Bulk text, tokens/s", "single": "One sentence, ms"}
COSTS = ("load", "memory")
BAR_COLOURS = {"reference": "#9aa5b1", "fp32": "#2f6f9f", "bf16": "#5aa469", "int8": "#d1843c"}


def tables(results: Results, file: str, up: str = "") -> str:
    """Markdown of a whole run, whose results are in `file` of benchmarks/results.

    Args:
        up: the way from the document to the project's root, as "../".
    """
    parts = [describe_run(results, file), image(file, up)]
    for section, title in SPEEDS.items():
        for model in results.models:
            if rows := results.section(section, model):
                parts.append(speed_table(f"{title}: {model} model", rows))
    if rows := results.section("error"):
        parts.append(pivot("Distance from the exact vectors", rows))
    if rows := [row for row in results.rows if row.section in COSTS]:
        parts.append(cost_table("Load time and memory", rows))
    if rows := [row for row in results.section("host") if row.unit == "tokens/s"]:
        parts.append(cost_table("The host's part of a device's work, tokens/s", rows))
    if rows := [row for row in results.section("host") if row.unit.startswith("%")]:
        parts.append(pivot("Share of each stage in the engine's time, %", rows))
    return "\n\n".join([*filter(None, parts), *absent(results.rows)])


def image(file: str, up: str = "") -> str:
    """The plot as an image in a document."""
    plot = f"{up}benchmarks/results/{Path(file).stem}.svg"
    return f"![Tokens a second of each precision, with the machine's ceiling]({plot})"


def draw(results: Results, path: Path) -> None:
    """Bars of bulk speed for each model, with a line across each bar at its ceiling; the path's ending says the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
        FlashElmoError: there are no such results.
    """
    found = {model: [row for row in results.section("bulk", model) if row.median] for model in results.models}
    found = {model: rows for model, rows in found.items() if rows}
    if not found:
        raise FlashElmoError(f"{path}: expected results of bulk text, found none")
    height = 0.8 + 0.4 * max(map(len, found.values()))
    plot, axes = plots.subplots(1, len(found), (5.5 * len(found), height))
    for axis, (model, rows) in zip(axes[0], found.items(), strict=True):
        colours = [BAR_COLOURS[row.name.partition(" ")[0]] for row in rows]
        plots.bars(axis, rows, colours, [row.ceiling for row in rows], size=10)
        axis.locator_params(axis="x", nbins=5)
        axis.set_title(f"{model} model, tokens/s (dashed: ceiling of the LSTM alone)", fontsize=9)
    plots.save(plot, path)
