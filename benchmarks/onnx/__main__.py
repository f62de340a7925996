"""The exported ONNX file beside the engine and the PyTorch reference: `python -m benchmarks.onnx --out FILE.json`.

Every contestant has a process of its own and they take turns; who computes something else than the reference is not
timed, and the exit status is 1. The two models take about ten minutes on two cores, `--quick` under a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from flashelmo.benchmarks.compare import chosen, listed
from flashelmo.benchmarks.onnx.accuracy import measure_errors
from flashelmo.benchmarks.onnx.cost import measure_load, measure_size
from flashelmo.benchmarks.onnx.cuda import measure_cuda
from flashelmo.benchmarks.onnx.exported import Exported, export
from flashelmo.benchmarks.onnx.peak import measure_peak
from flashelmo.benchmarks.onnx.settings import ENTRANTS, SECTIONS, OnnxSettings
from flashelmo.benchmarks.onnx.speed import measure_speed
from flashelmo.benchmarks.results import FAILED, Results, Row, new_results
from flashelmo.benchmarks.tables import print_head, print_rows
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import PRESETS


def run(settings: OnnxSettings, console: Console, out: Path | None = None) -> Results:
    """Measure everything the settings ask for; tables are printed, and results written to `out`, as they come."""
    results = new_results(settings.to_dict())
    print_head(console, results)
    if out is not None:
        results.write(out)  # what cannot be written is known before anything is measured
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        for name in settings.models:
            with console.status(f"{name}: export"):
                exported = export(name, settings.seed, Path(folder))
            for section in settings.sections:
                with console.status(f"{name}: {section}"):
                    rows = measure(section, exported, settings)
                results.rows.extend(rows)
                print_rows(console, rows)
                if out is not None:
                    results.write(out)
    return results


def measure(section: str, exported: Exported, settings: OnnxSettings) -> list[Row]:
    """The rows of one section."""
    if section == "speed":
        return measure_speed(exported, settings)
    if section == "peak":
        return measure_peak(exported, settings)
    if section == "load":
        return measure_load(exported, settings)
    if section == "size":
        return measure_size(exported)
    if section == "error":
        return measure_errors(exported, settings)
    if section == "cuda":
        return measure_cuda(exported, settings)
    raise FlashElmoError(f"section: expected one of {', '.join(SECTIONS)}, found {section!r}")


class _Parser(argparse.ArgumentParser):
    """One line for what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        raise FlashElmoError(message)


def parse(arguments: Sequence[str] | None) -> tuple[OnnxSettings, Path | None]:
    """Settings, and the file that results go to.

    Raises:
        FlashElmoError: arguments that are wrong.
    """
    default, names = OnnxSettings(), ",".join(list(ENTRANTS)[1:])
    parser = _Parser(prog="benchmarks.onnx", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the results there")
    parser.add_argument("--quick", action="store_true", help="under a minute: the small model, little text")
    parser.add_argument("--models", help=f"some of {','.join(PRESETS)}, or paths (default: original,small)")
    parser.add_argument("--only", metavar="SECTIONS", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--contestants", help=f"in speed and peak, some of {names} (default: all)")
    parser.add_argument("--text", type=Path, help="tokenized lines to measure with")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: all cores")
    given = parser.parse_args(arguments)
    for name, value in (("--rounds", given.rounds), ("--threads", given.threads)):
        if value is not None and value < 1:
            raise FlashElmoError(f"{name}: expected 1 or more, found {value}")
    settings = replace(
        default,
        models=_models(given.models) or (("small",) if given.quick else default.models),
        sections=chosen("--only", given.only, SECTIONS) or default.sections,
        contestants=chosen("--contestants", given.contestants, list(ENTRANTS)[1:]) or default.contestants,
        text=given.text,
        rounds=given.rounds,
        threads=given.threads,
    )
    return settings.quick() if given.quick else settings, given.out


def _models(value: str | None) -> tuple[str, ...]:
    models = listed(value)
    for name in models:
        if name not in PRESETS and not Path(name).exists():
            raise FlashElmoError(f"--models: expected some of {', '.join(PRESETS)}, or paths, found {name!r}")
    return models


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print tables and write results; the exit status."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    try:
        settings, out = parse(arguments)
        results = run(settings, console, out)
    except (FlashElmoError, OSError) as error:
        print(f"benchmarks.onnx: {error}", file=sys.stderr)
        return 1
    return 1 if any(row.note.startswith(FAILED) for row in results.rows) else 0


if __name__ == "__main__":
    sys.exit(main())
