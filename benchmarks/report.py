"""README's figures from the committed results: `python -m benchmarks.report` writes the tables and draws the plots.

Everything between two markers in README.md comes from the results: "figures" from results/*.json, "precision" from
results/precision/*.json, "gpu" from results/gpu/*.json, "onnx" from results/onnx/*.json. A test compares them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flashelmo.benchmarks.gpu import tables as gpu_tables
from flashelmo.benchmarks.onnx import tables as onnx_tables
from flashelmo.benchmarks.results import Results
from flashelmo.benchmarks.tables import cost_table, describe_run, figure, pivot, speed_table
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
        parts.append(pivot(title, rows))
    return "\n\n".join(parts) or NOTHING


def exported_files(folder: Path) -> str:
    """Markdown of what `benchmarks.onnx` measured, by file name."""
    paths = sorted((folder / "onnx").glob("*.json"))
    return "\n\n".join(onnx_tables.tables(Results.read(path), f"onnx/{path.name}") for path in paths) or NOTHING


def in_readme(readme: str, folder: Path) -> str:
    """README with the committed results between its markers."""
    gpus = [gpu_tables.tables(Results.read(path)) for path in sorted((folder / "gpu").glob("*.json"))]
    readme = replace_between(readme, "precision", precision_errors(folder))
    readme = replace_between(readme, "gpu", "\n\n".join(gpus) or NOTHING)
    readme = replace_between(readme, "onnx", exported_files(folder))
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
        describe_run(results, f"{name}.json"),
        f"![Tokens a second of each precision, with the machine's ceiling](benchmarks/results/{name}.svg)",
    ]
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
    absent = {row.name: row.note for row in results.rows if row.median is None}
    parts += [f"Not measured: {name}. {reason}." for name, reason in absent.items()]
    return "\n\n".join(parts)


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
