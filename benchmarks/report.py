"""The committed results in the project's documents, and their plots: `flashelmo bench report`, in the checkout.

README.md and docs/*.md have markers where tables belong, `<!-- NAME:begin -->` and `<!-- NAME:end -->`; what stands
between them comes from benchmarks/results and from nothing else, which a test compares. The names:

summary     README's one table: bulk text and one sentence of the original model, on a processor and on a card
plot        bulk speed on the processor of the summary
cpu         results/*.json
onnx        results/onnx/*.json
precision   results/precision/*.json
install     results/install/sizes.json: what an install takes on the disk
peers       results/peers/*.json: the vectors of other ELMo programs beside ours
precisions  no results, but the engine's table of precisions with their bounds
gpu         results/gpu/gpu-CARD.json
senses      results/senses/senses*.json, with pictures beside them; likewise downstream and ngrams
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from flashelmo.benchmarks import plots
from flashelmo.benchmarks.results import Results, Row, median_ratio
from flashelmo.benchmarks.run import Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import card_tables, document, figure, markdown, percent
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import PRECISIONS, Backend, Bound, Precision

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FILES = {"cpu": "*.json", "onnx": "onnx/*.json", "precision": "precision/*.json"}
FILES |= {name: f"senses/{name}*.json" for name in ("senses", "downstream", "ngrams")}  # of models that were trained
NAMES = ("summary", "plot", "precisions", "gpu", "peers", "install", *FILES)
# By how the files' names end: what plots show.
PLOTS = {
    "": "Tokens a second of each precision, with the machine's ceiling",
    "-words": "Examples of a word by their sense, in two dimensions",
    "-training": "Accuracy in the course of training",
}
MODEL = "original"  # of the summary


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
    if name == "plot" and (path := newest(folder.glob("*.json"))):
        yield from images(path, folder, up)
    if name == "precisions":
        yield precisions()
    for path in sorted(folder.glob(FILES[name])) if name in FILES else ():
        found = Results.read(path)
        has_card = any(row.median for row in found.section("cuda"))
        rows = [row for row in found.rows if has_card or row.section != "cuda"]  # most machines have no card
        head, *tables = document(replace(found, rows=rows), path.relative_to(folder).as_posix())
        yield from (head, *images(path, folder, up), *tables)
    if name == "peers":
        for path in sorted((folder / "peers").glob("*.json")):
            yield from peers(Results.read(path), f"peers/{path.name}")
    if name == "install" and (folder / "install" / "sizes.json").is_file():
        yield install(json.loads((folder / "install" / "sizes.json").read_text(encoding="utf-8"))["now"])
    if name == "gpu":
        yield from (card_tables(Results.read(path), f"gpu/{path.name}") for path in _cards(folder))


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
    headings = ["", "computes in", "bound on the CPU", "bound on a card", "bound of a file", "card of at least"]
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


def newest(paths: Iterable[Path]) -> Path | None:
    """The results with the latest date; None of none."""
    return max(paths, key=lambda path: (Results.read(path).date, path.name), default=None)


def images(path: Path, folder: Path, up: str) -> Iterator[str]:
    """The plots that lie beside some results in a folder of them, as images in a document."""
    for end, text in PLOTS.items():
        plot = path.with_name(f"{path.stem}{end}.svg")
        if plot.is_file():
            yield f"![{text}]({up}benchmarks/results/{plot.relative_to(folder).as_posix()})"


def _cards(folder: Path) -> list[Path]:
    """Results of whole runs on a card."""
    return sorted(path for path in (folder / "gpu").glob("gpu-*.json") if not path.name.startswith("gpu-kernels-"))


def summary(folder: Path) -> Iterator[str]:
    """Six rows, of the newest results on a processor and on a card; nothing where either is absent.

    Raises:
        FlashElmoError: a figure is missing.
    """
    processor, card = newest(folder.glob("*.json")), newest(_cards(folder))
    if not (processor and card):
        return
    ours, theirs = Results.read(processor), Results.read(card)
    peers = _row(processor, ours, "bulk", "reference", "by length"), _row(processor, ours, "single", "reference")
    lines = [
        _line(f"bulk text, {precision}", _row(processor, ours, "bulk", precision), peers[0])
        for precision in ("fp32", "int8", "bf16")
    ]
    lines += [
        _line(f"one sentence, {precision}", _row(processor, ours, "single", precision, "cold cache"), peers[1])
        for precision in ("fp32", "int8")
    ]
    peer = _row(card, theirs, "bulk", "PyTorch eager fp32", None)
    largest = max(theirs.section("bulk", MODEL), key=lambda row: (row.name == "flashelmo bf16", row.median or 0))
    lines.append(_line("bulk text, bf16, on a card", largest, peer))
    yield markdown("", ["", "flashelmo", "PyTorch", "times as fast", "share of the limit"], lines)
    yield (
        f"The {MODEL} model on {ours.machine['processor']}, {ours.machine['cores']} cores, {ours.date[:10]}, and on "
        f"{theirs.machine['gpu']['name']}, {theirs.date[:10]} ({largest.detail}, for PyTorch {peer.detail}). One "
        "sentence has 20 words, none seen before. PyTorch runs the published algorithm in float32 on batches of 32; "
        "the limit is that of the LSTM's products, or of reading its weights for one sentence."
    )


def _row(path: Path, results: Results, section: str, name: str, detail: str | None = "") -> Row:
    """The one row of the summary's model with this name and detail, None being any."""
    for row in results.section(section, MODEL):
        if row.name == name and detail in (None, row.detail) and row.median:
            return row
    raise FlashElmoError(f"{path}: expected a figure of {MODEL}, {section}, {name} {detail or ''}, found none")


def _line(what: str, row: Row, peer: Row) -> list[str]:
    """A row of the summary: ours, the peer's, and the ratio, of medians where they did not take turns."""
    figures = [f"{figure(each.median)} {each.unit}" for each in (row, peer)]
    times = row.ratios.get(peer.label) or median_ratio([row.median or 0], [peer.median or 1], row.unit)
    return [what, *figures, f"{times:.1f}", percent(row.utilisation)]


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
