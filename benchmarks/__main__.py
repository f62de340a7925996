"""The one command line of all benchmarks: `flashelmo bench [SUITE] [options]`, or `python -m benchmarks` here.

The default suite is "cpu". `--quick` checks that everything runs, and roughly how fast. Wrong arguments are reported in
one line with exit status 1; so is the status if anything failed or computed wrong vectors.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from dataclasses import Field, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from flashelmo.benchmarks.run import Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import PRESETS

# The module of each suite, with its `SUITE`.
SUITES = {
    "cpu": "cpu",
    "onnx": "onnx",
    "precision": "precision",
    "gpu": "gpu.suite",
    "kernels": "kernels.suite",
    "resources": "kernels.resources",
    "report": "report",
    "feed": "feed",
    "train": "train",
    "corpus": "corpus",
    "senses": "senses.suite",
    "ngrams": "ngrams",
    "downstream": "downstream.suite",
    "serve": "serve",
}


def find(name: str) -> Suite:
    """Return the named suite; only that one is imported.

    Raises:
        FlashElmoError: there is none of this name, or the system is Windows.
        MissingExtraError: it needs a package that is not installed.
    """
    if name not in SUITES:
        raise FlashElmoError(f"suite: expected one of {', '.join(SUITES)}, found {name!r}")
    if sys.platform == "win32":
        raise FlashElmoError("expected Linux or macOS, which tell how much memory a process took, found Windows")
    suite: Suite = import_module(f"flashelmo.benchmarks.{SUITES[name]}").SUITE
    return suite


class _Parser(argparse.ArgumentParser):
    """Reports wrong arguments in one line."""

    def error(self, message: str) -> NoReturn:
        raise FlashElmoError(message)


def parse(name: str, suite: Suite, arguments: Sequence[str]) -> Settings:
    """Return a suite's settings as changed by the command line.

    Raises:
        FlashElmoError: wrong arguments.
    """
    epilog = f"suites: {', '.join(SUITES)} (default: cpu)"
    parser = _Parser(prog=f"flashelmo bench {name}", description=suite.about, epilog=epilog)
    options = {each.name: each for each in fields(Settings) if each.name in suite.options}
    for each in options.values():
        default, known, about = getattr(suite.defaults, each.name), _known(suite, each), each.metadata["about"]
        about += f" (some of {','.join(known)})" if known else ""
        about += f" (default: {default})" if isinstance(default, str | int | float) and default else ""
        action = "store_true" if each.type == "bool" else "store"
        parser.add_argument(_option(each), dest=each.name, action=action, default=argparse.SUPPRESS, help=about)
    if "quick" in suite.options:
        parser.add_argument("--quick", action="store_true", help="less of everything, to see that everything runs")
    given = vars(parser.parse_args(list(arguments)))
    start = suite.defaults.quick() if given.pop("quick", False) else suite.defaults
    return replace(start, **{name: _value(suite, options[name], text) for name, text in given.items()})


def _option(each: Field[Any]) -> str:
    """Return a field's option on the command line."""
    return str(each.metadata["flag"]) or f"--{each.name.replace('_', '-')}"


def _known(suite: Suite, each: Field[Any]) -> Sequence[str]:
    """Return the possible choices; nothing if any value is allowed."""
    if each.name in ("sections", "contestants", "precisions"):
        return suite.known.get(each.name) or getattr(suite.defaults, each.name)
    return list(PRESETS) if each.name == "models" else suite.known.get(each.name, ())


def _value(suite: Suite, each: Field[Any], text: Any) -> Any:
    """Return the setting that an option's text stands for."""
    kind, least, known = str(each.type).removesuffix(" | None"), each.metadata["least"], _known(suite, each)
    if kind == "tuple[str, ...]":
        for name in text.split(","):
            if known and name not in known and not (each.name == "models" and Path(name).exists()):
                there = ", ".join(known) + ", or paths" * (each.name == "models")
                raise FlashElmoError(f"{_option(each)}: expected some of {there}, found {name!r}")
        return tuple(text.split(","))
    if kind in ("bool", "str", "Path"):
        return Path(text) if kind == "Path" else text
    try:
        numbers = tuple((float if kind == "float" else int)(part) for part in text.split(","))
        if min(numbers) < least or (len(numbers) > 1 and not kind.startswith("tuple")):
            raise ValueError
    except ValueError:
        raise FlashElmoError(f"{_option(each)}: expected {least} or more, found {text}") from None
    return numbers if kind.startswith("tuple") else numbers[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a suite, print tables and write results; return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given.pop(0) if given and not given[0].startswith("-") else "cpu"
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    try:
        suite = find(name)
        return suite.command(parse(name, suite, given), console)
    except (FlashElmoError, OSError) as error:
        print(f"flashelmo bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # exiting this way ends servers
    sys.exit(main())
