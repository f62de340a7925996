"""README's tables of the CUDA runtime from the committed results: `python -m benchmarks.report_gpu` writes them.

Between `<!-- gpu:begin -->` and `<!-- gpu:end -->` stands what `benchmarks.gpu` found, results/gpu/*.json, and between
the markers of "precision" what `benchmarks.precision` found, results/precision/*.json. Markers that README has not are
no error as long as there is nothing to write between them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from flashelmo.benchmarks import gpu_tables
from flashelmo.benchmarks.results import Results
from flashelmo.benchmarks.tables import describe_software, figure
from flashelmo.engine.errors import FlashElmoError

ROOT = Path(__file__).resolve().parents[1]


def precision_table(results: Results) -> str:
    """A line for each model and precision: largest absolute and relative error of each layer."""
    rows = [row for row in results.section("error") if row.median is not None]
    layers = list(dict.fromkeys(row.detail for row in rows))
    cells = {(row.model, row.name, row.unit, row.detail): figure(row.median) for row in rows}
    headings = ["model", "precision", *(f"{unit}, {layer}" for unit in ("absolute", "relative") for layer in layers)]
    body = [
        [model, name]
        + [
            cells.get((model, name, unit, layer), "")
            for unit in ("max abs error", "relative error")
            for layer in layers
        ]
        for model, name in dict.fromkeys((row.model, row.name) for row in rows)
    ]
    rule = ["---"] * 2 + ["---:"] * (len(headings) - 2)
    table = "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *body))
    notes = "; ".join(dict.fromkeys(row.note for row in rows if row.note))
    return f"{table}\n\n{notes}. {describe_software(results)}; {results.date[:10]}."


def replace_between(readme: str, name: str, new: str) -> str:
    """README with `new` between the markers of a name.

    Raises:
        FlashElmoError: there are no such markers, and something to write.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, found, rest = readme.partition(begin)
    _, closed, after = rest.partition(end)
    if found and closed:
        return f"{before}{begin}\n\n{new}\n\n{end}{after}" if new else f"{before}{begin}\n{end}{after}"
    if new:
        raise FlashElmoError(f"README: expected the lines {begin} and {end}")
    return readme


def write(readme: str, folder: Path) -> str:
    """README with the tables of all results below a folder.

    Raises:
        FlashElmoError: a file holds no results; README lacks markers.
    """
    readme = replace_between(readme, "gpu", _all(folder / "gpu", gpu_tables.tables))
    return replace_between(readme, "precision", _all(folder / "precision", precision_table))


def _all(folder: Path, table: Callable[[Results], str]) -> str:
    return "\n\n".join(table(Results.read(path)) for path in sorted(folder.glob("*.json")))


def main() -> int:
    """Write README's tables; the exit status."""
    readme = ROOT / "README.md"
    try:
        text = readme.read_text(encoding="utf-8")
        readme.write_text(write(text, ROOT / "benchmarks" / "results"), encoding="utf-8")
    except (FlashElmoError, OSError) as error:
        print(f"report_gpu: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
