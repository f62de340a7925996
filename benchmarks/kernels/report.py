"""What a run on a GPU found, for people: lines as they come, the targets, and plots of time against rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashelmo.benchmarks.kernels.model import Card, Cost
from flashelmo.benchmarks.results import Results, Row

MODEL = "model of "  # how the name of a row begins that is predicted, not measured
STEP_SECTIONS = ("gates", "projection", "step")
WORD_SECTIONS = ("characters", "highway", "characters and highways", "final projection")


def slug(card: str) -> str:
    """A card's name as part of a file's, as "h200"."""
    return re.sub(r"[^a-z0-9]+", "-", card.lower().removeprefix("nvidia ")).strip("-")


def head(results: Results) -> str:
    """Card, versions and commit."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items() if version)
    commit = "unknown"
    if results.commit:
        commit = results.commit["id"][:12] + (" with changes" if results.commit["dirty"] else "")
    return f"{results.machine['gpu']['name']}\n{versions}\ncommit {commit}, {results.date}"


def lines(rows: Sequence[Row]) -> list[str]:
    """A line for each measured row, its prediction in the same line."""
    predicted = {(row.section, row.detail, row.name): row for row in rows if row.name.startswith(MODEL)}
    found = []
    for row in rows:
        if row.name.startswith(MODEL):
            continue
        line = f"{row.section:24}{row.detail:>14}  {row.name:22}"
        if row.median is not None:
            line += f"{row.median:>10.4g} {row.unit}"
        if row.p25 is not None and row.p75 is not None:
            line += f" ({row.p25:.4g} to {row.p75:.4g})"
        if prediction := predicted.get((row.section, row.detail, MODEL + row.name)):
            line += f"; model {prediction.median:.4g}, {prediction.note}"
        if row.utilisation is not None:
            line += f"; {100 * row.utilisation:.0f}% of roofline"
        line += "".join(f"; {ratio:.2f} x {name}" for name, ratio in row.ratios.items())
        found.append(line + (f"; {row.note}" if row.note else ""))
    return found


def worst_errors(rows: Sequence[Row]) -> list[str]:
    """A line for each kernel and kind: its largest error, or that it failed."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.name, []).append(row)
    found = []
    for name, members in by_name.items():
        errors = [row.median for row in members if row.median is not None]
        notes = list(dict.fromkeys(row.note for row in members if row.note))
        figure = f"{max(errors):.2g}" if errors else "none"
        found.append(f"error, {members[0].model}: {name:28}{figure:>9}" + "".join(f"; {note}" for note in notes))
    return found


def summary(results: Results) -> list[str]:
    """Short tables of microseconds, the model's beside them in brackets: sizes down, contestants across."""
    found = []
    for section in (*STEP_SECTIONS, *WORD_SECTIONS):
        rows = [row for row in results.section(section) if row.median is not None and row.detail]
        names = [name for name in dict.fromkeys(row.name for row in rows) if _is_shown(name)]
        if not names:
            continue
        cells = {(row.detail, row.name): row.median for row in rows}
        found.append(f"{section + ', µs (model)':34}" + "".join(f"{name:>20}" for name in names))
        for detail in sorted({row.detail for row in rows}, key=lambda detail: int(detail.split()[0])):
            found.append(f"{detail:>34}" + "".join(f"{_cell(cells, detail, name):>20}" for name in names))
    return found


def _is_shown(name: str) -> bool:
    """The summary has bf16, int8 and the products of bf16 alone."""
    return name.split()[-1] in ("bf16", "int8") and not name.startswith(MODEL)


def _cell(cells: Mapping[tuple[str, str], float | None], detail: str, name: str) -> str:
    time, predicted = cells.get((detail, name)), cells.get((detail, MODEL + name))
    if time is None:
        return ""
    return f"{time:.4g}" + (f" ({predicted:.4g})" if predicted is not None else "")


def targets(results: Results, costs: Mapping[tuple[str, str, str], Cost], card: Card, model: str) -> list[Row]:
    """How far the run is from what the kernels should reach on an H200, as rows of the section "target".

    Args:
        costs: of what was timed, by section, detail and name.
    """
    measured = {(row.section, row.detail, row.name): row.median for row in results.rows if row.median}

    def share(section: str, detail: str, name: str) -> float | None:
        """Percentage of the matrix peak."""
        key = section, detail, name
        if key not in measured or key not in costs:
            return None
        return 100 * costs[key].operations / (1e-6 * measured[key] * card.half)

    steps = {way: measured.get(("step", "32 rows", f"{way} bf16")) for way in ("fused", "hoisted", "persistent")}
    least, best = min(((time, way) for way, time in steps.items() if time), default=(None, ""))
    errors = [row.median for row in results.section("error") if row.name.endswith(" fp32") and row.median is not None]
    found = [
        ("gates and projection, 512 rows, bf16", "% of peak", share("step", "512 rows", "fused bf16"), "at least 60"),
        (f"step, 32 rows, bf16 {best}".rstrip(), "µs", least, "at most 16"),
        (
            "characters and highways, 4096 words, bf16",
            "% of peak",
            share("characters and highways", "4096 words", "bf16"),
            "at least 50",
        ),
        ("largest error in float32", "relative error", max(errors, default=None), "less than 1e-05"),
    ]
    return [
        Row(
            section="target",
            model=model,
            name=name,
            unit=unit,
            median=None if value is None else float(f"{value:.4g}"),
            note=f"wanted: {wanted}" if value is not None else f"wanted: {wanted}; not measured",
        )
        for name, unit, value, wanted in found
    ]


def draw(results: Results, stem: Path) -> list[Path]:
    """Time against rows and against words, with the model and the roofline; the files that were written.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flashelmo"  # the same file from the same figures
    from matplotlib import pyplot

    written = []
    for name, sections in (("steps", STEP_SECTIONS), ("words", WORD_SECTIONS)):
        drawn = [section for section in sections if any(row.samples for row in results.section(section))]
        if not drawn:
            continue
        plot, axes = pyplot.subplots(1, len(drawn), figsize=(6 * len(drawn), 5), squeeze=False, layout="constrained")
        for axis, section in zip(axes[0], drawn, strict=True):
            _draw_section(axis, results.section(section))
            axis.set_title(f"{section}, {results.machine['gpu']['name']}", fontsize=9)
        path = stem.with_name(f"{stem.name}-{name}.svg")
        plot.savefig(path, metadata={"Date": None})
        pyplot.close(plot)
        written.append(path)
    return written


def _draw_section(axis: Any, rows: Sequence[Row]) -> None:
    """Measured times as lines with dots, peers grey; the model dashed and the roofline dotted in the same colour."""
    by_name: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.median is not None:
            by_name.setdefault(row.name, {})[int(row.detail.split()[0])] = row
    colours: dict[str, str] = {}
    for name in (name for name in by_name if not name.startswith(MODEL)):
        sizes = sorted(by_name[name])
        peer = name.startswith(("cuBLAS", "torch"))
        colours[name] = "#9aa5b1" if peer else f"C{len(colours) % 10}"
        times = [by_name[name][size].median for size in sizes]
        axis.plot(sizes, times, marker="o", markersize=3, color=colours[name], label=name)
        limits = [(size, by_name[name][size].ceiling) for size in sizes if by_name[name][size].ceiling]
        if limits:
            axis.plot(*zip(*limits, strict=True), linestyle=":", linewidth=1, color=colours[name])
        predicted = by_name.get(MODEL + name, {})
        if predicted:
            at = sorted(predicted)
            axis.plot(at, [predicted[k].median for k in at], linestyle="--", linewidth=1, color=colours[name])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    unit = rows[0].detail.split()[1]
    axis.set_xlabel(f"{unit} (dashed: model, dotted: roofline)")
    axis.set_ylabel("µs")
    axis.legend(fontsize=7)
