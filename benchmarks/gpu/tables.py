"""What a run of the engine on a GPU found, for people: targets, tables and plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from flashelmo.benchmarks import plots
from flashelmo.benchmarks.gpu.speed import CUDNN, EAGER, KNOWN, OURS, SWITCH, TEXT_TO_MEANS, UNIT
from flashelmo.benchmarks.gpu.stages import SECTION as STAGES
from flashelmo.benchmarks.kernels.tables import TARGET, ceilings, error_table, target_row, target_table
from flashelmo.benchmarks.results import Results, Row, median_ratio
from flashelmo.benchmarks.tables import absent, by_detail, describe_run, markdown

SPEEDS = ("single", "batch", "ragged", "bulk", "compiled", "onnx")
RIVALS_COLOUR, COLOUR = "#9aa5b1", "#2f6f9f"
ACROSS = 4  # plots beside each other


def tables(results: Results, file: str = "") -> str:
    """Markdown of a whole run, whose results are in `file` of benchmarks/results."""
    parts = [f"{describe_run(results, file)} Random weights." if file else "", ceilings(results)]
    parts += [speed_table(results, model) for model in results.models]
    errors = [row for row in results.section("error") if row.detail != "two calls"]
    parts += [target_table(results, "engine"), error_table(errors)]
    switches = [replace(row, median=next(iter(row.ratios.values()))) for row in results.section(SWITCH) if row.ratios]
    for title, rows in (
        ("Times as fast with the switch on", switches),
        ("Share of each stage in the card's time, %", measured(results.section(STAGES))),
    ):
        named = [replace(row, name=f"{row.model}: {row.name}", ceiling=None) for row in rows]
        parts.append(markdown(title, 1, *by_detail(named)))
    return "\n\n".join(filter(None, [*parts, *absent([row for row in results.rows if row.section != TARGET])]))


def measured(rows: Sequence[Row]) -> list[Row]:
    """Those that have a figure."""
    return [row for row in rows if row.median is not None]


def speed_table(results: Results, model: str) -> str:
    """Contestants down, workloads across: thousands of tokens a second, and ours as a share of what the card allows."""
    rows, limits = [], dict[str, Row]()
    for row in _speeds(results, model):
        limit = row.ceiling_both and row.ceiling_both / 1e3
        row = replace(row, detail=_workload(row), median=(row.median or 0) / 1e3, ceiling=limit)
        rows.append(row)
        if limit:
            limits.setdefault(
                row.detail, replace(row, name="the card's limit for the first", median=limit, ceiling=None)
            )
    title = f"Thousands of tokens a second (share of the card's limit for LSTM and words): {model} model"
    return markdown(title, 1, *by_detail([*rows, *limits.values()]))


def _speeds(results: Results, model: str) -> list[Row]:
    return measured([row for section in SPEEDS for row in results.section(section, model)])


def _workload(row: Row) -> str:
    return row.detail if row.section in ("single", "batch") else f"{row.section}: {row.detail}"


def targets(results: Results, model: str, precision: str = "bf16") -> list[Row]:
    """How far a run is from what the engine should reach on an H200."""
    return [target_row(model, *each) for each in _targets(results, model, precision)]


def _targets(results: Results, model: str, precision: str) -> Iterator[tuple[str, str, float | None, str]]:
    ours, known = f"{OURS} {precision}", f"{OURS} {precision}, {KNOWN}"

    def speed(section: str, name: str, begin: str = "") -> float | None:
        """Of the largest workload of a section, or of the one whose detail begins so."""
        rows = [row for row in results.section(section, model) if row.name == name and row.median]
        rows = [row for row in rows if row.detail.startswith(begin)]
        return max(rows, key=_size).median if rows else None

    yield f"bulk text, {precision}", UNIT, speed("bulk", ours), "at least 2.5M, goal 4M"
    yield f"32 sentences, {precision}", UNIT, speed("batch", ours, "32 "), "at least 1M"
    yield f"32 sentences, {precision}, {KNOWN}", UNIT, speed("batch", known, "32 "), "at least 1M"
    yield f"a sentence, {precision}", UNIT, speed("single", ours), "at least 30k"
    yield f"a sentence, {precision}, {KNOWN}", UNIT, speed("single", known), "at least 30k"
    for row in results.section("batch", model):
        if row.name == ours and row.detail.startswith("32 "):
            yield f"32 sentences, {precision}", f"x {EAGER} fp32", row.ratios.get(f"{EAGER} fp32"), "at least 50"
    for row in results.section("batch", model):
        if row.name == known and _size(row) <= 256:
            peers = [ratio for name, ratio in row.ratios.items() if name.startswith(CUDNN)]
            name = f"{row.detail}, {precision}, {KNOWN}"
            yield name, f"x the fastest {CUDNN}", min(peers, default=None), "at least 2"
    bulk = {(row.name, row.detail): row.samples for row in results.section("bulk", model) if row.samples}
    shares = [
        median_ratio(samples, bulk[ours, detail], UNIT)
        for (name, detail), samples in bulk.items()
        if name == f"{ours}, {TEXT_TO_MEANS}" and (ours, detail) in bulk
    ]
    share = next(iter(shares), None)
    yield f"text to means, {precision}", "x bulk text on the device", share, "at least 0.7"


def _size(row: Row) -> int:
    """The number that a detail begins with."""
    return int(row.detail.split()[0].replace(",", "")) if row.detail[:1].isdigit() else 1


def draw(results: Results, stem: Path) -> Iterator[Path]:
    """Bars of tokens a second, a picture for each model, ours with a line at what the card allows; the files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    for model in results.models:
        rows = _speeds(results, model)
        workloads = list(dict.fromkeys(map(_workload, rows)))
        if not rows:
            continue
        height, across = -(-len(workloads) // ACROSS), min(ACROSS, len(workloads))
        plot, axes = plots.subplots(height, across, (4.5 * across, 3 * height))
        for axis, workload in zip_longest(axes.flat, workloads):
            if workload is None:
                axis.set_axis_off()
                continue
            _draw_bars(axis, [replace(row, detail="") for row in rows if _workload(row) == workload])
            axis.set_title(workload, fontsize=9)
        card = results.machine["gpu"]["name"]
        plot.suptitle(f"{model} model, tokens/s, {card} (dashed: the card's limit)", fontsize=10)
        path = stem.with_name(f"{stem.name}-{model}.svg")
        plots.save(plot, path)
        yield path


def _draw_bars(axis: object, rows: Sequence[Row]) -> None:
    colours = [COLOUR if row.name.startswith(OURS) else RIVALS_COLOUR for row in rows]
    plots.bars(axis, rows, colours, [row.ceiling_both for row in rows], size=7)
