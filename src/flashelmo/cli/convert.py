"""The command `flashelmo convert`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flashelmo.cli.arguments import AnyModel, Json, Options, Overwrite, Quiet, Verbose
from flashelmo.cli.terminal import say


def convert(
    source: AnyModel,
    destination: Annotated[Path, typer.Argument(help="Output folder.")],
    options: Options = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Convert a model to the native, memory-mapped format. It loads fastest."""
    from flashelmo.engine.model.checkpoints.convert import convert as convert_model

    model = convert_model(source, destination, options_file=options, overwrite=overwrite)
    if as_json:
        facts = {"folder": str(destination), "parameters": model.weights.n_parameters, "format": model.format}
        print(json.dumps(facts, indent=2))
    elif not quiet:
        say(f"{destination}: {model.weights.n_parameters:,} parameters from {model.format}")
