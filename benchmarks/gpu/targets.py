"""How far a run is from what the engine should reach on an H200."""

from __future__ import annotations

from collections.abc import Iterator

from flashelmo.benchmarks.gpu.rows import UNIT
from flashelmo.benchmarks.gpu.speed import CUDNN, EAGER, KNOWN, OURS, TEXT_TO_MEANS
from flashelmo.benchmarks.results import Results, Row, median_ratio

SECTION = "target"


def targets(results: Results, model: str, precision: str = "bf16") -> list[Row]:
    """Rows of the section "target": what was wanted is their note, what was not measured has no figure."""
    return [
        Row(SECTION, model, name, unit, median=value, note=f"wanted: {wanted}" + ("" if value else "; not measured"))
        for name, unit, value, wanted in _found(results, model, precision)
    ]


def _found(results: Results, model: str, precision: str) -> Iterator[tuple[str, str, float | None, str]]:
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
    batch = [row for row in results.section("batch", model) if row.name in (ours, known)]
    for row in batch:
        if row.detail.startswith("32 ") and row.name == ours:
            yield f"32 sentences, {precision}", f"x {EAGER} fp32", row.ratios.get(f"{EAGER} fp32"), "at least 50"
    for row in batch:
        peers = [ratio for name, ratio in row.ratios.items() if name.startswith(CUDNN)]
        if row.name == known and _size(row) <= 256:
            name = f"{row.detail}, {precision}, {KNOWN}"
            yield name, f"x the fastest {CUDNN}", min(peers, default=None), "at least 2"
    yield f"text to means, {precision}", "x bulk text on the device", _share(results, model, ours), "at least 0.7"


def _share(results: Results, model: str, ours: str) -> float | None:
    """Speed from a text file to means on the host, as a share of that on the device."""
    rows = {(row.name, row.detail): row.samples for row in results.section("bulk", model) if row.samples}
    for (name, detail), samples in rows.items():
        if name == f"{ours}, {TEXT_TO_MEANS}" and (ours, detail) in rows:
            return median_ratio(samples, rows[ours, detail], UNIT)
    return None


def _size(row: Row) -> int:
    """The number that a detail begins with."""
    return int(row.detail.split()[0].replace(",", "")) if row.detail[:1].isdigit() else 1
