"""The committed results in the project's documents, and their plots: `flashelmo bench report`, in the checkout.

README.md and docs/*.md have markers where tables belong, `<!-- NAME:begin -->` and `<!-- NAME:end -->`; what stands
between them comes from benchmarks/results and from nothing else, which a test compares. The names:

summary     README's one table: the original model on a processor and on a card (summary.py)
speeds      the same of all machines
plot        bulk speed on the processor of the summary
cpu         results/*.json
older       results/older/*.json: the original model on processors, by code that is not today's
onnx        results/onnx/*.json
precision   results/precision/*.json: errors of random weights; trained is results/precision/trained/*.json
install     results/install/sizes.json: what an install takes on the disk
peers       results/peers/*.json: the vectors of other ELMo programs beside ours
precisions  no results, but the engine's table of precisions with their bounds
gpu         results/gpu/gpu-CARD.json
senses      results/senses/senses*.json, with pictures beside them; likewise downstream and ngrams
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from flashelmo.benchmarks import plots
from flashelmo.benchmarks.results import Results
from flashelmo.benchmarks.run import Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.summary import MODEL, OLDER, PROCESSOR, cards, heading, newest_first, speeds, summary
from flashelmo.benchmarks.tables import card_tables, describe_run, document, figure, markdown, notes
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import PRECISIONS, Backend, Bound, Precision

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FILES = {"cpu": PROCESSOR, "older": OLDER, "onnx": "onnx/*.json"}
ERRORS = {"precision": "precision/*.json", "trained": "precision/trained/*.json"}
TRAINED = {name: f"senses/{name}*.json" for name in ("senses", "downstream", "ngrams")}  # of models that were trained
FILES |= TRAINED
NAMES = ("summary", "speeds", "plot", "precisions", "gpu", "peers", "install", *FILES, *ERRORS)
# By how the files' names end: what plots show.
PLOTS = {
    "": "Tokens a second of each precision, with the machine's ceiling",
    "-words": "Examples of a word by their sense, in two dimensions",
    "-training": "Accuracy in the course of training",
}
OF_OLDER = ("bulk", "single", "error")  # sections that are still shown of code that is not today's


def fill(path: Path, text: str, folder: Path) -> str:
    """A document's text with the results in `folder` between its markers.

    Args:
        path: of the document, from the project's root.

    Raises:
        FlashElmoError: a name that is not known, or markers that don't match.
    """
    parts = re.split(r"<!-- (\S+):(begin|end) -->", text)
    markers = list(zip(parts[1::3], parts[2::3], strict=True))
    names = [name for name, _ in markers[::2]]
    if markers != [(name, kind) for name in names for kind in ("begin", "end")]:
        raise FlashElmoError(f"{path}: expected <!-- NAME:begin --> and <!-- NAME:end --> in pairs, found {markers}")
    if unknown := [name for name in names if name not in NAMES]:
        raise FlashElmoError(f"{path}: expected markers of {', '.join(NAMES)}, found {unknown[0]!r}")
    filled = parts[0]
    for name, after in zip(names, parts[6::6], strict=True):
        new = "\n\n".join(filter(None, generate(name, folder, "../" * (len(path.parts) - 1)))) or "None measured yet."
        filled += f"<!-- {name}:begin -->\n\n{new}\n\n<!-- {name}:end -->{after}"
    return filled


def generate(name: str, folder: Path, up: str = "") -> Iterator[str]:
    """What one name stands for: Markdown of the results in a folder, a file after the other.

    Args:
        up: the way from the document to the project's root, as "../".
    """
    if name == "summary":
        yield from summary(folder)
    if name == "speeds":
        yield from speeds(folder)
    for path in newest_first(folder.glob(PROCESSOR))[:1] if name == "plot" else ():
        yield from images(path, folder, up)
    if name == "precisions":
        yield precisions()
    for path in newest_first(folder.glob(FILES[name])) if name in FILES else ():
        found = Results.read(path)
        has_card = any(row.median for row in found.section("cuda"))
        rows = [row for row in found.rows if has_card or row.section != "cuda"]  # most machines have no card
        if name == "older":
            rows = [row for row in rows if row.model == MODEL and row.section in OF_OLDER and row.median is not None]
        head, *tables = document(replace(found, rows=rows), path.relative_to(folder).as_posix())
        yield from ([] if name in TRAINED else [heading(path, folder)])
        yield from (head, *images(path, folder, up), *tables)
    for path in newest_first(folder.glob(ERRORS[name])) if name in ERRORS else ():
        found = Results.read(path)
        yield from (describe_run(found, path.relative_to(folder).as_posix()), errors(found))
    if name == "peers":
        for path in sorted((folder / "peers").glob("*.json")):
            yield from peers(Results.read(path), f"peers/{path.name}")
    if name == "install" and (folder / "install" / "sizes.json").is_file():
        yield install(json.loads((folder / "install" / "sizes.json").read_text(encoding="utf-8"))["now"])
    if name == "gpu":
        for path in cards(folder):
            yield from (heading(path, folder), card_tables(Results.read(path), f"gpu/{path.name}"))


def errors(results: Results) -> str:
    """Markdown of the errors of a run: each layer's relative one, and the largest absolute one of all layers."""
    rows = [row for row in results.section("error") if row.median is not None]
    columns = [f"{row.detail}, relative" for row in rows if row.unit == "relative error"]
    headings = ["", *dict.fromkeys(columns), "largest absolute"]
    lines: dict[str, list[str]] = {}
    for row in rows:
        if row.unit == "relative error":
            lines.setdefault(f"{row.model}, {row.name}", []).append(figure(row.median))
    for name, line in lines.items():
        of_name = [row for row in rows if f"{row.model}, {row.name}" == name and row.unit == "max abs error"]
        line.append(figure(max(row.median or 0.0 for row in of_name)))
    said = "; ".join(dict.fromkeys(part for note in notes(rows) for part in note.split("; ")))
    return markdown("", headings, [[name, *line] for name, line in lines.items()]) + (f"\n\n{said}." if said else "")


def precisions() -> str:
    """The engine's table of precisions: in what each computes, where it runs, and within which bounds."""

    def bound(row: Precision, backend: Backend) -> str:
        found = row.bounds.get(backend, Bound())
        limits = {"absolute": found.max_abs, "relative": found.relative}
        return ", ".join(f"{limit:g} {kind}" for kind, limit in limits.items() if limit is not None)

    lines = []
    for name, row in PRECISIONS.items():
        card = "{}.{}".format(*row.capability) if row.cuda else ""
        lines.append([f"`{name}`", row.computes_in, bound(row, "cpu"), bound(row, "cuda"), bound(row, "onnx"), card])
    headings = ["", "computes in", "bound on the CPU", "on a card", "of an ONNX file", "compute capability from"]
    return markdown("", headings, lines, figures=False)


def peers(results: Results, file: str) -> Iterator[str]:
    """How far the vectors of other programs are from ours: a line for each program, and for what it does otherwise."""
    lines = []
    for (name, note), rows in groupby(results.rows, key=lambda row: (row.name, row.note)):
        grouped = list(rows)
        calls = ", ".join(f"`{row.detail.partition(' ↔ ')[0]}`" for row in grouped if row.detail)
        found = [row.median for row in grouped if row.median is not None]
        lines.append([name, results.versions.get(name) or "", calls, f"{max(found):.1e}" if found else "none", note])
    yield markdown("", ["", "ran as", "its calls", "largest difference", ""], lines, figures=False)
    stated = f"float32 on the CPU, flashelmo {results.versions['flashelmo']}, the model {results.settings['model']}"
    yield f"{stated}, {results.date[:10]} (`benchmarks/results/{file}`, which has what each call is compared with)."


def install(found: Mapping[str, Any]) -> str:
    """What each set of extras takes on the disk, and its largest packages."""
    lines = []
    for extras, megabytes in found["megabytes"].items():
        packages = [(name, size) for name, size in megabytes.items() if name != "total" and "others" not in name]
        largest = ", ".join(f"{name.partition(' ')[0]} {size:.0f}" for name, size in packages[:5])
        lines.append([f"`.[{extras}]`" if extras else "`.`", f"{megabytes['total']:.0f} MB", largest])
    table = markdown("", ["", "on the disk", "the largest packages, MB"], lines, figures=False)
    return f"{table}\n\nPython {found['python']}, {found['system']}, commit {found['commit'][:12]}."


def images(path: Path, folder: Path, up: str) -> Iterator[str]:
    """The plots that lie beside some results in a folder of them, as images in a document."""
    for end, text in PLOTS.items():
        plot = path.with_name(f"{path.stem}{end}.svg")
        if plot.is_file():
            yield f"![{text}]({up}benchmarks/results/{plot.relative_to(folder).as_posix()})"


def documents(root: Path) -> list[Path]:
    """Every document that may have markers, from the root."""
    return [path.relative_to(root) for path in (root / "README.md", *sorted((root / "docs").glob("*.md")))]


def command(settings: Settings, console: Console) -> int:
    """Draw the plots of all results and write the documents; the exit status."""
    if not (ROOT / "README.md").is_file():
        raise FlashElmoError("report: expected a checkout with README.md, found none: run it from there")
    for path in sorted(RESULTS.glob("*.json")):
        if not plots.draw(Results.read(path), path):
            raise FlashElmoError(f"{path}: expected results of bulk text, found none")
    for path in sorted((RESULTS / "senses").glob("senses*.json")):
        plots.draw(Results.read(path), path)
    for name in documents(ROOT):
        text = (ROOT / name).read_text(encoding="utf-8")
        (ROOT / name).write_text(fill(name, text, RESULTS), encoding="utf-8")
    return 0


SUITE = Suite("Writes the committed results into README.md and docs/*.md, and draws plots.", Settings(), (), command)
