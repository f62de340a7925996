"""What a run of the kernels on a GPU found, for people: targets, and tables with the model's and cuBLAS's times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from flashelmo.benchmarks.kernels.card import Card
from flashelmo.benchmarks.kernels.model import Cost
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.tables import absent, by_detail, describe_run, figure, markdown

MODEL = "model of "  # how the name of a row begins that is predicted, not measured
TARGET = "target"
WANTED = "wanted: "
SHOWN = ("bf16", "int8")  # precisions that are measured at all sizes
# Section -> title of its table, with a column for each number of rows.
BY_ROWS = {
    "gates": "Gates of a step of both directions, µs",
    "projection": "Projection of a step of both directions, µs",
    "step": "A step of both directions, µs",
}


def tables(results: Results, file: str = "") -> str:
    """Markdown of a whole run, whose results are in `file` of benchmarks/results."""
    parts = [describe_run(results, file) if file else "", ceilings(results), target_table(results, "kernels")]
    parts += [by_rows(title, results.section(section)) for section, title in BY_ROWS.items()]
    others = [row for row in results.rows if row.unit == "µs" and not (row.section in BY_ROWS and _is_shown(row))]
    parts += [beside(others), error_table(results.section("error")), *absent(results.rows)]
    return "\n\n".join(filter(None, parts))


def _is_shown(row: Row) -> bool:
    return row.name.split()[-1] in SHOWN


def by_rows(title: str, rows: Iterable[Row]) -> str:
    """Times by rows, a line for each contestant; of predictions those of bf16 in two launches alone."""
    shown = [replace(row, ceiling=None) for row in rows if row.median is not None and _is_shown(row)]
    shown = [row for row in shown if not (row.name.startswith(MODEL) and "int8" in row.name)]
    shown.sort(key=lambda row: int(row.detail.split()[0]))
    headings, lines = by_detail(shown)
    return markdown(title, 1, headings, sorted(lines, key=lambda line: (line[0].startswith(MODEL), line[0][0] == "c")))


def beside(rows: Sequence[Row]) -> str:
    """A line for each kernel and size: its time, the model's, and that of other means."""
    times = {(row.section, row.detail, row.name): row.median for row in rows}
    lines = []
    for row in rows:
        modelled = times.get((row.section, row.detail, MODEL + row.name))
        if row.median is None or modelled is None:
            continue
        peers = [f"{figure(times.get((row.section, row.detail, name)))} ({name})" for name in row.ratios]
        what = f"{row.section}, {row.name}"
        lines.append([what, row.detail, figure(row.median), figure(modelled), ", ".join(peers)])
    return markdown("Other kernels and precisions, µs", 2, ["", "", "time", "model", "by other means"], lines)


def ceilings(results: Results) -> str:
    """The card's limits in one line."""
    rows = [row for row in results.section("ceiling") if row.median is not None]
    return "; ".join(f"{row.name} ({row.detail}) {figure(row.median)} {row.unit}" for row in rows)


def error_table(rows: Iterable[Row]) -> str:
    """The largest error of each kernel in each precision; the odd sizes' count too."""
    largest: dict[tuple[str, str], float] = {}
    for row in rows:
        name, _, precision = row.name.rpartition(" ")
        if row.median is not None and row.unit == "relative error":
            largest[name, precision] = max(row.median, largest.get((name, precision), 0.0))
    precisions = list(dict.fromkeys(precision for _, precision in largest))
    names = dict.fromkeys(name for name, _ in largest)
    lines = [[name, *(_error(largest.get((name, precision))) for precision in precisions)] for name in names]
    return markdown("Largest relative error", 1, ["", *precisions], lines)


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def target_table(results: Results, what: str) -> str:
    """What was wanted, what was found, and which is missed."""
    lines = []
    for row in results.section(TARGET):
        wanted = row.note.removeprefix(WANTED).removesuffix("; not measured")
        lines.append([row.name, row.unit, figure(row.median) or "not measured", wanted, _verdict(row.median, wanted)])
    return markdown(f"Targets of the {what} on an H200", 2, ["", "", "found", "wanted", ""], lines)


def _verdict(value: float | None, wanted: str) -> str:
    """Says "missed" where the figure is on the wrong side of what is wanted, as "at least 2.5M, goal 4M"."""
    if value is None:
        return ""
    relation, _, number = wanted.partition(",")[0].rpartition(" ")
    limit = float(number.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(number[-1], 1)
    return "" if (value >= limit if relation == "at least" else value <= limit) else "missed"


def target_row(model: str, name: str, unit: str, value: float | None, wanted: str) -> Row:
    """One target; what was not measured has no figure."""
    said = WANTED + wanted + ("" if value is not None else "; not measured")
    median = None if value is None else float(f"{value:.5g}")
    return Row(TARGET, model, name, unit, median=median, note=said)


def targets(results: Results, costs: Mapping[tuple[str, str, str], Cost], card: Card, model: str) -> list[Row]:
    """How far the run is from what the kernels should reach on an H200.

    Args:
        costs: of what was timed, by section, detail and name.
    """
    measured = {(row.section, row.detail, row.name): row.median for row in results.rows if row.median}

    def share(*key: str) -> float | None:
        """Percentage of the matrix peak."""
        section, detail, name = key
        time = measured.get((section, detail, name))
        cost = costs.get((section, detail, name))
        return 100 * cost.operations / (1e-6 * time * card.half) if time and cost else None

    steps = {way: measured.get(("step", "32 rows", f"{way} bf16")) for way in ("fused", "hoisted")}
    least, best = min(((time, way) for way, time in steps.items() if time), default=(None, ""))
    errors = [row.median for row in results.section("error") if row.name.endswith(" fp32") and row.median is not None]
    words = share("characters and highways", "4096 words", "bf16")
    found = [
        ("gates and projection, 512 rows, bf16", "% of peak", share("step", "512 rows", "fused bf16"), "at least 60"),
        (f"step, 32 rows, bf16 {best}".rstrip(), "µs", least, "at most 16"),
        ("characters and highways, 4096 words, bf16", "% of peak", words, "at least 50"),
        ("largest error in float32", "relative error", max(errors, default=None), "less than 1e-05"),
    ]
    return [target_row(model, *each) for each in found]
