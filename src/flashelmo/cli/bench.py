"""The command `flashelmo bench`."""

from __future__ import annotations

import typer


def bench(context: typer.Context) -> None:
    """Measure the engine, beside the reference and this machine's limits; `flashelmo bench --help` has the options."""
    from flashelmo.benchmarks.__main__ import main

    raise typer.Exit(main(context.args))
