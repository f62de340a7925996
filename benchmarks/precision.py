"""How far each precision of the CUDA runtime is from the exact vectors, without a card, by Triton's interpreter.

`flashelmo bench precision` embeds a few real sentences in each precision on the CPU and compares each layer with the
reference in float64. Rounding is as on a card, with three exceptions: sums are added up in another order; in bf16 the
LSTM's tanh and output gate are exact here, where a card uses its own approximation, to 2^-11; and float32 products are
never truncated to TF32, which is therefore left out. So bf16's errors on a card are a little larger than here.

Triton 3.6's interpreter computes bfloat16 wrongly. The fix, `tests/interpreter.py`, is only part of the checkout.
"""

from __future__ import annotations

import os
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from rich.console import Console

from flashelmo.benchmarks.contestant import REFERENCE, Contestant, Subject, Way, contestant, errors_of, prepare
from flashelmo.benchmarks.results import Row
from flashelmo.benchmarks.run import Suite, run_sections
from flashelmo.benchmarks.settings import Settings
from flashelmo.benchmarks.text import first_sentences
from flashelmo.engine.embedder import ElmoEmbedder
from flashelmo.engine.errors import FlashElmoError
from flashelmo.engine.precision import PrecisionName

PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "fp16", "bf16", "int8")
REPAIR = Path(__file__).resolve().parents[1] / "tests" / "interpreter.py"
NOTE = "Triton's interpreter: bf16's tanh and output gate are exact, on a card they are its approximation to 2^-11"


def interpreted(folder: Path, precision: PrecisionName) -> Way:
    """Return the CUDA runtime in Triton's interpreter, in a fresh process: before any kernel is imported."""
    os.environ["TRITON_INTERPRET"] = "1"
    spec = spec_from_file_location("flashelmo_interpreter", REPAIR)
    assert spec is not None and spec.loader is not None  # the file is there
    repairs = module_from_spec(spec)
    spec.loader.exec_module(repairs)
    repairs.repair()
    embed = ElmoEmbedder.load(folder, device="interpreter", precision=precision).embed_batch
    return Way(embed, embed)


def measure_errors(subject: Subject, settings: Settings) -> list[Row]:
    """Measure each precision's errors, with a note on what differs on a card."""
    text, source = first_sentences(settings)
    sentences = [sentence[: settings.tokens] for sentence in text]
    exact = contestant(subject, settings, REFERENCE, precision="fp64")
    ours = [Contestant(name, name, interpreted, (subject.folder, name), "cuda") for name in settings.precisions]
    return errors_of(subject.name, ours, exact, sentences, f"{source}; {NOTE}", subject.pool)


def command(settings: Settings, console: Console) -> int:
    """Measure; return the exit status."""
    if not REPAIR.is_file():
        raise FlashElmoError(f"precision: expected a checkout with {REPAIR.name}, found none: run it from there")
    return run_sections("precision", settings, console, {"error": measure_errors}, prepare).finish()


SUITE = Suite(
    "Each precision's error on a CUDA device, computed without one.",
    Settings(sections=("error",), models=("small",), precisions=PRECISIONS, sentences=4, tokens=12, rounds=1),
    ("out", "models", "precisions", "text", "sentences", "tokens", "seed"),
    command,
)
