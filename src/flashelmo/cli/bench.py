"""The command `flashelmo bench`."""

from __future__ import annotations

import typer


def bench(context: typer.Context) -> None:
    """Measure the engine against the reference and this machine's limits; `flashelmo bench --help` has the options."""
    from flashelmo.benchmarks.compare import main as compare

    raise typer.Exit(compare(context.args))
