"""The whole comparison in one run: `python -m benchmarks.compare` from the checkout, `flashelmo bench` from an install.

Every contestant has a process of its own and they take turns, so that what else the machine does meets all alike; each
one's vectors are compared with the reference's before it is timed. `--quick` takes under a minute.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.accuracy import measure_errors
from flashelmo.benchmarks.cost import measure_load, measure_memory
from flashelmo.benchmarks.host import measure_host
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.settings import CONTESTANTS, SECTIONS, Settings, Subject
from flashelmo.benchmarks.speed import measure_bulk, measure_single
from flashelmo.benchmarks.tables import print_head, print_rows
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.checkpoints import load_model
from flashelmo.engine.model.checkpoints.native import write_native
from flashelmo.engine.model.initialize import random_model


def run(settings: Settings, console: Console, out: Path | None = None) -> Results:
    """Measure everything the settings ask for; tables are printed, and results written to `out`, as they come."""
    results = Results(
        machine=machine.machine(),
        versions=machine.versions(),
        commit=machine.commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=without_paths(settings),
        rows=[],
    )
    print_head(console, results)
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
        for name in settings.models:
            subject = _prepare(name, settings.seed, Path(folder))
            for section in settings.sections:
                with console.status(f"{subject.name}: {section}"):
                    rows = measure(section, subject, settings, Path(folder))
                results.rows.extend(rows)
                print_rows(console, rows)
                if out is not None:
                    results.write(out)
    return results


def measure(section: str, subject: Subject, settings: Settings, folder: Path) -> list[Row]:
    """The rows of one section; `folder` takes texts."""
    if section == "bulk":
        return measure_bulk(subject, settings, folder)
    if section == "single":
        return measure_single(subject, settings)
    if section == "memory":
        return measure_memory(subject, settings, folder)
    if section == "load":
        return measure_load(subject, settings)
    if section == "host":
        return measure_host(subject, settings, folder)
    if section == "error":
        return measure_errors(subject, settings)
    raise FlashElmoError(f"section: expected one of {', '.join(SECTIONS)}, found {section!r}")


def _prepare(name: str, seed: int, folder: Path) -> Subject:
    """A model from a path, or a random one of a preset, in the native format: what every contestant loads."""
    path = Path(name)
    model = load_model(path) if path.exists() else random_model(name, seed)
    target = folder / path.name
    write_native(model, target)
    return Subject(path.name, target, model.config)


def without_paths(settings: Settings) -> dict[str, object]:
    """Settings as JSON; of paths, which say something of the machine's owner, only the last part."""
    values = asdict(settings)
    values["models"] = [Path(name).name for name in settings.models]
    values["text"] = settings.text and settings.text.name
    return values


def parse(arguments: Sequence[str] | None) -> tuple[Settings, Path | None]:
    """Settings, and the file that results go to."""
    default = Settings()
    parser = argparse.ArgumentParser(prog="flashelmo bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the results there")
    parser.add_argument("--quick", action="store_true", help="under a minute: the small model, little text")
    parser.add_argument("--models", help="presets or paths of models, with commas (default: original,small)")
    parser.add_argument("--only", metavar="SECTIONS", help=f"some of {','.join(SECTIONS)}")
    parser.add_argument("--contestants", help=f"some of {','.join(list(CONTESTANTS)[1:])} (default: fp32,int8,bf16)")
    parser.add_argument("--text", type=Path, help="tokenized lines to measure with")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--seed", type=int, default=default.seed, help="of random weights and generated text")
    given = parser.parse_args(arguments)
    settings = Settings(
        models=listed(given.models) or (("small",) if given.quick else default.models),
        sections=chosen("--only", given.only, SECTIONS) or default.sections,
        contestants=chosen("--contestants", given.contestants, list(CONTESTANTS)[1:]) or default.contestants,
        text=given.text,
        seed=given.seed,
        threads=given.threads,
        rounds=given.rounds,
    )
    return settings.quick() if given.quick else settings, given.out


def listed(value: str | None) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(value.split(",")) if value else ()


def chosen(option: str, value: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """What stands between commas, all of it known; FlashElmoError naming the option where it is not."""
    names = listed(value)
    for name in names:
        if name not in known:
            raise FlashElmoError(f"{option}: expected some of {', '.join(known)}, found {name!r}")
    return names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print tables and write results; the exit status."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    try:
        settings, out = parse(arguments)
        run(settings, console, out)
    except (FlashElmoError, OSError) as error:
        print(f"flashelmo bench: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
