"""README's figures from the committed results: `python -m benchmarks.report` writes the tables and draws the plots.

Everything between two markers in README.md comes from the results: "figures" from results/*.json, "precision" from
results/precision/*.json, "gpu" from results/gpu/*.json. A test compares them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from flashelmo.benchmarks.gpu import tables as gpu_tables
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.tables import describe_machine, describe_software, figure, grid, notes
from flashelmo.engine.errors import FlashElmoError, MissingExtraError

NOTHING = "None measured yet."
# Section -> title of its table in README, what its figures are.
SPEEDS = {"bulk": "Bulk text, tokens/s", "single": "One sentence, ms"}
COSTS = ("load", "memory")
BAR_COLOURS = {"reference": "#9aa5b1", "fp32": "#2f6f9f", "bf16": "#5aa469", "int8": "#d1843c"}


def figures(folder: Path) -> str:
    """Markdown of all results in a folder, by file name."""
    paths = sorted(folder.glob("*.json"))
    return "\n\n".join(_machine_section(Results.read(path), path.stem) for path in paths) or NOTHING


def precision_errors(folder: Path) -> str:
    """Markdown of what `benchmarks.precision` measured, by file name."""
    parts = []
    for path in sorted((folder / "precision").glob("*.json")):
        results = Results.read(path)
        rows = [row for row in results.section("error") if row.unit == "relative error"]
        rows += [row for row in results.section("error") if row.name == "fp32" and row.unit == "max abs error"]
        title = f"Distance from the exact vectors, CUDA kernels (`benchmarks/results/precision/{path.name}`)"
        parts.append(_pivot(title, rows))
    return "\n\n".join(parts) or NOTHING


def in_readme(readme: str, folder: Path) -> str:
    """README with the committed results between its markers."""
    gpus = [gpu_tables.tables(Results.read(path)) for path in sorted((folder / "gpu").glob("*.json"))]
    readme = replace_between(readme, "precision", precision_errors(folder))
    readme = replace_between(readme, "gpu", "\n\n".join(gpus) or NOTHING)
    return replace_between(readme, "figures", figures(folder))


def replace_between(readme: str, name: str, new: str) -> str:
    """README with `new` between the markers of a name.

    Raises:
        FlashElmoError: there are no such markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = readme.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise FlashElmoError(f"README: expected the lines {begin} and {end}")
    return f"{before}{begin}\n\n{new}\n\n{end}{after}"


def _machine_section(results: Results, name: str) -> str:
    parts = [
        f"{describe_machine(results)}; {describe_software(results)}; {results.date[:10]}. Medians of "
        f"{results.settings['rounds']} rounds in which all take turns (`benchmarks/results/{name}.json`).",
        f"![Tokens a second of each precision, with the machine's ceiling](benchmarks/results/{name}.svg)",
    ]
    for section, title in SPEEDS.items():
        for model in results.models:
            if rows := results.section(section, model):
                parts.append(_speed_table(f"{title}: {model} model", rows))
    if rows := results.section("error"):
        parts.append(_pivot("Distance from the exact vectors", rows))
    if rows := [row for row in results.rows if row.section in COSTS]:
        parts.append(_cost_table("Load time and memory", rows))
    if rows := [row for row in results.section("host") if row.unit == "tokens/s"]:
        parts.append(_cost_table("The host's part of a device's work, tokens/s", rows))
    if rows := [row for row in results.section("host") if row.unit.startswith("%")]:
        parts.append(_pivot("Share of each stage in the engine's time, %", rows))
    absent = {row.name: row.note for row in results.rows if row.median is None}
    parts += [f"Not measured: {name}. {reason}." for name, reason in absent.items()]
    return "\n\n".join(parts)


def _speed_table(title: str, rows: Sequence[Row]) -> str:
    headings, lines = grid(rows, spread=False)
    return _markdown(title, 1, headings, lines) + _notes(rows)


def _cost_table(title: str, rows: Sequence[Row]) -> str:
    lines = [[row.model, row.label, row.unit, figure(row.median)] for row in rows if row.median is not None]
    return _markdown(title, 3, ["model", "what", "unit", "median"], lines) + _notes(rows)


def _pivot(title: str, rows: Sequence[Row]) -> str:
    """A line for each model, name and unit, a column for each detail."""
    details = list(dict.fromkeys(row.detail for row in rows if row.median is not None))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        if row.median is not None:
            cells.setdefault((row.model, row.name, row.unit), {})[row.detail] = figure(row.median)
    several = len({unit for _, _, unit in cells}) > 1
    lines = [
        [model, f"{name} ({unit})" if several else name, *(line.get(detail, "") for detail in details)]
        for (model, name, unit), line in cells.items()
    ]
    return _markdown(title, 2, ["model", "", *details], lines) + _notes(rows)


def _markdown(title: str, n_texts: int, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose first n_texts columns are text, the others figures."""
    rule = ["---" if k < n_texts else "---:" for k in range(len(headings))]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))
    return f"**{title}**\n\n{rows}"


def _notes(rows: Sequence[Row]) -> str:
    said = notes([row for row in rows if row.median is not None])
    return "\n\n" + "; ".join(said) + "." if said else ""


def draw(results: Results, path: Path) -> None:
    """Bars of bulk speed for each model, with a line across each bar at its ceiling; the path's ending says the format.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("matplotlib", "bench", "drawing plots") from error
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flashelmo"  # the same file from the same figures
    from matplotlib import pyplot

    bars = {model: [row for row in results.section("bulk", model) if row.median] for model in results.models}
    bars = {model: rows for model, rows in bars.items() if rows}
    if not bars:
        raise FlashElmoError(f"{path}: expected results of bulk text, found none")
    height = 0.8 + 0.4 * max(map(len, bars.values()))
    plot, axes = pyplot.subplots(1, len(bars), figsize=(5.5 * len(bars), height), squeeze=False, layout="constrained")
    for axis, (model, rows) in zip(axes[0], bars.items(), strict=True):
        places = range(len(rows))
        colours = [BAR_COLOURS[row.name.partition(" ")[0]] for row in rows]
        drawn = axis.barh(places, [row.median for row in rows], color=colours)
        axis.bar_label(drawn, [figure(row.median) for row in rows], padding=3)
        for place, row in zip(places, rows, strict=True):
            if row.ceiling:
                axis.vlines(row.ceiling, place - 0.45, place + 0.45, colors="black", linestyles="dashed")
        axis.set_yticks(places, [row.label for row in rows])
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.locator_params(axis="x", nbins=5)
        axis.set_title(f"{model} model, tokens/s (dashed: ceiling of the LSTM alone)", fontsize=9)
    plot.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(plot)


def main() -> int:
    """Write README's figures and the plots of every result."""
    root = Path(__file__).resolve().parents[1]
    folder, readme = root / "benchmarks" / "results", root / "README.md"
    try:
        for path in sorted(folder.glob("*.json")):
            draw(Results.read(path), path.with_suffix(".svg"))
        text = readme.read_text(encoding="utf-8")
        readme.write_text(in_readme(text, folder), encoding="utf-8")
    except (FlashElmoError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
