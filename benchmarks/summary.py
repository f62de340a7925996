"""How fast it is, in a few tables: README's, and the first of docs/figures.md. report.py writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.tables import figure, markdown, percent
from flashelmo.benchmarks.text import PASSAGE
from flashelmo.engine.errors import FlashElmoError

MODEL = "original"  # its dimensions; the weights are random
OURS, EAGER = "flashelmo", "PyTorch eager"
PROCESSOR, OLDER = "*.json", "older/*.json"  # results of processors, by an older code too
SORTED, COLD, WARM = "by length", "cold cache", "warm cache"


def newest_first(paths: Iterable[Path]) -> list[Path]:
    """Results by their dates."""
    return sorted(paths, key=lambda path: (Results.read(path).date, path.name), reverse=True)


def cards(folder: Path) -> list[Path]:
    """Results of whole runs on a card, the newest first."""
    return newest_first(
        path for path in (folder / "gpu").glob("gpu-*.json") if not path.name.startswith("gpu-kernels-")
    )


def summary(folder: Path) -> Iterator[str]:
    """README's table, of the newest results on a processor and on a card; nothing where either is absent.

    Raises:
        FlashElmoError: a figure is missing.
    """
    processors, on_cards = newest_first(folder.glob(PROCESSOR)), cards(folder)
    if not (processors and on_cards):
        return
    path, ours, theirs = processors[0], Results.read(processors[0]), Results.read(on_cards[0])
    bulk, single = _row(path, ours, "bulk", "reference", SORTED), _row(path, ours, "single", "reference")
    pairs = [(f"bulk text, {each}", _row(path, ours, "bulk", each), bulk, "fp32") for each in ("fp32", "int8", "bf16")]
    pairs += [
        (f"one sentence, {each}", _row(path, ours, "single", each, COLD), single, "fp32") for each in ("fp32", "int8")
    ]
    for precision in ("fp32", "bf16"):
        row, peer = _like_for_like(on_cards[0], theirs, precision)
        what = "bulk text" if row.section == "bulk" else f"{row.detail} in one call"
        pairs.append((f"{what}, {precision}, on a card", row, peer, peer.name.removeprefix(f"{EAGER} ")))
    lines = [
        [
            what,
            f"{figure(row.median)} {row.unit}",
            f"{figure(peer.median)} {peer.unit}, {computes}",
            f"{_times_as_fast(row, peer):.1f}",
            percent(row.utilisation),
        ]
        for what, row, peer, computes in pairs
    ]
    yield markdown("", ["", "flashelmo", "PyTorch", "times as fast", "share of the limit"], lines)
    yield _caption(path, ours, on_cards[0], theirs)


def _caption(path: Path, ours: Results, card_path: Path, theirs: Results) -> str:
    """What the summary is measured on, beside what, and what limits it."""
    processor, card = f"{ours.machine['processor']}, {ours.machine['cores']} cores", theirs.machine["gpu"]["name"]
    n_sentences = PASSAGE * ours.settings["reference_batches"]
    return (
        f"- **Measured**: text of the King James Bible and the {MODEL} model's size, with random weights, whose values "
        f"speed does not depend on; on {processor}, {ours.date[:10]} (`benchmarks/results/{path.name}`), and on "
        f"{card}, {theirs.date[:10]} (`benchmarks/results/gpu/{card_path.name}`), where all vectors stay on the card. "
        "One sentence has 20 words, all new.\n"
        f"- **PyTorch**: the published algorithm in plain PyTorch. On the processor it has {n_sentences} sentences of "
        f"the text, sorted by length, in batches of {PASSAGE}; on the card the same sentences as flashelmo, "
        f"{baseline(theirs)}.\n"
        "- **Limit**: what the machine allows for the LSTM's products of every token, or for reading its weights for "
        "one sentence. More than 100% is possible, as what sentences have in common is computed once, and caches hold "
        "some weights. [docs/figures.md](docs/figures.md) has all tables and says how they are measured."
    )


def baseline(results: Results) -> str:
    """How PyTorch got the sentences in a run on a card."""
    size = results.settings.get("eager_batch")  # before it got the best of several
    bulk = f"in batches of {size} as they come" if size else "sorted by length in the best of several batch sizes"
    return f"bulk text {bulk}, all others in one batch"


def _times_as_fast(row: Row, peer: Row) -> float | None:
    """By the same rounds' ratios; None where the two were not compared."""
    return row.ratios.get(peer.name, row.ratios.get(peer.label))


def _row(path: Path, results: Results, section: str, name: str, detail: str = "") -> Row:
    """The one row of the summary's model with this name and detail."""
    for row in results.section(section, MODEL):
        if (row.name, row.detail) == (name, detail) and row.median:
            return row
    raise FlashElmoError(f"{path}: expected a figure of {MODEL}, {section}, {name} {detail}, found none")


def _like_for_like(path: Path, results: Results, precision: str) -> tuple[Row, Row]:
    """Ours and PyTorch's best on the same sentences: bulk text, else ragged batches of as many sentences as there are.

    PyTorch computes in the same precision, or in a more exact one if that is faster.
    """
    for section in ("bulk", "ragged"):
        rows = [row for row in results.section(section, MODEL) if row.median]
        for ours in sorted(rows, key=lambda row: row.median or 0, reverse=True):
            rivals = [row for row in rows if row.detail == ours.detail and row.name in ours.ratios]
            same = [row for row in rivals if row.name.startswith(f"{EAGER} {precision}")]
            others = [row for row in rivals if row.name.startswith(f"{EAGER} fp32")]
            if ours.name == f"{OURS} {precision}" and same:
                return ours, max(same + others, key=lambda row: row.median or 0)
    raise FlashElmoError(f"{path}: expected {OURS} {precision} beside {EAGER} {precision}, found none")


def _fastest(rows: Iterable[Row]) -> Row | None:
    return max(rows, key=lambda row: row.median or 0, default=None)


# ------------------------------------------------------------------------------------------------- docs/figures.md


def heading(path: Path, folder: Path) -> str:
    """What stands above the tables of a file of results: its name, which `_link` leads to."""
    return f"### {_name(path, folder)}"


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _link(path: Path, folder: Path) -> str:
    name = _name(path, folder)
    return f"[{name}](#{name.replace('/', '')})"


def speeds(folder: Path) -> Iterator[str]:
    """A table for each question: bulk text and one sentence on every processor, and work of all sizes on each card."""
    processors = [
        (path, Results.read(path), note)
        for pattern, note in ((PROCESSOR, ""), (OLDER, ", older code"))
        for path in newest_first(folder.glob(pattern))
    ]
    headings = ["", "fp32", "bf16", "int8", "PyTorch, fp32", "rounds within", "measured"]
    for title, section, peer, details in (
        ("Bulk text, tokens/s", "bulk", SORTED, [""]),
        ("One sentence of 20 words, ms: with words that are new / known", "single", "", [COLD, WARM]),
    ):
        lines = []
        for path, results, note in processors:
            found = {(row.name, row.detail): row for row in results.section(section, MODEL) if row.median}
            rival = found.get(("reference", peer))
            cells = [[found.get((name, detail)) for detail in details] for name in ("fp32", "bf16", "int8")]
            lines.append(
                [
                    f"{results.machine['processor']}, {results.machine['cores']} cores: {_link(path, folder)}",
                    *(_cell(cell, [rival]) for cell in cells),
                    _cell([rival]),
                    _spread([rival, *(row for cell in cells for row in cell)]),
                    results.date[:10] + note,
                ]
            )
        yield markdown(title, headings, lines)
    for path in cards(folder):
        results = Results.read(path)
        yield _on_card(results)
        yield (
            f"{_link(path, folder)}, {results.date[:10]}; all vectors stay on the card; PyTorch gets "
            f"{baseline(results)}. cuDNN's LSTM has neither characters nor clips to compute."
        )


def _on_card(results: Results) -> str:
    """One sentence, the largest batches and bulk text, with the best of PyTorch and of cuDNN's bare LSTM."""
    ours = [f"{OURS} {each}" for each in ("bf16", "int8", "fp32")]
    lines = []
    for section, what in (("single", ""), ("batch", ""), ("ragged", " as they come"), ("bulk", " of bulk text")):
        rows = [row for row in results.section(section, MODEL) if row.median]
        details = list(dict.fromkeys(row.detail for row in rows))
        for detail in details if section == "bulk" else details[-1:]:
            found = [row for row in rows if row.detail == detail]
            best = [_fastest(row for row in found if row.name == name) for name in ours]
            peers = [
                _fastest(row for row in found if row.name.startswith(name))
                for name in (f"{EAGER} fp32", f"{EAGER} bf16", "cuDNN LSTM")
            ]
            in_bf16 = peers[:2] if peers[1] else []  # nothing is said where PyTorch had float32 alone
            rivals = [in_bf16, in_bf16, peers[:1]]
            cells = [_cell([row], those) for row, those in zip(best, rivals, strict=True)]
            lines.append([detail + what, *cells, *(_cell([row]) for row in peers), _spread([*best, *peers])])
    headings = ["", "bf16", "int8", "fp32", "PyTorch, fp32", "PyTorch, bf16", "cuDNN's LSTM alone, in 16 bits"]
    return markdown(f"On {results.machine['gpu']['name']}, tokens/s", [*headings, "rounds within"], lines)


def _cell(rows: Iterable[Row | None], rivals: Iterable[Row | None] = ()) -> str:
    """Figures, and behind each how many times as fast it is as the fastest rival."""
    rival = _fastest(row for row in rivals if row)
    found = []
    for row in filter(None, rows):
        times = _times_as_fast(row, rival) if rival else None
        found.append(figure(row.median) + (f" ({times:.1f})" if times else ""))
    return " / ".join(found)


def _spread(rows: Iterable[Row | None]) -> str:
    """How far any round was from its median at most."""
    apart = [abs(sample / row.median - 1) for row in rows if row and row.median for sample in row.samples]
    return percent(max(apart, default=None))
