"""The command `flashelmo`: parses arguments, opens files, prints; the work is the engine's. A file a command."""

from __future__ import annotations

import signal

from flashelmo.engine.system.signals import handled, stop_signals


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. See `commands.run`.

    Ctrl-C ends the process without a word, as long as modules are loaded and there is nothing to undo.
    """
    raising = [number for number in stop_signals() if signal.getsignal(number) is signal.default_int_handler]
    with handled(raising, signal.SIG_DFL):
        from flashelmo.cli.commands import run
    return run(arguments)
