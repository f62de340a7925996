"""How far each precision of the CUDA runtime lies from the exact vectors, without a card, by Triton's interpreter.

`python -m benchmarks.precision --out benchmarks/results/precision/NAME.json` embeds a few real sentences in each
precision on the CPU and compares each layer with the reference in float64. Rounding is a card's, with three
exceptions: sums are added up in another order; in bf16 the LSTM's tanh and output gate are exact here, where a card
takes its own approximation, to 2^-11; and float32 products are never cut to TF32, which is therefore left out. So the
errors of bf16 on a card are a little larger than here.

Triton 3.6's interpreter computes bfloat16 wrongly. What makes it right, `tests/interpreter.py`, comes with the checkout
alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

from flashelmo.benchmarks import machine
from flashelmo.benchmarks.accuracy import relative_errors
from flashelmo.benchmarks.results import Results, Row
from flashelmo.benchmarks.text import Sentences, load_sentences
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.initialize import PRESETS, random_model
from flashelmo.engine.model.weights import ElmoModel

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
REPAIR = Path(__file__).resolve().parents[1] / "tests" / "interpreter.py"
NOTE = "Triton's interpreter: bf16's tanh and output gate are exact, on a card they are its approximation to 2^-11"


@dataclass(frozen=True)
class PrecisionSettings:
    """What is measured.

    Attributes:
        models: presets of random models.
        precisions: those that are compared.
        sentences, tokens: real sentences of the text's beginning, each cut to so many tokens.
        seed: of random weights.
    """

    models: tuple[str, ...] = ("small",)
    precisions: tuple[str, ...] = PRECISIONS
    sentences: int = 4
    tokens: int = 12
    seed: int = 0


def interpret() -> None:
    """Let Triton interpret its kernels, rightly; before any of them is imported.

    Raises:
        FlashElmoError: this is no checkout, or kernels were imported for a card.
    """
    if not REPAIR.is_file():
        raise FlashElmoError(f"precision: expected a checkout with {REPAIR.name}, found none: run it from there")
    if "flashelmo.kernels.launch" in sys.modules and not os.environ.get("TRITON_INTERPRET"):
        raise FlashElmoError("precision: expected a fresh process, found kernels that were imported for a card")
    os.environ["TRITON_INTERPRET"] = "1"
    spec = spec_from_file_location("flashelmo_interpreter", REPAIR)
    assert spec is not None and spec.loader is not None  # the file is there
    repairs = module_from_spec(spec)
    spec.loader.exec_module(repairs)
    repairs.repair()


def measure(
    settings: PrecisionSettings, make: Callable[..., Any], load: Callable[[str, int], ElmoModel]
) -> Iterator[Row]:
    """Two rows for each model, precision and layer.

    Args:
        make, load: what `ElmoEmbedder` and `random_model` are.
    """
    text, source = load_sentences(60 * settings.sentences)
    sentences = [sentence[: settings.tokens] for sentence in text[: settings.sentences]]
    for name in settings.models:
        model = load(name, settings.seed)
        exact = list(make(model, device="cpu", runtime="reference", precision="fp64").embed(sentences))
        for precision in settings.precisions:
            found = list(make(model, device="interpreter", precision=precision).embed(sentences))
            yield from rows(name, precision, found, exact, f"{NOTE}; {_size(sentences)} of {source}")


def rows(model: str, precision: str, found: Sequence[Array], exact: Sequence[Array], note: str) -> Iterator[Row]:
    """Largest absolute and relative error of each layer, vectors [L, T, 2P].

    Raises:
        FlashElmoError: a vector is not finite.
    """
    ours, truth = (np.concatenate(vectors, axis=1).astype(np.float64) for vectors in (found, exact))
    if not np.isfinite(ours).all():
        raise FlashElmoError(f"{model}, {precision}: expected finite vectors, found others")
    absolute = [float(np.abs(a - b).max()) for a, b in zip(ours, truth, strict=True)]
    for unit, errors in (("max abs error", absolute), ("relative error", relative_errors(found, exact))):
        for layer, error in enumerate(errors):
            values = {"section": "error", "model": model, "name": precision, "unit": unit}
            yield Row.of([error], **values, detail=f"layer {layer}", note=note)


def _size(sentences: Sentences) -> str:
    return f"{len(sentences)} sentences, {sum(map(len, sentences))} tokens"


def new_results(settings: PrecisionSettings) -> Results:
    """Results without rows."""
    return Results(
        machine=machine.machine(),
        versions=machine.versions(),
        commit=machine.commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings=asdict(settings),
        rows=[],
    )


def parse(arguments: Sequence[str] | None) -> tuple[PrecisionSettings, Path]:
    """Settings, and the file that results go to."""
    default = PrecisionSettings()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="write the results there")
    parser.add_argument("--models", default="small", help=f"some of {','.join(PRESETS)}, with commas (default: small)")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="default: %(default)s")
    parser.add_argument("--sentences", type=int, default=default.sentences, help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=default.tokens, help="of each at most; default: %(default)s")
    given = parser.parse_args(arguments)
    if min(given.sentences, given.tokens) < 1:
        parser.error("--sentences, --tokens: expected at least 1")
    settings = PrecisionSettings(
        models=tuple(given.models.split(",")),
        precisions=tuple(given.precisions.split(",")),
        sentences=given.sentences,
        tokens=given.tokens,
    )
    for name in settings.precisions:
        if name not in PRECISIONS:
            parser.error(f"--precisions: expected some of {','.join(PRECISIONS)}, found {name!r}")
    return settings, given.out


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; the exit status."""
    settings, out = parse(arguments)
    results = new_results(settings)
    try:
        interpret()
        from flashelmo.engine.embedder import ElmoEmbedder

        for row in measure(settings, ElmoEmbedder, random_model):
            results.rows.append(row)
            results.write(out)
            print(f"{row.model:10}{row.name:6}{row.unit:16}{row.detail:10}{row.median:.3g}", flush=True)
    except (FlashElmoError, OSError) as error:
        print(f"precision: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
