"""The one command line of all benchmarks: `flashelmo bench [SUITE] [options]`, or `python -m benchmarks` here.

Without a suite's name it is "cpu". `--quick` sees that all runs, and roughly how fast. What is wrong with the arguments
is one line and exit status 1; so is the status where anything failed or computed wrong vectors.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rich.console import Console

from flashelmo.benchmarks.run import Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import PRESETS

# The module of each suite: its `SUITE`.
SUITES = {
    "cpu": "cpu.suite",
    "onnx": "onnx.suite",
    "precision": "precision",
    "gpu": "gpu.suite",
    "kernels": "kernels.suite",
    "tiles": "kernels.tiles",
    "resources": "kernels.resources",
    "model": "kernels.model",
    "report": "report",
}


def find(name: str) -> Suite:
    """The suite of a name; only it is imported.

    Raises:
        FlashElmoError: there is none.
        MissingExtraError: it needs a package that is not installed.
    """
    if name not in SUITES:
        raise FlashElmoError(f"suite: expected one of {', '.join(SUITES)}, found {name!r}")
    suite: Suite = import_module(f"flashelmo.benchmarks.{SUITES[name]}").SUITE
    return suite


class Option(NamedTuple):
    """An option of the command line.

    Attributes:
        field: of the settings, which it changes; the option is called so too, or as `flag` says.
        read: makes the field's value of the text; None for a flag.
        expected: what it reads, for whoever gives something else.
    """

    field: str
    read: Callable[[str], Any] | None
    expected: str
    help: str
    flag: str = ""

    @property
    def name(self) -> str:
        """As it is given."""
        return self.flag or f"--{self.field.replace('_', '-')}"


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _positives(text: str) -> tuple[int, ...]:
    return tuple(_positive(part) for part in text.split(","))


def _natural(text: str) -> int:
    if int(text) < 0:
        raise ValueError
    return int(text)


def _seconds(text: str) -> float:
    if not float(text) > 0:
        raise ValueError
    return float(text)


NAMES, COUNT, NUMBER = "names with commas", "1 or more", "0 or more"
OPTIONS = (
    Option("out", Path, "a path", "file (.json) or folder that results are written to"),
    Option("sections", _names, NAMES, "some of {known}", "--only"),
    Option("models", _names, NAMES, f"some of {','.join(PRESETS)}, or paths"),
    Option("contestants", _names, NAMES, "some of {known}"),
    Option("precisions", _names, NAMES, "some of {known}"),
    Option("operations", _names, NAMES, "some of {known}"),
    Option("text", Path, "a path", "tokenized lines to measure with"),
    Option("rounds", _positive, COUNT, "everybody is measured once in each"),
    Option("threads", _positive, COUNT, "of the processor; default: all cores"),
    Option("seed", _natural, NUMBER, "of random weights and generated text"),
    Option("sentences", _positive, COUNT, "that errors are measured on"),
    Option("tokens", _positive, COUNT, "of each sentence at most"),
    Option("limit_seconds", _seconds, "seconds", "what has not begun by then is left out"),
    Option("commit", str, "a commit", "of the sources, where they are no checkout"),
    Option("golden", Path, "a folder", "models with published vectors"),
    Option("onnx", Path, "a file", "an exported model for ONNX Runtime on the card"),
    Option("off", _names, NAMES, "switches of the CUDA runtime that are off throughout"),
    Option("few", None, "", "check few sentences, of random models alone"),
    Option("sanitize", None, "", "at the end, the checks under compute-sanitizer (best with --only correctness)"),
    Option("rows", _positives, f"numbers with commas, each {COUNT}", "of a step"),
    Option("card", str, "a card", "whose times are predicted"),
    Option("target", _positive, "a compute capability", "as 90; default: all"),
    Option("kernel", str, "a name", "only those whose name begins so"),
    Option("show", Path, "a file", "print the tables of these results instead"),
)


class _Parser(argparse.ArgumentParser):
    """One line for what is wrong with the arguments."""

    def error(self, message: str) -> NoReturn:
        raise FlashElmoError(message)


def parse(name: str, suite: Suite, arguments: Sequence[str]) -> Settings:
    """A suite's settings as the command line changes them.

    Raises:
        FlashElmoError: arguments that are wrong.
    """
    options = [option for option in OPTIONS if option.field in suite.options]
    parser = _Parser(
        prog=f"flashelmo bench {name}", description=suite.about, epilog=f"suites: {', '.join(SUITES)} (default: cpu)"
    )
    for option in options:
        said = option.help.format(known=",".join(_known(suite, option.field)))
        default = getattr(suite.defaults, option.field)
        if option.read is None:
            parser.add_argument(option.name, dest=option.field, action="store_true", help=said)
        else:
            said += f" (default: {_shown(default)})" if default not in (None, "", ()) else ""
            parser.add_argument(option.name, dest=option.field, metavar=option.flag[2:].upper() or None, help=said)
    if "quick" in suite.options:
        parser.add_argument("--quick", action="store_true", help="less of everything, to see that all runs")
    given = vars(parser.parse_args(list(arguments)))
    quick = given.pop("quick", False)
    values = {option.field: _read(suite, option, given[option.field]) for option in options if given[option.field]}
    if not quick:
        return replace(suite.defaults, **values)
    settings = replace(suite.defaults, **values).quick()
    return replace(settings, models=values.get("models", settings.models))


def _read(suite: Suite, option: Option, text: Any) -> Any:
    """The setting that an option's text says."""
    if option.read is None:
        return True
    try:
        value = option.read(text)
    except ValueError:
        raise FlashElmoError(f"{option.name}: expected {option.expected}, found {text}") from None
    known, paths = _known(suite, option.field), option.field == "models"
    for each in value if known and isinstance(value, tuple) else ():
        if each not in known and not (paths and Path(each).exists()):
            there = f"{', '.join(known)}{', or paths' * paths}"
            raise FlashElmoError(f"{option.name}: expected some of {there}, found {each!r}")
    return value


def _known(suite: Suite, field: str) -> Sequence[Any]:
    """What may be chosen; nothing where anything may be."""
    if field in suite.known:
        return suite.known[field]
    if field == "models":
        return list(PRESETS)
    return getattr(suite.defaults, field) if field in ("sections", "contestants", "precisions", "operations") else ()


def _shown(default: Any) -> str:
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a suite, print tables and write results; the exit status."""
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
    sys.exit(main())
