"""The command `flashelmo bench`."""

from __future__ import annotations

import typer


def bench(context: typer.Context) -> None:
    """Benchmark the engine against the reference and the hardware. `flashelmo bench --help` lists the options."""
    from flashelmo.benchmarks.__main__ import main

    raise typer.Exit(main(context.args))
