"""README's tables of the engine on GPUs from the committed results: `python -m benchmarks.report_gpu` writes them.

Everything between `<!-- gpu:begin -->` and `<!-- gpu:end -->` comes from results/gpu/*.json, by `benchmarks.gpu`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from flashelmo.benchmarks import gpu_tables
from flashelmo.benchmarks.results import Results
from flashelmo.engine.errors import FlashElmoError

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- gpu:begin -->", "<!-- gpu:end -->"


def tables(folder: Path) -> str:
    """Markdown of all results in a folder, by file name.

    Raises:
        FlashElmoError: a file holds something else.
    """
    return "\n\n".join(gpu_tables.tables(Results.read(path)) for path in sorted(folder.glob("*.json")))


def replace_tables(readme: str, new: str) -> str:
    """README with `new` between the markers.

    Raises:
        FlashElmoError: there are no such markers.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise FlashElmoError(f"README: expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{new or 'None measured yet.'}\n\n{END}{after}"


def main() -> int:
    """Write README's tables; the exit status."""
    readme = ROOT / "README.md"
    try:
        new = replace_tables(readme.read_text(encoding="utf-8"), tables(ROOT / "benchmarks" / "results" / "gpu"))
        readme.write_text(new, encoding="utf-8")
    except (FlashElmoError, OSError) as error:
        print(f"report_gpu: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
