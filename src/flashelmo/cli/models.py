"""The commands `flashelmo models` and `flashelmo download`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from flashelmo.cli.arguments import Json, Overwrite, complete_names
from flashelmo.cli.terminal import say
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.named import table
from flashelmo.engine.model.named.locate import TINY, bundled
from flashelmo.engine.model.named.table import RECORD, find_named, home


def models(as_json: Json = False) -> None:
    """List the named models, and which of them are downloaded."""
    here = {name for name in table.named_models() if (home() / name / RECORD).is_file()}
    if as_json:
        rows = [{**asdict(model), "downloaded": name in here} for name, model in table.named_models().items()]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    lines = Table("name", "language", "size", "licence", "here", "what", box=None, pad_edge=False)
    for name, model in table.named_models().items():
        size, license = str(model.output_size or "?"), model.license or "not stated"
        lines.add_row(name, model.language, size, license, "yes" if name in here else "", model.about)
    width = None if sys.stdout.isatty() else 200  # a line a model, for grep
    Console(highlight=False, width=width).print(lines)
    say(f"{TINY}, flashelmo's own, comes with the package and is the default")
    say(f"size: values per vector; here: downloaded to {home()}; licence: that of the publishing repository")


def download(
    name: Annotated[str, typer.Argument(help="Name, as listed by `flashelmo models`.", autocompletion=complete_names)],
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Download a named model, or verify the downloaded one. Prints its folder."""
    from flashelmo.engine.model.named.download import check, download

    if name == TINY:
        print(json.dumps({"folder": str(bundled())}, indent=2) if as_json else bundled())
        say(f"{TINY}: comes with the package")
        return
    model, folder = find_named(name), home() / name
    was_here = (folder / RECORD).is_file() and not overwrite
    folder = download(model, home(), overwrite=overwrite)
    if problems := check(folder) if was_here else []:
        raise FlashElmoError(f"{problems[0]}; --overwrite downloads it again")
    if as_json:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        print(json.dumps({"folder": str(folder), **record}, indent=2))
        return
    print(folder)
    done = "verified" if was_here else "downloaded"
    say(f"{name}: {done}; licence: {model.license or 'not stated'}; {model.page}")
