"""A run of `flashelmo embed` in a process of its own, which begins at once: its packages are loaded already."""

import os
import sys
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from flashelmo.cli import main

PACKAGES = [
    "flashelmo.cli.commands",
    "flashelmo.engine.bulk.run",
    "flashelmo.engine.cpu.ort",
    "flashelmo.engine.cpu.pipeline",
]


def begin(folder: Path, name: str, *options: str) -> ForkServerProcess:
    """Embed the folder's text.txt by its model into a folder of a name, going on with what is there."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["flashelmo.engine.graph.tensors", *PACKAGES])
    process = context.Process(target=_embed, args=(folder, name, options))
    process.start()
    return process


def said_by(folder: Path, name: str) -> str:
    """What the last run of a name said."""
    return (folder / f"{name}.err").read_text()


def _embed(folder: Path, name: str, options: tuple[str, ...]) -> None:
    os.chdir(folder)
    with open(f"{name}.err", "w") as sys.stderr:
        status = main(["embed", "text.txt", name, "--model", "model", "--resume", "--quiet", *options])
    os._exit(status)
