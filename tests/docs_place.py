"""Where the blocks of a page are run: a copy of the checkout, with an environment in which `python` is a command."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from documents import Block, check_printed

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 300


class Place:
    """Runs a page's blocks in their order, each once, up to the one that is asked for.

    `python` and `flashelmo` are the tests' own; programs run in this process, whose packages are loaded already.

    Args:
        folder: which gets the copy.
        blocks: of one page, in their order.
        replacements: of what stands in programs, as ("cuda", "interpreter").
    """

    def __init__(self, folder: Path, blocks: list[Block], replacements: Sequence[tuple[str, str]] = ()) -> None:
        self.folder = folder
        self._waiting = list(blocks)
        self._failed: Block | None = None
        self._replacements = replacements
        copy_checkout(folder)

    def run(self, last: Block) -> None:
        """Run the blocks up to this one that were not run yet."""
        assert self._failed is None, f"{self._failed.label}: failed"
        while last in self._waiting:
            self._failed = self._waiting.pop(0)
            self.run_block(self._failed)
            self._failed = None

    def run_block(self, block: Block) -> None:
        """Run one block, and compare what it prints with what the page shows."""
        if block.kind == "python":
            check_printed(block, self._run_program(block).splitlines())
            return
        text = f"exec 2>&1\n{block.text}"  # what is said on both, as it comes
        status, out, _ = self.execute(["bash", "-euo", "pipefail"], text, self.environment())
        assert status == 0, f"{block.label}: status {status}\n{out}"
        if block.shown is not None:
            check_printed(block, out.splitlines())

    def _run_program(self, block: Block) -> str:
        program, printed = block.text, io.StringIO()
        for old, new in self._replacements:
            assert old in program, f"{block.label}: expected {old}"
            program = program.replace(old, new)
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.chdir(self.folder)
            exec(compile(program, block.label, "exec"), {"__name__": "__main__"})
        return printed.getvalue()

    def environment(self) -> dict[str, str]:
        """Variables of the commands: the tests' own, but that modules are found in the copy too."""
        commands = self.folder / "bin"
        if not commands.exists():
            commands.mkdir()
            for name, call in (("python", ""), ("flashelmo", " -m flashelmo.cli")):
                (commands / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{call} "$@"\n', "utf-8")
                (commands / name).chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        return environment | {"PATH": os.pathsep.join([str(commands), os.environ["PATH"]]), "LC_ALL": "C.UTF-8"}

    def execute(self, command: list[str], text: str, environment: dict[str, str]) -> tuple[int, str, str]:
        """Status and what is printed, through files: a server that outlives its shell would keep a pipe open."""
        with (self.folder / "out").open("w+") as out, (self.folder / "err").open("w+") as err:
            done = subprocess.run(
                [str(shutil.which(command[0], path=environment["PATH"])), *command[1:]],
                input=text,
                text=True,
                cwd=self.folder,
                env=environment,
                stdout=out,
                stderr=err,
                timeout=SECONDS,
            )
            out.seek(0), err.seek(0)
            return done.returncode, out.read(), err.read()


def copy_checkout(folder: Path) -> None:
    """What `pip install .` and the pages need of the checkout."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for part in ("src", "examples", *(file.parent.name for file in ROOT.glob("*/__init__.py"))):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
