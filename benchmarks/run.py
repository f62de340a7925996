"""One run of any suite: its jobs one after the other, rows printed and results written as they come.

What is wrong is not timed. A job that fails takes no other with it, a device that is lost ends the run, and in both
cases everything measured before is in the results.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from flashelmo.benchmarks.results import FAILED, Results, Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.tables import print_head, print_rows
from flashelmo.benchmarks.timing import Deadline
from flashelmo.benchmarks.worker import one_line

LOST = "skipped, as the device is lost"


@dataclass(frozen=True)
class Suite:
    """What is measured by one word of the command line.

    Attributes:
        about: what that is, in one line.
        defaults: settings that the command line changes; their sections, contestants, precisions and operations are
            all that there are to choose from, or those of `known`.
        options: settings that the command line may change, by their names in `Settings`.
        command: runs it and gives the exit status.
        known: values that may be chosen, by the setting's name, where defaults are only some of them.
    """

    about: str
    defaults: Settings
    options: tuple[str, ...]
    command: Callable[[Settings, Console], int]
    known: Mapping[str, Sequence[str]] = field(default_factory=dict)


class Job(NamedTuple):
    """Something to measure by itself, where there is still so much time.

    Attributes:
        section, model, detail: words of the row that says why there is nothing.
        rows: computes them, in pieces that are kept as they come.
        seconds: that it needs at least.
    """

    section: str
    model: str
    detail: str
    rows: Callable[[], Iterable[Sequence[Row]]]
    seconds: float = 0.0


class Run:
    """One run.

    Args:
        results: without rows.
        file: name of the results' file, where `settings.out` is a folder.
        is_lost: called after each job: whether nothing more can be measured on the device.

    Raises:
        OSError: results cannot be written.
    """

    def __init__(
        self,
        settings: Settings,
        console: Console,
        results: Results,
        file: str,
        is_lost: Callable[[], bool] = lambda: False,
    ) -> None:
        self.settings, self.results, self.console = settings, results, console
        self.deadline = Deadline(settings.limit_seconds)
        self.path = _path(settings.out, file)
        self._is_lost, self._lost = is_lost, False
        print_head(console, results)
        self._write()  # what cannot be written is known before anything is measured

    def do(self, jobs: Iterable[Job]) -> None:
        """Measure; what the engine warns of becomes a row."""
        heard = _Warnings(lambda line: self.keep([Row("warning", "", "flashelmo", "warning", note=line)]))
        logging.getLogger("flashelmo").addHandler(heard)
        try:
            for job in jobs:
                self._do(job)
        finally:
            logging.getLogger("flashelmo").removeHandler(heard)

    def keep(self, rows: Sequence[Row]) -> None:
        """Print rows and write them."""
        self.results.rows.extend(rows)
        self._write()
        print_rows(self.console, rows)

    def finish(self) -> int:
        """Say what failed; the exit status."""
        failures = [row for row in self.results.rows if row.failed]
        for row in failures:
            self.say(", ".join(part for part in (row.model, row.section, row.label, row.note) if part))
        self.say(f"failures: {len(failures)}; {self.deadline.taken:.0f} s" + (f"; {self.path}" if self.path else ""))
        return 1 if failures else 0

    def say(self, line: str) -> None:
        """Print a line as it is."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _do(self, job: Job) -> None:
        """A job's rows; one that fails takes no other with it."""
        row = Row(job.section, job.model, "all", "", job.detail)
        if self._lost or self.deadline.left <= job.seconds:
            self.keep([replace(row, note=LOST if self._lost else self.deadline.over)])
            return
        try:
            with self.console.status(", ".join(part for part in (job.model, job.section, job.detail) if part)):
                for rows in job.rows():
                    self.keep(rows)
        except Exception as error:
            self.keep([replace(row, note=f"{FAILED}: {one_line(error)}")])
        self._lost = self._is_lost()
        if self._lost:
            self.keep([replace(row, note=f"{FAILED}: the device is lost after this")])

    def _write(self) -> None:
        if self.path is not None:
            self.results.write(self.path)


def section_jobs(
    settings: Settings, sections: Mapping[str, Callable[..., Sequence[Row]]], prepare: Callable[[str], Any]
) -> Iterator[Job]:
    """A job for each model and section.

    Args:
        sections: what gives the rows of each, called with a model and the settings.
        prepare: makes a model from its name in the settings; once for all sections.
    """
    prepared = lru_cache(maxsize=1)(prepare)

    def rows(name: str, section: str) -> Iterator[Sequence[Row]]:
        yield sections[section](prepared(name), settings)

    for name in settings.models:
        for section in settings.sections:
            yield Job(section, Path(name).name, "", partial(rows, name, section))


def slug(name: str) -> str:
    """A name as part of a file's, as "h200" of "NVIDIA H200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().removeprefix("nvidia ")).strip("-")


def _path(out: Path | None, file: str) -> Path | None:
    """The results' file: what was given, or in the folder that was given."""
    return out if out is None or out.suffix == ".json" else out / file


class _Warnings(logging.Handler):
    """Passes on what the engine warns of, as that graphs cannot be captured."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())
