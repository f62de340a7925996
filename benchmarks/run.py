"""One run of any suite: its jobs one after the other, rows printed and results written as they come.

Wrong vectors are not timed. A job that fails does not affect others, and everything measured before is in the results.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from flashelmo.benchmarks.results import FAILED, Results, Row, new_results
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import describe, print_rows
from flashelmo.benchmarks.worker import Pool, one_line

# Settings that the command line may change in every suite that needs no card.
PROCESSOR_OPTIONS = ("out", "models", "sections", "contestants", "text", "rounds", "threads", "seed", "quick")


@dataclass(frozen=True)
class Suite:
    """What is measured by one word of the command line.

    Attributes:
        about: what that is, in one line.
        defaults: of the settings; their sections, contestants and precisions are all the possible choices, except for
            those in `known`.
        options: settings that the command line may change, by name.
        command: runs it and returns the exit status.
    """

    about: str
    defaults: Settings
    options: tuple[str, ...]
    command: Callable[[Settings, Console], int]
    known: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Job(NamedTuple):
    """Something to measure by itself: words for the row that says why there is nothing, and what gives its rows, all
    together or in pieces as they come.
    """

    section: str
    model: str
    detail: str
    rows: Callable[[], list[Row] | Iterator[list[Row]]]


def rows_of(job: Job) -> Iterator[list[Row]]:
    """Yield a job's rows, in pieces as they come; the engine's warnings and the job's failure are rows too."""
    said: list[Row] = []
    heard = logging.Handler(logging.WARNING)
    heard.emit = lambda record: said.append(Row("warning", name="flashelmo", note=record.getMessage()))  # type: ignore[method-assign]
    logging.getLogger("flashelmo").addHandler(heard)
    try:
        found = job.rows()
        for rows in [found] if isinstance(found, list) else found:
            yield [*said, *rows]
            said.clear()
    except Exception as error:
        note = f"{FAILED}: {one_line(error)}"
        yield [*said, Row(job.section, job.model, "all", detail=job.detail, note=note)]
    finally:
        logging.getLogger("flashelmo").removeHandler(heard)


class Run:
    """One run.

    Args:
        results: without rows.
        file: name of the results' file, if `settings.out` is a folder.

    Raises:
        OSError: results cannot be written.
    """

    def __init__(self, settings: Settings, console: Console, results: Results, file: str) -> None:
        self.results, self.console, self._begin = results, console, time.monotonic()
        self.path = settings.out if settings.out is None or settings.out.suffix == ".json" else settings.out / file
        console.print(f"{describe(results)}\n", highlight=False)
        self.keep([])  # writing errors show up before anything is measured

    def do(self, jobs: Iterable[Job]) -> None:
        """Measure the jobs."""
        for job in jobs:
            with self.console.status(f"{job.model}: {job.section} {job.detail}"):
                for rows in rows_of(job):
                    self.keep(rows)

    def keep(self, rows: Sequence[Row]) -> None:
        """Print rows and write them."""
        self.results.rows.extend(rows)
        if self.path is not None:
            self.results.write(self.path)
        print_rows(self.console, rows)

    def finish(self) -> int:
        """Report what failed; return the exit status."""
        failures = [row for row in self.results.rows if row.failed]
        for row in failures:
            self.say(row.line)
        taken = time.monotonic() - self._begin
        self.say(f"failures: {len(failures)}; {taken:.0f} s" + (f"; {self.path}" if self.path else ""))
        return 1 if failures else 0

    def say(self, line: str) -> None:
        """Print a line as it is."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def run_jobs(
    suite: str, settings: Settings, console: Console, jobs: Iterable[Job], card: Mapping[str, Any] | None = None
) -> Run:
    """Run some jobs, perhaps on a card too; the results are named after their suite."""
    run = Run(settings, console, new_results(settings, suite, card), f"{suite}.json")
    run.do(jobs)
    return run


def run_sections(
    suite: str,
    settings: Settings,
    console: Console,
    sections: Mapping[str, Callable[..., list[Row]]],
    prepare: Callable[[str, int, Path, Pool], Any],
    card: Mapping[str, Any] | None = None,
) -> Run:
    """Run a job for each model and section.

    Args:
        sections: functions that give each one's rows, called with a model and the settings.
        prepare: makes a model from its name, a seed, a folder to write to, and a pool for workers.
    """
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder, Pool() as pool:
        prepared = lru_cache(maxsize=1)(lambda name: prepare(name, settings.seed, Path(folder), pool))

        def rows(name: str, section: str) -> list[Row]:
            return sections[section](prepared(name), settings)

        jobs = (
            Job(section, Path(name).name, "", partial(rows, name, section))
            for name, section in product(settings.models, settings.sections)
        )
        return run_jobs(suite, settings, console, jobs, card)


def slug(name: str) -> str:
    """Return a name as part of a file's, such as "h200" for "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")
