"""The committed results in the project's documents, and their plots: `flashelmo bench report`, in the checkout.

README.md and docs/*.md have markers where tables belong, `<!-- NAME:begin -->` and `<!-- NAME:end -->`; what stands
between them comes from benchmarks/results and from nothing else, which a test compares. The names:

summary     README's one table: bulk text and one sentence of the original model, on a processor and on a card
plot        bulk speed on the processor of the summary
cpu         results/*.json
onnx        results/onnx/*.json
precision   results/precision/*.json
gpu         results/gpu/gpu-CARD.json
kernels     results/gpu/gpu-kernels-CARD.json
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console

from flashelmo.benchmarks.cpu import tables as cpu
from flashelmo.benchmarks.results import Results, Row, median_ratio
from flashelmo.benchmarks.run import Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import figure, markdown, percent, pivot
from flashelmo.engine.errors import FlashElmoError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NAMES = ("summary", "plot", "cpu", "onnx", "precision", "gpu", "kernels")
NOTHING = "None measured yet."
MODEL = "original"  # of the summary
KERNELS = "gpu-kernels-"  # how the files of kernels by themselves begin in results/gpu


def fill(path: Path, text: str, folder: Path, up: str) -> str:
    """A document's text with the results in `folder` between its markers.

    Args:
        path: of the document, for messages.
        up: the way from the document to the project's root, as "../".

    Raises:
        FlashElmoError: a name that is not known, or markers that don't match.
    """
    parts = re.split(r"<!-- (\S+):(begin|end) -->", text)
    markers = list(zip(parts[1::3], parts[2::3], strict=True))
    names = [name for name, _ in markers[::2]]
    if markers != [(name, kind) for name in names for kind in ("begin", "end")]:
        raise FlashElmoError(f"{path}: expected <!-- NAME:begin --> and <!-- NAME:end --> in pairs, found {markers}")
    for name in names:
        if name not in NAMES:
            raise FlashElmoError(f"{path}: expected markers of {', '.join(NAMES)}, found {name!r}")
    filled = parts[0]
    for name, after in zip(names, parts[6::6], strict=True):
        new = "\n\n".join(generate(name, folder, up)) or NOTHING
        filled += f"<!-- {name}:begin -->\n\n{new}\n\n<!-- {name}:end -->{after}"
    return filled


def generate(name: str, folder: Path, up: str) -> Iterator[str]:
    """What one name stands for: Markdown of the results in a folder, a file after the other."""
    if name == "summary":
        yield from summary(folder)
    if name == "plot":
        path = newest(folder.glob("*.json"))
        yield from () if path is None else (cpu.image(path.name, up),)
    if name == "cpu":
        yield from (cpu.tables(Results.read(path), path.name, up) for path in sorted(folder.glob("*.json")))
    if name == "onnx":
        from flashelmo.benchmarks.onnx.tables import tables as onnx_tables  # which needs onnxruntime

        for path in sorted((folder / "onnx").glob("*.json")):
            yield onnx_tables(Results.read(path), f"onnx/{path.name}")
    if name == "precision":
        yield from (precision(path) for path in sorted((folder / "precision").glob("*.json")))
    if name == "gpu":
        from flashelmo.benchmarks.gpu.tables import tables as gpu_tables  # which needs torch

        yield from (gpu_tables(Results.read(path), f"gpu/{path.name}") for path in sorted(_cards(folder)))
    if name == "kernels":
        from flashelmo.benchmarks.kernels.tables import tables as kernel_tables

        for path in sorted((folder / "gpu").glob(f"{KERNELS}*.json")):
            yield kernel_tables(Results.read(path), f"gpu/{path.name}")


def precision(path: Path) -> str:
    """Markdown of the errors of each precision."""
    errors = Results.read(path).section("error")
    rows = [row for row in errors if row.unit == "relative error"]
    rows += [row for row in errors if row.name == "fp32" and row.unit == "max abs error"]
    return pivot(f"Distance from the exact vectors, CUDA kernels (`benchmarks/results/precision/{path.name}`)", rows)


# ------------------------------------------------------------------------------------------------------------- summary


def summary(folder: Path) -> Iterator[str]:
    """Six rows, of the newest results on a processor and on a card; nothing where either is absent.

    Raises:
        FlashElmoError: a figure is missing.
    """
    processor = newest(folder.glob("*.json"))
    card = newest(_cards(folder))
    if not (processor and card):
        return
    ours, theirs = Results.read(processor), "reference"
    lines = []
    for precision in ("fp32", "int8", "bf16"):
        peer = _row(processor, ours, "bulk", theirs, "by length")
        lines.append(_line(f"bulk text, {precision}", _row(processor, ours, "bulk", precision), peer))
    for precision in ("fp32", "int8"):
        peer = _row(processor, ours, "single", theirs)
        row = _row(processor, ours, "single", precision, "cold cache")
        lines.append(_line(f"one sentence, {precision}", row, peer))
    on_card = Results.read(card)
    peer = _row(card, on_card, "bulk", "PyTorch eager fp32", None)
    largest = max(on_card.section("bulk", MODEL), key=lambda row: (row.name == "flashelmo bf16", row.median or 0))
    lines.append(_line("bulk text, bf16, on a card", largest, peer))
    yield markdown("", 1, ["", "flashelmo", "PyTorch", "times as fast", "share of the limit"], lines)
    yield (
        f"The {MODEL} model on {ours.machine['processor']}, {ours.machine['cores']} cores, {ours.date[:10]}, and on "
        f"{on_card.machine['gpu']['name']}, {on_card.date[:10]} ({largest.detail}, for PyTorch {peer.detail}). One "
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


def _cards(folder: Path) -> list[Path]:
    """Results of whole runs on a card."""
    return [path for path in (folder / "gpu").glob("gpu-*.json") if not path.name.startswith(KERNELS)]


def newest(paths: Iterable[Path]) -> Path | None:
    """The results with the latest date; None of none."""
    return max(paths, key=lambda path: (Results.read(path).date, path.name), default=None)


# ------------------------------------------------------------------------------------------------------------- command


def documents(root: Path) -> Iterator[tuple[Path, str]]:
    """Every document that may have markers, and the way from it to the root."""
    yield root / "README.md", ""
    for path in sorted((root / "docs").glob("*.md")):
        yield path, "../"


def command(settings: Settings, console: Console) -> int:
    """Draw the plots of all results and write the documents; the exit status."""
    for path in sorted(RESULTS.glob("*.json")):
        cpu.draw(Results.read(path), path.with_suffix(".svg"))
    for path, up in documents(ROOT):
        text = path.read_text(encoding="utf-8")
        new = fill(path, text, RESULTS, up)
        if new != text:
            path.write_text(new, encoding="utf-8")
            console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
    return 0


SUITE = Suite(
    about="Writes the committed results into README.md and docs/*.md, and draws their plots; in the checkout.",
    defaults=Settings(),
    options=(),
    command=command,
)
