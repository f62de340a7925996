"""Two checkouts side by side: are their vectors the same to the bit, and which is faster?

    python tests/versus.py --other ../base [--this DIR] [--only PART ...] [--models NAME ...] [--out FILE.json]

A side is a checkout, which runs in its own environment (`.venv`) or else in the running one, or the interpreter of an
environment that has flashelmo. Each side is a process. The exit status is 1 where a vector differs or one side refuses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import versus_cases as plan
import versus_worker
from versus_cases import Settings

from flashelmo.engine.errors import FlashElmoError

PAUSE = 0.1  # seconds in which the other side's threads go to sleep
# A checkout's folders are the package's subpackages, as setup.py maps them.
START = """
import runpy, sys
checkout, script, *sys.argv[1:] = sys.argv[1:]
if checkout:
    sys.path.insert(0, checkout + "/src")
    import flashelmo
    flashelmo.__path__.append(checkout)
runpy.run_path(script, run_name="__main__")
"""


@dataclass
class Found:
    """What came of it: a row for every case, a row for everything timed."""

    sides: list[dict[str, str]] = field(default_factory=list)
    identity: list[dict[str, str]] = field(default_factory=list)
    speed: list[dict[str, Any]] = field(default_factory=list)


class Side:
    """The process of one side, which runs in `folder`; with `repairs`, its kernels run in Triton's interpreter."""

    def __init__(self, where: Path, folder: Path, repairs: Sequence[Path] = ()) -> None:
        apart = {"PYTHONPATH", "TRITON_INTERPRET"}
        environment = {name: value for name, value in os.environ.items() if name not in apart}
        environment |= {"TRITON_INTERPRET": "1"} if repairs else {}
        python, self._checkout = where.absolute(), ""
        if where.is_dir():
            if not (where / "src" / "flashelmo" / "__init__.py").is_file():
                raise FlashElmoError(f"{where}: expected a checkout of flashelmo, found no src/flashelmo/__init__.py")
            python, self._checkout = where.absolute() / ".venv" / "bin" / "python", str(where.resolve())
            python = python if python.exists() else Path(sys.executable)
        folder.mkdir(parents=True)
        self._process = subprocess.Popen(
            [python, "-c", START, self._checkout, versus_worker.__file__, *repairs],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder, env=environment,
        )  # fmt: skip

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def tell(self, method: str, *arguments: Any) -> None:
        """Have a method of `versus_worker.Side` called."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # what happened is heard
            self._process.stdin.write(json.dumps([method, arguments]) + "\n")
            self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """What came of it: {"value": ...} or {"refused": why}; RuntimeError for any other error."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"failed": f"exit code {self._process.wait()}"}
        if "failed" in answer:
            raise RuntimeError(f"{self._checkout}: {answer['failed']}")
        return answer

    def about(self) -> dict[str, str]:
        """Commit ("+" where files differ from it) and versions; RuntimeError where another's package was imported."""
        self.tell("about")
        about: dict[str, str] = self.hear()["value"]
        package = Path(about.pop("package"))
        if self._checkout and not package.is_relative_to(self._checkout):
            raise RuntimeError(f"{self._checkout}: expected its own package, found {package}")
        git = ["git", "-C", str(package), "describe", "--always", "--dirty=+", "--exclude=*"]
        return {"commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(), **about}


def compare(this: Path, other: Path, settings: Settings) -> Found:
    """Compare two sides in all parts; lines are printed as they come."""
    found = Found()
    with tempfile.TemporaryDirectory(prefix="flashelmo-") as name:
        for part in settings.parts:
            repairs = [settings.home.resolve() / "tests" / "interpreter.py"] if part == "interpreter" else []
            with ExitStack() as stack:
                folders = [Path(name) / part / side for side in ("this", "other")]
                pair = [stack.enter_context(Side(*each, repairs)) for each in zip((this, other), folders, strict=True)]
                found.sides = [side.about() for side in pair]
                if part == "speed":
                    print("| model | precision | work | this, tokens/s | other | this / other |\n|" + " --- |" * 6)
                for model in settings.models or plan.MODELS[part]:
                    path = plan.make_model(model, settings, Path(name))
                    if not path.exists():
                        print(f"{part}, {model}: no golden data beside the checkout")
                    elif part == "speed":
                        found.speed += _take_turns(pair, model, path, settings)
                    else:
                        found.identity += _compare_vectors(pair, folders, part, model, path, settings)
    return found


def _compare_vectors(
    pair: Sequence[Side], folders: Sequence[Path], part: str, model: str, path: Path, settings: Settings
) -> Iterator[dict[str, str]]:
    files = [str(folder / "vectors.npz") for folder in folders]
    results = []
    for names, load, calls in plan.cases(part, model, settings):
        refused = _ask(pair, "load", [(str(path), load)] * 2)
        for call, sentences in calls:
            said = refused
            if not any(refused):
                said = _ask(pair, "vectors", [(sentences, plan.CALLS[call], file) for file in files])
            results.append(_refusals(said) if any(said) else difference(*files))
            if results[-1] != "same":
                print(f"{', '.join(filter(None, names.values()))}, {call}: {results[-1]}", flush=True)
            yield {**names, "call": call, "result": results[-1]}
    print(f"{part}, {model}: {results.count('same')} of {len(results)} cases the same to the bit", flush=True)


def difference(this: str | Path, other: str | Path) -> str:
    """How far the vectors in two files lie apart; "same" where every bit is the same."""
    a, b = ([each for _, each in sorted(np.load(file).items())] for file in (this, other))
    if [(x.shape, x.dtype) for x in a] != [(x.shape, x.dtype) for x in b]:
        return "DIFFERENT shapes or types"
    apart = [np.abs(x - y).max(initial=0) for x, y in zip(a, b, strict=True) if x.tobytes() != y.tobytes()]
    return f"DIFFERENT in {len(apart)} of {len(a)} sentences, by {max(apart):.2e} at most" if apart else "same"


def _take_turns(pair: Sequence[Side], model: str, path: Path, settings: Settings) -> Iterator[dict[str, Any]]:
    """The sides take turns, A B, B A, A B ...; each round embeds other sentences, the first one to warm up."""
    text = list(islice(plan.texts(settings, plan.BULK_TOKENS.get(model, 4_000)), settings.rounds + 1))
    sentence = [word for line in text[0] for word in line][: plan.SINGLE_TOKENS]
    work: dict[str, list[Sequence[Any]]] = {
        "bulk": [["bulk", sentences] for sentences in text],
        f"a sentence of {plan.SINGLE_TOKENS}": [["single", sentence, plan.SINGLE_REPEATS] for _ in text],
    }
    for precision in (name for name in plan.FAST if name in settings.precisions):
        if any(_ask(pair, "load", [(str(path), {"device": "cpu", **plan.ON_CPU[precision]})] * 2)):
            print(f"| {model} | {precision} | refused |")
            continue
        for name, calls in work.items():
            rates = [_rates(pair, call, backwards=number % 2 == 0) for number, call in enumerate(calls)][1:]
            this, other = (median(side) for side in zip(*rates, strict=True))
            ratios = sorted(a / b for a, b in rates)
            row = {"model": model, "precision": precision, "work": name, "this": this, "other": other}
            yield {**row, "ratio": median(ratios), "ratios": ratios}
            print(
                f"| {model} | {precision} | {name} | {this:,.0f} | {other:,.0f} | "
                f"{median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) |",
                flush=True,
            )


def _rates(pair: Sequence[Side], call: Sequence[Any], *, backwards: bool) -> list[float]:
    """What each side answers, one after the other, in the sides' order whoever comes first."""
    rates = []
    for side in reversed(pair) if backwards else pair:
        time.sleep(PAUSE)
        side.tell(*call)
        rates.append(float(side.hear()["value"]))
    return rates[::-1] if backwards else rates


def _ask(pair: Sequence[Side], method: str, arguments: Sequence[Sequence[Any]]) -> list[str]:
    """Have both sides compute at once; what each says where it refuses, "" where it does not."""
    for side, given in zip(pair, arguments, strict=True):
        side.tell(method, *given)
    return [side.hear().get("refused", "") for side in pair]


def _refusals(said: Sequence[str]) -> str:
    if all(said):
        return "both refuse"
    return "; ".join(f"{name} REFUSES: {why}" for name, why in zip(("this", "other"), said, strict=True) if why)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write; the exit status."""
    parser = argparse.ArgumentParser(prog="versus.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--this", type=Path, default=Path(), help="checkout or interpreter (default: this folder)")
    parser.add_argument("--other", type=Path, required=True, help="checkout or interpreter")
    parser.add_argument(
        "--only", nargs="+", choices=plan.PARTS, default=plan.PARTS, metavar="PART", help=f"of {', '.join(plan.PARTS)}"
    )
    parser.add_argument("--models", nargs="+", metavar="NAME", help="toy, golden ones, presets (default: all)")
    parser.add_argument("--text", type=Path, help="tokenized lines (default: the Bible beside the checkout)")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write what was found there")
    given = parser.parse_args(arguments)
    settings = Settings(given.only, given.models, text=given.text, rounds=given.rounds)
    try:
        found = compare(given.this, given.other, settings)
    except (FlashElmoError, OSError) as error:
        print(f"versus.py: {error}", file=sys.stderr)
        return 1
    if given.out is not None:
        given.out.write_text(json.dumps(vars(found), indent=1) + "\n", encoding="utf-8")
    return int(any(row["result"] not in ("same", "both refuse") for row in found.identity))


if __name__ == "__main__":
    sys.exit(main())
