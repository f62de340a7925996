"""What a run of the engine on a GPU found, for people: targets and tables, and a check beside what was committed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flashelmo.benchmarks.gpu.speed import CUDNN, EAGER, KNOWN, OURS, SWITCH, TEXT_TO_MEANS, UNIT
from flashelmo.benchmarks.results import Results, Row, median_ratio, rounded
from flashelmo.benchmarks.tables import (
    absent,
    by_detail,
    describe_machine,
    describe_run,
    describe_software,
    figure,
    markdown,
    percent,
)
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import PRECISIONS

RESULTS = Path(__file__).resolve().parents[1] / "results" / "gpu"
SPEEDS = ("single", "batch", "ragged", "bulk", "compiled", "onnx")
TARGET, WANTED = "target", "wanted: "
COMMITTED = "committed"
MOST_LINES, MOST_LETTERS = 40, 240  # of failures, and of a line


def tables(results: Results, file: str = "") -> str:
    """Markdown of a whole run, whose results are in `file` of benchmarks/results."""
    limits = [f"{row.name} ({row.detail}) {figure(row.median)} {row.unit}" for row in measured(results, "ceiling")]
    parts = [f"{describe_run(results, file)} Random weights." if file else "", "; ".join(limits)]
    parts += [speed_table(results, model) for model in results.models]
    errors = [row for row in results.section("error") if row.detail != "two calls"]
    parts += [target_table(results), error_table(errors)]
    switches = [replace(row, median=next(iter(row.ratios.values()))) for row in results.section(SWITCH) if row.ratios]
    for title, rows in (
        ("Times as fast with the switch on", switches),
        ("Share of each stage in the card's time, %", measured(results, "stages")),
    ):
        named = [replace(row, name=f"{row.model}: {row.name}", ceiling=None) for row in rows]
        parts.append(markdown(title, 1, *by_detail(named)))
    return "\n\n".join(filter(None, [*parts, *absent([row for row in results.rows if row.section != TARGET])]))


def measured(results: Results, section: str, model: str | None = None) -> list[Row]:
    """The rows of a section that have a figure."""
    return [row for row in results.section(section, model) if row.median is not None]


def speed_table(results: Results, model: str) -> str:
    """Contestants down, workloads across: thousands of tokens a second, and ours as a share of what the card allows."""
    rows, limits = [], dict[str, Row]()
    for row in (row for section in SPEEDS for row in measured(results, section, model)):
        detail = row.detail if row.section in ("single", "batch") else f"{row.section}: {row.detail}"
        limit = row.ceiling_both and row.ceiling_both / 1e3
        rows.append(replace(row, detail=detail, median=(row.median or 0) / 1e3, ceiling=limit))
        if limit:
            limits.setdefault(detail, Row(row.section, name="the card's limit for the first", unit=UNIT, detail=detail))
            limits[detail] = replace(limits[detail], median=limits[detail].median or limit)
    title = f"Thousands of tokens a second (share of the card's limit for LSTM and words): {model} model"
    return markdown(title, 1, *by_detail([*rows, *limits.values()]))


def error_table(rows: Iterable[Row]) -> str:
    """The largest error of each kernel or way in each precision."""
    largest: dict[tuple[str, str], float] = {}
    for row in rows:
        name, _, precision = row.name.rpartition(" ")
        if row.median is not None and row.unit == "relative error":
            largest[name, precision] = max(row.median, largest.get((name, precision), 0.0))
    precisions = list(dict.fromkeys(precision for _, precision in largest))
    lines = [
        [name, *(f"{largest[name, each]:.1e}" if (name, each) in largest else "" for each in precisions)]
        for name in dict.fromkeys(name for name, _ in largest)
    ]
    return markdown("Largest relative error", 1, ["", *precisions], lines)


# ------------------------------------------------------------------------------------------------------------- targets


def target_table(results: Results) -> str:
    """What was wanted, what was found, and which is missed."""
    lines = []
    for row in results.section(TARGET):
        wanted = row.note.removeprefix(WANTED).removesuffix("; not measured")
        number = wanted.partition(",")[0].rpartition(" ")[2]
        limit = float(number.rstrip("kM")) * {"k": 1e3, "M": 1e6}.get(number[-1], 1)
        missed = "missed" if row.median is not None and row.median < limit else ""
        lines.append([row.name, row.unit, figure(row.median) or "not measured", wanted, missed])
    return markdown("Targets of the engine on an H200", 2, ["", "", "found", "wanted", ""], lines)


def targets(results: Results, model: str, precision: str = "bf16") -> list[Row]:
    """How far a run is from what the engine should reach on an H200; what was not measured has no figure."""
    return [
        Row(
            *(TARGET, model, name, unit),
            median=None if value is None else rounded(value),
            note=WANTED + wanted + ("" if value is not None else "; not measured"),
        )
        for name, unit, value, wanted in _targets(results, model, precision)
    ]


def _targets(results: Results, model: str, precision: str) -> Iterator[tuple[str, str, float | None, str]]:
    ours, known = f"{OURS} {precision}", f"{OURS} {precision}, {KNOWN}"

    def largest(section: str, name: str, begin: str = "") -> Row:
        """Of a section's workloads, or of those whose detail begins so."""
        rows = [row for row in measured(results, section, model) if row.name == name and row.detail.startswith(begin)]
        return max(rows, key=_size, default=Row(section))

    for what, section, begin, wanted in (
        ("bulk text", "bulk", "", "at least 2.5M, goal 4M"),
        ("32 sentences", "batch", "32 ", "at least 1M"),
        ("a sentence", "single", "", "at least 30k"),
    ):
        yield f"{what}, {precision}", UNIT, largest(section, ours, begin).median, wanted
        if section != "bulk":
            yield f"{what}, {precision}, {KNOWN}", UNIT, largest(section, known, begin).median, wanted
    peer = largest("batch", ours, "32 ").ratios.get(f"{EAGER} fp32")
    if peer is not None:
        yield f"32 sentences, {precision}", f"x {EAGER} fp32", peer, "at least 50"
    for row in measured(results, "batch", model):
        if row.name == known and _size(row) <= 256:
            peers = [ratio for name, ratio in row.ratios.items() if name.startswith(CUDNN)]
            name = f"{row.detail}, {precision}, {KNOWN}"
            yield name, f"x the fastest {CUDNN}", min(peers, default=None), "at least 2"
    text, bulk = largest("bulk", f"{ours}, {TEXT_TO_MEANS}"), largest("bulk", ours)
    share = median_ratio(text.samples, bulk.samples, UNIT) if text.samples and text.detail == bulk.detail else None
    yield f"text to means, {precision}", "x bulk text on the device", share, "at least 0.7"


def _size(row: Row) -> int:
    """The number that a detail begins with."""
    return int(row.detail.split()[0].replace(",", "")) if row.detail[:1].isdigit() else 1


# --------------------------------------------------------------------------------------------------------- for a check


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
    parts = [describe_machine(results), f"driver {driver}, {describe_software(results)}"]
    errors = [row for row in results.section("error") if row.unit == "relative error" and row.detail != "two calls"]
    limits = {name: each.bounds["cuda"].relative for name, each in PRECISIONS.items() if "cuda" in each.bounds}
    there = dict.fromkeys(row.name.rpartition(" ")[2] for row in errors)
    bounds = [Row("error", "", f"bound {name}", "relative error", median=limits.get(name)) for name in there]
    steps = measured(results, "step")
    best = [_best_before(detail, before) for detail in dict.fromkeys(row.detail for row in steps)]
    shown = [replace(row, ceiling=None) for row in (*steps, *best) if row]
    parts += [error_table([*errors, *bounds]), markdown("A step of both directions, µs", 1, *by_detail(shown))]
    lines = []
    for row in (row for row in results.rows if row.unit == UNIT and row.median is not None):
        old, times = before.get((row.section, row.detail, row.name)), row.ratios.get(COMMITTED)
        cells = [figure(row.median), figure(old.median if old else None), figure(times), percent(row.utilisation_both)]
        lines.append([row.name, f"{row.section}: {row.detail}", *cells])
    parts.append(markdown("", 2, ["", "", UNIT, COMMITTED, "times", "of the limit"], lines))
    parts.append(markdown("Share of the time, %", 1, *by_detail(measured(results, "stages"))))
    parts += dict.fromkeys(row.note for row in results.section("warning"))
    parts += [line[:MOST_LETTERS] for line in absent([row for row in results.rows if not row.failed])]
    failed = [row for row in results.rows if row.failed]
    parts += [row.line[:MOST_LETTERS] for row in failed[:MOST_LINES]]
    return "\n\n".join([*filter(None, parts), f"failures: {len(failed)}"])


def _best_before(detail: str, before: Mapping[tuple[str, str, str], Row]) -> Row | None:
    """The fastest committed step of ours in bf16."""
    rows = [
        row
        for (section, size, name), row in before.items()
        if (section, size) == ("step", detail)
        and name.endswith(" bf16")
        and not name.startswith(("model of ", "cuBLAS"))
    ]
    best = min(rows, key=lambda row: row.median or float("inf"), default=None)
    return best and replace(best, name=f"{COMMITTED}, the best", ceiling=None)


def beside(rows: Sequence[Row], before: Mapping[tuple[str, str, str], Row]) -> list[Row]:
    """The rows with how many times as fast they are as what was committed."""
    compared = []
    for row in rows:
        old = before.get((row.section, row.detail, row.name))
        if row.median and old and old.median:
            row = replace(row, ratios=row.ratios | {COMMITTED: median_ratio([row.median], [old.median], row.unit)})
        compared.append(row)
    return compared
