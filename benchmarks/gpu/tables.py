"""What a run of the engine on a GPU found, for people: lines as they come, Markdown tables and a plot.

`python -m benchmarks.gpu.tables DIR/gpu-CARD.json` prints the tables, for README too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any

from flashelmo.benchmarks.kernels import report as gpu_report
from flashelmo.benchmarks.kernels.timing import one_line
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.tables import describe_software, figure, percent
from flashelmo.engine.errors import FlashElmoError

OURS = "flashelmo"
SPEEDS = ("single", "batch", "ragged", "bulk")
LATE = ("compiled", "onnx")
RIVALS_COLOUR = "#9aa5b1"
ACROSS = 4  # plots beside each other


def lines(rows: Sequence[Row]) -> list[str]:
    """A line for each row, but one for all layers of a check."""
    found = []
    for is_error, members in groupby(rows, key=lambda row: row.section == "error"):
        if not is_error:
            found += gpu_report.lines([replace(row, section=_where(row)) for row in members])
            continue
        for (model, name), group in groupby(members, key=lambda row: (row.model, row.name)):
            found.append(_error_line(model, name, list(group)))
    return found


def _where(row: Row) -> str:
    return f"{row.section}, {row.model}" if row.model else row.section


def _error_line(model: str, name: str, rows: Sequence[Row]) -> str:
    parts = [f"error, {model}: {name}"]
    for unit in dict.fromkeys(row.unit for row in rows):
        figures = [f"{row.detail} {row.median:.2g}" for row in rows if row.unit == unit and row.median is not None]
        if figures:
            parts.append(f"{unit}: {', '.join(figures)}")
    parts += dict.fromkeys(row.note for row in rows if row.note)
    return "; ".join(parts)


def save(results: Results, path: Path) -> list[str]:
    """Write tables and a plot beside the results; lines that say so, the tables of targets first."""
    said = ["", target_table(results), ""] if results.section("target") else []
    text = path.with_suffix(".md")
    text.write_text(tables(results) + "\n", encoding="utf-8")
    said.append(f"tables: {text}")
    try:
        said += [f"drawn: {drawn}" for drawn in draw(results, path.with_suffix(""))]
    except ImportError:
        said.append("not drawn, as matplotlib is not installed")
    except Exception as error:  # plots are the least of a run
        said.append(f"not drawn: {one_line(error)}")
    return said


def tables(results: Results) -> str:
    """Markdown of a whole run."""
    machine = results.machine
    parts = [
        f"{machine['gpu']['name']}, host {machine['processor']}, {machine['cores']} cores; "
        f"{describe_software(results)}; {results.date[:10]}. Medians of {results.settings['rounds']} rounds in which "
        "all take turns; random weights.",
        *(speed_table(results, model) for model in _models(results, SPEEDS)),
        *(ceiling_table(results, model) for model in _models(results, SPEEDS)),
        *(late_table(results, section) for section in LATE),
        target_table(results),
        error_table(results),
        switch_table(results),
        stage_table(results),
        absent(results),
    ]
    return "\n\n".join(part for part in parts if part)


def speed_table(results: Results, model: str) -> str:
    """Contestants down, workloads across: thousands of tokens a second."""
    rows = [row for section in SPEEDS for row in results.section(section, model)]
    cells = {(row.name, _workload(row)): figure(row.median and row.median / 1e3) for row in rows}
    return _pivot(f"Thousands of tokens a second: {model} model", rows, cells)


def ceiling_table(results: Results, model: str) -> str:
    """Ours, as shares of what the card allows for LSTM and words, and times the rivals' speed."""
    rows = [row for section in SPEEDS for row in results.section(section, model) if row.median and row.ceiling]
    rivals = list(dict.fromkeys(name for row in rows for name in row.ratios))
    headings = ["", "", "of the LSTM's ceiling", "of both parts'", *(f"x {name}" for name in rivals)]
    body = [
        [_workload(row), row.name, percent(row.utilisation), percent(row.utilisation_both)]
        + [f"{row.ratios[name]:.1f}" if name in row.ratios else "" for name in rivals]
        for row in rows
    ]
    return _markdown(f"Share of the card's limits, and of rivals: {model} model", 2, headings, body)


def late_table(results: Results, section: str) -> str:
    """Rivals that are measured by themselves."""
    rows = [row for row in results.section(section) if row.median]
    body = [
        [
            row.model,
            row.detail,
            row.name,
            figure(row.median),
            *(f"{ratio:.1f} x {name}" for name, ratio in row.ratios.items()),
        ]
        for row in rows
    ]
    return _markdown(
        f"Beside {section}", 3, ["model", "", "", "tokens/s", "ours"], [line + [""] * (5 - len(line)) for line in body]
    )


def target_table(results: Results) -> str:
    """What was wanted and what was found."""
    rows = results.section("target")
    body = [[row.name, row.unit, figure(row.median) or "none", row.note.removeprefix("wanted: ")] for row in rows]
    return _markdown(f"Targets: {rows[0].model if rows else ''} model on an H200", 2, ["", "", "found", "wanted"], body)


def error_table(results: Results) -> str:
    """The worst of each check: relative, and absolute where a bound is set for it."""
    body = []
    rows = [row for row in results.section("error") if row.median is not None]
    for (model, name), group in groupby(rows, key=lambda row: (row.model, row.name)):
        members = list(group)
        worst = [
            max((row.median or 0.0 for row in members if row.unit == unit), default=None)
            for unit in ("max abs error", "relative error")
        ]
        body.append([model, name, *(f"{value:.2g}" if value is not None else "" for value in worst)])
    return _markdown("Largest error of any layer", 2, ["model", "check", "absolute", "relative"], body)


def switch_table(results: Results) -> str:
    """How many times faster each switch makes each workload."""
    rows = [row for row in results.section("switch") if row.ratios]
    cells = {(f"{row.model}: {row.name}", row.detail): f"{next(iter(row.ratios.values())):.2f}" for row in rows}
    named = [replace(row, name=f"{row.model}: {row.name}", section="switch") for row in rows]
    return _pivot("Times as fast with the switch on", named, cells)


def stage_table(results: Results) -> str:
    """Shares of the card's time."""
    rows = [row for row in results.section("stages") if row.median is not None]
    cells = {(f"{row.model}: {row.name}", row.detail): figure(row.median) for row in rows}
    return _pivot(
        "Share of each stage in the card's time, %", [replace(r, name=f"{r.model}: {r.name}") for r in rows], cells
    )


def absent(results: Results) -> str:
    """What has no figure, and why; a reason once."""
    reasons: dict[str, list[str]] = {}
    for row in results.rows:
        if row.median is None and row.section != "target":
            label = ", ".join(part for part in (row.model, row.section, row.name, row.detail) if part)
            reasons.setdefault(row.note, []).append(label)
    return "\n\n".join(f"Not measured: {'; '.join(labels)}: {reason}." for reason, labels in reasons.items())


def _models(results: Results, sections: Sequence[str]) -> list[str]:
    """That have rows in one of the sections."""
    return list(dict.fromkeys(row.model for section in sections for row in results.section(section)))


def _workload(row: Row) -> str:
    return {"single": "", "batch": "", "ragged": "ragged: ", "bulk": "bulk: "}.get(row.section, "") + row.detail


def _pivot(title: str, rows: Sequence[Row], cells: dict[tuple[str, str], str]) -> str:
    """A line for each name, a column for each workload or detail."""
    columns = list(dict.fromkeys(_workload(row) for row in rows if row.median is not None))
    names = list(dict.fromkeys(row.name for row in rows if row.median is not None))
    body = [[name, *(cells.get((name, column), "") for column in columns)] for name in names]
    return _markdown(title, 1, ["", *columns], body)


def _markdown(title: str, n_texts: int, headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose first n_texts columns are text, the others figures; nothing where it has no line."""
    if not body:
        return ""
    rule = ["---" if k < n_texts else "---:" for k in range(len(headings))]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *body))
    return f"**{title}**\n\n{rows}"


def draw(results: Results, stem: Path) -> Iterator[Path]:
    """Bars of tokens a second, a picture for each model, ours with a line at what the card allows; the files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flashelmo"  # the same file from the same figures
    from matplotlib import pyplot

    for model in _models(results, SPEEDS):
        rows = [row for section in SPEEDS for row in results.section(section, model) if row.median]
        workloads = list(dict.fromkeys(map(_workload, rows)))
        if not rows:
            continue
        height = -(-len(workloads) // ACROSS)
        across = min(ACROSS, len(workloads))
        plot, axes = pyplot.subplots(
            height, across, figsize=(4.5 * across, 3 * height), squeeze=False, layout="constrained"
        )
        for axis, workload in zip_longest(axes.flat, workloads):
            if workload is None:
                axis.set_axis_off()
                continue
            _draw_bars(axis, [row for row in rows if _workload(row) == workload])
            axis.set_title(workload, fontsize=9)
        plot.suptitle(
            f"{model} model, tokens/s, {results.machine['gpu']['name']} (dashed: the card's limit)", fontsize=10
        )
        path = stem.with_name(f"{stem.name}-{model}.svg")
        plot.savefig(path, metadata={"Date": None})
        pyplot.close(plot)
        yield path


def _draw_bars(axis: Any, rows: Sequence[Row]) -> None:
    places = range(len(rows))
    colours = ["#2f6f9f" if row.name.startswith(OURS) else RIVALS_COLOUR for row in rows]
    drawn = axis.barh(places, [row.median for row in rows], color=colours)
    axis.bar_label(drawn, [figure(row.median) for row in rows], padding=3, fontsize=7)
    for place, row in zip(places, rows, strict=True):
        if row.ceiling_both:
            axis.vlines(row.ceiling_both, place - 0.45, place + 0.45, colors="black", linestyles="dashed")
    axis.set_yticks(places, [row.name for row in rows], fontsize=7)
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.locator_params(axis="x", nbins=4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables of some results; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="FILE.json")
    given = parser.parse_args(arguments)
    try:
        print("\n\n".join(tables(Results.read(path)) for path in given.results))
    except FlashElmoError as error:
        print(f"gpu.tables: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
