"""The command `flashelmo init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flashelmo.cli.arguments import Overwrite
from flashelmo.cli.terminal import say


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder.")],
    preset: Annotated[
        str, typer.Option(metavar="tiny|small|medium|original", help="Model size; all but tiny are published sizes.")
    ] = "small",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
    format: Annotated[Literal["hdf5", "native"], typer.Option(help="File format.")] = "native",
    overwrite: Overwrite = False,
) -> None:
    """Write a model with random weights."""
    from flashelmo.engine.model.checkpoints.bilm import write_bilm
    from flashelmo.engine.model.checkpoints.native import write_native
    from flashelmo.engine.model.initialize import random_model

    model = random_model(preset, seed)
    if format == "hdf5":
        write_bilm(model, folder, overwrite=overwrite)
    else:
        write_native(model, folder, overwrite=overwrite)
    say(f"{folder}: {model.weights.n_parameters:,} random parameters")
