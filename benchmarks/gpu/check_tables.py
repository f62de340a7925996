"""What a check of a card found, for people, beside what was committed of the same card."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flashelmo.benchmarks.gpu.speed import UNIT
from flashelmo.benchmarks.kernels.tables import MODEL, error_table
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.tables import (
    absent,
    by_detail,
    describe_machine,
    describe_software,
    figure,
    markdown,
    percent,
)
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import PRECISIONS

RESULTS = Path(__file__).resolve().parents[1] / "results" / "gpu"
COMMITTED = "committed"
MOST_LINES, MOST_LETTERS = 40, 240  # of failures, and of a line


def committed(card: str, folder: Path = RESULTS) -> dict[tuple[str, str, str], Row]:
    """A card's committed figures by section, detail and name; nothing for other cards, or without the files."""
    found: dict[tuple[str, str, str], Row] = {}
    for path in sorted(folder.glob("*.json")):
        with suppress(FlashElmoError):
            results = Results.read(path)
            if results.machine.get("gpu", {}).get("name") == card:
                found |= {(row.section, row.detail, row.name): row for row in results.rows if row.median is not None}
    return found


def summary(results: Results, before: Mapping[tuple[str, str, str], Row]) -> str:
    """Errors with their bounds, steps and speeds with what was committed, and what failed, as short as can be."""
    driver = results.machine["gpu"].get("driver", "unknown")
    parts = [describe_machine(results), f"driver {driver}, {describe_software(results)}", error_summary(results)]
    steps = [row for row in results.section("step") if row.median is not None and not row.name.startswith(MODEL)]
    best = [_best_before(detail, before) for detail in dict.fromkeys(row.detail for row in steps)]
    shown = [replace(row, ceiling=None) for row in (*steps, *best) if row]
    parts.append(markdown("A step of both directions, µs", 1, *by_detail(shown)))
    lines = []
    for row in results.rows:
        if row.unit == UNIT and row.median is not None:
            old, times = before.get((row.section, row.detail, row.name)), row.ratios.get(COMMITTED)
            share = percent(row.utilisation_both)
            cells = [figure(row.median), figure(old.median if old else None), figure(times), share]
            lines.append([row.name, f"{row.section}: {row.detail}", *cells])
    parts.append(markdown("", 2, ["", "", UNIT, COMMITTED, "times", "of the limit"], lines))
    parts += [f"{row.label}, {row.section}: {figure(row.median)} {row.unit}" for row in results.section("timeline")]
    parts += dict.fromkeys(row.note for row in results.section("warning"))
    parts += [line[:MOST_LETTERS] for line in absent([row for row in results.rows if not row.failed])]
    failed = [row for row in results.rows if row.failed]
    for row in failed[:MOST_LINES]:
        parts.append(", ".join(filter(None, (row.model, row.section, row.label, row.note)))[:MOST_LETTERS])
    parts.append(f"failures: {len(failed)}")
    return "\n\n".join(filter(None, parts))


def _best_before(detail: str, before: Mapping[tuple[str, str, str], Row]) -> Row | None:
    """The fastest committed step of ours."""
    rows = [
        row
        for (of, size, name), row in before.items()
        if (of, size) == ("step", detail) and name.endswith(" bf16") and not name.startswith((MODEL, "cuBLAS"))
    ]
    best = min(rows, key=lambda row: row.median or float("inf"), default=None)
    return best and replace(best, name=f"{COMMITTED}, the best", ceiling=None)


def error_summary(results: Results) -> str:
    """The largest relative error of each kernel and way in each precision, and the bounds."""
    rows = [row for row in results.section("error") if row.unit == "relative error" and row.detail != "two calls"]
    there = dict.fromkeys(row.name.rpartition(" ")[2] for row in rows)
    limits = [(name, PRECISIONS[name].bounds["cuda"].relative) for name in there if name in PRECISIONS]
    bounds = [Row("error", name=f"bound {name}", unit="relative error", median=limit) for name, limit in limits]
    return error_table([*rows, *bounds]) if rows else ""
