"""Mutated files of every kind that the package reads: each is read, or refused in one line.

    python tests/fuzz.py --cases 10000 --seed 0 [--first K] [--keep DIR]

A case is made from the seed and its number alone; `--first K --cases 1 --keep DIR` makes one again and keeps its files.
A child process runs them, one after the other. It reports what an audit hook and inotify see of other files, processes
and code, the time and the most memory of each; one that takes more than 10 s, or in which the child ends, is known by
its number, and a new child goes on behind it. The exit status is 1 where anything is found.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

SECONDS = 10.0  # of a case, of the processor's time
SECONDS_OF_WAITING = 30.0  # in which it does nothing, or others use the processor
SECONDS_TO_START = 120.0
MEGABYTES = 1000.0  # above those of the idle process
LONGEST_MESSAGE = 1000  # characters of an error
N_HOLES = 7
ENDED_WELL = "status 0"


@dataclass
class Found:
    """What came of some cases.

    Attributes:
        seed: of the cases.
        verbose: whether problems, and every 500 cases all, are printed at once.
        longest, peak: seconds and megabytes, and the case.
        problems: lines that name seed and case.
    """

    seed: int
    verbose: bool = False
    cases: int = 0
    refused: int = 0
    longest: tuple[float, int] = (0.0, 0)
    peak: tuple[float, int] = (0.0, 0)
    problems: list[str] = field(default_factory=list)

    def add(self, event: dict[str, Any]) -> None:
        """A case that has ended."""
        seconds, megabytes = event["seconds"], event["megabytes"]
        self.cases += 1
        self.refused += event["refused"]
        self.longest, self.peak = (
            max(self.longest, (seconds, event["case"])),
            max(self.peak, (megabytes, event["case"])),
        )
        problems = list(event["problems"])
        problems += [f"{seconds:.0f} s"] * (seconds > SECONDS)
        problems += [f"{megabytes:.0f} MB above the idle process"] * (megabytes > MEGABYTES)
        for problem in problems:
            self.note(event["case"], f"{event['name']}: {problem}")
        if self.verbose and self.cases % 500 == 0:
            print(self, flush=True)

    def note(self, case: int, problem: str) -> None:
        """Something wrong in a case."""
        self.problems.append(f"seed {self.seed}, case {case}: {problem}")
        if self.verbose:
            print(self.problems[-1], flush=True)

    def __str__(self) -> str:
        return (
            f"{self.cases:,} cases, {self.refused:,} refused, {len(self.problems)} problems; longest "
            f"{self.longest[0]:.1f} s (case {self.longest[1]}), most memory {self.peak[0]:.0f} MB above the idle "
            f"process (case {self.peak[1]})"
        )


def run(
    cases: int, seed: int, first: int = 0, keep: Path | None = None, *, verbose: bool = False, holes: bool = False
) -> Found:
    """Run cases in child processes; with `holes` the last are no files but what must be found, each once."""
    found, case, end = Found(seed, verbose), first, first + cases
    while case < end:
        with tempfile.TemporaryDirectory(prefix="flashelmo_fuzz.") as folder:
            given = [f"--seed={seed}", f"--first={case}", f"--cases={end - case}", f"--child={folder}"]
            case = _run_child([*given, *["--holes"] * holes], Path(folder), case, found)
            if keep is not None:
                shutil.copytree(Path(folder, "case"), keep, dirs_exist_ok=True, symlinks=True)
    return found


def _run_child(given: list[str], folder: Path, case: int, found: Found) -> int:
    """Run cases in one child, until it has no more or ends in one; the number of the next case."""
    begun = False
    with (folder / "log").open("wb") as log, _Child(given, log) as child:
        for event in _events(child):
            begun = "begun" in event
            if not begun:
                found.add(event)
                case = event["case"] + 1
        ending = child.poll()
    if ending == ENDED_WELL:
        return case
    said = (folder / "log").read_bytes()[-2000:].decode("utf-8", "replace").strip()
    if not begun:
        raise RuntimeError(f"the child ended with {ending} between cases: {said}")
    found.note(case, f"the child ended with {ending}: {said}")
    found.cases += 1
    return case + 1


class _Child:
    """The child, ended when the context is left; `hung` once it took too long."""

    def __init__(self, given: list[str], log: IO[bytes]) -> None:
        read, write = os.pipe()
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONHASHSEED": "0"}
        environment.pop("PYTHONSAFEPATH", None)  # the scripts beside this one are imported
        command = [sys.executable, str(Path(__file__).resolve()), *given, f"--events={write}"]
        self._process = subprocess.Popen(command, stdout=log, stderr=log, pass_fds=[write], env=environment)
        os.close(write)
        self.read, self.hung = read, False

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self.read)

    def stop(self) -> None:
        """It hangs."""
        self.hung = True
        self._process.send_signal(6)  # faulthandler says where

    def poll(self) -> str:
        """How it ended."""
        try:
            ending = f"status {self._process.wait(10)}"
        except subprocess.TimeoutExpired:
            ending = "no end"
        return ending + (f" after {SECONDS_OF_WAITING:.0f} s in one case" if self.hung else "")


def _events(child: _Child) -> Iterator[dict[str, Any]]:
    """What the child writes, until it ends or is silent for too long."""
    rest, limit = b"", SECONDS_TO_START
    while True:
        if not select.select([child.read], [], [], limit)[0]:
            child.stop()
            return
        chunk = os.read(child.read, 1 << 16)
        if not chunk:
            return
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            event = json.loads(line)
            limit = SECONDS_OF_WAITING
            yield event


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("cases", 10_000), ("seed", 0), ("first", 0), ("events", -1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--keep", type=Path, help="a folder for the files of the last case")
    parser.add_argument("--holes", action="store_true", help="the last cases are what must be found")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        from fuzz_cases import run_cases

        cases = range(given.first, given.first + given.cases)
        run_cases(cases, given.seed, given.child, given.events, given.holes)
        return 0
    started = time.monotonic()
    found = run(given.cases, given.seed, given.first, given.keep, verbose=True, holes=given.holes)
    print(f"{found}; {time.monotonic() - started:.0f} s")
    return int(bool(found.problems))


if __name__ == "__main__":
    sys.exit(main())
