"""The command `flashelmo info`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flashelmo.cli.arguments import Json, Options
from flashelmo.cli.terminal import readable_size


def info(
    model: Annotated[Path, typer.Argument(help="Model of any format, or its name.")],
    options: Options = None,
    as_json: Json = False,
) -> None:
    """Print a model's dimensions, parameters, source format and sha256."""
    from flashelmo.engine.model.checkpoints import load_model
    from flashelmo.engine.model.checkpoints.convert import describe

    facts = describe(load_model(model, options))
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    files = facts.pop("files", [])
    for name, value in facts.items():
        print(f"{name}: {f'{value:,}' if type(value) is int else value}")
    for file in files:
        print(f"{file['name']}: {readable_size(file['bytes'])}, sha256 {file['sha256']}")
