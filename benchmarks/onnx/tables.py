"""Tables of a run on exported files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flashelmo.benchmarks.onnx.contestants import BASELINE, ENTRANTS
from flashelmo.benchmarks.onnx.peak import PRODUCTS
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.tables import (
    CEILINGS,
    absent,
    cost_table,
    describe_run,
    figure,
    markdown,
    note_line,
    percent,
    pivot,
)


def tables(results: Results, file: str) -> str:
    """Markdown of a whole run, whose results are in `file` of benchmarks/results."""
    parts = [describe_run(results, file)]
    if rows := measured(results, "speed"):
        title = "Ragged batches, tokens/s (share of what the matrix peak allows the LSTM alone)"
        models = [[row for row in rows if row.model == model] for model in results.models]
        parts.append(pivot(title, [row for each in models for row in (*each, *ceiling_rows(each))], speed_cell))
    if rows := measured(results, "peak"):
        parts.append(peak_table(rows))
    if rows := measured(results, "error"):
        parts.append(pivot("Distance from the exact vectors", rows))
    if rows := [*measured(results, "load"), *measured(results, "size")]:
        parts.append(cost_table("Load time and size", rows))
    cards = measured(results, "cuda")
    if rows := [row for row in cards if row.unit == "tokens/s"]:
        parts.append(pivot("Ragged batches on a card, tokens/s", rows))
    if rows := [row for row in cards if row.unit != "tokens/s"]:
        parts.append(cost_table("Copies between host and card", rows))
    without_card = [row for row in results.rows if cards or row.section != "cuda"]  # a processor's run has none
    return "\n\n".join([*parts, *absent(without_card)])


def measured(results: Results, section: str) -> list[Row]:
    """The section's rows that have a figure."""
    return [row for row in results.section(section) if row.median is not None]


def ceiling_rows(rows: Sequence[Row]) -> list[Row]:
    """What the matrix peak of each precision allows a model's LSTM, as rows by themselves."""
    ceilings = {}
    for row in rows:
        name = f"LSTM ceiling, {ENTRANTS[row.name].precision}"
        if row.ceiling:
            ceilings[name, row.detail] = replace(row, name=name, median=row.ceiling, ceiling=None, note="")
    return list(ceilings.values())


def speed_cell(row: Row) -> str:
    """The figure, and its share of the ceiling."""
    share = percent(row.utilisation)
    return f"{figure(row.median)} ({share})" if share else figure(row.median)


def peak_table(rows: Sequence[Row]) -> str:
    """Each file's and its products' share of the matrix peak, and the file's of its products."""
    headings = ["model", "", "median", *CEILINGS, "share of its products alone", f"x {BASELINE}"]
    lines = []
    for row in rows:
        of_products = next((ratio for name, ratio in row.ratios.items() if name.startswith(PRODUCTS)), None)
        times = f"{row.ratios[BASELINE]:.2f}" if BASELINE in row.ratios else ""
        shares = percent(row.utilisation), percent(row.utilisation_both)
        line = [row.model, row.name, figure(row.median), figure(row.ceiling), shares[0], figure(row.ceiling_both)]
        lines.append([*line, shares[1], percent(of_products), times])
    title = "Sentences of equal length, GFLOP/s of the LSTM"
    return markdown(title, 2, headings, lines) + note_line(rows)
