"""How far each precision of the CUDA runtime lies from the exact vectors, without a card, by Triton's interpreter.

`flashelmo bench precision` embeds a few real sentences in each precision on the CPU and compares each layer with the
reference in float64. Rounding is a card's, with three exceptions: sums are added up in another order; in bf16 the
LSTM's tanh and output gate are exact here, where a card takes its own approximation, to 2^-11; and float32 products are
never cut to TF32, which is therefore left out. So the errors of bf16 on a card are a little larger than here.

Triton 3.6's interpreter computes bfloat16 wrongly. What makes it right, `tests/interpreter.py`, comes with the checkout
alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from rich.console import Console

from flashelmo.benchmarks.accuracy import error_rows
from flashelmo.benchmarks.results import Row, new_results
from flashelmo.benchmarks.run import Job, Run, Suite
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.subject import load
from flashelmo.benchmarks.text import Sentences, load_sentences
from flashelmo.engine.cpu.runtime import Array
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.model.weights import ElmoModel

REPAIR = Path(__file__).resolve().parents[1] / "tests" / "interpreter.py"
NOTE = "Triton's interpreter: bf16's tanh and output gate are exact, on a card they are its approximation to 2^-11"


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


def command(settings: Settings, console: Console) -> int:
    """Measure; the exit status."""
    interpret()
    run = Run(settings, console, new_results(settings, "precision"), "precision.json")
    run.do(jobs(settings, ElmoEmbedder, partial(load, seed=settings.seed)))
    return run.finish()


def jobs(settings: Settings, make: Callable[..., Any], load: Callable[[str], ElmoModel]) -> Iterator[Job]:
    """Two rows for each model, precision and layer.

    Args:
        make: what `ElmoEmbedder` is.
        load: makes a model from its name.
    """
    text, source = load_sentences(60 * settings.sentences, settings.text)
    sentences = [sentence[: settings.tokens] for sentence in text[: settings.sentences]]
    note = f"{NOTE}; {_size(sentences)} of {source}"
    model_of = cache(load)

    @cache
    def exact(name: str) -> list[Array]:
        return list(make(model_of(name), device="cpu", runtime="reference", precision="fp64").embed(sentences))

    def rows(name: str, precision: str) -> Iterator[Sequence[Row]]:
        found = list(make(model_of(name), device="interpreter", precision=precision).embed(sentences))
        yield error_rows(Path(name).name, precision, found, exact(name), note)

    for name in settings.models:
        for precision in settings.precisions:
            yield Job("error", Path(name).name, precision, partial(rows, name, precision))


def _size(sentences: Sentences) -> str:
    return f"{len(sentences)} sentences, {sum(map(len, sentences))} tokens"


SUITE = Suite(
    about="Each precision's error on a CUDA device, without one.",
    defaults=Settings(models=("small",), precisions=("fp32", "fp16", "bf16", "int8"), sentences=4, tokens=12),
    options=("out", "models", "precisions", "text", "sentences", "tokens", "seed"),
    command=command,
)
