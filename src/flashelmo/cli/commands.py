"""All commands, and what is made of their errors."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from flashelmo import __version__
from flashelmo.cli.bench import bench
from flashelmo.cli.bulk import verify
from flashelmo.cli.convert import convert
from flashelmo.cli.elmo import elmo
from flashelmo.cli.embed import embed
from flashelmo.cli.export import export
from flashelmo.cli.info import info
from flashelmo.cli.init import init
from flashelmo.cli.models import download, models
from flashelmo.cli.neighbours import neighbours
from flashelmo.cli.perplexity import perplexity
from flashelmo.cli.serve import serve
from flashelmo.cli.terminal import (
    InterruptedBySignal,
    fail,
    flush_output,
    messages_to_stderr,
    open_streams,
    signals_raise,
)
from flashelmo.cli.train import train
from flashelmo.engine.errors import FlashElmoError

ENDED_BY_SIGNALS = "serve"  # a command that signals end, not interrupt: what it accepted, if it got so far, is answered

app = typer.Typer(
    help="Fast, exact ELMo word vectors.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: no name of an option is cut at 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    embed,
    neighbours,
    verify,
    elmo,
    info,
    convert,
    export,
    init,
    train,
    perplexity,
    serve,
    models,
    download,
):
    app.command()(command)
# Its options are the benchmark's own.
app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Fast, exact ELMo word vectors."""
    if show:
        print(f"flashelmo {__version__}")
        raise typer.Exit


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. An error that a user can cause is one line on standard error."""
    open_streams()
    try:
        status = _run(arguments)
        flush_output()
        return status
    except FlashElmoError as error:
        return fail(str(error), 1)
    except OSError as error:
        reason = error.strerror or str(error)
        return fail(reason if error.filename is None else f"{error.filename}: {reason}", 1)
    except MemoryError:
        return fail("not enough memory", 1)
    except InterruptedBySignal as interrupt:
        if (sys.argv[1:] if arguments is None else arguments)[:1] == [ENDED_BY_SIGNALS]:
            return 0
        return fail("interrupted", 128 + interrupt.number)


def _run(arguments: list[str] | None) -> int:
    """The exit status that the command line chooses."""
    try:
        with signals_raise(), messages_to_stderr():
            app(arguments, prog_name="flashelmo")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0
