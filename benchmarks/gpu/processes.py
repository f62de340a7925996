"""Jobs done by a process that is replaced where it hung, ended, or lost the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from flashelmo.benchmarks.results import FAILED, Row
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.timing import Deadline
from flashelmo.benchmarks.worker import Here, Worker, WorkerError
from flashelmo.engine.errors import FlashElmoError

Name: TypeAlias = tuple[str, str, str]  # section, model and detail of a job
LONGER = 1.6  # times as long as the others the correctness may take


def supervise(
    sections: Iterable[str],
    settings: Settings,
    deadline: Deadline,
    make: Callable[[Sequence[Row]], Worker | Here],
    worker: Worker | Here | None = None,
    patience: float = 75.0,
) -> Iterator[list[Row]]:
    """The rows of every job of every section, each section in its time, the job at fault as a line of its own.

    Args:
        make: starts a process, told what was measured before; `worker` has started.
        patience: seconds after which a process is taken for hung.
    """
    rows: list[Row] = []

    def ask(*given: Any) -> Any:
        nonlocal worker
        waiting, late = Deadline(patience), f"no end within {patience:.0f} seconds"
        try:
            worker = worker or make(rows)
            return worker.call(*given, give_up=lambda: late if waiting.left < 0 else "")
        except (FlashElmoError, WorkerError):
            end()
            raise

    def end() -> None:
        nonlocal worker
        if worker is not None:
            worker.close()
        worker = None

    for section in sections:
        seconds = (settings.part_seconds or patience) * (LONGER if section == "correctness" else 1)
        left = Deadline(min(seconds, max(0.0, deadline.left)))
        names: list[Name] = [(section, "", "all")]
        try:
            names = ask("names", section) if left.left > 0 else names
        except (FlashElmoError, WorkerError) as error:
            yield [Row(section, name="all", note=f"{FAILED}: {error}")]
            continue
        for name in names:
            row, lost = Row(name[0], name[1], name[2] or "all"), False
            try:
                found = [replace(row, note=left.over)]
                if left.left > 0:
                    found, lost = ask("do", section, name)
            except (FlashElmoError, WorkerError) as error:
                found = [replace(row, note=f"{FAILED}: {error}")]
            rows += found
            yield found
            if lost:
                end()
    end()
