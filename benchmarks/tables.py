"""Results for people, the machine's ceiling beside every figure that has one: a terminal's tables, and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from flashelmo.benchmarks.results import Results, Row, median_ratio
from flashelmo.engine.precision import PRECISIONS

# What explains a share above 100%: of a speed, and of a time.
SHARED = (
    "above 100%: the ceiling counts the LSTM steps of every token by itself; sentences that begin or end alike share "
    "steps, and repeated words share products"
)
CACHED = (
    "above 100%: the ceiling reads all weights at the bandwidth that was measured; a cache that holds some is faster"
)
TITLES = {
    "bulk": "bulk text",
    "single": "one sentence",
    "error": "distance from the exact vectors",
    "speed": "ragged batches",
    "peak": "the LSTM on sentences of equal length",
    "cuda": "on a card",
    "senses": "nearest neighbour in context",
    "apart": "nearest neighbour in context among those without a common word at ±2",
    "gain": "nearest neighbour in context, less the best random weights'",
    "training": "nearest neighbour in context, in the course of training",
    "speech": "parts of speech by a linear classifier",
    "precision": "nearest neighbour in context, by precision",
    "downstream": "tasks",
    "ngrams": "held-out text",
    "perplexity": "held-out text, by precision",
}
PLOTTED = "picture"  # a section whose rows are points, for a plot alone
MANY = 2  # more details than these become columns, where everybody has a figure of each
CEILINGS = ("LSTM ceiling", "share", "ceiling of both parts", "share")
SPEEDS = ("single", "batch", "ragged", "bulk", "compiled")  # sections of tokens a second on a card
COMMITTED = "committed"
Known = Mapping[tuple[str, str, str], Row]  # by section, detail and name


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    """A table for each section, model and unit, its notes below."""
    for block in blocks(rows, spread=True):
        if block.lines:
            print_table(console, block.title, 1, block.headings, block.lines)
        for note in block.notes if block.lines else [f"{block.title}: {'; '.join(block.notes)}"]:
            console.print(note, highlight=False, markup=False, soft_wrap=True)


def print_table(
    console: Console, title: str, n_texts: int, headings: Sequence[str], lines: Sequence[Sequence[str]]
) -> None:
    """A table whose first n_texts columns are text, the others figures."""
    console.print(title, style="bold", highlight=False, markup=False)
    table = Table()
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="left" if k < n_texts else "right")
    for line in lines:
        table.add_row(*line)
    console.print(table)


def describe(results: Results) -> str:
    """What the figures are measured on, in one line: card, processor, memory, versions and commit."""
    machine, commit = results.machine, results.commit
    card = f"{machine['gpu']['name']}, host " if "gpu" in machine else ""
    sets = ", ".join(machine["instruction_sets"]) or "no known instruction sets"
    parts = [f"{name} {version}" for name, version in results.versions.items() if version]
    parts += [f"commit {commit['id'][:12]}{' with changes' if commit['dirty'] else ''}"] if commit else []
    place = f"{card}{machine['processor']}, {machine['cores']} cores ({sets}), {machine['memory_gib']} GiB"
    return f"{place}; {', '.join(parts)}; {results.date[:10]}"


def describe_run(results: Results, file: str) -> str:
    """What the tables below it are of; `file` lies in benchmarks/results."""
    rounds = results.settings.get("rounds", 1)
    medians = f"Medians of {rounds} rounds in which all take turns" if rounds > 1 else "One round"
    return f"{describe(results)}. {medians} (`benchmarks/results/{file}`)."


class Block(NamedTuple):
    """A table without its looks, its first column texts; where nothing was measured there are notes alone."""

    title: str
    headings: list[str]
    lines: list[list[str]]
    notes: list[str]


def blocks(rows: Sequence[Row], *, spread: bool) -> Iterator[Block]:
    """A table for each section, model and unit: a line for each row, or a column for each detail if there are many.

    Args:
        spread: with columns for quartiles and extremes.
    """
    shown = [row for row in rows if row.section != PLOTTED or row.failed]
    for (section, model, unit), group in groupby(shown, key=lambda row: (row.section, row.model, row.unit)):
        members = list(group)
        measured = [row for row in members if row.median is not None]
        details, names = {row.detail for row in measured}, {row.name for row in measured}
        is_wide = len(details) > MANY and len(measured) == len(details) * len(names)
        title = f"{f'{model}: ' if model else ''}{TITLES.get(section, section)}"
        if measured:
            title += f", {unit}" + (" (share of the LSTM's ceiling)" if is_wide and measured[0].ceiling else "")
        elif not any(row.failed for row in members):
            title += ": not measured"
        headings, lines = by_detail(measured) if is_wide else grid(measured, spread=spread)
        yield Block(title, headings, lines, notes(members))


def by_detail(rows: Iterable[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines: a line for each name, a column for each detail, a figure's share of the ceiling beside it."""
    details: dict[str, None] = {}
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        details[row.detail] = None
        share = f" ({percent(row.utilisation)})" if row.utilisation else ""
        cells.setdefault(row.name, {})[row.detail] = with_interval(row) + share
    return ["", *details], [[name, *(line.get(detail, "") for detail in details)] for name, line in cells.items()]


def grid(rows: Sequence[Row], *, spread: bool) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of a table of rows of one unit.

    Args:
        rows: columns for ratios and ceilings are there if any row has them.
        spread: with columns for quartiles and extremes.
    """
    compared = list(dict.fromkeys(name for row in rows for name in row.ratios))
    opponents = list(dict.fromkeys([*(row.label for row in rows if row.label in compared), *compared]))
    has_ceiling = any(row.ceiling for row in rows)
    spread = spread and any(len(row.samples) > 1 and row.p25 is not None for row in rows)
    headings = ["", "median", *(["p25 to p75", "low to high"] if spread else [])]
    ceilings = list(CEILINGS) if any(row.ceiling_both for row in rows) else ["ceiling", "share"]
    headings += [f"x {name}" for name in opponents] + (ceilings if has_ceiling else [])
    lines = []
    for row in rows:
        line = [row.label, with_interval(row) or "none"]
        if spread:
            line += [f"{figure(row.p25)} to {figure(row.p75)}", f"{figure(row.low)} to {figure(row.high)}"]
        line += [f"{ratio:.{1 if ratio >= 10 else 2}f}" if ratio else "" for ratio in map(row.ratios.get, opponents)]
        if has_ceiling:
            shares = percent(row.utilisation), percent(row.utilisation_both)
            line += [figure(row.ceiling), shares[0], figure(row.ceiling_both), shares[1]][: len(ceilings)]
        lines.append(line)
    return headings, lines


def notes(rows: Sequence[Row]) -> list[str]:
    """What is to be said beside the figures, each once; a row without a figure says why."""
    said = [row.note if row.median is not None else f"{row.label}: {row.note}" for row in rows if row.note]
    above = [row for row in rows if max(row.utilisation or 0, row.utilisation_both or 0) > 1]
    said += [SHARED if row.unit.endswith("/s") else CACHED for row in above]
    return list(dict.fromkeys(said))


def figure(value: float | None) -> str:
    """Three significant digits, thousands separated; nothing for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_interval(row: Row) -> str:
    """The figure, and behind it where it lies with 95% confidence."""
    return figure(row.median) + (f" ({figure(row.interval[0])} to {figure(row.interval[1])})" if row.interval else "")


def percent(share: float | None) -> str:
    """A share as a whole percentage; nothing for None."""
    return "" if share is None else f"{100 * share:.0f}%"


# ------------------------------------------------------------------------------------------------------------ Markdown


def document(results: Results, file: str) -> Iterator[str]:
    """Markdown of a whole run, whose results are in `file` of benchmarks/results."""
    yield describe_run(results, file)
    shown = [row for row in results.rows if row.section != "limits" and row.median is not None]
    for block in blocks(shown, spread=False):
        parts = dict.fromkeys(part for note in block.notes for part in note.split("; "))  # rows may have some in common
        said = "\n\n" + "; ".join(parts) + "." if parts else ""
        yield markdown(block.title, block.headings, block.lines) + said
    yield from absent(results.rows)


def markdown(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]], figures: bool = True) -> str:
    """A table whose first column is text, the others figures, if they are; nothing where it has no line."""
    if not lines:
        return ""
    rule = ["---", *["---:" if figures else "---"] * (len(headings) - 1)]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))
    return f"**{title}**\n\n{rows}" if title else rows


def absent(rows: Sequence[Row]) -> Iterator[str]:
    """What has no figure, and why; a reason once."""
    reasons: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.median is None and row.section != "warning":
            reasons.setdefault(row.note, {})[f"{row.label} ({row.section})"] = None
    for reason, names in reasons.items():
        yield f"Not measured: {', '.join(names)}: {reason}."


# -------------------------------------------------------------------------------------------------------------- a card


def card_tables(results: Results, file: str = "") -> str:
    """Markdown of a run of the engine on a card, whose results are in `file` of benchmarks/results."""
    measured = [row for row in results.rows if row.median is not None]
    limits = [f"{row.name} ({row.detail}) {figure(row.median)} {row.unit}" for row in of_sections(measured, "ceiling")]
    parts = [f"{describe_run(results, file)} Random weights." if file else "", "; ".join(limits)]
    for model in results.models:
        speeds = [
            replace(
                row,
                detail=row.detail if row.section in SPEEDS[:2] else f"{row.section}: {row.detail}",
                median=(row.median or 0.0) / 1e3,
                ceiling=row.ceiling_both and row.ceiling_both / 1e3,
            )
            for row in of_sections(measured, *SPEEDS)
            if row.model == model
        ]
        title = f"Thousands of tokens a second (share of the card's limit for LSTM and words): {model} model"
        parts.append(markdown(title, *by_detail(speeds)))
    parts.append(markdown("Largest relative error", *by_detail(_largest_errors(measured))))
    for title, rows in (
        ("A step of both directions, µs (share of the card's limit)", of_sections(measured, "step")),
        ("Share of the call's time, %", of_sections(measured, "stages")),
    ):
        parts.append(markdown(title, *by_detail(replace(row, name=f"{row.model}: {row.name}") for row in rows)))
    parts += dict.fromkeys(row.note for row in results.section("warning"))
    return "\n\n".join(filter(None, [*parts, *absent([row for row in results.rows if row.section != "target"])]))


def of_sections(rows: Iterable[Row], *sections: str) -> list[Row]:
    """The rows of some sections, in their order."""
    return sorted((row for row in rows if row.section in sections), key=lambda row: sections.index(row.section))


def _largest_errors(measured: Iterable[Row]) -> Iterator[Row]:
    """Of each kernel or way in each precision, and the bounds."""
    largest: dict[tuple[str, str], float] = {}
    for row in measured:
        if row.section == "error" and row.unit == "relative error" and row.detail != "two calls":
            name, _, precision = row.name.rpartition(" ")
            largest[name, precision] = max(row.median or 0.0, largest.get((name, precision), 0.0))
    for precision in dict.fromkeys(precision for _, precision in largest):
        largest["bound", precision] = PRECISIONS[precision].bounds["cuda"].relative or 0.0
    yield from (Row("error", "", name, "", precision, error) for (name, precision), error in largest.items())


def committed(card: str, folder: Path) -> dict[tuple[str, str, str], Row]:
    """A card's committed figures; nothing for other cards, or without the files."""
    found: dict[tuple[str, str, str], Row] = {}
    for path in sorted(folder.glob("*.json")):
        results = Results.read(path)
        if results.machine.get("gpu", {}).get("name") == card:
            found |= {(row.section, row.detail, row.name): row for row in results.rows if row.median is not None}
    return found


def with_committed(rows: Sequence[Row], before: Known) -> list[Row]:
    """The rows with how many times as fast they are as what was committed."""
    compared = []
    for row in rows:
        old = before.get((row.section, row.detail, row.name))
        if row.median and old and old.median and row.section != "error":
            row = replace(row, ratios=row.ratios | {COMMITTED: median_ratio([row.median], [old.median], row.unit)})
        compared.append(row)
    return compared
