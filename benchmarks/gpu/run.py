"""One run of the engine on a GPU: what its jobs find, kept as it comes.

What is wrong is not timed. A job that fails takes no other with it, a device that is lost ends the run, and in both
cases everything measured before is in the results.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from flashelmo.benchmarks.gpu import tables as gpu_tables
from flashelmo.benchmarks.gpu.jobs import Job, Jobs, Tools
from flashelmo.benchmarks.gpu.rows import CARD, UNIT
from flashelmo.benchmarks.gpu.settings import EngineSettings
from flashelmo.benchmarks.gpu.subject import Place
from flashelmo.benchmarks.gpu.targets import targets
from flashelmo.benchmarks.kernels import report as gpu_report
from flashelmo.benchmarks.kernels.model import Card
from flashelmo.benchmarks.kernels.timing import Deadline, one_line
from flashelmo.benchmarks.results import FAILED, Results, Row
from flashelmo.engine.errors import FlashElmoError

LOST = "skipped, as the device is lost"


class Run:
    """One run.

    Args:
        results: without rows; where the card's name is.
        card: the model's, its ceilings the table's until they are measured.
        out: folder of the results.
        say: takes each line for people.
    """

    def __init__(
        self,
        settings: EngineSettings,
        results: Results,
        place: Place,
        tools: Tools,
        *,
        card: Card,
        out: Path,
        say: Callable[[str], None],
    ) -> None:
        self.settings, self.results, self.place = settings, results, place
        self._out, self._say = out, say
        self._deadline = Deadline(settings.limit_seconds)
        self._jobs = Jobs(settings, place, tools, card, out, self._deadline)
        self._is_lost = False

    @property
    def path(self) -> Path:
        """Of the results."""
        return self._out / f"gpu-{gpu_report.slug(self.results.machine['gpu']['name'])}.json"

    def run(self) -> bool:
        """Measure and report; whether nothing failed."""
        self._say(gpu_report.head(self.results))
        self._say(f"text: {self._jobs.source}")
        heard = _Warnings(lambda line: self._keep([Row("warning", CARD, "flashelmo", "warning", note=line)]))
        logging.getLogger("flashelmo").addHandler(heard)
        try:
            with tempfile.TemporaryDirectory(prefix="flashelmo-") as folder:
                for job in self._jobs.all(Path(folder)):
                    self._do(job)
        finally:
            logging.getLogger("flashelmo").removeHandler(heard)
        if "speed" in self.settings.sections:
            self._keep(targets(self.results, self.settings.models[0], self.settings.precisions[0]))
        return self._report()

    def _do(self, job: Job) -> None:
        """A job's rows; one that fails takes no other with it."""
        row = Row(job.section, job.model, "all", UNIT, job.detail)
        if self._is_lost or self._deadline.left <= job.seconds:
            self._keep([replace(row, note=LOST if self._is_lost else self._deadline.over)])
            return
        try:
            for rows in job.rows():
                self._keep(rows)
        except Exception as error:
            note = str(error) if isinstance(error, FlashElmoError) else one_line(error)
            self._keep([replace(row, note=f"{FAILED}: {note}")])
        self._is_lost = not self.place.is_alive()  # some errors of a kernel end its process's CUDA context
        if self._is_lost:
            self._keep([replace(row, note=f"{FAILED}: the device is lost after this")])
        else:
            self.place.tidy()

    def _report(self) -> bool:
        """Tables and plots; whether nothing failed."""
        failures = [row for row in self.results.rows if row.note.startswith(FAILED)]
        for row in failures:
            self._say(f"{row.model} {row.section}, {row.label}: {row.note}")
        for line in gpu_tables.save(self.results, self.path):
            self._say(line)
        took = self._deadline.seconds - self._deadline.left
        self._say(f"failures: {len(failures)}; {took:.0f} s; {self.path}")
        return not failures

    def _keep(self, rows: Sequence[Row]) -> None:
        self.results.rows.extend(rows)
        self.results.write(self.path)
        for line in gpu_tables.lines(rows):
            self._say(line)


class _Warnings(logging.Handler):
    """Passes on what the engine warns of, as that graphs cannot be captured."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())
